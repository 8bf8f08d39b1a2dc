"""Rows of files, which the journal has already: in input order, or those that begin alike together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from ollama_batch._feed import Feed, Retry, Taken, schedule_for
from ollama_batch.errors import InputChangedError
from ollama_batch.journal import RunJournal
from ollama_batch.ordering import GROUP_BYTES, HeadSchedule, Schedule, Warmth, head_key, largest_first
from ollama_batch.sources import FileSource
from ollama_batch.types import BatchRequest, EngineInfo, RowRecord

FILE_ROWS, FILE_BYTES = 128, 8 * 2**20
"""Rows read ahead from a file: enough to hide the read, about half a megabyte of typical rows."""


class FileFeed(Feed):
    """Pending rows of files that were validated into the journal, in input order.

    `wanted` passes over rows that belong to another phase of the run. `validated` has size and time of
    each file when it was; InputChangedError is raised once they, or the bytes of a row, are others. With
    `warm_up` the first row of a head goes alone where the engine's slots share their cache.
    """

    def __init__(
        self,
        journal: RunJournal,
        sources: Sequence[FileSource],
        *,
        retry: Retry,
        validated: Sequence[tuple[int, int]],
        wanted: Callable[[BatchRequest], bool] | None = None,
        warm_up: bool = False,
    ) -> None:
        super().__init__(journal, retry)
        self._sources = sources
        self._validated = validated
        self._wanted = wanted
        self._warms = warm_up
        self._warmth: Warmth | None = None
        self._after = -1

    def keep_to(self, engine: EngineInfo) -> None:
        """Warm heads up if that is wanted and of use."""
        self._warmth = Warmth() if self._warms and engine.shares_prefixes else None

    async def next(self, worker: int) -> Taken | None:
        """The next pending row, or None when there is none left; waits while its head is warmed up."""
        if self._warmth is None:
            return await super().next(worker)
        while await self.has_rows():
            row = self._ready[0][0]
            head = (head_key(row.order),)
            if self._warmth.free(head):
                if self._warmth.begin(row.index, head):
                    self._warm_up(row, row.index)
                return self._ready.popleft()
            await self._change()
        return None

    def _end_warm_up(self, owner: int) -> None:
        if self._warmth is not None:
            self._warmth.end(owner)

    async def _refill(self) -> bool:
        rows = await self._journal.pending(after=self._after, limit=FILE_ROWS, retry=self._retry)
        if not rows:
            return False
        rows = at_most(FILE_BYTES, rows)
        self._after = rows[-1].index
        self._ready.extend(await self._read(rows))
        return True

    async def _read(self, rows: Sequence[RowRecord]) -> list[Taken]:
        """Those of `rows` that are wanted, with their requests."""
        taken: list[Taken] = []
        valid = (row for row in rows if row.custom_id is not None)
        for number, same_source in groupby(valid, key=attrgetter("source")):
            group = list(same_source)
            self._refuse_changed(number)
            requests = await asyncio.to_thread(self._sources[number].read, group)
            for row, request in zip(group, requests, strict=True):
                if self._wanted is None or self._wanted(request):
                    taken.append((row, request))
        return taken

    def _refuse_changed(self, number: int) -> None:
        source = self._sources[number]
        if source.stat() != self._validated[number]:
            raise InputChangedError(
                f"{source.name} has changed since it was validated (another size or time); what is done is "
                "kept, run again to have it looked at anew"
            )


class PrefixFeed(FileFeed):
    """Pending rows of files, those that begin alike together, each group kept to one worker if it can be.

    `groups` has the number of pending rows that begin alike, those of other phases included.
    """

    several_heads = True

    def __init__(
        self,
        journal: RunJournal,
        sources: Sequence[FileSource],
        *,
        retry: Retry,
        validated: Sequence[tuple[int, int]],
        groups: Mapping[bytes, int],
        wanted: Callable[[BatchRequest], bool] | None = None,
    ) -> None:
        super().__init__(journal, sources, retry=retry, validated=validated, wanted=wanted)
        self._groups = groups
        self._queues: dict[bytes, deque[Taken]] = {}
        self._reached: dict[bytes, tuple[bytes, int]] = {}
        self._schedule = self._filled(HeadSchedule())

    def keep_to(self, engine: EngineInfo) -> None:
        """As many groups at once as there are slots: more would displace each other from the cache."""
        self._schedule = self._filled(schedule_for(engine))

    def _filled(self, schedule: Schedule) -> Schedule:
        for group in largest_first(self._groups):
            schedule.add(group, self._groups[group])
        return schedule

    async def has_rows(self) -> bool:
        """Whether `next` has a row to give."""
        if self._wanted is None:
            return any(self._groups.values())
        for group in largest_first(self._groups):
            queue = self._queues.setdefault(group, deque())
            if queue or await self._refill_group(group, queue):
                return True
        return False

    async def next(self, worker: int) -> Taken | None:
        """The next row of the group that `worker` serves; waits while it would only displace others."""
        while True:
            group = self._schedule.next(worker)
            if group is None:
                if self._schedule.done:
                    return None
                await self._change()
                continue
            queue = self._queues.setdefault(group, deque())
            if not queue:
                async with self._refilling:
                    if not queue and not await self._refill_group(group, queue):
                        self._end(group)
                        continue
            self._schedule.took(group)
            taken = queue.popleft()
            if self._schedule.warms_up(worker):
                self._warm_up(taken[0], worker)
            return taken

    @property
    def spread(self) -> bool:
        """Whether several groups compete for slots."""
        return self._schedule.spread

    def leave(self, worker: int) -> None:
        """The group of `worker` is free for the others."""
        self._schedule.leave(worker)
        self._changed.set()

    def _end_warm_up(self, owner: int) -> None:
        self._schedule.finished(owner)

    def _end(self, group: bytes) -> None:
        # How far the group was read is kept: whoever still waits to read on must not begin it again.
        self._queues.pop(group, None)
        self._schedule.exhausted(group)
        self._changed.set()

    async def _refill_group(self, group: bytes, queue: deque[Taken]) -> bool:
        """Read ahead in `group`, passing over rows of it that make a smaller group; False at its end."""
        while not queue:
            after = self._reached.get(group, (b"", -1))
            rows = await self._journal.pending_alike(group, after=after, limit=FILE_ROWS, retry=self._retry)
            if not rows:
                return False
            rows = at_most(FILE_BYTES, rows)
            self._reached[group] = rows[-1].order, rows[-1].index
            queue.extend(await self._read([row for row in rows if self._group_of(row) == group]))
        return True

    def _group_of(self, row: RowRecord) -> bytes:
        return next((row.order[:size] for size in GROUP_BYTES if row.order[:size] in self._groups), b"")


def at_most(size: int, rows: list[RowRecord]) -> list[RowRecord]:
    """The first of `rows`, as many as hold `size` bytes together; one at least."""
    for n, row in enumerate(rows):
        size -= row.length
        if size < 0:
            return rows[: max(1, n)]
    return rows
