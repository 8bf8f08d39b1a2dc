"""The lanes of a conversation: which row is in which lane, and what each was sent behind.

A row belongs to a lane, and to a place in it (`turn`), from the moment it is known. Before it is sent, what
was decided for it (what to keep of the conversation so far) is committed with its own messages; so a resumed
run sends what an unbroken one would have sent, and decides nothing twice. Messages of rows that have left
the conversation are forgotten.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ollama_batch._points import reached
from ollama_batch.journal.rows import COLUMNS, Retry, is_pending, roll_back, row_of
from ollama_batch.types import Message, RowRecord

T = TypeVar("T")
Run = Callable[[sqlite3.Connection], T]

TABLE = """
CREATE TABLE turns (
    idx INTEGER PRIMARY KEY REFERENCES rows (idx), lane INTEGER NOT NULL, turn INTEGER NOT NULL,
    decision TEXT, said TEXT
);
CREATE INDEX turns_lane ON turns (lane, turn);
CREATE INDEX turns_turn ON turns (turn);
"""

HEAD_BYTES = 8
"""The first bytes of a row's order key, which stand for its head."""

_HEAD = f"substr(r.ord, 1, {HEAD_BYTES})"


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A good row of a lane: its own messages, and the line with its answer.

    `decision` is what was decided before it was sent, None if the conversation was left as it was.
    """

    index: int
    head: bytes
    decision: Mapping[str, Any] | None
    said: Sequence[Message]
    line: bytes


class Turns:
    """The turns in one journal; `ask` runs a function in the thread that writes it."""

    def __init__(self, ask: Callable[[Run[Any]], Awaitable[Any]], session: Callable[[], int]) -> None:
        self._ask = ask
        self._session = session
        self._given: Counter[bytes] | None = None  # rows of each head that have a lane; None: not counted yet

    async def assign(self, lanes: int) -> None:
        """Give every row that has none a lane: the rows of a head in turn, heads in order of their first row.

        A row keeps the lane that it was given, whatever comes later. Durable on return.
        """

        def give(con: sqlite3.Connection) -> None:
            given = _given(con) if self._given is None else self._given
            self._given = None  # counted anew if this fails
            self._given = _assign(con, lanes, given)

        await self._ask(give)

    def alone(self) -> tuple[int, int]:
        """Of the rows that have a lane, as of the last `assign`: those whose head no other has, and all."""
        given = Counter() if self._given is None else self._given
        return sum(rows == 1 for rows in given.values()), given.total()

    async def requeue(self, retry: Retry) -> None:
        """Put rows that are to be sent again behind all others of their lanes; durable on return."""
        if retry is not None:
            await self._ask(lambda con: _requeue(con, retry, self._session()))

    async def lanes_of(self, first: int, last: int) -> dict[int, int]:
        """The lane of each row from index `first` to `last`."""
        query = "SELECT idx, lane FROM turns WHERE idx BETWEEN ? AND ?"
        return dict(await self._ask(lambda con: con.execute(query, (first, last)).fetchall()))

    async def pending(
        self, lane: int, *, after: int, limit: int, retry: Retry
    ) -> list[tuple[int, RowRecord]]:
        """Rows of `lane` to be sent, each with its turn, from the first turn above `after`."""
        return await self._ask(lambda con: _pending(con, lane, after, limit, retry, self._session()))  # type: ignore[no-any-return]

    async def begin(
        self,
        index: int,
        decision: Mapping[str, Any] | None,
        said: Sequence[Message],
        forget: Iterable[int] = (),
    ) -> None:
        """Keep what row `index` is sent behind and with; durable on return.

        `forget` are rows that have left the conversation for good.
        """
        values = (json.dumps(decision), json.dumps(list(said), default=dict), index)
        gone = [(row,) for row in forget]
        await self._ask(lambda con: _begin(con, values, gone))

    async def begun(self) -> dict[int, Mapping[str, Any] | None]:
        """What was decided for rows that were sent and have no result, by index."""
        query = (
            "SELECT t.idx, t.decision FROM turns t LEFT JOIN results x ON x.idx = t.idx "
            "WHERE t.decision IS NOT NULL AND x.idx IS NULL"
        )
        found = await self._ask(lambda con: con.execute(query).fetchall())
        return {index: json.loads(decision) for index, decision in found}

    async def history(self, lane: int) -> list[PastTurn]:
        """What the conversation of `lane` is made of, in the order of the answers: from its last cut on,
        with the rows that this has kept.
        """
        return await self._ask(lambda con: _history(con, lane))  # type: ignore[no-any-return]


def _given(con: sqlite3.Connection) -> Counter[bytes]:
    """How many rows of each head have a lane."""
    query = f"SELECT {_HEAD}, count(*) FROM turns t JOIN rows r ON r.idx = t.idx GROUP BY 1"  # noqa: S608 - a constant of ours
    return Counter(dict(con.execute(query)))


def _assign(con: sqlite3.Connection, lanes: int, given: Counter[bytes]) -> Counter[bytes]:
    """Give lanes to the rows behind the last that has one; `given` and those, counted."""
    con.execute("BEGIN IMMEDIATE")
    try:
        reached("turns.before_assign")
        last, turn = con.execute("SELECT ifnull(max(idx), -1), ifnull(max(turn), -1) FROM turns").fetchone()
        new = con.execute(
            f"SELECT r.idx, {_HEAD}, min(r.idx) OVER (PARTITION BY {_HEAD}) AS first FROM rows r "  # noqa: S608 - as above
            "WHERE r.idx > ? AND r.custom_id IS NOT NULL ORDER BY first, r.idx",
            (last,),
        )
        values = []
        for index, head, _ in new:
            turn += 1
            values.append((index, given[head] % lanes, turn))
            given[head] += 1
        con.executemany("INSERT INTO turns (idx, lane, turn) VALUES (?, ?, ?)", values)
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise
    reached("turns.after_assign")
    return given


def _requeue(con: sqlite3.Connection, retry: Retry, session: int) -> None:
    where, values = is_pending(retry, session)
    query = (
        "SELECT t.idx FROM turns t JOIN rows r ON r.idx = t.idx JOIN results x ON x.idx = t.idx "  # noqa: S608 - constants of ours
        f"WHERE {where} ORDER BY t.turn"
    )
    again = [index for (index,) in con.execute(query, values)]
    last = con.execute("SELECT ifnull(max(turn), -1) FROM turns").fetchone()[0]
    con.execute("BEGIN IMMEDIATE")
    try:
        reached("turns.before_requeue")
        con.executemany(
            "UPDATE turns SET turn = ? WHERE idx = ?",
            [(last + 1 + number, index) for number, index in enumerate(again)],
        )
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise


def _pending(
    con: sqlite3.Connection, lane: int, after: int, limit: int, retry: Retry, session: int
) -> list[tuple[int, RowRecord]]:
    where, values = is_pending(retry, session)
    query = (
        f"SELECT t.turn, {COLUMNS} FROM turns t JOIN rows r ON r.idx = t.idx "  # noqa: S608 - constants of ours
        f"LEFT JOIN results x ON x.idx = t.idx WHERE t.lane = ? AND t.turn > ? AND ({where}) "
        "ORDER BY t.turn LIMIT ?"
    )
    found = con.execute(query, [lane, after, *values, limit]).fetchall()
    return [(turn, row_of(columns).in_lane(lane)) for turn, *columns in found]


def _begin(con: sqlite3.Connection, values: tuple[str, str, int], gone: Sequence[tuple[int]]) -> None:
    con.execute("BEGIN IMMEDIATE")
    try:
        reached("turn.before_begin")
        con.execute("UPDATE turns SET decision = ?, said = ? WHERE idx = ?", values)
        con.executemany("UPDATE turns SET said = NULL WHERE idx = ?", gone)
        con.execute("COMMIT")
    except BaseException:
        roll_back(con)
        raise
    reached("turn.after_begin")


_PAST = (
    f"SELECT t.idx, substr(r.ord, 1, {HEAD_BYTES}), t.decision, t.said, a.line FROM turns t "  # noqa: S608 - a constant of ours
    "JOIN rows r ON r.idx = t.idx JOIN results x ON x.idx = t.idx JOIN answers a ON a.idx = t.idx "
    "WHERE x.ok AND "
)


def _history(con: sqlite3.Connection, lane: int) -> list[PastTurn]:
    cut = con.execute(
        "SELECT ifnull(max(x.seq), -1) FROM turns t JOIN results x ON x.idx = t.idx "
        "WHERE t.lane = ? AND x.ok AND t.decision NOT IN ('null')",
        (lane,),
    ).fetchone()[0]
    since = [
        _past(row) for row in con.execute(_PAST + "t.lane = ? AND x.seq >= ? ORDER BY x.seq", (lane, cut))
    ]
    if not since or since[0].decision is None:
        return since
    kept = sorted({index for index, *_ in since[0].decision["kept"]})
    before = (con.execute(_PAST + "t.idx = ?", (index,)).fetchone() for index in kept)
    return [*(replace(_past(row), decision=None) for row in before), *since]


def _past(row: Sequence[Any]) -> PastTurn:
    index, head, decision, said, line = row
    return PastTurn(index, head, json.loads(decision or "null"), json.loads(said or "[]"), line)
