"""What a run does about memory: decisions of guards carried out, and given up on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from memory_support import GIB, device, host, sample
from ollama_batch._gate import Gate
from ollama_batch._guarding import Guarding
from ollama_batch._stop import Stop
from ollama_batch.errors import MemoryShortError
from ollama_batch.events import Event, MemoryMeasured, RunPaused, RunResumed
from ollama_batch.memory import Guard, GuardDecision, MemorySample, RamGuard, VramGuard


class Width:
    """The requests out at a time, and what they were capped to."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self.caps: list[int | None] = []

    @property
    def width(self) -> int:
        return self._limit if not self.caps or self.caps[-1] is None else min(self._limit, self.caps[-1])

    def cap(self, limit: int | None, reason: str) -> None:
        assert reason
        self.caps.append(limit)


class Watched:
    """A run's gate, stop, events and notes around guards that are shown GPUs with so much free."""

    def __init__(
        self, *guards: Guard, usual: bool = False, patience_s: float = 60.0, buffers: str = "small"
    ) -> None:
        self.events: list[Event] = []
        self.notes: list[dict[str, Any]] = []
        self.trims = 0
        self.buffers = buffers
        self.loaded = asyncio.Event()
        self.loads = 0
        self.width = Width()
        self.stop = Stop()
        self.gate = Gate(stop=self.stop, emit=self.events.append)
        self.guarding = Guarding(
            guards,
            usual=usual,
            throttle=self.width,
            gate=self.gate,
            stop=self.stop,
            trim=self._trim,
            reload=self._reload,
            emit=self.events.append,
            decide=self._decide,
            patience_s=patience_s,
        )
        self.now = 0.0

    def _reload(self) -> Awaitable[None] | None:
        if self.buffers == "small":
            return None
        self.buffers = "small"
        return self._load()

    async def _load(self) -> None:
        self.loads += 1
        await self.loaded.wait()

    def _trim(self) -> None:
        self.trims += 1

    async def _decide(self, kind: str, message: str, **data: Any) -> None:
        assert kind == "memory_guard"
        assert message
        self.notes.append(data)

    async def see(self, free_gib: float | None, *, seconds: int = 1, total: float = 16) -> None:
        for _ in range(seconds):
            self.now += 1
            free = None if free_gib is None else free_gib * GIB
            await self.guarding.judge(sample(self.now, device(free, total * GIB)))

    @property
    def paused(self) -> bool:
        return not self.gate.open


async def test_the_run_pauses_at_the_limit_and_goes_on_once_there_is_room() -> None:
    run = Watched(VramGuard(warn="14GiB", limit="15GiB"))
    await run.see(3)
    assert not run.paused
    await run.see(1)
    assert run.paused
    await run.see(1, seconds=5)
    await run.see(8, seconds=12)
    assert not run.paused
    kinds = [type(event) for event in run.events if not isinstance(event, MemoryMeasured)]
    assert kinds == [RunPaused, RunResumed]
    assert [note["actions"] for note in run.notes if "pause" in note["actions"]]
    assert sum(isinstance(event, MemoryMeasured) for event in run.events) == 19


async def test_less_room_caps_the_requests_out_and_more_room_takes_that_back() -> None:
    run = Watched(VramGuard())
    await run.see(1.8)
    assert run.width.caps == [8], "warn: no more than now"
    await run.see(1.2)
    assert run.width.caps == [8, 4], "high: half of it"
    await run.see(9, seconds=12)
    assert run.width.caps[-1] is None
    assert not run.paused


async def test_two_guards_pause_once_and_the_last_to_be_content_resumes() -> None:
    run = Watched(VramGuard(), RamGuard())

    async def see(vram: float, ram: float, seconds: int) -> None:
        for _ in range(seconds):
            run.now += 1
            await run.guarding.judge(sample(run.now, device(vram * GIB), host=host(ram * GIB)))

    await see(0.2, 8, 1)
    await see(0.2, 0.2, 1)
    assert run.paused
    await see(9, 0.2, 15)
    assert run.paused
    await see(9, 9, 15)
    assert not run.paused
    assert [type(event) for event in run.events if isinstance(event, RunPaused | RunResumed)] == [
        RunPaused,
        RunResumed,
    ]


async def test_conversations_are_trimmed_where_that_may_free_memory() -> None:
    run = Watched(VramGuard(grows_with_use=True))
    await run.see(1.2)
    assert run.trims == 1


async def test_usual_guards_let_be_what_the_engine_has_reserved_before_the_first_request() -> None:
    run = Watched(VramGuard(), usual=True)
    await run.see(0.3, seconds=40)
    assert not run.paused
    assert run.width.caps == []
    asked_for = Watched(VramGuard())
    await asked_for.see(0.3)
    assert asked_for.paused


async def test_usual_guards_act_on_what_comes_after_the_first_request() -> None:
    run = Watched(VramGuard(), usual=True)
    await run.see(2)
    await run.see(0.3)
    assert run.paused


async def test_a_pause_that_lasts_too_long_stops_the_run_and_says_why() -> None:
    run = Watched(VramGuard(), patience_s=20)
    await run.see(0.2, seconds=20)
    assert run.stop.reason is None
    await run.see(None, seconds=2)  # nor does a driver that is gone keep it for ever
    assert isinstance(run.stop.reason, MemoryShortError)
    assert "vram" in str(run.stop.reason)
    assert "run again" in str(run.stop.reason)


async def test_what_a_run_does_not_do_is_not_told_as_done() -> None:
    run = Watched(VramGuard())
    await run.see(0.2, seconds=40)
    (asked,) = (note for note in run.notes if any("smaller num_ctx" in text for text in note["notes"]))
    assert "reload_smaller" not in asked["actions"]


async def test_a_model_is_loaded_anew_with_smaller_buffers_once_as_long_as_that_takes() -> None:
    run = Watched(VramGuard(), buffers="large", patience_s=1000)
    await run.see(0.2, seconds=220)
    told = [note for note in run.notes if "reload_smaller" in note["actions"]]
    assert [note["notes"] for note in told] == [[], [], []]  # asked three times, still being done
    await asyncio.sleep(0)
    assert run.loads == 1
    await run.guarding.end()


async def test_memory_that_cannot_be_read_changes_nothing() -> None:
    run = Watched(VramGuard(), RamGuard())
    await run.see(None, seconds=30)
    assert not run.paused
    assert run.notes == []


class Broken:
    def decide(self, sample: MemorySample) -> GuardDecision:
        raise ZeroDivisionError


async def test_a_guard_that_fails_is_named_once_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Watched(Broken(), VramGuard())
    await run.see(0.2, seconds=3)
    assert run.paused
    assert [record.message for record in caplog.records] == ["the guard 'Broken' failed; the run goes on"]


async def test_at_the_end_of_a_phase_nothing_is_left_of_what_guards_did() -> None:
    run = Watched(VramGuard())
    await run.see(0.2)
    assert run.paused
    await run.guarding.end()
    assert not run.paused
    assert run.width.caps[-1] is None
