"""The rows of a run: what was read, and what is still to be done."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ollama_batch._points import reached
from ollama_batch.errors import JournalMismatchError
from ollama_batch.types import RowRecord

COLUMNS = "r.idx, r.source, r.line, r.custom_id, r.fingerprint, r.offset, r.length, r.ord"

_WITH_RESULTS = "rows r LEFT JOIN results x ON x.idx = r.idx"

_CODES = "x.code IN (SELECT value FROM json_each(?))"

Retry = frozenset[str] | Literal[True] | None
"""Which failed rows count as pending: those of the codes given, all, or none."""


def row_of(columns: Sequence[Any]) -> RowRecord:
    """The row record of columns in the order of `COLUMNS`."""
    return RowRecord(*columns)


def insert_rows(
    con: sqlite3.Connection, rows: Sequence[RowRecord], path: Path | None
) -> tuple[int, list[tuple[RowRecord, RowRecord]]]:
    """Store `rows`, in one transaction: how many were new, and those whose id is taken, with its holder."""
    values = [
        (r.index, r.source, r.line, r.custom_id, r.fingerprint, r.offset, r.length, r.order) for r in rows
    ]
    taken: list[tuple[RowRecord, RowRecord]] = []
    con.execute("BEGIN IMMEDIATE")
    try:
        reached("rows.before_insert")
        before = con.total_changes
        con.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        new = con.total_changes - before
        if new != len(rows):
            taken = _conflicts(con, rows, path)
        reached("rows.before_commit")
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise
    reached("rows.after_commit")
    return new, taken


def _conflicts(
    con: sqlite3.Connection, rows: Sequence[RowRecord], path: Path | None
) -> list[tuple[RowRecord, RowRecord]]:
    taken = []
    for row in rows:
        found = con.execute(f"SELECT {COLUMNS} FROM rows r WHERE idx = ?", (row.index,)).fetchone()  # noqa: S608 - a constant of ours
        stored = None if found is None else row_of(found)
        if stored is not None and stored.custom_id == row.custom_id and stored.source == row.source:
            if stored.fingerprint != row.fingerprint:
                raise _changed(row, stored, path)
            continue
        query = f"SELECT {COLUMNS} FROM rows r WHERE custom_id = ? AND source = ?"  # noqa: S608 - a constant of ours
        holder = con.execute(query, (row.custom_id, row.source)).fetchone()
        if holder is not None and holder[0] != row.index:
            taken.append((row, row_of(holder)))
        elif stored is not None:
            raise _changed(row, stored, path)
    return taken


def _changed(row: RowRecord, stored: RowRecord, path: Path | None) -> JournalMismatchError:
    where = f"source {row.source}, line {row.line}"
    if stored.custom_id == row.custom_id:
        what = f"the request {row.custom_id!r} is not the one"
    else:
        what = f"the request is {row.custom_id!r}, not {stored.custom_id!r},"
    return JournalMismatchError(
        f"{where}: {what} this run began with: give the same input, another output, or overwrite",
        None if path is None else str(path),
        {
            "line": (stored.line, row.line),
            "custom_id": (stored.custom_id, row.custom_id),
            "fingerprint": (stored.fingerprint.hex(), row.fingerprint.hex()),
        },
    )


def select_pending(
    con: sqlite3.Connection, *, after: int, limit: int, retry: Retry, session: int
) -> list[RowRecord]:
    """Rows to be sent, in input order, from the first whose index is above `after`."""
    where, values = is_pending(retry, session)
    query = (
        f"SELECT {COLUMNS} FROM {_WITH_RESULTS} WHERE r.idx > ? AND ({where}) "  # noqa: S608 - constants of ours
        "ORDER BY r.idx LIMIT ?"
    )
    return [row_of(columns) for columns in con.execute(query, [after, *values, limit])]


def select_pending_alike(
    con: sqlite3.Connection,
    prefix: bytes,
    after: tuple[bytes, int],
    limit: int,
    retry: Retry,
    session: int,
) -> list[RowRecord]:
    """Rows to be sent whose order key begins with `prefix`, by that key, from the first above `after`."""
    where, values = is_pending(retry, session)
    query = (
        f"SELECT {COLUMNS} FROM {_WITH_RESULTS} WHERE r.ord <= ? AND (r.ord, r.idx) > (?, ?) "  # noqa: S608 - constants of ours
        f"AND ({where}) ORDER BY r.ord, r.idx LIMIT ?"
    )
    last = prefix + b"\xff" * 32
    bound = [last, max(prefix, after[0]), after[1], *values, limit]
    return [row_of(columns) for columns in con.execute(query, bound)]


def select_groups(
    con: sqlite3.Connection, sizes: tuple[int, int], retry: Retry, session: int
) -> dict[bytes, int]:
    """How many rows to be sent begin alike, by the first bytes of their order key.

    Rows that share the longer of the two `sizes` make a group; of the others, those that share the
    shorter one; what is left is counted under the empty key. The largest 20,000 groups of each are told.
    """
    longer, shorter = (int(size) for size in sorted(sizes, reverse=True))
    where, values = is_pending(retry, session)
    prefixes = (
        f"SELECT substr(r.ord, 1, {longer}) AS prefix, count(*) AS n FROM {_WITH_RESULTS} "  # noqa: S608 - constants of ours
        f"WHERE r.custom_id IS NOT NULL AND ({where}) GROUP BY prefix"
    )
    groups = dict(con.execute(f"{prefixes} HAVING n > 1 ORDER BY n DESC LIMIT 20000", values))
    alone = 0
    heads = f"SELECT substr(prefix, 1, {shorter}), count(*) AS rows FROM ({prefixes} HAVING n = 1) GROUP BY 1"  # noqa: S608 - as above
    for head, rows in con.execute(f"{heads} ORDER BY rows DESC", values):
        if rows == 1 or len(groups) >= 40000:
            alone += rows
        else:
            groups[head] = rows
    groups[b""] = alone
    return groups


def is_pending(retry: Retry, session: int) -> tuple[str, list[Any]]:
    """The condition, on rows `r` and results `x`, of a row to be sent, and its values."""
    if retry is None:
        return "x.idx IS NULL", []
    again, values = _again(retry, session)
    return f"x.idx IS NULL OR ({again})", values


def count_again(con: sqlite3.Connection, *, retry: Retry, session: int) -> int:
    """How many rows that failed in earlier sessions are to be sent again."""
    if retry is None:
        return 0
    where, values = _again(retry, session)
    query = f"SELECT count(*) FROM rows r JOIN results x ON x.idx = r.idx WHERE {where}"  # noqa: S608 - constants of ours
    found: int = con.execute(query, values).fetchone()[0]
    return found


def _again(retry: frozenset[str] | Literal[True], session: int) -> tuple[str, list[Any]]:
    # A line that is no valid request has no id here: there is nothing to send.
    where, values = "NOT x.ok AND x.session < ? AND r.custom_id IS NOT NULL", [session]
    if retry is True:
        return where, values
    return f"{where} AND {_CODES}", [*values, json.dumps(sorted(retry))]


def roll_back(con: sqlite3.Connection) -> None:
    """End a failed transaction, if SQLite has not ended it already."""
    if con.in_transaction:
        con.execute("ROLLBACK")
