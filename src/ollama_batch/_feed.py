"""What hands each pending row out once, with its request."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Literal, TypeAlias

from ollama_batch.journal import RunJournal
from ollama_batch.ordering import HeadSchedule, Schedule, WarmSchedule
from ollama_batch.types import BatchRequest, EngineInfo, RowRecord

Retry: TypeAlias = frozenset[str] | Literal[True] | None
Taken: TypeAlias = tuple[RowRecord, BatchRequest]

WARM_UP_S = 10.0
"""No warm-up is waited for longer: the longest prompt is in the cache by then, and its answer may be long."""


class Feed(ABC):
    """Where workers get their rows; `aclose` ends what it does in the background."""

    def __init__(self, journal: RunJournal, retry: Retry) -> None:
        self._journal = journal
        self._retry = retry
        self._ready: deque[Taken] = deque()
        self._refilling = asyncio.Lock()
        self._changed = asyncio.Event()
        self._warm_ups: dict[int, tuple[int, asyncio.TimerHandle]] = {}

    several_heads = False
    """Whether rows come in groups that each want a slot of the engine to themselves."""

    def keep_to(self, engine: EngineInfo) -> None:  # noqa: B027 - most feeds do not care
        """Be told of the engine and its slots, before the first row is taken."""

    def finished(self, row: RowRecord) -> None:
        """Be told that a row handed out is no longer in flight: it has a result, or stays pending."""
        self._warmed_up(row.index)

    @property
    def spread(self) -> bool:
        """Whether the rows at present want a slot of the engine each to themselves, or their kind."""
        return False

    def leave(self, worker: int) -> None:  # noqa: B027 - most feeds do not care
        """Be told that `worker`, which has no row in flight, takes none for now: others have its share."""

    async def next(self, worker: int) -> Taken | None:
        """The next pending row for `worker` (a number from 0), or None when there is none left."""
        return self._ready.popleft() if await self.has_rows() else None

    async def has_rows(self) -> bool:
        """Whether `next` has a row to give."""
        if not self._ready:
            async with self._refilling:
                while not self._ready:
                    if not await self._refill():
                        return False
        return True

    async def look_ahead(self, rows: int, seconds: float) -> list[Taken]:
        """Up to so many of the rows to come, as far as they are not known yet and come within `seconds`."""
        return []

    async def aclose(self) -> None:
        """Read no further; may be repeated."""
        for _, timer in self._warm_ups.values():
            timer.cancel()
        self._warm_ups.clear()

    @abstractmethod
    async def _refill(self) -> bool:
        """Look further for rows; False at the end of the input."""

    async def _change(self) -> None:
        """Wait until another row may be there for a worker that had to go without."""
        self._changed.clear()
        await self._changed.wait()

    def _warm_up(self, row: RowRecord, owner: int) -> None:
        """`row`, which is handed out, is waited for: until it is finished, or long enough."""
        timer = asyncio.get_running_loop().call_later(WARM_UP_S, self._warmed_up, row.index)
        self._warm_ups[row.index] = owner, timer

    def _warmed_up(self, index: int) -> None:
        found = self._warm_ups.pop(index, None)
        if found is not None:
            owner, timer = found
            timer.cancel()
            self._end_warm_up(owner)
            self._changed.set()

    def _end_warm_up(self, owner: int) -> None:  # noqa: B027 - most feeds have none
        """What `owner` warmed up is warm."""


def schedule_for(engine: EngineInfo) -> Schedule:
    """As many groups at once as there are slots, or one after another where slots share their cache."""
    return WarmSchedule() if engine.shares_prefixes else HeadSchedule(slots=engine.slots)
