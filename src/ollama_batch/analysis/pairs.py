"""The rows of two runs side by side, by their ids, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import orjson

from ollama_batch.analysis.asked import Asked
from ollama_batch.analysis.reading import RunSource
from ollama_batch.analysis.rows import ResultRow

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Side:
    """A row of one of the runs, as far as it is compared; `values` are those of the fields asked for."""

    custom_id: str
    ok: bool
    output: str | None
    error_code: str | None
    parsed: bool
    values: tuple[Any, ...]
    score: float | None
    latency_s: float | None


SidePair: TypeAlias = tuple[Side | None, Side | None]


def read_pairs(a: RunSource, b: RunSource, asked: Asked) -> Iterator[SidePair]:
    """Every row of `b` with that of `a` of the same id, None where there is none; then those of `a` alone.

    An id that a run has several times is matched in the order of its rows. The first run waits in a private
    temporary database, so that memory does not grow with the rows.
    """
    con = sqlite3.connect("", isolation_level=None)
    try:
        con.execute("PRAGMA synchronous = OFF")
        con.execute("PRAGMA journal_mode = OFF")
        con.execute("CREATE TABLE a (n INTEGER PRIMARY KEY, id TEXT, data BLOB, seen INTEGER)")
        con.execute("BEGIN")
        sides = (_side(row, asked) for row in a.rows())
        while page := [(_key(side), _pack(side)) for side in islice(sides, _PAGE)]:
            con.executemany("INSERT INTO a (id, data, seen) VALUES (?, ?, 0)", page)
        con.execute("CREATE INDEX a_id ON a (id, seen, n)")
        for row in b.rows():
            side = _side(row, asked)
            found = con.execute(
                "SELECT n, data FROM a WHERE id = ? AND seen = 0 ORDER BY n LIMIT 1", (_key(side),)
            ).fetchone()
            if found is None:
                yield None, side
            else:
                con.execute("UPDATE a SET seen = 1 WHERE n = ?", (found[0],))
                yield _unpack(found[1]), side
        for (data,) in con.execute("SELECT data FROM a WHERE seen = 0 ORDER BY n"):
            yield _unpack(data), None
    finally:
        con.close()


def _side(row: ResultRow, asked: Asked) -> Side:
    answer = asked.parse(row) if asked.anything else None
    return Side(
        row.custom_id,
        row.ok,
        row.output if row.ok else None,
        row.error_code,
        answer is not None,
        tuple(asked.values(answer)),
        asked.score_of(answer, row.custom_id),
        row.latency_s,
    )


def _key(side: Side) -> bytes:
    return side.custom_id.encode("utf-8", "surrogatepass")


def _pack(side: Side) -> bytes:
    cells = [side.custom_id, side.ok, side.output, side.error_code, side.parsed, side.values]
    cells += [side.score, side.latency_s]
    return orjson.dumps(cells, default=str)


def _unpack(data: bytes) -> Side:
    custom_id, ok, output, error_code, parsed, values, score, latency_s = orjson.loads(data)
    return Side(custom_id, ok, output, error_code, parsed, tuple(values), score, latency_s)
