"""Hands each pending row out once, with its request: from files by way of the journal, or from streams."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from ollama_batch._intake import keep_rows, record_invalid, refuse_fewer
from ollama_batch._items import Check, ScannedRow
from ollama_batch._options import RunnerOptions, RunOptions
from ollama_batch.errors import InputChangedError, InputError
from ollama_batch.journal import RunJournal
from ollama_batch.ordering import GROUP_BYTES, HeadSchedule
from ollama_batch.sources import FileSource, Source, StreamSource
from ollama_batch.types import BatchRequest, BatchResult, EngineInfo, InvalidRow, RowRecord

Retry: TypeAlias = frozenset[str] | Literal[True] | None
Taken: TypeAlias = tuple[RowRecord, BatchRequest]

FILE_ROWS, FILE_BYTES = 128, 8 * 2**20
"""Rows read ahead from a file: enough to hide the read, about half a megabyte of typical rows."""

SINGLE = 2
"""One group and the rows that are alone: nothing to be gained from another order than the input's."""

STREAM_ROWS = 16
"""Items taken from a stream at a time if that many are there: they are journaled together."""


class Feed(ABC):
    """Where workers get their rows."""

    def __init__(self, journal: RunJournal, retry: Retry) -> None:
        self._journal = journal
        self._retry = retry
        self._ready: deque[Taken] = deque()
        self._refilling = asyncio.Lock()

    several_heads = False
    """Whether rows come in groups that each want a slot of the engine to themselves."""

    def keep_to(self, engine: EngineInfo) -> None:  # noqa: B027 - most feeds do not care
        """Be told of the engine and its slots, before the first row is taken."""

    def finished(self, row: RowRecord) -> None:  # noqa: B027 - as above
        """Be told that a row handed out is no longer in flight: it has a result, or stays pending."""

    async def next(self, worker: int) -> Taken | None:
        """The next pending row for `worker` (a number from 0), or None when there is none left."""
        if not self._ready:
            async with self._refilling:
                while not self._ready:
                    if not await self._refill():
                        return None
        return self._ready.popleft()

    async def has_rows(self) -> bool:
        """Whether `next` has a row to give."""
        async with self._refilling:
            while not self._ready:
                if not await self._refill():
                    return False
        return True

    @abstractmethod
    async def _refill(self) -> bool:
        """Look further for rows; False at the end of the input."""


class FileFeed(Feed):
    """Pending rows of files that were validated into the journal, in input order.

    `wanted` passes over rows that belong to another phase of the run. `validated` has size and time of
    each file when it was; InputChangedError is raised once they, or the bytes of a row, are others.
    """

    def __init__(
        self,
        journal: RunJournal,
        sources: Sequence[FileSource],
        *,
        retry: Retry,
        validated: Sequence[tuple[int, int]],
        wanted: Callable[[BatchRequest], bool] | None = None,
    ) -> None:
        super().__init__(journal, retry)
        self._sources = sources
        self._validated = validated
        self._wanted = wanted
        self._after = -1

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
    """Pending rows of files, those that begin alike together, each group kept to one worker if it can be."""

    several_heads = True

    def __init__(
        self,
        journal: RunJournal,
        sources: Sequence[FileSource],
        *,
        retry: Retry,
        validated: Sequence[tuple[int, int]],
        groups: Mapping[bytes, int],
    ) -> None:
        super().__init__(journal, sources, retry=retry, validated=validated)
        self._groups = groups
        self._schedule = HeadSchedule(groups)
        self._queues: dict[bytes, deque[Taken]] = {}
        self._reached: dict[bytes, tuple[bytes, int]] = {}
        self._freed = asyncio.Event()

    def keep_to(self, engine: EngineInfo) -> None:
        """As many groups at once as there are slots: more would displace each other from the cache."""
        self._schedule = HeadSchedule(self._groups, slots=engine.slots)

    async def has_rows(self) -> bool:
        """Whether `next` has a row to give."""
        return any(self._groups.values())

    async def next(self, worker: int) -> Taken | None:
        """The next row of the group that `worker` serves; waits while it would only displace others."""
        while True:
            group = self._schedule.next(worker)
            if group is None:
                if self._schedule.done:
                    return None
                self._freed.clear()
                await self._freed.wait()
                continue
            queue = self._queues.setdefault(group, deque())
            if not queue:
                async with self._refilling:
                    if not queue and not await self._refill_group(group, queue):
                        self._end(group)
                        continue
            self._schedule.took(group)
            return queue.popleft()

    def _end(self, group: bytes) -> None:
        # How far the group was read is kept: whoever still waits to read on must not begin it again.
        self._queues.pop(group, None)
        self._schedule.exhausted(group)
        self._freed.set()

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


class StreamFeed(Feed):
    """Rows of one stream after another, journaled as they come; rows done before are passed over.

    `found(rows, complete)` is told how far the streams have come. An invalid item ends the run with
    InputError, or with `skip_invalid` goes to the error file and to `failed`. JournalMismatchError if the
    items are not those the run began with, or fewer.
    """

    def __init__(
        self,
        journal: RunJournal,
        sources: Sequence[StreamSource],
        *,
        retry: Retry,
        at_once: int,
        check: Check,
        skip_invalid: bool,
        limit: int | None,
        found: Callable[[int, bool], None],
        failed: Callable[[BatchResult[Any]], None],
    ) -> None:
        super().__init__(journal, retry)
        self._sources = deque(enumerate(sources))
        self._at_once = at_once
        self._check = check
        self._skip_invalid = skip_invalid
        self._left = limit
        self._found = found
        self._failed = failed
        self._next_index = 0

    async def _refill(self) -> bool:
        if not self._sources:
            return False
        number, source = self._sources[0]
        at_once = self._at_once if self._left is None else min(self._at_once, self._left)
        items = await source.next_rows(at_once, check=self._check) if at_once else []
        if not items:
            self._sources.popleft()
            if not self._sources:
                refuse_fewer(self._journal, self._next_index)
            self._found(self._next_index, not self._sources)
            return True
        self._left = None if self._left is None else self._left - len(items)
        await self._take(number, source, items)
        self._found(self._next_index, False)
        return True

    async def _take(
        self, number: int, source: StreamSource, items: Sequence[ScannedRow | InvalidRow]
    ) -> None:
        first = self._next_index
        self._next_index += len(items)
        requests: dict[int, BatchRequest] = {}
        rows: list[RowRecord] = []
        invalid: dict[int, InvalidRow] = {}
        for index, item in enumerate(items, start=first):
            if isinstance(item, InvalidRow):
                invalid[index] = item
            else:
                rows.append(item.to_record(index, number))
                requests[index] = item.request
        for row, holder in await keep_rows(self._journal, source.name, rows):
            invalid[row.index] = source.duplicate(row, holder.line)
        if invalid and not self._skip_invalid:
            raise InputError(
                f"item {min(invalid) + 1} is invalid; the rows before it are kept "
                '(on_invalid="skip" goes on)',
                list(invalid.values()),
            )
        if invalid:
            for result in await record_invalid(self._journal, number, invalid):
                self._failed(result)
        pending = await self._journal.pending(after=first - 1, limit=len(items), retry=self._retry)
        self._ready.extend((row, requests[row.index]) for row in pending if row.index in requests)


async def make_feed(
    journal: RunJournal,
    sources: Sequence[Source],
    options: RunOptions,
    *,
    model: str,
    runner: RunnerOptions,
    check: Check,
    found: Callable[[int, bool], None],
    failed: Callable[[BatchResult[Any]], None],
) -> Feed:
    """The feed of the rows of `model`: of files, or of streams (which have one model)."""
    files = [source for source in sources if isinstance(source, FileSource)]
    if len(files) == len(sources):
        phases = bool(runner.allow_models)
        wanted = (lambda request: (request.params.get("model") or runner.model) == model) if phases else None
        validated = [(source["size"], source["mtime_ns"]) for source in journal.get("sources")]
        if runner.order == "prefix" and not phases:
            groups = await journal.pending_groups(GROUP_BYTES, options.retry)
            if len(groups) > SINGLE:
                return PrefixFeed(journal, files, retry=options.retry, validated=validated, groups=groups)
        return FileFeed(journal, files, retry=options.retry, validated=validated, wanted=wanted)
    return StreamFeed(
        journal,
        [source for source in sources if isinstance(source, StreamSource)],
        retry=options.retry,
        at_once=STREAM_ROWS if runner.concurrency == "auto" else max(STREAM_ROWS, runner.concurrency),
        check=check,
        skip_invalid=options.on_invalid == "skip",
        limit=options.limit,
        found=found,
        failed=failed,
    )
