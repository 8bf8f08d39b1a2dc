"""Rows are handed out once, however workers take turns; streams are read ahead within bounds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from ollama_batch._file_feed import PrefixFeed
from ollama_batch._stream_feed import STREAM_ROWS, WindowFeed
from ollama_batch.errors import DiskFullError, InputError
from ollama_batch.sources import StreamSource
from ollama_batch.types import EngineInfo, RowRecord


class SlowJournal:
    """Answers as the journal does, after a turn or two of the loop."""

    def __init__(self, rows: list[RowRecord], rng: random.Random) -> None:
        self.rows = rows
        self.rng = rng

    async def pending_alike(
        self, prefix: bytes, *, after: tuple[bytes, int], limit: int, retry: object
    ) -> list[RowRecord]:
        await turns(self.rng)
        alike = [row for row in self.rows if row.order.startswith(prefix) and (row.order, row.index) > after]
        return sorted(alike, key=lambda row: (row.order, row.index))[:limit]


async def turns(rng: random.Random) -> None:
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(50))
async def test_every_row_is_handed_out_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    groups = {bytes([head]) * 8: rng.randrange(1, 8) for head in range(rng.randrange(1, 6))}
    orders = [group + rng.randbytes(12) for group, count in groups.items() for _ in range(count)]
    rows = [RowRecord(n, 0, 1, str(n), b"", order=order) for n, order in enumerate(orders)]
    journal: Any = SlowJournal(rows, rng)
    feed = PrefixFeed(journal, [], retry=None, validated=[], groups={**groups, b"": 0})

    async def read(some: list[RowRecord]) -> list[tuple[RowRecord, None]]:
        await turns(rng)
        return [(row, None) for row in some]

    monkeypatch.setattr(feed, "_read", read)
    taken: list[int] = []

    async def work(number: int) -> None:
        while (row := await feed.next(number)) is not None:
            taken.append(row[0].index)
            await turns(rng)

    await asyncio.gather(*(work(number) for number in range(rng.randrange(2, 6))))
    assert sorted(taken) == list(range(len(rows)))


class MemoryJournal:
    """Keeps rows in a list; has no room for more than `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.rows: list[RowRecord] = []
        self.most = most

    async def add_rows(self, rows: list[RowRecord]) -> list[Any]:
        if self.most is not None and len(self.rows) + len(rows) > self.most:
            raise DiskFullError("no room", None)
        self.rows += rows
        return []

    async def pending(self, *, after: int, limit: int, retry: object = None) -> list[RowRecord]:
        return [row for row in self.rows if after < row.index <= after + limit]

    def counts(self) -> Any:
        return SimpleNamespace(rows=len(self.rows))


class Stream:
    """Counts what is pulled of it."""

    def __init__(self, rows: int | None, heads: int = 3, chars: int = 10) -> None:
        self.pulled = 0
        self._rows, self._heads, self._text = rows, heads, "x" * chars

    def __iter__(self) -> Iterator[Any]:
        for n in count() if self._rows is None else range(self._rows):
            self.pulled += 1
            system = {"role": "system", "content": f"head {n % self._heads}"}
            yield {"messages": [system, {"role": "user", "content": f"{n} {self._text}"}]}


@asynccontextmanager
async def window_on(
    stream: Stream, journal: MemoryJournal | None = None, **options: Any
) -> AsyncIterator[WindowFeed]:
    source = StreamSource(stream, name="<rows>")
    feed = WindowFeed(
        journal or MemoryJournal(),
        [source],
        retry=None,
        at_once=STREAM_ROWS,
        check=lambda body: None,
        skip_invalid=False,
        limit=None,
        found=lambda rows, complete, limited: None,
        failed=lambda result: None,
        noticed=lambda *told, **data: None,
        **options,
    )
    feed.keep_to(EngineInfo("any", "here", None, "m", slots=2))
    try:
        yield feed
    finally:
        await feed.aclose()
        await source.aclose()


async def taken_by(feed: WindowFeed, worker: int, into: list[int], rows: int = 10**9) -> None:
    while len(into) < rows and (taken := await feed.next(worker)) is not None:
        into.append(taken[0].index)
        feed.finished(taken[0])


@pytest.mark.parametrize("heads", [1, 3, 500])
async def test_no_more_rows_are_read_ahead_than_the_window_holds(heads: int) -> None:
    stream, ahead = Stream(None, heads), []
    async with window_on(stream, rows=20) as feed:
        for taken in range(400):
            await feed.next(taken % 3 if heads == 1 else 0)
            ahead.append(stream.pulled - taken - 1)
            while len(feed._window) < 20:
                await asyncio.sleep(0)
    assert max(ahead) <= 20


async def test_no_more_text_is_read_ahead_than_the_window_holds() -> None:
    stream = Stream(None, chars=10_000)
    async with window_on(stream, size=50_000) as feed:
        for _ in range(100):
            await feed.next(0)
            await asyncio.sleep(0)
        assert stream.pulled <= 100 + STREAM_ROWS
        assert feed._window.size <= 50_000 + 11_000


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 300])
async def test_every_row_of_a_stream_is_handed_out_once_and_then_the_end(rows: int) -> None:
    gone: list[int] = []
    async with window_on(Stream(rows, heads=7), rows=50) as feed:
        await asyncio.gather(*(taken_by(feed, worker, gone) for worker in range(5)))
        assert await feed.next(0) is None
    assert sorted(gone) == list(range(rows))


async def test_a_journal_without_room_is_tried_again_while_rows_wait() -> None:
    journal, gone = MemoryJournal(most=STREAM_ROWS), []
    async with window_on(Stream(60), journal) as feed:
        await taken_by(feed, 0, gone, rows=STREAM_ROWS - 2)
        journal.most = None
        await taken_by(feed, 0, gone)
    assert sorted(gone) == list(range(60))


async def test_a_journal_without_room_is_an_error_once_no_row_waits() -> None:
    gone: list[int] = []
    async with window_on(Stream(60), MemoryJournal(most=STREAM_ROWS)) as feed:
        with pytest.raises(DiskFullError):
            await taken_by(feed, 0, gone)
    assert sorted(gone) == list(range(STREAM_ROWS))


async def test_an_error_of_the_stream_comes_after_the_rows_before_it_for_every_worker() -> None:
    class Failing(Stream):
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            raise RuntimeError("no more")

    gone: list[int] = []
    async with window_on(Failing(40)) as feed:
        ends = await asyncio.gather(
            *(taken_by(feed, worker, gone) for worker in range(3)), return_exceptions=True
        )
    assert sorted(gone) == list(range(40))
    assert [type(end) for end in ends] == [InputError] * 3


async def test_a_closed_feed_reads_no_further() -> None:
    stream = Stream(None)
    async with window_on(stream, rows=20) as feed:
        assert await feed.next(0) is not None
        await feed.aclose()
        before = stream.pulled
        while feed._window.take(0) is not None:
            await asyncio.sleep(0)
        assert stream.pulled <= before + 20
        assert feed._reader is not None
        assert feed._reader.done()
