"""Rows of streams, journaled as they come: in the order of arrival, or those that begin alike together."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollama_batch._feed import Feed, Retry, Taken, schedule_for
from ollama_batch._intake import keep_rows, record_invalid, refuse_fewer
from ollama_batch._items import Check, ScannedRow
from ollama_batch._sizes import own_limit
from ollama_batch.errors import DiskFullError, InputError
from ollama_batch.journal import RunJournal
from ollama_batch.ordering import HeadSchedule, HeadWatch, Schedule, Window
from ollama_batch.sources import StreamSource
from ollama_batch.types import BatchRequest, BatchResult, EngineInfo, InvalidRow, RowRecord

STREAM_ROWS = 16
"""Items taken from a stream at a time if that many are there: they are journaled together."""

AHEAD_ROWS = 256
"""As many while the window is filled in the background."""

WINDOW_ROWS, WINDOW_BYTES = 4096, 64 * 2**20
"""What a window holds at most: rows, and bytes of their texts (a reading may go somewhat beyond)."""

PATIENCE = 4
"""So many windows may overtake a row before it goes first."""


class StreamFeed(Feed):
    """Rows of one stream after another, journaled as they come; rows done before are passed over.

    `found(rows, complete, limited)` is told how far the streams have come, and how many rows have their own
    max_tokens, `noticed` of a head that differs by a few characters. An invalid item ends the run with
    InputError, at once if it comes with the first and else after the rows before it, or with `skip_invalid`
    goes to the error file and to `failed`. JournalMismatchError if the items are not those the run began
    with, or fewer.
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
        found: Callable[[int, bool, int], None],
        failed: Callable[[BatchResult[Any]], None],
        noticed: Callable[..., None],
    ) -> None:
        super().__init__(journal, retry)
        self._sources = deque(enumerate(sources))
        self._at_once = at_once
        self._check = check
        self._skip_invalid = skip_invalid
        self._left = limit
        self._found = found
        self._failed = failed
        self._noticed = noticed
        self._heads = HeadWatch()
        self._next_index = self._limited = 0
        self._reading: asyncio.Future[bool] | None = None
        self._refusal: InputError | None = None

    async def look_ahead(self, rows: int, seconds: float) -> list[Taken]:
        """The first rows, which are handed out all the same; before the first `next`.

        At most as many as a window holds. What ends the input early is told when the rows before it are out.
        """
        usual, until = self._at_once, time.monotonic() + seconds
        async with self._refilling:
            while len(waiting := self._waiting()) < rows and (left := until - time.monotonic()) > 0:
                size = sum(_text_bytes(request.messages) for _, request in waiting)
                if size >= WINDOW_BYTES:
                    break
                if waiting:
                    mean = max(1, size // len(waiting))
                    self._at_once = max(usual, min(AHEAD_ROWS, (WINDOW_BYTES - size) // mean))
                # Never cancelled: what has been taken from the source would be lost.
                reading = self._reading = self._reading or asyncio.ensure_future(self._read_some())
                await asyncio.wait((reading,), timeout=left)
                if not reading.done() or reading.cancelled() or isinstance(reading.exception(), Exception):
                    break
                if not await self._refill():
                    break
        self._at_once = usual
        return self._waiting()[:rows]

    def _waiting(self) -> list[Taken]:
        """The rows that were read and not handed out, oldest first."""
        return list(self._ready)

    async def _refill(self) -> bool:
        reading = self._reading or asyncio.ensure_future(self._read_some())
        self._reading = None
        return await reading

    async def aclose(self) -> None:
        """Read no further; may be repeated."""
        await super().aclose()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    async def _read_some(self) -> bool:
        if self._refusal is not None:
            raise self._refusal
        if not self._sources:
            return False
        number, source = self._sources[0]
        at_once = self._at_once if self._left is None else min(self._at_once, self._left)
        items = await source.next_rows(at_once, check=self._check) if at_once else []
        if not items:
            self._sources.popleft()
            if not self._sources:
                refuse_fewer(self._journal, self._next_index)
            self._found(self._next_index, not self._sources, self._limited)
            return True
        self._left = None if self._left is None else self._left - len(items)
        await self._take(number, source, items)
        self._found(self._next_index, False, self._limited)
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
                self._limited += own_limit(item.request.params) is not None
        if invalid and not self._skip_invalid:
            # What comes behind may be other rows once that is mended: they are not the run's yet.
            rows = [row for row in rows if row.index < min(invalid)]
        for row, holder in await self._keep(source.name, rows):
            invalid[row.index] = source.duplicate(row, holder.line)
        if invalid and self._skip_invalid:
            for result in await record_invalid(self._journal, number, invalid):
                self._failed(result)
        elif invalid:
            bad = min(invalid)
            self._refusal = InputError(f"item {bad + 1} is invalid; {self._fate(first)}", [*invalid.values()])
            if not first:  # nothing has been sent: nothing needs to be
                raise self._refusal
            requests = {index: request for index, request in requests.items() if index < bad}
        pending = await self._journal.pending(after=first - 1, limit=len(items), retry=self._retry)
        for row in pending:
            if row.index in requests:
                self._ready.append((row, requests[row.index]))
                self._watch_head(row, requests[row.index])

    def _fate(self, first: int) -> str:
        """What an invalid item that came with item `first` (from 0) means for the others, and what to do."""
        kept = self._journal.durable
        done = "what the rows before it were answered is kept" if kept else "the rows before it are answered"
        again = "run it again to go on" if first and kept else "run it again"
        return f'{done if first else "nothing was sent"}; mend it, or say on_invalid="skip", and {again}'

    async def _keep(self, name: str, rows: Sequence[RowRecord]) -> list[tuple[RowRecord, RowRecord]]:
        return await keep_rows(self._journal, name, rows)

    def _watch_head(self, row: RowRecord, request: BatchRequest) -> None:
        difference = self._heads.see(str(row.custom_id), request.messages)
        if difference is not None:
            self._noticed(HeadWatch.KIND, str(difference), **difference.data)


class WindowFeed(StreamFeed):
    """Rows of streams, those that begin alike together, as far as they are there.

    From the first `next` on, rows are read ahead in the background into a window, of which workers are
    served at once. What ends the input, its end or an error, is told after the rows before it.
    """

    def __init__(
        self, *arguments: Any, rows: int = WINDOW_ROWS, size: int = WINDOW_BYTES, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._rows, self._size = rows, size
        self._schedule: Schedule = HeadSchedule()
        self._window: Window[Taken] = Window(self._schedule, patience=PATIENCE * rows)
        self._mean = 0.0
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def keep_to(self, engine: EngineInfo) -> None:
        """As many groups at once as there are slots: more would displace each other from the cache."""
        self._schedule = schedule_for(engine)
        self._window = Window(self._schedule, patience=PATIENCE * self._rows)

    async def next(self, worker: int) -> Taken | None:
        """The next row for `worker` of those that are there; waits for one, None at the end of the input."""
        if self._reader is None:
            self._let_wait()
            self._reader = asyncio.create_task(self._read_ahead())
        while True:
            taken = self._window.take(worker)
            if taken is not None:
                if self._schedule.warms_up(worker):
                    self._warm_up(taken[0], worker)
                self._room.set()
                self._changed.set()  # who has to go without may now share a group, or begin one
                return taken
            if self._ended and not self._window:
                if self._error is not None:
                    raise self._error
                return None
            await self._change()

    @property
    def spread(self) -> bool:
        """Whether several groups compete for slots."""
        return self._schedule.spread

    def leave(self, worker: int) -> None:
        """The group of `worker` is free for the others."""
        self._schedule.leave(worker)
        self._changed.set()

    async def aclose(self) -> None:
        """Read no further; rows that wait stay pending. May be repeated."""
        await super().aclose()
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))

    def _end_warm_up(self, owner: int) -> None:
        self._schedule.finished(owner)

    async def _read_ahead(self) -> None:
        """Keep the window as full as it may be, to the end of the input."""
        try:
            while not self._closed:  # a cancellation may be swallowed on the way, before Python 3.12
                self._at_once = self._places()
                if not self._at_once:
                    self._room.clear()
                    await self._room.wait()
                elif not await self._refill():
                    return
                self._let_wait()
                self._changed.set()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whoever asks for a row is to end of it, SystemExit included
            self._error = error
        finally:
            self._let_wait()
            self._ended = True
            self._changed.set()

    async def _keep(self, name: str, rows: Sequence[RowRecord]) -> list[tuple[RowRecord, RowRecord]]:
        while True:
            try:
                return await super()._keep(name, rows)
            except DiskFullError:
                if not self._window:
                    raise
            # The run waits for room with its results; nothing is to be read before it goes on.
            self._room.clear()
            await self._room.wait()

    def _places(self) -> int:
        """How many more rows may be taken into the window at once."""
        rows = min(AHEAD_ROWS, self._rows - len(self._window))
        if not self._mean:
            return min(STREAM_ROWS, rows)
        left = self._size - self._window.size
        return min(rows, max(1, int(left / self._mean))) if left > 0 else 0

    def _let_wait(self) -> None:
        """Put what has come into the window."""
        while self._ready:
            row, request = self._ready.popleft()
            size = _text_bytes(request.messages)
            self._mean = max(size, self._mean + (size - self._mean) / 100)
            self._window.add((row, request), row.order, size)


def _text_bytes(value: object) -> int:
    """The memory that the texts in `value` take."""
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, Mapping):
        return sum(map(_text_bytes, value.values()))
    return sum(map(_text_bytes, value)) if isinstance(value, list | tuple) else 0
