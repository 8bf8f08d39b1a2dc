"""What can be said on the command line, and the engine it asks for."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_batch._doctor_command import DOCTOR_CODES, add_options
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch.conversation import ConversationPolicy
    from ollama_batch.engines.base import Engine
    from ollama_batch.trim import TrimStrategy

Command = Callable[[argparse.Namespace], int]

EXIT_CODES = "exit codes: 0 every row ok; 1 finished, some rows failed; 2 wrong usage or refused input;\n\
3 stopped, resumable; 130 interrupted, resumable"
LOOK_CODES = "exit codes: 0 told, however the run stands; 2 wrong usage, or no journal that can be read;\n\
130 interrupted (the run itself is not)"
EXPORT_CODES = (
    "exit codes: 0 written, whatever the rows are; 2 wrong usage, a file that is not this run's is in\n\
the way, or the journal cannot be read; 3 no room on the disk; 130 interrupted"
)
VERIFY_CODES = (
    "exit codes: 0 every row has exactly one line, ok or failed; 1 lines are missing, extra, doubled\n\
or unreadable; 2 wrong usage, or a file cannot be read; 130 interrupted"
)

ERRORS = "failed rows (default: beside OUT, named STEM.errors.jsonl)"

TOY = "toy"
THINK: Mapping[str, bool] = {"off": False, "on": True}
STRATEGIES: Mapping[str, str] = {
    "sliding": "SlidingWindowTrim",
    "importance": "ImportanceTrim",
    "hybrid": "HybridTrim",
    "aggressive": "AggressiveTrim",
}


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of `ollama-batch`; the parsed namespace has the chosen one of `commands` as `command`."""
    from ollama_batch import __version__

    parser = argparse.ArgumentParser(
        prog="ollama-batch",
        description="Run chat requests through the GPU you own: durable, resumable, measured.",
        epilog="`ollama-batch COMMAND --help` tells the options and the exit codes of a command.\n\n"
        f"{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    adders = {
        "run": _add_run,
        "status": _add_status,
        "watch": _add_watch,
        "export": _add_export,
        "verify": _add_verify,
        "doctor": _add_doctor,
        "demo": _add_demo,
    }
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        adders[name](added, command)
    return parser


def _add(
    subparsers: Any, name: str, command: Command, short: str, long: str = "", *, codes: str = EXIT_CODES
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=short,
        description=f"{short[0].upper()}{short[1:]}.{long and ' ' + long}",
        epilog=codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_run(subparsers: Any, command: Command) -> None:
    run = _add(
        subparsers,
        "run",
        command,
        "run OpenAI batch files through an engine",
        "After a stop or a crash, the same line goes on.",
    )
    run.add_argument("inputs", nargs="+", metavar="IN", help="files or glob patterns; - reads standard input")
    run.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file, or folder for several inputs"
    )
    run.add_argument("--errors", metavar="F", help=ERRORS)
    run.add_argument("--journal", metavar="F", help="where the run is kept (default: OUT.run.db)")
    run.add_argument("--no-partial", action="store_true", help="no OUT.partial.jsonl while running")

    engine = run.add_argument_group("engine")
    engine.add_argument("--model", metavar="M", help="default: the one that the first row names")
    engine.add_argument(
        "--allow-model",
        action="append",
        default=[],
        metavar="M",
        help="rows may name this one too; repeatable",
    )
    engine.add_argument(
        "--ignore-row-models", action="store_true", help="send every row to --model, whatever it names"
    )
    engine.add_argument("--base-url", metavar="URL", help="default: OLLAMA_HOST, else this machine")
    engine.add_argument(
        "--api",
        choices=("ollama", "openai"),
        help="ollama (default), or openai: vLLM, llama.cpp, LM Studio; needs --base-url",
    )
    engine.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the API key")
    engine.add_argument(
        "--embedded", action="store_true", help="a llama.cpp of our own, no server needed; with --gguf"
    )
    engine.add_argument("--gguf", metavar="F", help="the model file of --embedded")
    engine.add_argument("--toy", action="store_true", help="embedded, with random weights: to try things out")

    asking = run.add_argument_group("requests")
    asking.add_argument(
        "--num-ctx", type=_number_or_auto, default="auto", metavar="N|auto", help="context length in tokens"
    )
    asking.add_argument(
        "--max-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="answer limit of rows that set none (default: 1024)",
    )
    asking.add_argument("--temperature", type=float, metavar="T", help="of rows that set none")
    asking.add_argument("--schema", metavar="F", help="JSON schema of the answers of rows that set no format")
    asking.add_argument(
        "--think",
        choices=("off", "on", "low", "medium", "high", "max"),
        default="off",
        help="whether, and how hard, a reasoning model thinks (default: off)",
    )
    asking.add_argument(
        "--on-length",
        choices=("fail", "keep"),
        default="fail",
        help="answers cut off by their token limit fail (default) or count",
    )

    context = run.add_argument_group("context")
    context.add_argument(
        "--mode",
        choices=("independent", "conversation"),
        default="independent",
        help="independent (default): every row on its own; conversation: rows share growing conversations",
    )
    context.add_argument(
        "--trim",
        choices=tuple(STRATEGIES),
        help="shorten prompts that do not fit (default: their rows fail; in a conversation: hybrid)",
    )
    context.add_argument("--lanes", type=_count, metavar="N", help="conversations side by side (default: 4)")
    context.add_argument(
        "--trim-every", type=_count, metavar="N", help="trim a conversation also after every N answers"
    )

    going = run.add_argument_group("the run")
    going.add_argument(
        "--concurrency", type=_number_or_auto, default="auto", metavar="N|auto", help="requests out at a time"
    )
    going.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for one attempt (default: 600)"
    )
    going.add_argument(
        "--order",
        choices=("prefix", "input"),
        default="prefix",
        help="prefix (default): rows that begin alike together, so that the engine's cache serves them",
    )
    going.add_argument("--deadline", type=float, metavar="S", help="stop, resumably, after so many seconds")
    going.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    going.add_argument(
        "--on-invalid",
        choices=("fail", "skip"),
        default="fail",
        help="invalid rows refuse the whole run (default) or go to the error file",
    )
    going.add_argument(
        "--retry-failed", action="store_true", help="send failed rows of earlier sessions again"
    )
    going.add_argument(
        "--max-failures", type=float, metavar="N", help="stop after more failed rows; below 1: share of all"
    )
    going.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew where another run (its journal becomes OUT.run.db.old1) or a foreign file (it is "
        "replaced) is in the way",
    )
    going.add_argument(
        "--progress",
        choices=("auto", "plain", "none"),
        default="auto",
        help="auto (default): a live bar in a terminal, elsewhere a line now and then",
    )


def _add_status(subparsers: Any, command: Command) -> None:
    status = _add(
        subparsers, "status", command, "say how a run stands, also while it goes on", codes=LOOK_CODES
    )
    status.add_argument("journal", metavar="RUN.db", help="the journal of the run: OUT.run.db")


def _add_watch(subparsers: Any, command: Command) -> None:
    watch = _add(
        subparsers, "watch", command, "say it whenever it has changed, until the run ends", codes=LOOK_CODES
    )
    watch.add_argument("journal", metavar="RUN.db", help="the journal of the run: OUT.run.db")


def _add_export(subparsers: Any, command: Command) -> None:
    export = _add(
        subparsers, "export", command, "write what is finished so far, in input order", codes=EXPORT_CODES
    )
    export.add_argument("journal", metavar="RUN.db", help="the journal of the run: OUT.run.db")
    export.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file, or folder for several inputs; needed while the run is not finished",
    )
    export.add_argument("--errors", metavar="F", help=ERRORS)
    export.add_argument("--overwrite", action="store_true", help="replace files that are not this run's")
    export.add_argument("--salvage", action="store_true", help="leave damaged rows out instead of stopping")


def _add_verify(subparsers: Any, command: Command) -> None:
    verify = _add(
        subparsers, "verify", command, "check that every input row has exactly one result", codes=VERIFY_CODES
    )
    verify.add_argument("inputs", nargs="+", metavar="IN", help="files or glob patterns")
    verify.add_argument("output", metavar="OUT", help="file, or folder for several inputs")
    verify.add_argument("--errors", metavar="F", help=ERRORS)


def _add_doctor(subparsers: Any, command: Command) -> None:
    add_options(
        _add(
            subparsers,
            "doctor",
            command,
            "say what is wrong before hours are spent",
            "Loads the model, sends short requests.",
            codes=DOCTOR_CODES,
        )
    )


def _add_demo(subparsers: Any, command: Command) -> None:
    demo = _add(
        subparsers, "demo", command, "run requests through a real engine with a toy model, no GPU needed"
    )
    demo.add_argument("--folder", default="demo-out", metavar="DIR", help="for its files (default: demo-out)")
    demo.add_argument("--rows", type=_count, default=200, metavar="N", help="requests (default: 200)")


def _number_or_auto(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


# What the options of `run` stand for


def trim_strategy(arguments: argparse.Namespace) -> TrimStrategy | None:
    """The strategy that `--trim` names."""
    if arguments.trim is None:
        return None
    from ollama_batch import trim

    strategy: TrimStrategy = getattr(trim, STRATEGIES[arguments.trim])()
    return strategy


def conversation_policy(arguments: argparse.Namespace) -> ConversationPolicy | None:
    """How conversations are held. Raises ConfigError for options that only conversations have."""
    given = {
        name: value
        for name, value in (("lanes", arguments.lanes), ("every", arguments.trim_every))
        if value is not None
    }
    if arguments.mode == "independent":
        if given:
            raise ConfigError("--lanes and --trim-every are for --mode conversation")
        return None
    from ollama_batch.conversation import ConversationPolicy

    return ConversationPolicy(**given)


def make_engine(arguments: argparse.Namespace, model: str | None) -> Engine:
    """The engine that is asked for; `model` is the name an embedded one answers to.

    Raises ConfigError for options that do not go together, and what the engine's own constructor raises.
    """
    if arguments.toy or arguments.gguf is not None or arguments.embedded:
        return _embedded(arguments, model)
    if arguments.api == "openai":
        from ollama_batch.engines.openai import OpenAIEngine

        if arguments.base_url is None:
            raise ConfigError("--api openai needs --base-url URL, as in http://127.0.0.1:8000/v1")
        return OpenAIEngine(arguments.base_url, api_key=_key(arguments))
    from ollama_batch.engines.ollama import OllamaEngine

    return OllamaEngine(arguments.base_url, api_key=_key(arguments))


def _embedded(arguments: argparse.Namespace, model: str | None) -> Engine:
    for option in ("base_url", "api", "api_key_env"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} is for servers; --embedded, --gguf and --toy bring an engine along")
    if arguments.toy and arguments.gguf is not None:
        raise ConfigError("--toy has a model of its own: leave --gguf or --toy out")
    if not arguments.toy and arguments.gguf is None:
        raise ConfigError("--embedded needs --gguf FILE, or use --toy")
    from ollama_batch.engines.embedded import EmbeddedEngine

    # An embedded engine takes memory for its whole context when it starts, so it is told before.
    room = {} if arguments.num_ctx == "auto" else {"num_ctx": arguments.num_ctx}
    if arguments.toy:
        return EmbeddedEngine.toy(alias=model, **room)
    return EmbeddedEngine(gguf=Path(arguments.gguf), alias=model, **room)


def fallback_model(arguments: argparse.Namespace) -> str:
    """The model where neither an option nor the first row names one."""
    if arguments.toy:
        return TOY
    if arguments.gguf is not None:
        return Path(arguments.gguf).stem
    raise ConfigError("say which model answers, as in --model gemma3:12b")


def body_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Body fields for rows that do not set them. Raises ConfigError for a schema that is none."""
    defaults: dict[str, Any] = {}
    if arguments.temperature is not None:
        defaults["temperature"] = arguments.temperature
    if arguments.schema is not None:
        file = Path(arguments.schema)
        try:
            schema = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--schema {file}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--schema {file}: is not JSON: {error}") from error
        if not isinstance(schema, dict):
            raise ConfigError(f"--schema {file}: a JSON schema is an object, not a {type(schema).__name__}")
        name = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)[:64]
        defaults["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": schema},
        }
    return defaults


def input_paths(paths: Sequence[str]) -> list[Path]:
    """Files and patterns as the library takes them: never prompts, whatever they are called."""
    if "-" in paths:
        raise ConfigError("- (standard input) cannot be used here, or beside other inputs")
    return [Path(path) for path in paths]


def _key(arguments: argparse.Namespace) -> str | None:
    name = arguments.api_key_env
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"--api-key-env {name}: the environment variable {name} is not set")
    return key
