"""What can be said on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ollama_batch._analyze_command import ANALYZE_CODES, add_analyze_options, add_compare_options
from ollama_batch._aris_back_command import ARIS_BACK_CODES
from ollama_batch._aris_back_command import add_options as add_aris_back_options
from ollama_batch._aris_command import ARIS_CODES
from ollama_batch._aris_command import add_options as add_aris_options
from ollama_batch._doctor_command import DOCTOR_CODES, add_options
from ollama_batch._engine_options import add_engine_options
from ollama_batch._notify_option import add_notify_option
from ollama_batch._option_values import concurrency, count, number_or_auto, port
from ollama_batch._parser import Parser
from ollama_batch._serve_command import SERVE_CODES
from ollama_batch._serve_command import add_options as add_serve_options
from ollama_batch._submit_command import SUBMIT_CODES
from ollama_batch._submit_command import add_options as add_submit_options
from ollama_batch._trouble_options import add_trouble_options

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
    "exit codes: 0 every row has exactly one line, ok or failed; 1 lines are missing, extra, doubled,\n\
unreadable, no results or in the wrong file (failed rows belong into the error file, answers\n\
into OUT); 2 wrong usage, or a file cannot be read; 130 interrupted"
)

ERRORS = "failed rows (default: beside OUT, named STEM.errors.jsonl)"

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

    parser = Parser(
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
        "export-failed": _add_export_failed,
        "verify": _add_verify,
        "doctor": _add_doctor,
        "aris": _add_aris,
        "aris-back": _add_aris_back,
        "analyze": _add_analyze,
        "compare": _add_compare,
        "serve": _add_serve,
        "submit": _add_submit,
        "demo": _add_demo,
    }
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in commands.items():
        adders[name](added, command)
    return parser


def _add(
    subparsers: Any,
    name: str,
    command: Command,
    short: str,
    long: str = "",
    *,
    codes: str = EXIT_CODES,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        usage=usage,
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
        usage="%(prog)s IN [IN ...] -o OUT [options]",
    )
    run.add_argument("inputs", nargs="+", metavar="IN", help="files or glob patterns; - reads standard input")
    run.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file, or folder for several inputs"
    )
    run.add_argument("--errors", metavar="F", help=ERRORS)
    run.add_argument("--journal", metavar="F", help="where the run is kept (default: OUT.run.db)")
    run.add_argument("--no-partial", action="store_true", help="no OUT.partial.jsonl while running")

    engine = run.add_argument_group("engine")
    engine.add_argument(
        "--model", metavar="M", help="default: the one that the first row of a file, or of -, names"
    )
    engine.add_argument(
        "--allow-model",
        action="append",
        default=[],
        metavar="M",
        help="rows may name this one too; repeatable",
    )
    engine.add_argument(
        "--ignore-row-models",
        action="store_true",
        help="send every row to --model, whatever it names (--toy does so by itself)",
    )
    add_engine_options(
        run,
        engine,
        key_option="--api-key-env",
        key_help="environment variable that holds the API key",
    )

    asking = run.add_argument_group("requests")
    asking.add_argument(
        "--num-ctx",
        type=number_or_auto,
        default="auto",
        metavar="N|auto",
        help="context length in tokens; of a server that sets its own (--api openai): not sent, told to us",
    )
    asking.add_argument(
        "--max-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="answer limit of rows that set none (default: 1024)",
    )
    asking.add_argument("--temperature", type=float, metavar="T", help="of rows that set none")
    asking.add_argument(
        "--schema", metavar="F", help="JSON schema that every answer must fit; rows are asked for it"
    )
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
    context.add_argument("--lanes", type=count, metavar="N", help="conversations side by side (default: 4)")
    context.add_argument(
        "--trim-every", type=count, metavar="N", help="trim a conversation also after every N answers"
    )
    context.add_argument(
        "--high",
        type=float,
        metavar="X",
        help="trim a conversation beyond this share of its limit (default: 0.875)",
    )
    context.add_argument("--low", type=float, metavar="X", help="down to this share (default: 0.5)")
    context.add_argument(
        "--keep-messages", type=count, metavar="N", help="keep the last N messages instead of --low"
    )
    context.add_argument(
        "--conversation-limit",
        type=count,
        metavar="N",
        help="the limit in tokens (default: --num-ctx less the answer)",
    )

    going = run.add_argument_group("the run")
    going.add_argument(
        "--concurrency",
        type=concurrency,
        default="auto",
        metavar="N|auto|MIN-MAX",
        help="requests out at a time: a number, or one that is found (default), between MIN and MAX if said",
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
        help="begin anew where another run, or a finished one, is in the way (its journal becomes "
        "OUT.run.db.old1), or a foreign file (it is replaced); an unfinished run goes on",
    )
    going.add_argument(
        "--progress",
        choices=("auto", "plain", "none"),
        default="auto",
        help="auto (default): a live bar in a terminal, elsewhere a line now and then",
    )
    going.add_argument(
        "--metrics-port",
        type=port,
        metavar="N",
        help="serve figures for Prometheus on this port of 127.0.0.1 while the run goes on",
    )
    add_notify_option(going)
    add_trouble_options(run)


def _add_status(subparsers: Any, command: Command) -> None:
    what = "say how a run stands, also while it goes on"
    _add_journal(_add(subparsers, "status", command, what, codes=LOOK_CODES))


def _add_watch(subparsers: Any, command: Command) -> None:
    what = "say it whenever it has changed, until the run ends"
    _add_journal(_add(subparsers, "watch", command, what, codes=LOOK_CODES))


def _add_journal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("journal", metavar="RUN.db", help="the journal of the run: OUT.run.db")


def _add_export(subparsers: Any, command: Command) -> None:
    export = _add(
        subparsers, "export", command, "write what is finished so far, in input order", codes=EXPORT_CODES
    )
    _add_journal(export)
    export.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file, or folder for several inputs; while the run is not finished needed, and not its own",
    )
    export.add_argument("--errors", metavar="F", help=ERRORS)
    export.add_argument("--overwrite", action="store_true", help="replace files that are not this run's")
    export.add_argument("--salvage", action="store_true", help="leave damaged rows out instead of stopping")


def _add_export_failed(subparsers: Any, command: Command) -> None:
    export = _add(
        subparsers,
        "export-failed",
        command,
        "write the failed rows as they were given, ready to be run again",
        "Run them with other settings, as a run of their own. What was no valid request is left out.",
        codes=EXPORT_CODES,
    )
    export.add_argument(
        "journal", metavar="RUN.db|DIR", help="the journal of the run: OUT.run.db, or the folder it is in"
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="an input for another run")
    export.add_argument(
        "--code",
        action="append",
        metavar="CODE",
        help="only rows that failed with it, as in context_length_exceeded; repeatable",
    )
    export.add_argument("--overwrite", action="store_true", help="replace FILE")


def _add_verify(subparsers: Any, command: Command) -> None:
    verify = _add(
        subparsers, "verify", command, "check that every input row has exactly one result", codes=VERIFY_CODES
    )
    verify.add_argument("inputs", nargs="+", metavar="IN", help="files or glob patterns")
    verify.add_argument("output", metavar="OUT", help="file, or folder for several inputs")
    verify.add_argument("--errors", metavar="F", help=ERRORS)


def _add_doctor(subparsers: Any, command: Command) -> None:
    what, more = "say what is wrong before hours are spent", "Loads the model, sends short requests."
    add_options(_add(subparsers, "doctor", command, what, more, codes=DOCTOR_CODES))


def _add_aris(subparsers: Any, command: Command) -> None:
    add_aris_options(
        _add(
            subparsers,
            "aris",
            command,
            "make requests that evaluate the candidates of an Aris export",
            "Says what the export has and lacks.",
            codes=ARIS_CODES,
        )
    )


def _add_aris_back(subparsers: Any, command: Command) -> None:
    what = "put evaluations back into their Aris export, and rank the candidates"
    add_aris_back_options(_add(subparsers, "aris-back", command, what, codes=ARIS_BACK_CODES))


def _add_serve(subparsers: Any, command: Command) -> None:
    add_serve_options(
        _add(
            subparsers,
            "serve",
            command,
            "serve OpenAI's files and batches on your own engine",
            "The `openai` SDK works unchanged with base_url set.",
            codes=SERVE_CODES,
            usage="%(prog)s [options]",
        )
    )


def _add_analyze(subparsers: Any, command: Command) -> None:
    add_analyze_options(
        _add(subparsers, "analyze", command, "say what came out of a run, and plot it", codes=ANALYZE_CODES)
    )


def _add_compare(subparsers: Any, command: Command) -> None:
    add_compare_options(
        _add(
            subparsers,
            "compare",
            command,
            "say which answers changed between two runs of the same rows",
            codes=ANALYZE_CODES,
        )
    )


def _add_submit(subparsers: Any, command: Command) -> None:
    add_submit_options(
        _add(
            subparsers,
            "submit",
            command,
            "send a file to a batch server and fetch its results",
            "The same line goes on where it was broken off.",
            codes=SUBMIT_CODES,
        )
    )


def _add_demo(subparsers: Any, command: Command) -> None:
    demo = _add(
        subparsers,
        "demo",
        command,
        "evaluate invented candidates on a real engine with a toy model, no GPU needed",
    )
    demo.add_argument("--folder", default="demo-out", metavar="DIR", help="for its files (default: demo-out)")
    demo.add_argument("--rows", type=count, default=200, metavar="N", help="candidates (default: 200)")
