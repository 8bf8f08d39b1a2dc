"""Rows of groups are handed out exactly once, however the workers take turns."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from ollama_batch._file_feed import PrefixFeed
from ollama_batch.types import RowRecord


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
