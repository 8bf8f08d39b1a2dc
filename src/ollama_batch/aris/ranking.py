"""Candidates in the order of their evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from ollama_batch._new_file import check_apart, check_new, same_file
from ollama_batch.aris._tables import csv_table
from ollama_batch.aris.evaluation import RATINGS, RECOMMENDATIONS, PraxisEvaluation
from ollama_batch.aris.results import (
    FailedEvaluation,
    PathLike,
    Results,
    read_evaluations,
    result_files,
    still_to_come,
)
from ollama_batch.errors import ConfigError, InputError, OutputError

WEIGHTS: Final[Mapping[str, float]] = {
    "recommendation": 20,
    "educational_pedigree": 1,
    "company_pedigree": 1,
    "trajectory": 1,
    "is_software_engineer": 1,
}
"""What each part of an evaluation counts for; a step of the recommendation more than all others together."""

_STEPS: Final = 4  # from the worst word to the best; false to true is as far


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCandidate:
    """A candidate in a ranking; `rank` 1 is the best, equal scores share one. `score` is from 0 to 1."""

    rank: int
    custom_id: str
    score: float
    recommendation: str
    educational_pedigree: str
    company_pedigree: str
    trajectory: str
    is_software_engineer: bool
    reasoning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The ranked `candidates`, the best first, and apart from them the rows without an evaluation (`failed`).

    `weights` are those that were used. `pending` rows of a run that is not finished have no result yet.
    """

    candidates: tuple[RankedCandidate, ...]
    failed: tuple[FailedEvaluation, ...]
    weights: Mapping[str, float]
    pending: int = 0
    _sources: tuple[Path, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        told = [f"{len(self.candidates):,} candidates, the best first"]
        if not self.candidates:
            told = ["nobody, as there is no evaluation"]
        if self.failed:
            told.append(f"rows without an evaluation: {len(self.failed):,}")
        if self.pending:
            told.append(f"rows without a result yet, as the run is not finished: {self.pending:,}")
        return "; ".join(told)

    def to_csv(self, path: PathLike, *, failed: PathLike | None = None, overwrite: bool = False) -> None:
        """Write the candidates to `path`, and the rows without an evaluation to `failed`: UTF-8, a line each.

        Safe to open in a spreadsheet: text that one could take for a formula begins with an apostrophe there.
        Raises OutputError if a file exists (unless `overwrite`) or cannot be written; also with `overwrite`
        if it is what the ranking was read from, or both are one.
        """
        tables: list[tuple[Path, type[Any], Iterable[Any]]] = [(Path(path), RankedCandidate, self.candidates)]
        if failed is not None:
            tables.append((Path(failed), FailedEvaluation, self.failed))
            if same_file(Path(path), Path(failed)):
                raise OutputError(f"{path} is to be both tables: give failed= another name")
        for place, _, _ in tables:
            check_apart(place, self._sources)
            check_new(place, overwrite=overwrite)
        for place, kind, rows in tables:
            with csv_table(place, kind, overwrite=overwrite) as write:
                for row in rows:
                    write(row)


def rank(
    evaluations: Results | Mapping[str, PraxisEvaluation], weights: Mapping[str, float] | None = None
) -> Ranking:
    """The candidates of `evaluations`, the best first.

    `evaluations` are results as `write_evaluations` takes them, or PraxisEvaluations by id. Recommendation
    and ratings count 0 (Strong No, None) to 4 (Strong Yes, Great), `is_software_engineer` 0 or 4. The score
    is their mean under `weights`, over 4. `weights` changes the names it has and leaves the others: 20 for
    `recommendation`, so that one step of it outweighs all the rest, and 1 for each of these. Scores are
    compared exactly; equal ones share a rank and stand in the order of their ids, so the order of the results
    changes nothing.

    Raises ConfigError for a name that is none, and weights that are negative, not finite or all 0, and
    InputError as `write_evaluations` does.
    """
    exact = _exact(weights)
    total = sum(exact.values()) * _STEPS
    scored: dict[str, tuple[Fraction, RankedCandidate]] = {}
    failed: dict[str | None, list[FailedEvaluation]] = {}
    files: tuple[Path, ...] = ()
    if isinstance(evaluations, Mapping):
        found: Iterable[tuple[str, PraxisEvaluation] | FailedEvaluation] = evaluations.items()
    else:
        files = result_files(evaluations)
        found = read_evaluations(evaluations, PraxisEvaluation)
    for each in found:
        if isinstance(each, FailedEvaluation):
            failed.setdefault(each.custom_id, []).append(each)
            continue
        custom_id, evaluation = each
        steps = _steps(evaluation)
        score = sum((exact[name] * steps[name] for name in exact), Fraction(0)) / total
        candidate = _ranked(custom_id, evaluation, float(score))
        if scored.setdefault(custom_id, (score, candidate))[1] != candidate:
            raise InputError(
                f"the results have two different evaluations of {custom_id!r}: give one run's, or one of them"
            )
    best_first = sorted(scored.values(), key=lambda pair: (-pair[0], pair[1].custom_id))
    placed: list[RankedCandidate] = []
    before: Fraction | None = None
    for number, (score, candidate) in enumerate(best_first, start=1):
        place = placed[-1].rank if score == before else number
        placed.append(replace(candidate, rank=place))
        before = score
    # A row that failed and was run again has been evaluated.
    without = (row for custom_id, rows in failed.items() if custom_id not in scored for row in rows)
    return Ranking(
        candidates=tuple(placed),
        failed=tuple(sorted(without, key=lambda row: (row.custom_id or "", row.code, row.message))),
        weights={name: float(weight) for name, weight in exact.items()},
        pending=still_to_come(files).rows,
        _sources=files,
    )


def _exact(weights: Mapping[str, float] | None) -> dict[str, Fraction]:
    """All weights as they are written: a tenth is a tenth, so that equal scores are equal."""
    exact: dict[str, Fraction] = {}
    for name, weight in {**WEIGHTS, **(weights or {})}.items():
        if name not in WEIGHTS:
            raise ConfigError(f"weights= names {name!r}: the names are {', '.join(WEIGHTS)}")
        try:
            value = Fraction(str(weight))
        except (ValueError, ZeroDivisionError):
            value = Fraction(-1)
        if isinstance(weight, bool | str) or value < 0:
            raise ConfigError(f"weights= has {weight!r} for {name}: must be a number of at least 0")
        exact[name] = value
    if not any(exact.values()):
        raise ConfigError("weights= makes every weight 0: at least one must be more")
    return exact


def _steps(evaluation: PraxisEvaluation) -> dict[str, int]:
    """How many steps each part is above the worst."""
    analysis = evaluation.analysis
    return {
        "recommendation": _STEPS - RECOMMENDATIONS.index(evaluation.recommendation),
        "educational_pedigree": _STEPS - RATINGS.index(analysis.educational_pedigree.rating),
        "company_pedigree": _STEPS - RATINGS.index(analysis.company_pedigree.rating),
        "trajectory": _STEPS - RATINGS.index(analysis.trajectory.rating),
        "is_software_engineer": _STEPS * analysis.is_software_engineer.value,
    }


def _ranked(custom_id: str, evaluation: PraxisEvaluation, score: float) -> RankedCandidate:
    analysis = evaluation.analysis
    return RankedCandidate(
        rank=0,
        custom_id=custom_id,
        score=score,
        recommendation=evaluation.recommendation,
        educational_pedigree=analysis.educational_pedigree.rating,
        company_pedigree=analysis.company_pedigree.rating,
        trajectory=analysis.trajectory.rating,
        is_software_engineer=analysis.is_software_engineer.value,
        reasoning=evaluation.reasoning,
    )
