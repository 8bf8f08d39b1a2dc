"""Rows of conversations: each lane's one after another, as many lanes at once as there are workers."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from ollama_batch._feed import Feed, Taken
from ollama_batch._file_feed import FILE_BYTES, FILE_ROWS, FileFeed, at_most
from ollama_batch._items import ScannedRow
from ollama_batch._stream_feed import StreamFeed
from ollama_batch.journal import RunJournal
from ollama_batch.journal.turns import Turns
from ollama_batch.ordering import HeadWatch
from ollama_batch.sources import FileSource, StreamSource
from ollama_batch.types import InvalidRow

BACKLOG: Final = 1024
"""Rows of a stream that may wait for their lanes: one lane that is slower than the others fills it."""


ALONE: Final = 0.9
"""From this share of rows on that share their head with no other, they are no conversation."""

ALONE_ROWS: Final = 20
"""So many rows of a stream are waited for before that is said."""


def tell_alone(turns: Turns, noticed: Callable[..., None], *, least: int = 2) -> bool:
    """Say that (nearly) every row has a head of its own, if `least` rows are known and it is so."""
    alone, rows = turns.alone()
    if rows < least or alone < ALONE * rows:
        return False
    who = f"each of the {rows:,} rows has" if alone == rows else f"{alone:,} of the {rows:,} rows have"
    noticed(
        "heads_differ",
        f"{who} a head (system messages, tools, response format) that no other row has: they share no "
        "conversation, and one lane answers them one after another; give rows that belong together the same "
        'head, or use mode="independent"',
        alone=alone,
        rows=rows,
    )
    return True


class LaneQueues(Feed):
    """Hands out the rows of each lane in order, one at a time.

    A lane belongs to one worker as long as it has rows, so that its rows follow each other and one slot of
    the engine serves one conversation; then the worker takes a lane that nobody has.
    """

    def __init__(self, *args: Any, lanes: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rows: list[deque[Taken]] = [deque() for _ in range(lanes)]
        self._own: dict[int, int] = {}
        self._taken = asyncio.Event()

    async def next(self, worker: int) -> Taken | None:
        """The next row of the worker's lane; None when no lane has a row for it."""
        while True:
            lane = self._own.get(worker)
            if lane is None:
                lane = self._free_lane()
                if lane is None:
                    return None
                self._own[worker] = lane
            if self._rows[lane]:
                self._taken.set()
                return self._rows[lane].popleft()
            if self._ended(lane):
                del self._own[worker]
            elif self._may_read():
                async with self._refilling:
                    if not self._rows[lane]:
                        await self._read_on(lane)
            elif (other := self._free_lane(with_rows=True)) is not None:
                self._own[worker] = other
            else:
                self._taken.clear()
                await self._taken.wait()

    @property
    def spread(self) -> bool:
        """Each conversation wants a slot to itself, or it is evaluated anew at each turn."""
        return True

    def leave(self, worker: int) -> None:
        """The lane of `worker` is free for the others."""
        if self._own.pop(worker, None) is not None:
            self._taken.set()

    async def has_rows(self) -> bool:
        """Whether `next` has a row to give."""
        async with self._refilling:
            for lane, rows in enumerate(self._rows):
                while not any(self._rows) and not self._ended(lane):
                    await self._read_on(lane)
                if rows:
                    return True
        return any(self._rows)

    def _free_lane(self, *, with_rows: bool = False) -> int | None:
        """The lane that nobody has and whose next row is the oldest, or that may get rows."""
        taken = set(self._own.values())
        free = [lane for lane in range(len(self._rows)) if lane not in taken]
        waiting = [lane for lane in free if self._rows[lane]]
        if waiting or with_rows:
            return min(waiting, key=lambda lane: self._rows[lane][0][0].index, default=None)
        return next((lane for lane in free if not self._ended(lane)), None)

    def _may_read(self) -> bool:
        """Whether more rows may be read now."""
        return True

    @abstractmethod
    def _ended(self, lane: int) -> bool:
        """Whether nothing is left to be read for `lane`."""

    @abstractmethod
    async def _read_on(self, lane: int) -> None:
        """Read further, so that `lane` gets rows, or has ended, or is a step nearer to that."""


class FileLanes(LaneQueues, FileFeed):
    """The lanes of files, read ahead by lane."""

    def __init__(
        self, journal: RunJournal, sources: Sequence[FileSource], *, lanes: int, **options: Any
    ) -> None:
        super().__init__(journal, sources, lanes=lanes, **options)
        self._turn = [-1] * lanes
        self._dry: set[int] = set()

    def _ended(self, lane: int) -> bool:
        return lane in self._dry

    async def _read_on(self, lane: int) -> None:
        after = self._turn[lane]
        found = await self._journal.turns.pending(lane, after=after, limit=FILE_ROWS, retry=self._retry)
        if not found:
            self._dry.add(lane)
            return
        rows = at_most(FILE_BYTES, [row for _, row in found])
        self._turn[lane] = found[len(rows) - 1][0]
        self._rows[lane].extend(await self._read(rows))


class StreamLanes(LaneQueues, StreamFeed):
    """The lanes of streams: rows get their lane as they come, and wait there for their turn."""

    def __init__(
        self, journal: RunJournal, sources: Sequence[StreamSource], *, lanes: int, **options: Any
    ) -> None:
        super().__init__(journal, sources, lanes=lanes, **options)
        self._heads = HeadWatch(head_only=True)
        self._lanes = lanes
        self._over = self._told_alone = False

    def _waiting(self) -> list[Taken]:
        return sorted((taken for rows in self._rows for taken in rows), key=lambda taken: taken[0].index)

    def _ended(self, lane: int) -> bool:
        return self._over

    def _may_read(self) -> bool:
        return sum(map(len, self._rows)) < BACKLOG

    async def _read_on(self, lane: int) -> None:
        self._over = not await self._refill()

    async def _take(
        self, number: int, source: StreamSource, items: Sequence[ScannedRow | InvalidRow]
    ) -> None:
        first = self._next_index
        await super()._take(number, source, items)
        await self._journal.turns.assign(self._lanes)
        if not self._told_alone:
            self._told_alone = tell_alone(self._journal.turns, self._noticed, least=ALONE_ROWS)
        lanes = await self._journal.turns.lanes_of(first, self._next_index - 1)
        while self._ready:
            row, request = self._ready.popleft()
            self._rows[lanes[row.index]].append((row.in_lane(lanes[row.index]), request))
