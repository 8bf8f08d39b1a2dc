"""Candidates in the order of their evaluations."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from ollama_batch._new_file import check_new, new_file
from ollama_batch._sheet import cell
from ollama_batch.aris.evaluation import RATINGS, RECOMMENDATIONS, PraxisEvaluation
from ollama_batch.aris.results import FailedEvaluation, PathLike, Results, read_evaluations
from ollama_batch.errors import ConfigError, InputError

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

    `weights` are those that were used.
    """

    candidates: tuple[RankedCandidate, ...]
    failed: tuple[FailedEvaluation, ...]
    weights: Mapping[str, float]

    def to_csv(self, path: PathLike, *, failed: PathLike | None = None, overwrite: bool = False) -> None:
        """Write the candidates to `path`, and the rows without an evaluation to `failed`: UTF-8, a line each.

        Safe to open in a spreadsheet: text that one could take for a formula begins with an apostrophe there.
        Raises OutputError if a file exists (unless `overwrite`) or cannot be written.
        """
        if failed is not None:
            check_new(Path(failed), overwrite=overwrite)
        _write_csv(Path(path), RankedCandidate, self.candidates, overwrite=overwrite)
        if failed is not None:
            _write_csv(Path(failed), FailedEvaluation, self.failed, overwrite=overwrite)


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
    if isinstance(evaluations, Mapping):
        found: Iterable[tuple[str, PraxisEvaluation] | FailedEvaluation] = evaluations.items()
    else:
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


def _write_csv(path: Path, kind: type[Any], rows: Iterable[Any], *, overwrite: bool) -> None:
    with new_file(path, overwrite=overwrite) as file:
        # The mark at the beginning tells spreadsheets that this is UTF-8.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow([each.name for each in fields(kind)])
        for row in rows:
            table.writerow([_shown(value) for value in astuple(row)])
        text.detach()


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return round(value, 6)
    return cell(value) if isinstance(value, str) else value
