"""Whether every input row has exactly one line in the output or error file: by their ids alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ollama_batch.errors import InputError, OutputError

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """How many were found, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What is wrong with the output of a run; `ok` if nothing is.

    `missing`: input ids without a line. `extra`: line ids that are not in the input. `doubled`: ids with more
    than one line, in one file or in both. `unreadable`: lines that are not JSON objects with a custom_id, as
    "file:line".
    """

    rows: int
    lines: int
    missing: Found
    extra: Found
    doubled: Found
    unreadable: Found

    @property
    def ok(self) -> bool:
        """Whether every input row has exactly one line and there is nothing else."""
        return not (self.missing.count or self.extra.count or self.doubled.count or self.unreadable.count)

    def __str__(self) -> str:
        if self.ok:
            return f"{self.rows} rows, {self.lines} lines: every row has exactly one"
        told = [f"{self.rows} rows, {self.lines} lines"]
        for name in ("missing", "extra", "doubled", "unreadable"):
            found: Found = getattr(self, name)
            if found.count:
                more = f" and {found.count - len(found.first)} more" if found.count > len(found.first) else ""
                told.append(f"{name}: {found.count} ({', '.join(found.first)}{more})")
        return "\n".join(told)


def verify(ids: Iterable[str], output: Path, errors: Path | None = None, *, first: int = 10) -> VerifyReport:
    """Compare the custom_ids of the input with those in `output` and `errors`; memory is bounded.

    An `errors` file that does not exist counts as empty. Raises OutputError if a file cannot be read,
    InputError if the input names an id twice.
    """
    con = sqlite3.connect("", isolation_level=None)
    try:
        con.execute("PRAGMA synchronous = OFF")
        con.execute("PRAGMA journal_mode = OFF")
        con.execute("CREATE TABLE input (id TEXT PRIMARY KEY) WITHOUT ROWID")
        con.execute("CREATE TABLE line (id TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID")
        con.execute("BEGIN")
        rows = _fill_input(con, ids)
        lines, unreadable = 0, 0
        where: list[str] = []
        for file in (output, errors):
            if file is None or (file is errors and not file.exists()):
                continue
            for number, custom_id in _read_ids(file):
                lines += 1
                if custom_id is not None:
                    con.execute(
                        "INSERT INTO line VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET n = n + 1",
                        (custom_id,),
                    )
                    continue
                unreadable += 1
                if len(where) < first:
                    where.append(f"{file}:{number}")

        def found(query: str) -> Found:
            count = con.execute(f"SELECT count(*) FROM {query}").fetchone()[0]  # noqa: S608 - constants below
            names = con.execute(f"SELECT id FROM {query} ORDER BY id LIMIT ?", (first,))  # noqa: S608 - as above
            return Found(count, tuple(name for (name,) in names))

        return VerifyReport(
            rows=rows,
            lines=lines,
            missing=found("input WHERE id NOT IN (SELECT id FROM line)"),
            extra=found("line WHERE id NOT IN (SELECT id FROM input)"),
            doubled=found("line WHERE n > 1"),
            unreadable=Found(unreadable, tuple(where)),
        )
    finally:
        con.close()


def _fill_input(con: sqlite3.Connection, ids: Iterable[str]) -> int:
    rows = 0
    source = iter(ids)
    while batch := list(islice(source, _BATCH)):
        try:
            con.executemany("INSERT INTO input VALUES (?)", [(name,) for name in batch])
        except sqlite3.IntegrityError as exc:
            raise InputError("the input names a custom_id twice: `ollama-batch run` says where") from exc
        rows += len(batch)
    return rows


def _read_ids(file: Path) -> Iterator[tuple[int, str | None]]:
    """Line number and custom_id of each line that is not blank; None for one that has no id."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _id_of(line)
    except OSError as exc:
        raise OutputError(f"{file} cannot be read: {exc.strerror}") from exc


def _id_of(line: bytes) -> str | None:
    try:
        value = json.loads(line)
        name = value.get("custom_id") if isinstance(value, dict) else None
        if isinstance(name, str):
            name.encode()
            return name
    except (ValueError, RecursionError):
        pass  # not JSON, or not text SQLite can hold: reported by its line
    return None
