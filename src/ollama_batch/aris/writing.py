"""Evaluations into the export that their candidates came from, which stays as it is otherwise."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from ollama_batch._new_file import check_apart, check_new, new_file
from ollama_batch._text import count, plain
from ollama_batch.aris._export import Copied, copy_export
from ollama_batch.aris._scan import Candidate
from ollama_batch.aris._store import EvaluationStore, Left, Taken
from ollama_batch.aris.evaluation import PraxisEvaluation
from ollama_batch.aris.results import (
    UNPARSED,
    FailedEvaluation,
    PathLike,
    Results,
    pending_ids,
    read_evaluations,
    result_files,
    still_to_come,
)
from ollama_batch.aris.unevaluated import UnevaluatedCandidate, why_not

_FAILURES: Final = 100
_SHOWN: Final = 10
_NAMELESS: Final = Taken(None, Left.NAMELESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenEvaluations:
    """What `write_evaluations` made of an export. `print` shows it.

    Of its `candidates`, `written` have got their evaluation; `replaced` of these had an earlier one. All
    others are as they were: `failed` have a result that failed, `unparsed` an answer that is no evaluation,
    `missing` no result (with the ids of the first ten), `pending` a row that the run has not answered yet,
    `repeated` the id of a candidate before them, `nameless` no id. `unreadable` counts lines that are no JSON
    object (of a JSONL export), `unmatched` evaluations of no candidate, with the ids of the first ten.
    `failures` has the first hundred rows without an evaluation.
    """

    output: Path
    candidates: int
    written: int
    replaced: int
    failed: int
    unparsed: int
    missing: int
    repeated: int
    nameless: int
    unreadable: int
    unmatched: int
    unmatched_ids: tuple[str, ...]
    failures: tuple[FailedEvaluation, ...]
    missing_ids: tuple[str, ...] = ()
    pending: int = 0

    def __str__(self) -> str:
        told = [f"{self.output}: {count(self.written)} of {count(self.candidates)} candidates evaluated"]
        for number, what in (
            (self.replaced, "of these had an earlier evaluation, which is replaced"),
            (self.failed, "unchanged: the row failed"),
            (self.unparsed, "unchanged: the answer is no evaluation"),
            (self.missing, f"unchanged: there is no result: {_names(self.missing_ids, self.missing)}"),
            (
                self.pending,
                "unchanged: no result yet: the same `ollama-batch run` line goes on, then do this again",
            ),
            (self.repeated, "unchanged: a candidate before has the same id"),
            (self.nameless, "unchanged: there is no id"),
            (self.unreadable, "unchanged: no candidate, a line that is no JSON object"),
            (
                self.unmatched,
                f"without a candidate: {_names(self.unmatched_ids, self.unmatched)}",
            ),
        ):
            if number:
                told.append(f"  {count(number)} {what}")
        return "\n".join(told)


def write_evaluations(
    export: PathLike,
    results: Results,
    out: PathLike,
    *,
    model: type[BaseModel] = PraxisEvaluation,
    overwrite: bool = False,
    unevaluated: Callable[[UnevaluatedCandidate], object] | None = None,
) -> WrittenEvaluations:
    """Write `export` to `out` with the evaluations of `results` as the candidates' `praxisData`.

    Every byte outside those values is that of the export: numbers, key order, white space, unknown fields.
    A candidate without the key gets it as its last. In a candidate that has a key twice, the last
    `aristotleId` counts and every `praxisData` is replaced. A result belongs to the first candidate whose
    `aristotleId` is its `custom_id`; of a number that is the text. `model` is what answers were asked to be,
    where that is not PraxisEvaluation. `unevaluated` is called for each candidate that gets no evaluation,
    in the order of the export, with its id, position and reason.

    Takes a JSON document or JSONL, as such or as gzip; `out` is of the same kind, and gzip if its name ends
    in `.gz`. It appears whole or not at all, readable by its owner only, and may be `export` itself with
    `overwrite`. Memory is bounded by the longest candidate; the answers wait in a temporary file.

    Raises InputError if the export is broken or results contradict each other, OutputError if `out` is a
    file of results, exists (unless `overwrite`) or cannot be written, and DiskFullError where there is no
    room.
    """
    source, place = Path(export), Path(out)
    files = result_files(results)
    check_apart(place, files)
    check_new(place, overwrite=overwrite)
    with EvaluationStore() as store:
        failures = _keep(results, model, store)
        for custom_id in pending_ids(files):
            store.add(custom_id, Left.PENDING)
        complete = still_to_come(files).complete
        counts: Counter[object] = Counter()
        missing: list[str] = []
        copied = Copied()

        def fill(candidate: Candidate) -> bytes | None:
            key = candidate.custom_id
            found = _NAMELESS if key is None else store.take(key)
            if found.evaluation is not None:
                counts["written"] += 1
                counts["replaced"] += candidate.evaluated
                return found.evaluation
            counts[found.left] += 1
            custom_id = None if key is None else key.decode("utf-8", "backslashreplace")
            if found.left is Left.MISSING and custom_id is not None and len(missing) < _SHOWN:
                missing.append(custom_id)
            if unevaluated is not None:
                unevaluated(
                    why_not(copied.at, custom_id, found, earlier=candidate.evaluated, complete=complete)
                )
            return None

        with new_file(place, overwrite=overwrite) as file:
            if place.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    copy_export(source, packed.write, fill, copied)
            else:
                copy_export(source, file.write, fill, copied)
        unmatched, ids = store.untaken(_SHOWN)
    return WrittenEvaluations(
        output=place,
        candidates=copied.candidates,
        written=counts["written"],
        replaced=counts["replaced"],
        failed=counts[Left.FAILED],
        unparsed=counts[Left.UNPARSED],
        missing=counts[Left.MISSING],
        repeated=counts[Left.REPEATED],
        nameless=copied.nameless,
        unreadable=copied.unreadable,
        unmatched=unmatched,
        unmatched_ids=tuple(ids),
        failures=tuple(failures),
        missing_ids=tuple(missing),
        pending=counts[Left.PENDING],
    )


def _keep(results: Results, model: type[BaseModel], store: EvaluationStore) -> list[FailedEvaluation]:
    """Put all results into `store`; returns the first of those without an evaluation."""
    failures: list[FailedEvaluation] = []
    for found in read_evaluations(results, model):
        if not isinstance(found, FailedEvaluation):
            custom_id, evaluation = found
            store.add(custom_id, evaluation.model_dump_json(by_alias=True).encode())
            continue
        if len(failures) < _FAILURES:
            failures.append(found)
        if found.custom_id is not None:
            left = Left.UNPARSED if found.code == UNPARSED else Left.FAILED
            store.add(found.custom_id, left, found.code, found.message)
    return failures


def _names(ids: tuple[str, ...], of: int) -> str:
    return ", ".join(plain(each, 40) for each in ids) + (", ..." if of > len(ids) else "")
