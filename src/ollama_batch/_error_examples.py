"""What a report says of the failed rows of a run, read from its journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ollama_batch._error_groups import IDS, ErrorTally
from ollama_batch.errors import JournalError
from ollama_batch.journal import JournalCounts, RunJournal
from ollama_batch.records import decode_result
from ollama_batch.report import ErrorExample
from ollama_batch.types import ResultRecord, RowRecord

LOOKED_AT: Final = 20_000
"""So many failed rows are read for their messages, which takes about a second."""


@dataclass(slots=True)
class _Code:
    """The rows of a code that were looked at: their messages, the row fields their errors name, and whether
    any of them was a valid request.
    """

    tally: ErrorTally = field(default_factory=ErrorTally)
    params: Counter[str] = field(default_factory=Counter)
    valid: bool = False


def error_examples(journal: RunJournal, counts: JournalCounts, names: Sequence[str]) -> list[ErrorExample]:
    """The failed rows of each code, the most frequent first; messages of the first `LOOKED_AT` of them.

    A damaged row ends the looking: it is named when it is read or exported.
    """
    seen: dict[str, _Code] = {}
    _look(seen, islice(journal.results(ok=False), LOOKED_AT), names)
    for code in counts.codes:
        if code not in seen:
            _look(seen, _first(journal, code), names)
    return [
        _example(code, count, seen.get(code))
        for code, count in sorted(counts.codes.items(), key=lambda item: -item[1])
    ]


def _first(journal: RunJournal, code: str) -> Iterable[tuple[RowRecord, ResultRecord]]:
    try:
        return journal.first_failed(code, count=IDS)
    except JournalError:
        return ()


def _look(
    seen: dict[str, _Code], pairs: Iterable[tuple[RowRecord, ResultRecord]], names: Sequence[str]
) -> None:
    try:
        for row, record in pairs:
            result = decode_result(record, row.custom_id)
            code = seen.setdefault(str(record.code), _Code())
            error = result.error
            code.tally.add(
                record.code,
                None if error is None else error.message,
                result.custom_id or _where(row, names),
                source=names[row.source],
            )
            if error is not None and error.param is not None:
                code.params[error.param] += 1
            # What was no valid request has no id in the journal, whatever its line says.
            code.valid = code.valid or row.custom_id is not None
    except JournalError:
        pass


def _example(code: str, count: int, seen: _Code | None) -> ErrorExample:
    if seen is None:
        return ErrorExample(code=code, count=count)
    kinds = seen.tally.groups()[0].kinds
    return ErrorExample(
        code=code,
        count=count,
        custom_ids=kinds[0].custom_ids,
        message=kinds[0].message,
        valid=seen.valid,
        kinds=kinds,
        params=dict(seen.params),
    )


def _where(row: RowRecord, names: Sequence[str]) -> str:
    name = names[row.source]
    place = f"item {row.line}" if name.startswith("<") else f"line {row.line}"
    return place if len(names) == 1 else f"{name} {place}"
