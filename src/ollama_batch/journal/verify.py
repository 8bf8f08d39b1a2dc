"""Whether every input row has exactly one line in the output or error files: by their ids alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ollama_batch.errors import OutputError

_BATCH = 1000
_UNNAMED = "(a row without a custom_id)"


@dataclass(frozen=True, slots=True)
class Found:
    """How many were found, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What is wrong with the output of a run; `ok` if nothing is. `failed` of its `lines` are errors.

    `missing`: input ids without a line. `extra`: line ids that are not in the input. `doubled`: ids with more
    than one line, in one file or in both. `unreadable`: lines that are not JSON objects with a custom_id, as
    "file:line". An id that the input itself has twice has two lines, a row without an id a line without one.
    """

    rows: int
    lines: int
    failed: int
    missing: Found
    extra: Found
    doubled: Found
    unreadable: Found

    @property
    def ok(self) -> bool:
        """Whether every input row has exactly one line and there is nothing else."""
        return not (self.missing.count or self.extra.count or self.doubled.count or self.unreadable.count)

    def __str__(self) -> str:
        how = f"{self.rows} rows, {self.lines} lines ({self.lines - self.failed} ok, {self.failed} failed)"
        if self.ok:
            return f"{how}: every row has exactly one"
        told = [how]
        for name in ("missing", "extra", "doubled", "unreadable"):
            found: Found = getattr(self, name)
            if found.count:
                more = f" and {found.count - len(found.first)} more" if found.count > len(found.first) else ""
                told.append(f"{name}: {found.count} ({', '.join(found.first)}{more})")
        return "\n".join(told)


def verify(
    ids: Iterable[str | None], output: Path, errors: Path | None = None, *, first: int = 10
) -> VerifyReport:
    """Compare the custom_ids of the input with those in `output` and `errors`; memory is bounded.

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
        lines, failed, unreadable = 0, 0, 0
        where: list[str] = []
        for file in (output, errors):
            if file is None or (file is errors and not file.exists()):
                continue
            for number, found_id in _read_ids(file):
                lines += 1
                failed += file is errors
                if isinstance(found_id, str):
                    con.execute(_COUNT.format(table="line"), (found_id,))
                    continue
                if found_id is None and unnamed:
                    unnamed -= 1
                    continue
                unreadable += 1
                if len(where) < first:
                    where.append(f"{file}:{number}")

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
            unreadable=Found(unreadable, tuple(where)),
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


class _NoResult:
    """In place of the custom_id of a line that is none of a result."""


def _read_ids(file: Path) -> Iterator[tuple[int, str | type[_NoResult] | None]]:
    """Line number and custom_id of each line that is not blank; None where it is null."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _id_of(line)
    except OSError as exc:
        raise OutputError(f"{file} cannot be read: {exc.strerror}") from exc


def _id_of(line: bytes) -> str | type[_NoResult] | None:
    try:
        value = json.loads(line)
        if isinstance(value, dict) and "custom_id" in value:
            name = value["custom_id"]
            if name is None:
                return None
            if isinstance(name, str):
                name.encode()
                return name
    except (ValueError, RecursionError):
        pass  # not JSON, or not text SQLite can hold: reported by its line
    return _NoResult
