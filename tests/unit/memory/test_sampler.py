"""Sampling in a thread, watched from a loop; and the engine's own view."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import pytest

from engines_support import soon
from memory_support import GIB, device, sample
from ollama_batch.engines.base import MemoryReporting
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import ConfigError, EngineTimeoutError
from ollama_batch.memory import EngineView, Level, MemorySample, MemorySampler, VramGuard
from ollama_batch.memory import sampler as sampling
from ollama_batch.memory.engine import ASK_AGAIN_S, STALE_S, is_local
from ollama_batch.testing import FakeModel, FakeOllama
from ollama_batch.types import LoadedModel


class Prepared:
    """A probe that gives what it was told, then goes on with the last; says in which threads it was."""

    def __init__(self, free_gib: Iterable[float]) -> None:
        self.free = list(free_gib)
        self.threads: list[str] = []

    def read(self) -> MemorySample:
        number = len(self.threads)
        self.threads.append(threading.current_thread().name)
        return sample(float(number), device(self.free[min(number, len(self.free) - 1)] * GIB))


def memory_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "ollama-batch-memory"]


async def test_a_watcher_gets_samples_in_order_and_reading_is_off_the_loop() -> None:
    probe = Prepared([3, 1.9, 0.3])
    sampler = MemorySampler(probe, interval_s=0.001)
    seen = []
    async with aclosing(sampler.watch()) as samples:
        async for each in samples:
            seen.append(each.at)
            if len(seen) == 5:
                break
    sampler.stop()
    assert seen == sorted(set(seen))
    assert set(probe.threads) == {"ollama-batch-memory"}
    assert memory_threads() == []
    assert sampler.latest is not None


async def test_a_guard_watches_and_decides_on_each_sample() -> None:
    sampler = MemorySampler(Prepared([3, 0.3]), interval_s=0.001)
    found = []
    async with aclosing(VramGuard().watch(sampler)) as decisions:
        async for decision in decisions:
            found.append(decision)
            if decision.level is Level.CRITICAL:
                break
    assert "pause" in found[-1].actions
    assert len(memory_threads()) == 1, "who makes a sampler stops it"
    sampler.stop()


async def test_a_guard_alone_ends_its_own_sampling() -> None:
    async with aclosing(VramGuard().watch()) as decisions:
        async for decision in decisions:
            assert decision.guard == "vram"
            break
    assert memory_threads() == []


async def test_a_stop_ends_every_watch() -> None:
    sampler = MemorySampler(Prepared([3]), interval_s=3600.0)
    began = asyncio.Event()

    async def watch() -> int:
        count = 0
        async for _ in sampler.watch():
            count += 1
            began.set()
        return count

    tasks = [asyncio.create_task(watch()) for _ in range(3)]
    await began.wait()
    async with aclosing(sampler.watch()) as samples:
        # One that comes later gets the sample that is there, without waiting an hour for the next.
        assert (await asyncio.wait_for(anext(samples), 30)).at == 0.0
    await asyncio.to_thread(sampler.stop)
    assert await asyncio.gather(*tasks) == [1, 1, 1]


def test_starting_twice_makes_one_thread_and_a_block_ends_it() -> None:
    with MemorySampler(Prepared([3]), interval_s=0.001) as sampler:
        sampler.start()
        assert len(memory_threads()) == 1
    assert memory_threads() == []
    sampler.stop()


async def test_a_probe_that_fails_is_logged_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Prepared):
        def read(self) -> MemorySample:
            found = super().read()
            if len(self.threads) < 5:
                raise RuntimeError("broken sensor")
            return found

    sampler = MemorySampler(Fails([3]), interval_s=0.001)
    with caplog.at_level(logging.ERROR, logger="ollama_batch.memory"):
        async with aclosing(sampler.watch()) as samples:
            async for each in samples:
                assert each.at >= 4.0
                break
    sampler.stop()
    assert "broken sensor" in caplog.text
    assert len(caplog.records) == 1


def test_a_watcher_whose_loop_is_closed_hurts_nobody() -> None:
    probe = Prepared([3])
    sampler = MemorySampler(probe, interval_s=0.001)

    async def leave() -> None:
        samples = sampler.watch()
        await anext(samples)
        # Left without being closed; the loop closes it when it ends, after this.
        sampler._watchers.append((asyncio.new_event_loop(), asyncio.Event()))
        sampler._watchers[-1][0].close()

    asyncio.run(leave())
    taken = sampler.taken
    while sampler.taken < taken + 3:
        threading.Event().wait(0.001)
    sampler.stop()


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="interval_s=0"):
        MemorySampler(Prepared([1]), interval_s=0)


# The engine's own view


class Reports:
    """An engine that reports what it is told, or raises."""

    def __init__(
        self, *answers: LoadedModel | Exception | None, address: str = "http://10.1.2.3:11434"
    ) -> None:
        self.answers = list(answers)
        self.address = address
        self.asked = 0

    async def loaded(self, model: str) -> LoadedModel | None:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def view(engine: Reports, now: list[float]) -> EngineView:
    return EngineView(engine, "m:1b", now=lambda: now[0])


async def test_what_the_engine_says_is_kept_and_asked_for_every_5_seconds() -> None:
    now = [0.0]
    engine = Reports(LoadedModel("m:1b", 10 * GIB, 8 * GIB, 4096, "abc"), None)
    seen = view(engine, now)
    assert seen.latest.vram.reason == "not asked yet"
    for _ in range(3):
        found = await seen.refresh()
    assert engine.asked == 1
    assert (found.size.get(), found.vram.get(), found.spilled.get()) == (10 * GIB, 8 * GIB, 2 * GIB)
    assert found.remote
    now[0] = 5.0
    assert (await seen.refresh()).vram.reason == "the model is not loaded"


async def test_an_engine_that_is_silent_is_believed_for_a_minute() -> None:
    now = [0.0]
    silent = EngineTimeoutError("no answer in 30 s")
    seen = view(Reports(LoadedModel("m:1b", 10, 8), silent, silent), now)
    await seen.refresh()
    now[0] = STALE_S
    assert (await seen.refresh()).vram.get() == 8
    now[0] = STALE_S + 6
    assert (await seen.refresh()).vram.reason == "no answer for 66 s"


async def test_an_engine_that_never_answered_is_unknown_with_its_reason() -> None:
    seen = view(Reports(EngineTimeoutError("no answer in 30 s")), [0.0])
    assert (await seen.refresh()).size.reason == "no answer in 30 s"


@pytest.mark.parametrize("answer", [KeyError("size"), LoadedModel("m:1b", -5, 8), "a word"])
async def test_an_engine_whose_view_fails_is_unknown_at_once_with_its_reason_which_is_logged_once(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    seen = view(Reports(LoadedModel("m:1b", 10, 8), answer, answer, LoadedModel("m:1b", 10, 7)), now)
    assert (await seen.refresh()).vram.get() == 8
    for _ in range(2):
        now[0] += ASK_AGAIN_S
        found = await seen.refresh()
        assert found.vram.reason is not None
        assert "Error: " in found.vram.reason
    assert len(caplog.records) == 1
    now[0] += ASK_AGAIN_S
    assert (await seen.refresh()).vram.get() == 7


class Hangs(Reports):
    """An engine that answers nothing until it may, and counts those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()
        self.given_up = 0

    async def loaded(self, model: str) -> LoadedModel | None:
        self.asked += 1
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return LoadedModel("m:1b", 10, 8)


async def test_samples_do_not_wait_for_an_engine_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "FIRST_VIEW_S", 0.01)
    engine, now = Hangs(), [0.0]
    sampler = MemorySampler(Prepared([3]), engine=view(engine, now), interval_s=0.001)
    seen: list[Any] = []
    async with asyncio.timeout(30), aclosing(sampler.watch()) as samples:
        async for each in samples:
            assert each.engine is not None
            seen.append(each.engine.vram.value or each.engine.vram.reason)
            now[0] += ASK_AGAIN_S
            if len(seen) == 20:
                engine.may.set()
            if 8 in seen:
                break
    sampler.stop()
    assert set(seen[:20]) == {"no answer yet"}
    assert engine.asked <= 2, "a question that is out is not asked again"
    assert engine.given_up == 0


async def test_a_watch_that_ends_leaves_no_question_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "FIRST_VIEW_S", 0.01)
    engine = Hangs()
    sampler = MemorySampler(Prepared([3]), engine=view(engine, [0.0]), interval_s=0.001)
    async with asyncio.timeout(30), aclosing(sampler.watch()) as samples:
        async for _ in samples:
            break
    sampler.stop()
    assert (engine.asked, engine.given_up) == (1, 1)


async def test_what_the_engine_leaves_out_is_unknown() -> None:
    seen = view(Reports(LoadedModel("m:1b", None, None)), [0.0])
    found = await seen.refresh()
    assert found.vram.value is None
    assert found.spilled.value is None


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://127.0.0.1:11434", True),
        ("http://127.9.0.1", True),
        ("http://localhost:11434", True),
        ("http://[::1]:11434", True),
        ("embedded:model.gguf", True),
        ("http://gpu-box:11434", False),
        ("https://10.1.2.3", False),
    ],
)
def test_an_engine_is_remote_unless_its_address_is_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local
    assert EngineView(Reports(address=address), "m:1b").latest.remote is not local
    assert EngineView(Reports(address=address), "m:1b", remote=True).latest.remote


async def test_an_ollama_tells_what_a_loaded_model_takes() -> None:
    model = FakeModel("m:1b", size=6 * GIB, layers=4, kv_heads=2, head_dim=64, gpu_share=0.5)
    with FakeOllama(models=(model,), slots=2) as fake:
        engine = OllamaEngine(fake.url)
        assert isinstance(engine, MemoryReporting)
        assert await engine.loaded("m:1b") is None
        await engine.load("m:1b", num_ctx=8192, deadline=soon())
        loaded = await engine.loaded("m:1b")
        assert loaded is not None
        # K and V of 4 layers, 2 heads of 64, two bytes each, in two slots of 8,192.
        size = 6 * GIB + 2 * 4 * 2 * 64 * 2 * 2 * 8192
        assert (loaded.size_bytes, loaded.vram_bytes) == (size, size // 2)
        assert (loaded.context_length, loaded.digest) == (8192, model.digest)
        sampler = MemorySampler(
            Prepared([3]), engine=EngineView(engine, "m:1b", remote=False), interval_s=0.001
        )
        async with aclosing(VramGuard().watch(sampler)) as decisions:
            async for decision in decisions:
                assert any("3.0 GiB of the model are in host memory" in note for note in decision.notes)
                break
        sampler.stop()
        await engine.aclose()
