"""Rows that go alone, and rows that wait for an engine that refuses them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from ollama_batch import _refusals
from ollama_batch._refusals import Refusals
from ollama_batch._stop import Abandoned, Stop
from ollama_batch._turns import Turns
from ollama_batch.errors import RunCancelledError

END = RunCancelledError("end")


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_rows_go_together_as_long_as_none_is_to_be_alone() -> None:
    turns = Turns(Stop())
    for row in (1, 2, 3):
        await turns.wait(row)
        turns.sent(row)
    assert turns.out == {1, 2, 3}


async def test_a_row_that_is_to_be_alone_waits_for_what_is_out_and_holds_the_others() -> None:
    turns = Turns(Stop())
    turns.sent(1)
    alone = asyncio.create_task(turns.claim(7))
    await settled()
    other = asyncio.create_task(turns.wait(2))
    await settled()
    assert not alone.done()
    assert not turns.may_go(7)
    turns.back(1)
    await asyncio.wait_for(alone, 5)
    assert turns.may_go(7)
    turns.sent(7)
    await settled()
    assert not other.done()
    turns.back(7)
    turns.free(7)
    await asyncio.wait_for(other, 5)


async def test_two_that_are_to_be_alone_go_one_after_the_other() -> None:
    turns = Turns(Stop())
    await turns.claim(1)
    second = asyncio.create_task(turns.claim(2))
    await settled()
    assert not second.done()
    turns.free(1)
    await asyncio.wait_for(second, 5)
    assert not turns.may_go(1)


async def test_one_that_gives_up_waiting_holds_nobody() -> None:
    turns = Turns(Stop())
    turns.sent(1)
    alone = asyncio.create_task(turns.claim(7))
    await settled()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    assert turns.may_go(2)


async def test_whoever_waits_leaves_when_the_run_is_to_end() -> None:
    stop = Stop()
    turns = Turns(stop)
    turns.sent(1)
    alone = asyncio.create_task(turns.claim(7))
    await settled()
    stop.drain(END)
    with pytest.raises(Abandoned):
        await alone


# Refusals


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is slept, without sleeping."""
    waits: list[float] = []

    async def sleep(self: Stop, seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Stop, "sleep", sleep)
    return waits


def made(
    sent_at: Callable[[int], float | None] = lambda row: 0.0,
    accepted: Callable[[float], None] = lambda at: None,
) -> Refusals:
    """Rows are sent long ago, unless told otherwise."""
    return Refusals(Stop(), sent_at=sent_at, accepted=accepted)


async def test_of_many_that_are_refused_one_asks_again(slept: list[float]) -> None:
    refusals = made()
    waiting = [asyncio.create_task(refusals.wait(row, 1.0, least_s=0.0)) for row in range(8)]
    await settled()
    assert [task.done() for task in waiting] == [True] + [False] * 7
    for _ in range(3):
        await refusals.wait(0, 60.0, least_s=0.0)  # refused again: still the one that asks, and soon enough
        await settled()
        assert not any(task.done() for task in waiting[1:])
    assert slept == [1.0] + [_refusals.SCOUT_S] * 3
    refusals.answered()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert len(slept) == 4  # after so long a silence the others go at once


async def test_where_others_are_answered_each_waits_its_own_time(slept: list[float]) -> None:
    refusals = made()
    waiting = [asyncio.create_task(refusals.wait(row, 20.0, least_s=0.0)) for row in range(3)]
    await settled()
    refusals.answered()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert slept[0] == _refusals.SCOUT_S
    assert all(wait == pytest.approx(20.0, abs=1.0) for wait in slept[1:])


async def test_when_the_one_that_asks_is_gone_another_does(slept: list[float]) -> None:
    refusals = made()
    waiting = [asyncio.create_task(refusals.wait(row, 1.0, least_s=0.0)) for row in range(3)]
    await settled()
    refusals.left(0)
    await settled()
    assert sum(task.done() for task in waiting) == 2
    refusals.left(1)
    await settled()
    assert all(task.done() for task in waiting)


async def test_no_row_goes_before_the_server_has_asked_it_to(slept: list[float]) -> None:
    refusals = made()
    await refusals.wait(0, 300.0, least_s=300.0)
    assert slept == [300.0]


async def test_one_that_asks_and_is_not_refused_lets_the_others_go_before_its_answer(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_refusals, "ACCEPTED_S", 0.005)
    refusals = made()
    waiting = [asyncio.create_task(refusals.wait(row, 1.0, least_s=0.0)) for row in range(4)]
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert len(slept) == 4


async def test_when_the_engine_took_a_request_again_is_told(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_refusals, "ACCEPTED_S", 0.02)
    sent, told = time.monotonic() + 0.01, list[float]()
    refusals = made(lambda row: sent, told.append)
    waiting = [asyncio.create_task(refusals.wait(row, 1.0, least_s=0.0)) for row in range(2)]
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert told == [sent]
    assert time.monotonic() >= sent + 0.02 - _refusals.ROUNDING_S  # not before it could have been refused


async def test_one_that_is_to_ask_and_waits_for_something_else_has_another_ask(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for an answer to one of those that wait for it."""
    monkeypatch.setattr(_refusals, "ACCEPTED_S", 0.005)
    told = list[float]()
    refusals = made(lambda row: None if row == 0 else 7.0, told.append)
    waiting = [asyncio.create_task(refusals.wait(row, 1.0, least_s=0.0)) for row in range(3)]
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert told == [7.0]  # the second one asked and was not refused
