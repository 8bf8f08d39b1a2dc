"""The wish to end a run early."""

from __future__ import annotations

import asyncio

import pytest

from ollama_batch import _stop
from ollama_batch._stop import Abandoned, Stop
from ollama_batch.errors import RunCancelledError, RunInterrupted

FIRST, SECOND = RunCancelledError("first"), RunInterrupted("second")


async def test_the_first_reason_is_kept() -> None:
    stop = Stop()
    stop.drain(FIRST)
    stop.now(SECOND)
    stop.drain(SECOND)
    assert stop.reason is FIRST
    assert stop.draining.is_set()
    assert stop.stopping.is_set()


async def test_the_first_reason_is_told_once_the_run_drains() -> None:
    told: list[tuple[object, bool]] = []
    stop = Stop(lambda reason: told.append((reason, stop.draining.is_set())))
    stop.drain(FIRST)
    stop.now(SECOND)
    assert told == [(FIRST, True)]


async def test_draining_is_not_stopping() -> None:
    stop = Stop()
    stop.drain(FIRST)
    assert not stop.stopping.is_set()


async def test_a_sleep_ends_by_itself_or_by_the_end_of_the_run() -> None:
    stop = Stop()
    await stop.sleep(0.001)
    sleeping = asyncio.create_task(stop.sleep(3600))
    await asyncio.sleep(0)
    stop.drain(FIRST)
    with pytest.raises(Abandoned):
        await sleeping
    with pytest.raises(Abandoned):
        await stop.sleep(0)


async def test_work_is_done_cancelled_or_fails() -> None:
    stop = Stop()
    ended: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append("work")
        return 5

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("endless")

    async def failing() -> None:
        raise LookupError

    assert await stop.unless_draining(work()) == 5
    with pytest.raises(LookupError):
        await stop.unless_draining(failing())
    task = asyncio.create_task(stop.unless_draining(endless()))
    await asyncio.sleep(0.001)
    stop.drain(FIRST)
    with pytest.raises(Abandoned):
        await task
    assert ended == ["work", "endless"]  # it was waited for


async def test_what_can_be_left_out_is_bounded_only_by_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stop, "SOON_S", 0.01)
    stop = Stop()
    done: list[str] = []

    async def short() -> None:
        await asyncio.sleep(0.02)
        done.append("short")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("cancelled")

    await stop.or_soon(short())
    stop.drain(FIRST)
    await stop.or_soon(short())
    stop.now(SECOND)
    await asyncio.wait_for(stop.or_soon(endless()), 5)
    assert done == ["short", "short", "cancelled"]

    async def failing() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await stop.or_soon(failing())
