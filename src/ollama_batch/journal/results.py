"""The results of a run: written a group at a time, read back in input order and checked."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_batch._points import reached
from ollama_batch.errors import JournalCorruptError, JournalError
from ollama_batch.journal.data import JournalCounts, TrimCounts, checksum
from ollama_batch.journal.faults import translate
from ollama_batch.journal.rows import roll_back, row_of
from ollama_batch.records import EXTENSION
from ollama_batch.types import ResultRecord, RowRecord

Pair = tuple[RowRecord, ResultRecord]
Columns = Sequence[Any]

_PAGE = 64
_log = logging.getLogger("ollama_batch.journal")

_ROW_COLUMNS = 9
_COLUMNS = (
    "SELECT x.idx, r.source, r.line, r.custom_id, r.fingerprint, r.offset, r.length, r.ord, {lane},"
    " x.ok, x.code, x.attempts, x.checksum, a.line, a.info"
    " FROM results x CROSS JOIN rows r ON r.idx = x.idx LEFT JOIN answers a ON a.idx = x.idx"
)
_SELECT = _COLUMNS.format(lane="NULL")
_SELECT_LANES = _COLUMNS.format(lane="t.lane") + " LEFT JOIN turns t ON t.idx = x.idx"


@dataclass(frozen=True, slots=True)
class Written:
    """A result in the journal: the source of its row, and the error code of the failed one it replaced."""

    record: ResultRecord
    source: int
    replaced: str | None


def write_results(
    con: sqlite3.Connection, records: Sequence[ResultRecord], *, session: int, seq: int, path: Path | None
) -> list[Written | JournalError]:
    """Commit `records` in one transaction, each its outcome: a refused one does not stop the others."""
    outcomes: list[Written | JournalError] = []
    now = time.time()
    con.execute("BEGIN IMMEDIATE")
    try:
        reached("result.before_insert")
        for record in records:
            outcomes.append(_write(con, record, (session, seq, len(record.line), now), path))
            seq += 1
        reached("result.after_insert")
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise
    reached("result.after_commit")
    return outcomes


def _write(
    con: sqlite3.Connection, record: ResultRecord, facts: tuple[int, int, int, float], path: Path | None
) -> Written | JournalError:
    index, text = record.index, None if path is None else str(path)
    row = con.execute(
        "SELECT r.custom_id, r.source, x.ok, x.code FROM rows r LEFT JOIN results x ON x.idx = r.idx"
        " WHERE r.idx = ?",
        (index,),
    ).fetchone()
    if row is None:
        return JournalError(f"row {index} is not in the journal: add it before its result", text)
    custom_id, source, ok, code = row
    if ok:
        return JournalError(f"row {index} ({custom_id}) has a good result already, which is kept", text)
    if record.ok is not (record.code is None):
        return JournalError(f"row {index} ({custom_id}): only a failed row has an error code", text)
    values = (int(record.ok), record.code, record.attempts, *facts, checksum(custom_id, record))
    if ok is None:
        con.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (index, *values))
        con.execute("INSERT INTO answers VALUES (?, ?, ?)", (index, record.line, record.info))
    else:
        reached("result.before_replace")
        con.execute(
            "INSERT INTO attempts (idx, code, attempts, at, line, info) SELECT x.idx, x.code, x.attempts,"
            " x.at, a.line, a.info FROM results x JOIN answers a ON a.idx = x.idx WHERE x.idx = ?",
            (index,),
        )
        con.execute(
            "UPDATE results SET ok = ?, code = ?, attempts = ?, session = ?, seq = ?, size = ?, at = ?,"
            " checksum = ? WHERE idx = ?",
            (*values, index),
        )
        con.execute("UPDATE answers SET line = ?, info = ? WHERE idx = ?", (record.line, record.info, index))
    return Written(record, source, code)


def count(con: sqlite3.Connection) -> JournalCounts:
    """Rows and results, counted from the tables."""
    rows = con.execute("SELECT count(*) FROM rows").fetchone()[0]
    codes: dict[str, int] = dict(
        con.execute("SELECT code, count(*) FROM results WHERE NOT ok GROUP BY code ORDER BY code")
    )
    ok = con.execute("SELECT count(*) FROM results WHERE ok").fetchone()[0]
    return JournalCounts(rows=rows, ok=ok, failed=sum(codes.values()), codes=codes)


def count_trims(con: sqlite3.Connection) -> TrimCounts:
    """Rows that say they were trimmed; reads every line, and decodes those that may say so."""
    trim = f"json_extract(CAST(line AS TEXT), '$.{EXTENSION}.trim')"
    found = con.execute(
        f"SELECT count(*), sum(json_extract({trim}, '$.tokens_saved')) FROM answers "  # noqa: S608 - a constant of ours
        f"WHERE instr(line, CAST('\"trim\":{{' AS BLOB)) AND {trim} IS NOT NULL "
        f"AND ifnull(json_extract({trim}, '$.why'), '') <> 'head'"
    )
    rows, tokens = found.fetchone()
    return TrimCounts(rows, tokens if rows else 0)


def check_pair(columns: Columns, path: Path | None) -> Pair:
    """Row and result of one line of the page query; JournalCorruptError if not what was written."""
    row = row_of(columns[:_ROW_COLUMNS])
    ok, code, attempts, recorded, line, info = columns[_ROW_COLUMNS:]
    if isinstance(line, bytes) and isinstance(info, bytes):
        record = ResultRecord(row.index, bool(ok), code, attempts, line, info)
        if checksum(row.custom_id, record) == recorded:
            return row, record
    raise JournalCorruptError(
        f"{path or 'the temporary journal'}: the result of row {row.index} ({row.custom_id}, "
        f"source {row.source}, line {row.line}) is damaged: export what is intact, or run that row again "
        f"with another output",
        None if path is None else str(path),
    )


Reader = Callable[[str, Sequence[Any]], list[Any]]
"""Runs one query and returns all its rows: on a connection of its own, or on the writer's."""


def iterate(
    read: Reader,
    *,
    ok: bool | None,
    source: int | None,
    path: Path | None,
    damaged: list[int] | None,
    session: int | None = None,
) -> Iterator[Pair]:
    """Results in input order, a page at a time, so that no read transaction stays open between two.

    With a list `damaged` those that are not intact are logged, appended to it by index and left out;
    without one the first of them raises JournalCorruptError.
    """
    where = (
        " WHERE x.idx > ?"
        + ("" if ok is None else " AND x.ok = ?")
        + ("" if source is None else " AND r.source = ?")
        + ("" if session is None else " AND x.session = ?")
    )
    filters = [int(value) for value in (ok, source, session) if value is not None]
    after = -1
    select = _select(read)
    while True:
        try:
            page = read(f"{select}{where} ORDER BY x.idx LIMIT {_PAGE}", [after, *filters])
        except sqlite3.DatabaseError as exc:
            if damaged is None:
                raise translate(exc, path) from exc
            last = after + _PAGE
            yield from _salvage(read, range(after + 1, last + 1), (ok, source), path, damaged)
            if last >= _end(read):
                return
            after = last
            continue
        for columns in page:
            try:
                pair = check_pair(columns, path)
            except JournalCorruptError:
                if damaged is None:
                    raise
                _report(columns[0], path, damaged)
                continue
            yield pair
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def first_failed(read: Reader, code: str, count: int, path: Path | None) -> list[Pair]:
    """The first `count` rows in input order that failed with `code`."""
    chosen = "SELECT idx FROM results WHERE code = ? ORDER BY idx LIMIT ?"
    page = read(f"{_select(read)} WHERE x.idx IN ({chosen}) ORDER BY x.idx", [code, count])
    return [check_pair(columns, path) for columns in page]


def _select(read: Reader) -> str:
    """The page query: with lanes only where rows have one, so that independent rows pay for no join.

    A journal of version 1 has no turns at all. Where they cannot be read the results still can be.
    """
    try:
        made = read("SELECT 1 FROM sqlite_master WHERE name = 'turns'", [])
        return _SELECT_LANES if made and read("SELECT 1 FROM turns LIMIT 1", []) else _SELECT
    except sqlite3.DatabaseError:
        return _SELECT


def _salvage(
    read: Reader,
    indices: range,
    wanted: tuple[bool | None, int | None],
    path: Path | None,
    damaged: list[int],
) -> Iterator[Pair]:
    """Those of `indices` that can still be read, one query each; a lane that cannot be costs no result."""
    select = _select(read)
    for index in indices:
        try:
            try:
                page = read(f"{select} WHERE x.idx = ?", [index])
            except sqlite3.DatabaseError:
                page = read(f"{_SELECT} WHERE x.idx = ?", [index])
            pairs = [check_pair(columns, path) for columns in page]
        except (sqlite3.DatabaseError, JournalCorruptError):
            _report(index, path, damaged)
            continue
        for row, record in pairs:
            if wanted[0] in (None, record.ok) and wanted[1] in (None, row.source):
                yield row, record


def _end(read: Reader) -> int:
    """The highest index that is known in spite of damage; -1 if none can be read."""
    best = -1
    for table in ("rows", "results", "answers"):
        try:
            found = read(f"SELECT max(idx) FROM {table}", [])[0][0]  # noqa: S608 - constants of ours
        except sqlite3.DatabaseError:
            continue  # the other tables may still tell
        best = max(best, -1 if found is None else found)
    return best


def _report(index: int, path: Path | None, damaged: list[int]) -> None:
    _log.warning("%s: the result of row %d is damaged and left out", path or "the temporary journal", index)
    damaged.append(index)
