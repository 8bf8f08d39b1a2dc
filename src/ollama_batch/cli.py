"""The command line: calls the library and prints.

Exit codes: 0 every row ok; 1 finished, some rows failed; 2 wrong usage or refused input; 3 stopped,
resumable; 130 interrupted, resumable. 70 is a fault of this program.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO, cast

from ollama_batch._analyze_command import analyze, compare
from ollama_batch._arguments import THINK as THINK_LEVELS
from ollama_batch._arguments import make_parser
from ollama_batch._aris_back_command import write_back
from ollama_batch._aris_command import convert
from ollama_batch._asked import (
    StandardInput,
    body_defaults,
    conversation_policy,
    fallback_model,
    input_paths,
    metrics_hooks,
    model_of_first_row,
    response_model,
    row_models,
    trim_strategy,
)
from ollama_batch._doctor_command import doctor
from ollama_batch._engine_options import api_key, make_engine
from ollama_batch._guard_options import guards_asked
from ollama_batch._notify_option import notice_hooks
from ollama_batch._restart_option import supervisor_asked
from ollama_batch._serve_command import serve
from ollama_batch._spelling import StandardError, as_options
from ollama_batch._status_command import state_line, status, watch
from ollama_batch._submit_command import submit
from ollama_batch.errors import (
    ConfigError,
    DiskFullError,
    EngineAuthError,
    EngineError,
    InputChangedError,
    ModelNotFoundError,
    OllamaBatchError,
    RequestRejectedError,
    RunInterrupted,
    RunStoppedError,
)

if TYPE_CHECKING:
    from ollama_batch.conversation import ConversationPolicy
    from ollama_batch.hooks.prometheus import PrometheusHook
    from ollama_batch.sources import Source

OK, SOME_FAILED, REFUSED, STOPPED, FAULT, INTERRUPTED = 0, 1, 2, 3, 70, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own by default) and return its exit code."""
    commands = {
        "run": _run,
        "status": status,
        "watch": watch,
        "export": _export,
        "export-failed": _export_failed,
        "verify": _verify,
        "doctor": _doctor,
        "aris": convert,
        "aris-back": write_back,
        "analyze": analyze,
        "compare": compare,
        "serve": serve,
        "submit": submit,
        "demo": _demo,
    }
    arguments = make_parser(commands).parse_args(argv)
    _prepare_streams()
    try:
        code: int = arguments.command(arguments)
        return code
    except (RunInterrupted, KeyboardInterrupt) as error:
        _print_report(getattr(error, "report", None))
        _complain(str(error) or "interrupted")
        return INTERRUPTED
    except OllamaBatchError as error:
        _print_report(getattr(error, "report", None))
        _complain(str(error))
        return exit_code(error)
    except BrokenPipeError:
        _forget(sys.stdout)  # whoever read it has seen enough
        return OK
    except Exception:
        traceback.print_exc()
        _complain("this is a fault of ollama-batch; the rows that were done are in the journal")
        return FAULT


def exit_code(error: OllamaBatchError) -> int:
    """3 for what may go on by running again, 2 for what the caller has to change first."""
    if isinstance(error, ModelNotFoundError | EngineAuthError | RequestRejectedError):
        return REFUSED
    if isinstance(error, RunStoppedError | EngineError | InputChangedError | DiskFullError):
        return STOPPED
    return REFUSED


def _run(arguments: Namespace) -> int:
    policy = conversation_policy(arguments)
    with StandardInput() if arguments.inputs == ["-"] else nullcontext() as stdin:
        return _run_with(arguments, policy, stdin)


def _run_with(arguments: Namespace, policy: ConversationPolicy | None, stdin: StandardInput | None) -> int:
    from ollama_batch.runner import BatchRunner

    model, where = arguments.model, ""
    if model is None:
        model, where = model_of_first_row(arguments.inputs) if stdin is None else stdin.model_of_first_row()
    engine = make_engine(arguments, model)
    figures: Sequence[PrometheusHook] = ()
    try:
        figures = metrics_hooks(arguments)
        runner: BatchRunner = BatchRunner(
            model=model or fallback_model(arguments),
            engine=engine,
            defaults=body_defaults(arguments),
            num_ctx=arguments.num_ctx,
            max_tokens=arguments.max_tokens,
            think=THINK_LEVELS.get(arguments.think, arguments.think),
            response_model=response_model(arguments),
            mode=arguments.mode,
            conversation=policy,
            trim=trim_strategy(arguments),
            allow_models=arguments.allow_model,
            row_models=row_models(arguments),
            order=arguments.order,
            concurrency=arguments.concurrency,
            guards=guards_asked(arguments),
            timeout=arguments.timeout,
            load_timeout=arguments.load_timeout,
            recover_timeout=arguments.recover_timeout,
            supervisor=supervisor_asked(arguments, address=engine.address),
            on_length=arguments.on_length,
            hooks=(*figures, *notice_hooks(arguments)),
            progress=arguments.progress,
        )
        report = runner.run(
            input_paths(arguments.inputs) if stdin is None else cast("IO[bytes]", stdin),
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
    except ModelNotFoundError as error:
        if not where:
            raise
        raise ModelNotFoundError(
            f"{error}\n{model!r} is what {where} names: another model is given with "
            "--model M --ignore-row-models",
            status=error.status,
        ) from error
    finally:
        asyncio.run(engine.aclose())
        for hook in figures:
            hook.close()
    _print_report(report)
    return OK if report.ok else SOME_FAILED


def _export(arguments: Namespace) -> int:
    from ollama_batch.journal import RunJournal

    with RunJournal.open_readonly(arguments.journal) as journal:
        if arguments.output is None and journal.state != "finished":
            # A file of ours that the run does not know would be in its way when it goes on.
            raise ConfigError(
                f"the run has not finished ({state_line(journal)}), and writes its own output when it has: "
                "to see what is done so far, say where to with -o"
            )
        for number, (output, errors) in enumerate(_export_places(arguments, journal.get("places") or [{}])):
            written = journal.export(
                number, output, errors, strict=not arguments.salvage, overwrite=arguments.overwrite
            )
            print(f"{written.output}: {written.ok:,} rows")
            if written.errors is not None:
                print(f"{written.errors}: {written.failed:,} failed rows")
    return OK


def _export_failed(arguments: Namespace) -> int:
    from ollama_batch.failed import export_failed

    written = export_failed(
        arguments.journal, arguments.output, codes=arguments.code, overwrite=arguments.overwrite
    )
    if written.rows == 0:
        print("no failed rows: nothing was written")
    elif written.rows == 1:
        print(f"{written.output}: 1 failed row, as it was given")
    else:
        print(f"{written.output}: {written.rows:,} failed rows, as they were given")
    if written.invalid == 1:
        print("1 line that was no valid request is left out")
    elif written.invalid:
        print(f"{written.invalid:,} lines that were no valid requests are left out")
    return OK


def _export_places(
    arguments: Namespace, places: Sequence[dict[str, str | None]]
) -> Iterator[tuple[Path, Path]]:
    """Output and error file of every source: those of the run, or where `-o` says."""
    folder = arguments.output is not None and Path(arguments.output).is_dir()
    if len(places) > 1 and (arguments.errors is not None or (arguments.output is not None and not folder)):
        raise ConfigError(f"this run has {len(places)} outputs: give -o a folder for them, without --errors")
    for number, place in enumerate(places):
        own = place.get("output")
        if folder:
            output = Path(arguments.output) / (Path(own).name if own else f"{number}.results.jsonl")
        elif arguments.output is not None:
            output = Path(arguments.output)
        elif own is not None:
            output = Path(own)
        else:
            raise ConfigError("this run has no output of its own: say where to with -o")
        known = place.get("errors") if arguments.output is None else None
        beside = output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.jsonl")
        yield output, Path(arguments.errors or known or beside)


def _verify(arguments: Namespace) -> int:
    from ollama_batch._outputs import plan_places
    from ollama_batch.journal import verify
    from ollama_batch.sources import open_sources

    sources = open_sources(input_paths(arguments.inputs))
    names = [source.name for source in sources]
    places = plan_places(names, output=arguments.output, errors=arguments.errors).sources
    all_ok = True
    for source, place in zip(sources, places, strict=True):
        assert place.output is not None  # noqa: S101 - an output is always given
        report = verify(_ids(source), place.output, place.errors)
        print(report if len(sources) == 1 else f"{place.output}: {report}")
        all_ok = all_ok and report.ok
    return OK if all_ok else SOME_FAILED


def _doctor(arguments: Namespace) -> int:
    return doctor(arguments, api_key=api_key("--api-key-env", arguments.api_key_env))


def _demo(arguments: Namespace) -> int:
    from ollama_batch._demo import run_demo

    return run_demo(Path(arguments.folder), rows=arguments.rows)


def _ids(source: Source) -> Iterator[str | None]:
    """The custom_id of every row of a file, None where it has none."""
    from ollama_batch.sources import FileSource

    if not isinstance(source, FileSource):
        raise ConfigError(f"{source.name} is no regular file: verify reads the input once more")
    return (row.custom_id for row in source.scan())


def _print_report(report: object) -> None:
    """Print to standard output."""
    if report is not None:
        _say(as_options(str(report)), sys.stdout)


def _complain(message: str) -> None:
    _say(f"ollama-batch: {as_options(message)}", sys.stderr)


def _say(text: str, stream: TextIO) -> None:
    """Print; a reader or a terminal that has gone does not change how the run ended."""
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        _forget(stream)


def _prepare_streams() -> None:
    """Text that a stream's encoding lacks is escaped; log lines go where standard error is at the time, and
    begin with the time of day.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = StandardError(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _forget(stream: TextIO) -> None:
    # Python flushes it once more at its exit, which must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
