"""The command `aris-back`: evaluations into the export that they came from, and a ranking of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from ollama_batch.errors import ConfigError

ARIS_BACK_CODES: Final = (
    "exit codes: 0 written; 1 written, but rows failed, are no evaluation, or are of no candidate of the\n"
    "export; 2 wrong usage, a file that is refused or in the way; nothing was written; 130 interrupted"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `aris-back`."""
    parser.add_argument("export", metavar="EXPORT", help="that `aris` has read; stays as it is")
    parser.add_argument("results", metavar="RESULTS", help="the run's journal (OUT.run.db), or a result file")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="the export with evaluations in its praxisData"
    )
    parser.add_argument("--ranking", metavar="F", help="CSV of the candidates, the best first")
    parser.add_argument("--without", metavar="F", help="beside --ranking: CSV of the rows that have none")
    parser.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="NAME=N,...",
        help="of the ranking, as in trajectory=2 (default: recommendation=20, the others 1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _weights(text: str) -> dict[str, float]:
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): float(number) for name, _, number in pairs}


def write_back(arguments: argparse.Namespace) -> int:
    """Write the export and the tables, print what became of everybody, and return the exit code."""
    from ollama_batch._new_file import check_new
    from ollama_batch.aris import rank, write_evaluations

    if arguments.without is not None and arguments.ranking is None:
        raise ConfigError("--without says who is in no ranking: give --ranking as well")
    given = (arguments.output, arguments.ranking, arguments.without)
    places = [Path(place) for place in given if place is not None]
    if len({place.resolve() for place in places}) < len(places):
        raise ConfigError("-o, --ranking and --without must be different files")
    for place in places:
        check_new(place, overwrite=arguments.overwrite)
    ranking = rank(arguments.results, weights=arguments.weights)
    done = write_evaluations(
        arguments.export, arguments.results, arguments.output, overwrite=arguments.overwrite
    )
    lines = [str(done)]
    if arguments.ranking is not None:
        ranking.to_csv(arguments.ranking, failed=arguments.without, overwrite=arguments.overwrite)
        lines.append(f"{arguments.ranking}: {len(ranking.candidates):,} candidates, the best first")
    if arguments.without is not None:
        lines.append(f"{arguments.without}: {len(ranking.failed):,} rows without an evaluation")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if ranking.failed or done.unmatched else 0
