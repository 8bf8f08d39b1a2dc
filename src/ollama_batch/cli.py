"""The command line: parses, calls the library, prints.

Exit codes: 0 every row ok; 1 finished, some rows failed; 2 wrong usage or refused input; 3 stopped,
resumable; 130 interrupted, resumable.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_batch.errors import (
    ConfigError,
    EngineAuthError,
    EngineError,
    InputChangedError,
    InputError,
    JournalError,
    MissingExtraError,
    ModelNotFoundError,
    OllamaBatchError,
    OutputError,
    RunInterrupted,
    RunStoppedError,
)

if TYPE_CHECKING:
    from ollama_batch.engines.base import Engine

OK, SOME_FAILED, REFUSED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130

WATCH_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own by default) and return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        code: int = arguments.command(arguments)
        return code
    except (RunInterrupted, KeyboardInterrupt) as error:
        _say_report(error)
        _complain(str(error) or "interrupted")
        return INTERRUPTED
    except RunStoppedError as error:
        _say_report(error)
        _complain(str(error))
        return STOPPED
    except OllamaBatchError as error:
        _complain(str(error))
        return exit_code(error)


def exit_code(error: OllamaBatchError) -> int:
    """2 for what the caller must change first, 3 for what may go on by running again."""
    refused = (
        ConfigError | MissingExtraError | OutputError | JournalError | ModelNotFoundError | EngineAuthError
    )
    if isinstance(error, InputChangedError) or (
        isinstance(error, EngineError) and not isinstance(error, refused)
    ):
        return STOPPED
    if isinstance(error, JournalError) and type(error).__name__ == "DiskFullError":
        return STOPPED
    return REFUSED if isinstance(error, refused | InputError) else STOPPED


def _run(arguments: argparse.Namespace) -> int:
    from ollama_batch.runner import BatchRunner

    engine = _engine(arguments)
    try:
        runner = BatchRunner(
            model=arguments.model or _default_model(arguments),
            engine=engine,
            defaults=_defaults(arguments),
            num_ctx=arguments.num_ctx,
            max_tokens=arguments.max_tokens,
            think=_think(arguments.think),
            concurrency=arguments.concurrency,
            timeout=arguments.timeout,
            on_length=arguments.on_length,
            progress=arguments.progress,
        )
        report = runner.run(
            _inputs(arguments.inputs),
            output=arguments.output,
            errors=arguments.errors,
            journal="auto" if arguments.journal is None else arguments.journal,
            partial=not arguments.no_partial,
            on_invalid=arguments.on_invalid,
            retry_failed=arguments.retry_failed,
            max_failures=arguments.max_failures,
            deadline=arguments.deadline,
            limit=arguments.limit,
            overwrite=arguments.overwrite,
        )
    finally:
        if engine is not None:
            asyncio.run(engine.aclose())
    print(report)
    return OK if report.ok else SOME_FAILED


def _status(arguments: argparse.Namespace) -> int:
    from ollama_batch.journal import RunJournal

    with RunJournal.open_readonly(arguments.journal) as journal:
        print(_state_line(journal))
        codes = journal.counts().codes
    for code, count in sorted(codes.items(), key=lambda item: -item[1]):
        print(f"  {count:>9,}  {code}")
    return OK


def _watch(arguments: argparse.Namespace) -> int:
    from ollama_batch.journal import RunJournal

    with RunJournal.open_readonly(arguments.journal) as journal:
        while True:
            print(_state_line(journal), flush=True)
            if journal.state != "running":
                return OK
            time.sleep(WATCH_S)


def _export(arguments: argparse.Namespace) -> int:
    from ollama_batch.journal import RunJournal

    with RunJournal.open_readonly(arguments.journal) as journal:
        places = journal.get("places") or []
        if arguments.output is not None and len(places) > 1:
            raise ConfigError(
                f"this run has {len(places)} outputs; leave -o out to write each where it belongs"
            )
        for number, place in enumerate(places or [{}]):
            output = arguments.output or place.get("output")
            if output is None:
                raise ConfigError("this run has no output of its own: say where to with -o")
            errors = arguments.errors or (place.get("errors") if arguments.output is None else None)
            written = journal.export(
                number,
                Path(output),
                Path(errors) if errors else Path(f"{str(output).removesuffix('.jsonl')}.errors.jsonl"),
                strict=not arguments.salvage,
                overwrite=arguments.overwrite,
            )
            print(
                f"{written.output}: {written.ok:,} rows; "
                f"{written.errors or 'no error file'}: {written.failed:,} rows"
            )
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    from ollama_batch.journal.verify import verify

    report = verify(_ids(arguments.inputs), Path(arguments.output), _errors_path(arguments))
    print(report)
    return OK if report.ok else SOME_FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from ollama_batch._demo import run_demo

    return run_demo(Path(arguments.folder), rows=arguments.rows)


def _engine(arguments: argparse.Namespace) -> Engine | None:
    if arguments.embedded or arguments.gguf or arguments.toy:
        from ollama_batch.engines.embedded import EmbeddedEngine

        if arguments.toy:
            return EmbeddedEngine.toy()
        if arguments.gguf is None:
            raise ConfigError("--embedded needs --gguf FILE, or --toy")
        return EmbeddedEngine(gguf=Path(arguments.gguf))
    if arguments.api == "openai":
        from ollama_batch.engines.openai import OpenAIEngine

        if arguments.base_url is None:
            raise ConfigError("--api openai needs --base-url URL")
        return OpenAIEngine(arguments.base_url, api_key=_key(arguments))
    from ollama_batch.engines.ollama import OllamaEngine

    return OllamaEngine(arguments.base_url, api_key=_key(arguments))


def _default_model(arguments: argparse.Namespace) -> str:
    if arguments.toy:
        return "toy"
    if arguments.gguf:
        return Path(arguments.gguf).stem
    raise ConfigError("say which model answers: --model gemma3:12b")


def _key(arguments: argparse.Namespace) -> str | None:
    import os

    name = arguments.api_key_env
    if name is None:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"--api-key-env {name}: the environment variable {name} is not set")
    return os.environ[name]


def _defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    import json

    defaults: dict[str, Any] = {}
    if arguments.temperature is not None:
        defaults["temperature"] = arguments.temperature
    if arguments.schema is not None:
        try:
            schema = json.loads(Path(arguments.schema).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--schema {arguments.schema}: {error}") from error
        name = Path(arguments.schema).stem
        defaults["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": schema},
        }
    return defaults


def _think(level: str) -> Any:
    return {"off": False, "on": True}.get(level, level)


def _inputs(paths: Sequence[str]) -> Any:
    if list(paths) == ["-"]:
        return sys.stdin.buffer
    return paths[0] if len(paths) == 1 else list(paths)


def _ids(paths: Sequence[str]) -> Iterator[str]:
    from ollama_batch._items import ScannedRow
    from ollama_batch.sources import FileSource, open_sources

    for source in open_sources(_inputs(paths)):
        assert isinstance(source, FileSource)  # noqa: S101 - paths open as files
        for item in source.scan():
            if isinstance(item, ScannedRow):
                yield item.custom_id


def _errors_path(arguments: argparse.Namespace) -> Path:
    if arguments.errors is not None:
        return Path(arguments.errors)
    output = Path(arguments.output)
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.jsonl")


def _state_line(journal: Any) -> str:
    counts = journal.counts()
    known = journal.get("intake") is not None
    total = f"{counts.rows:,}" if known else f"{counts.rows:,} so far"
    return (
        f"{journal.state}: {counts.done:,} of {total} rows done, {counts.ok:,} ok, "
        f"{counts.failed:,} failed, {counts.pending:,} left (run {journal.run_id[:8]})"
    )


def _say_report(error: BaseException) -> None:
    report = getattr(error, "report", None)
    if report is not None:
        print(report)


def _complain(message: str) -> None:
    print(f"ollama-batch: {message}", file=sys.stderr)


def _number_or_auto(text: str) -> Any:
    return "auto" if text == "auto" else int(text)


def _parser() -> argparse.ArgumentParser:
    from ollama_batch import __version__

    parser = argparse.ArgumentParser(
        prog="ollama-batch",
        description="Run chat requests through the GPU you own: durable, resumable, measured.",
        epilog="exit codes: 0 all rows ok; 1 some failed; 2 refused; 3 stopped, resumable; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run OpenAI batch files through an engine"))

    status = commands.add_parser("status", help="how a run stands, also while it goes on")
    status.set_defaults(command=_status)
    watch = commands.add_parser("watch", help="the same every two seconds until the run ends")
    watch.set_defaults(command=_watch)
    for each in (status, watch):
        each.add_argument("journal", metavar="RUN.db")

    export = commands.add_parser("export", help="write what is finished so far, in input order")
    export.set_defaults(command=_export)
    export.add_argument("journal", metavar="RUN.db")
    export.add_argument("-o", "--output", metavar="OUT", help="default: the output of the run")
    export.add_argument("--errors", metavar="F")
    export.add_argument("--overwrite", action="store_true", help="replace files that are not this run's")
    export.add_argument("--salvage", action="store_true", help="leave damaged rows out instead of stopping")

    verify = commands.add_parser("verify", help="check that every input row has exactly one result")
    verify.set_defaults(command=_verify)
    verify.add_argument("inputs", nargs="+", metavar="IN")
    verify.add_argument("output", metavar="OUT")
    verify.add_argument("--errors", metavar="F", help="default: OUT.errors.jsonl beside the output")

    demo = commands.add_parser("demo", help="200 requests through a toy model, to see how it looks")
    demo.set_defaults(command=_demo)
    demo.add_argument("--folder", default="demo-out", metavar="DIR")
    demo.add_argument("--rows", type=int, default=200, metavar="N")
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.set_defaults(command=_run)
    run.add_argument("inputs", nargs="+", metavar="IN", help="files or globs; - reads standard input")
    run.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file, or folder for several inputs"
    )
    run.add_argument("--errors", metavar="F", help="failed rows (default: OUT.errors.jsonl)")
    run.add_argument("--journal", metavar="F", help="where the run is kept (default: OUT.run.db)")
    run.add_argument("--no-partial", action="store_true", help="no OUT.partial.jsonl while running")

    engine = run.add_argument_group("engine")
    engine.add_argument("--model", metavar="M")
    engine.add_argument("--base-url", metavar="URL", help="default: OLLAMA_HOST, else this machine")
    engine.add_argument("--api", choices=("ollama", "openai"), default="ollama")
    engine.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the API key")
    engine.add_argument("--embedded", action="store_true", help="llama.cpp inside: with --gguf or --toy")
    engine.add_argument("--gguf", metavar="F")
    engine.add_argument("--toy", action="store_true", help="random weights: to try things out")

    asking = run.add_argument_group("requests")
    asking.add_argument("--num-ctx", type=_number_or_auto, default="auto", metavar="N|auto")
    asking.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="of rows that set none")
    asking.add_argument("--temperature", type=float, metavar="T", help="of rows that set none")
    asking.add_argument("--schema", metavar="F", help="JSON schema of the answers of rows that set no format")
    asking.add_argument("--think", choices=("off", "on", "low", "medium", "high", "max"), default="off")
    asking.add_argument(
        "--on-length", choices=("fail", "keep"), default="fail", help="answers cut off by their token limit"
    )

    going = run.add_argument_group("the run")
    going.add_argument("--concurrency", type=_number_or_auto, default="auto", metavar="N|auto")
    going.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one attempt")
    going.add_argument("--deadline", type=float, metavar="S", help="stop, resumably, after so many seconds")
    going.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    going.add_argument("--on-invalid", choices=("fail", "skip"), default="fail")
    going.add_argument(
        "--retry-failed", action="store_true", help="send failed rows of earlier sessions again"
    )
    going.add_argument("--max-failures", type=float, metavar="N", help="number of rows, or share below 1")
    going.add_argument("--overwrite", action="store_true", help="begin anew where something is in the way")
    going.add_argument("--progress", choices=("auto", "plain", "none"), default="auto")


if __name__ == "__main__":
    sys.exit(main())
