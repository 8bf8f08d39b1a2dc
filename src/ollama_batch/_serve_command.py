"""The command `serve`: its options, and the server they ask for."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ollama_batch._engine_options import add_engine_options, make_engine
from ollama_batch._guard_options import guards_asked
from ollama_batch._option_values import concurrency
from ollama_batch._restart_option import supervisor_asked
from ollama_batch._spelling import StandardError
from ollama_batch._trouble_options import add_trouble_options
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch.engines.base import Engine

SERVE_CODES: Final = (
    "exit codes: 0 asked to stop, and did; 2 wrong usage, an address or a data folder that is taken.\n"
    "Batches go on when it is started again, whatever ended it"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="default: 127.0.0.1, this machine alone"
    )
    parser.add_argument("--port", type=int, default=8080, metavar="P", help="default: 8080")
    parser.add_argument(
        "--data", default="ollama-batch-server", metavar="DIR", help="for its files (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="environment variable with the keys that clients need, separated by commas; needed for a --host "
        "that others reach",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--model", metavar="M", help="answers lines that name no model; an embedded one answers to this name"
    )
    add_engine_options(
        parser,
        engine,
        key_option="--engine-key-env",
        key_help="environment variable that holds the key of the engine",
    )
    batches = parser.add_argument_group("batches")
    batches.add_argument(
        "--num-ctx",
        default="auto",
        metavar="N|auto",
        help="context length in tokens (default: what lines need)",
    )
    batches.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="answer limit of lines that set none"
    )
    batches.add_argument(
        "--concurrency",
        type=concurrency,
        default="auto",
        metavar="N|auto|MIN-MAX",
        help="requests out at a time: a number, or one that is found (default), between MIN and MAX if said",
    )
    batches.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for one attempt (default: 600)"
    )
    batches.add_argument("--mixed-models", action="store_true", help="a batch may name several models")
    batches.add_argument(
        "--max-lines", type=int, default=50_000, metavar="N", help="of a batch (default: 50000)"
    )
    batches.add_argument(
        "--max-file-mb", type=int, default=200, metavar="N", help="of a file, in MiB (default: 200)"
    )
    add_trouble_options(parser)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until stopped, and return the exit code."""
    from ollama_batch._asked import fallback_model
    from ollama_batch._portal import portal
    from ollama_batch.server import ServerSettings, create_app
    from ollama_batch.server.keys import parse_keys

    keys: list[str] = []
    if arguments.api_key_env is not None:
        keys = parse_keys(os.environ.get(arguments.api_key_env, ""))
        if not keys:
            raise ConfigError(f"--api-key-env {arguments.api_key_env}: the environment variable holds no key")
    num_ctx = arguments.num_ctx = _number_or_auto(arguments, "num_ctx")
    own = arguments.toy or arguments.gguf is not None
    model = (arguments.model or fallback_model(arguments)) if own else arguments.model
    engine = make_engine(arguments, model)
    try:
        settings = ServerSettings(
            num_ctx=num_ctx,
            default_model=model,
            max_lines=arguments.max_lines,
            max_file_bytes=arguments.max_file_mb * 2**20,
            mixed_models=arguments.mixed_models,
            runner=_runner_options(arguments, engine),
        )
        app = create_app(Path(arguments.data), engine=engine, keys=keys, settings=settings)
        _serve(app, engine, arguments)
    finally:
        portal().call(engine.aclose())
    return 0


def _runner_options(arguments: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    """What the run of every batch is made with. Raises ConfigError, before any batch meets it."""
    from ollama_batch.runner import BatchRunner

    options = {
        "max_tokens": arguments.max_tokens,
        "concurrency": arguments.concurrency,
        "timeout": arguments.timeout,
        "load_timeout": arguments.load_timeout,
        "recover_timeout": arguments.recover_timeout,
        "guards": guards_asked(arguments),
        "supervisor": supervisor_asked(arguments, address=engine.address),
    }
    BatchRunner(model="any", engine=engine, num_ctx=arguments.num_ctx, **options)
    return options


def _serve(app: Any, engine: Any, arguments: argparse.Namespace) -> None:
    from ollama_batch.server.serving import serve as serve_app

    def announce(port: int) -> None:
        where = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        sys.stdout.write(f"serving http://{where}:{port}/v1 from {arguments.data}, engine {engine.address}\n")
        sys.stdout.flush()

    with _logged():
        serve_app(app, host=arguments.host, port=arguments.port, announce=announce)


@contextmanager
def _logged() -> Iterator[None]:
    """The log on standard error, each line with its time; what becomes of batches is told, too."""
    ours = logging.getLogger("ollama_batch")
    server = logging.getLogger("ollama_batch.server")
    handler = StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = server.level, ours.propagate
    ours.addHandler(handler)
    server.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        server.setLevel(before[0])
        ours.propagate = before[1]


def _number_or_auto(arguments: argparse.Namespace, name: str) -> Any:
    text: str = getattr(arguments, name)
    if text == "auto":
        return text
    if not text.isdecimal():
        raise ConfigError(f"--{name.replace('_', '-')} {text}: is neither a whole number nor auto")
    return int(text)
