"""The command `aris-back`: evaluations into the export that they came from, and a ranking of them."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Final

from ollama_batch.errors import ConfigError

ARIS_BACK_CODES: Final = (
    "exit codes: 0 written; 1 written, but rows failed, are no evaluation, are of no candidate of the\n"
    "export, or the run has not finished; 2 wrong usage, a file that is refused or in the way; nothing was\n"
    "written; 130 interrupted"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `aris-back`."""
    parser.add_argument("export", metavar="EXPORT", help="that `aris` has read; stays as it is")
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="the run's journal (OUT.run.db), or a result file (the OUT.errors.jsonl beside a single one is "
        "read as well); several of either, as of the parts of a --split",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the export with evaluations in its praxisData"
    )
    parser.add_argument("--ranking", metavar="F", help="CSV of the candidates, the best first")
    parser.add_argument(
        "--without", metavar="F", help="CSV of all candidates that got no evaluation, and why"
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="NAME=N,...",
        help="of the ranking, as in trajectory=2 (default: recommendation=20, the others 1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for part in filter(str.strip, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is not of the form NAME=NUMBER") from None
    return weights


def write_back(arguments: argparse.Namespace) -> int:
    """Write the export and the tables, print what became of everybody, and return the exit code."""
    from ollama_batch._new_file import check_apart, check_new, same_file
    from ollama_batch.aris import UnevaluatedCandidate, rank, write_evaluations
    from ollama_batch.aris._tables import csv_table
    from ollama_batch.aris.results import result_files

    export, output, overwrite = Path(arguments.export), Path(arguments.output), arguments.overwrite
    results = arguments.results if len(arguments.results) > 1 else arguments.results[0]
    tables = [Path(place) for place in (arguments.ranking, arguments.without) if place is not None]
    places = [output, *tables]
    if any(same_file(one, other) for one, other in combinations(places, 2)):
        raise ConfigError("-o, --ranking and --without must be different files")
    for place in places:
        # Of the inputs, only the export may be replaced, by what is made of it.
        check_apart(place, [*result_files(results), *([export] if place in tables else [])])
        check_new(place, overwrite=overwrite)
    ranking = rank(results, weights=arguments.weights)
    without = arguments.without
    table = csv_table(Path(without), UnevaluatedCandidate, overwrite=overwrite) if without else nullcontext()
    with table as row:
        done = write_evaluations(export, results, output, overwrite=overwrite, unevaluated=row)
    lines = [str(done)]
    if arguments.ranking is not None:
        ranking.to_csv(arguments.ranking, overwrite=overwrite)
        lines.append(f"{arguments.ranking}: {ranking}")
    if without is not None:
        left = f"{done.candidates - done.written:,} candidates"
        lines.append(f"{without}: {left} without an evaluation, and why")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if ranking.failed or done.unmatched or done.pending else 0
