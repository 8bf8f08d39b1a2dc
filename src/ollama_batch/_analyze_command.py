"""The commands `analyze` and `compare`: their options, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ollama_batch._doctor_command import colours

if TYPE_CHECKING:
    from rich.console import Console

ANALYZE_CODES: Final = (
    "exit codes: 0 told, however the rows are; 2 wrong usage, what cannot be read, or a file that is in the\n"
    "way; 130 interrupted"
)
RESULTS: Final = "the journal of a run (OUT.run.db), or result files"


def add_analyze_options(parser: argparse.ArgumentParser) -> None:
    """The options of `analyze`."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help=RESULTS)
    parser.add_argument(
        "--errors", metavar="F", help="failed rows of a result file (default: STEM.errors.jsonl beside it)"
    )
    _add_shared(parser, table="the rows")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.add_argument("run_a", metavar="A", help=f"{RESULTS.removesuffix('s')}")
    parser.add_argument("run_b", metavar="B", help="another of the same rows")
    _add_shared(parser, table="the rows that changed")


def _add_shared(parser: argparse.ArgumentParser, *, table: str) -> None:
    parser.add_argument(
        "--field",
        action="append",
        type=_path,
        metavar="PATH",
        help="count the values of it in the answers, as in recommendation or trajectory.rating; repeatable",
    )
    parser.add_argument("--score", type=_path, metavar="PATH", help="where in the answers a number stands")
    parser.add_argument("--html", metavar="F", help="write a report to look at")
    parser.add_argument("--csv", metavar="F", help=f"write {table}, safe to open in a spreadsheet")
    parser.add_argument("--parquet", metavar="F", help=f"write {table} for pandas, DuckDB ...")
    parser.add_argument("--overwrite", action="store_true", help="replace these files if they are there")
    parser.add_argument("--json", action="store_true", help="print JSON: every figure, times in seconds")


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be a path of the answer, as in recommendation")
    return text


def analyze(arguments: argparse.Namespace) -> int:
    """Analyze, write what was asked for, print, and return the exit code."""
    from ollama_batch.analysis import analyze
    from ollama_batch.analysis.page import show_analysis

    given = arguments.results
    found = analyze(
        given[0] if len(given) == 1 else given,
        fields=arguments.field,
        score=arguments.score,
        errors=arguments.errors or "auto",
    )
    return _tell(found, arguments, lambda console: show_analysis(found, console))


def compare(arguments: argparse.Namespace) -> int:
    """Compare, write what was asked for, print, and return the exit code."""
    from ollama_batch.analysis import compare
    from ollama_batch.analysis.page import show_comparison

    found = compare(arguments.run_a, arguments.run_b, fields=arguments.field, score=arguments.score)
    return _tell(found, arguments, lambda console: show_comparison(found, console))


def _tell(found: Any, arguments: argparse.Namespace, show: Callable[[Console], None]) -> int:
    from rich.console import Console

    from ollama_batch.analysis.page import as_text

    # The tables first: what is missing for the report takes nothing from them.
    written = [
        write(place, overwrite=arguments.overwrite)
        for place, write in (
            (arguments.csv, found.to_csv),
            (arguments.parquet, found.to_parquet),
            (arguments.html, found.to_html),
        )
        if place is not None
    ]
    if arguments.json:
        sys.stdout.write(f"{json.dumps(found.to_dict(), indent=2)}\n")
        return 0
    if sys.stdout.isatty():
        show(Console(highlight=False, no_color=not colours(), force_jupyter=False))
    else:  # a pipe or a file: one line for each thing, whoever reads it breaks lines himself
        sys.stdout.write(f"{as_text(show)}\n")
    for path in written:
        sys.stdout.write(f"{path}\n")
    return 0
