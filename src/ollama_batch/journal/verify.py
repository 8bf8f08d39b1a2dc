"""Whether every input row has exactly one result: an answer in the output, or an error in the error file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from ollama_batch.errors import OutputError

_BATCH = 1000
_OK = 200
_UNNAMED = "(a row without a custom_id)"


@dataclass(frozen=True, slots=True)
class Found:
    """How many were found, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What is wrong with the output of a run; `ok` if nothing is. `failed` of its `lines` are failed rows.

    `missing`: input ids without a result. `extra`: ids of results that are not in the input. `doubled`: ids
    with more than one result, in one file or in both. `unreadable`: lines that are not JSON objects with a
    custom_id, as "file:line". `no_result`: lines with neither an answer nor an error, such as a request, as
    "file:line custom_id". `misplaced`, likewise: failed rows in the output file, which is for answers alone,
    and answers in the error file. An id that the input itself has twice has two lines, a row without an id a
    line without one.
    """

    rows: int
    lines: int
    failed: int
    missing: Found
    extra: Found
    doubled: Found
    unreadable: Found
    no_result: Found = Found()
    misplaced: Found = Found()

    @property
    def ok(self) -> bool:
        """Whether every input row has exactly one line, where it belongs, and there is nothing else."""
        return not any(getattr(self, name).count for name in _PROBLEMS)

    def __str__(self) -> str:
        answers = self.lines - self.failed - self.unreadable.count - self.no_result.count
        how = f"{self.rows} rows, {self.lines} lines ({answers} ok, {self.failed} failed)"
        if self.ok:
            return f"{how}: every row has exactly one"
        told = [how]
        for name, said in _PROBLEMS.items():
            found: Found = getattr(self, name)
            if found.count:
                more = f" and {found.count - len(found.first)} more" if found.count > len(found.first) else ""
                told.append(f"{said}: {found.count} ({', '.join(found.first)}{more})")
        return "\n".join(told)


_PROBLEMS = {
    "missing": "missing",
    "extra": "extra",
    "doubled": "doubled",
    "unreadable": "unreadable",
    "no_result": "no result",
    "misplaced": "in the wrong file (failed rows in the output, or answers among the failed)",
}
"""The fields of a report that tell what is wrong, and what they are called when they are told."""


def verify(
    ids: Iterable[str | None], output: Path, errors: Path | None = None, *, first: int = 10
) -> VerifyReport:
    """Compare the custom_ids of the input with the results in `output` and `errors`; memory is bounded.

    A result has the form of OpenAI's result files. One with status 200, a body and no error is an answer, and
    belongs into `output`; one with an error or another status is a failed row, and belongs into `errors`.

    `ids` has one for every row of the input, None for a row without. An `errors` file that does not exist
    counts as empty. Raises OutputError if a file cannot be read.
    """
    con = sqlite3.connect("", isolation_level=None)
    try:
        con.execute("PRAGMA synchronous = OFF")
        con.execute("PRAGMA journal_mode = OFF")
        con.execute("CREATE TABLE input (id TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID")
        con.execute("CREATE TABLE line (id TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID")
        con.execute("BEGIN")
        rows, unnamed = _fill_input(con, ids)
        lines = failed = 0
        unreadable, no_result, misplaced = _Named(first), _Named(first), _Named(first)
        for file in (output, errors):
            if file is None or (file is errors and not file.exists()):
                continue
            for number, kind, found_id in _read_lines(file):
                lines += 1
                if kind is _Kind.UNREADABLE:
                    unreadable.add(file, number)
                    continue
                if kind is _Kind.NO_RESULT:
                    no_result.add(file, number, found_id)
                    continue
                if found_id is not None:
                    con.execute(_COUNT.format(table="line"), (found_id,))
                elif unnamed:
                    unnamed -= 1
                else:
                    unreadable.add(file, number)
                    continue
                failed += kind is _Kind.FAILED
                if (kind is _Kind.FAILED) != (file is errors):
                    misplaced.add(file, number, found_id)

        def found(query: str) -> Found:
            count = con.execute(f"SELECT count(*) FROM {query}").fetchone()[0]  # noqa: S608 - constants below
            names = con.execute(f"SELECT id FROM {query} ORDER BY id LIMIT ?", (first,))  # noqa: S608 - as above
            return Found(count, tuple(name for (name,) in names))

        missing = found("input LEFT JOIN line USING (id) WHERE ifnull(line.n, 0) < input.n")
        if unnamed:
            missing = Found(missing.count + unnamed, (*missing.first, _UNNAMED)[:first])
        return VerifyReport(
            rows=rows,
            lines=lines,
            failed=failed,
            missing=missing,
            extra=found("line WHERE id NOT IN (SELECT id FROM input)"),
            doubled=found("line LEFT JOIN input USING (id) WHERE line.n > ifnull(input.n, 1)"),
            unreadable=unreadable.found(),
            no_result=no_result.found(),
            misplaced=misplaced.found(),
        )
    finally:
        con.close()


_COUNT = "INSERT INTO {table} VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET n = n + 1"


def _fill_input(con: sqlite3.Connection, ids: Iterable[str | None]) -> tuple[int, int]:
    """Store the ids; returns how many rows there are, and how many of them have none."""
    rows = unnamed = 0
    source = iter(ids)
    while batch := list(islice(source, _BATCH)):
        named = [(name,) for name in batch if name is not None]
        con.executemany(_COUNT.format(table="input"), named)
        rows += len(batch)
        unnamed += len(batch) - len(named)
    return rows, unnamed


class _Named:
    """Lines of one kind: how many, and where the first of them are."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._count = 0
        self._names: list[str] = []

    def add(self, file: Path, number: int, custom_id: str | None = None) -> None:
        self._count += 1
        if len(self._names) < self._first:
            self._names.append(f"{file}:{number}" if custom_id is None else f"{file}:{number} {custom_id}")

    def found(self) -> Found:
        return Found(self._count, tuple(self._names))


class _Kind(Enum):
    """What a line is."""

    ANSWER = "answer"
    FAILED = "failed"
    NO_RESULT = "no result"
    UNREADABLE = "unreadable"


def _read_lines(file: Path) -> Iterator[tuple[int, _Kind, str | None]]:
    """Line number, kind and custom_id (None where it is null) of each line that is not blank."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, *_read_line(line)
    except OSError as exc:
        raise OutputError(f"{file} cannot be read: {exc.strerror}") from exc


def _read_line(line: bytes) -> tuple[_Kind, str | None]:
    try:
        value = json.loads(line)
        if isinstance(value, dict) and "custom_id" in value:
            name = value["custom_id"]
            if name is None:
                return _kind_of(value), None
            if isinstance(name, str):
                name.encode()
                return _kind_of(value), name
    except (ValueError, RecursionError):
        pass  # not JSON, or not text SQLite can hold: reported by its line
    return _Kind.UNREADABLE, None


def _kind_of(line: dict[str, Any]) -> _Kind:
    response, error = line.get("response"), line.get("error")
    if isinstance(error, dict):
        return _Kind.FAILED  # whatever answer is beside it is of no use
    if error is not None or not isinstance(response, dict):
        return _Kind.NO_RESULT
    status = response.get("status_code")
    if type(status) is int and status != _OK:
        return _Kind.FAILED
    return _Kind.ANSWER if status == _OK and isinstance(response.get("body"), dict) else _Kind.NO_RESULT
