"""What is predicted of a load, against what a server then reports of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines_support import soon
from memory_support import sample
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.memory import (
    EngineView,
    LearnedMemory,
    MemoryPlan,
    ModelShape,
    VramGuard,
    plan_memory,
    recommend,
)
from ollama_batch.testing import FakeModel, FakeOllama, MemoryModel

GIB = 2**30
SLOTS = 4
MODELS = (
    FakeModel("small:1b", size=GIB, layers=16, kv_heads=8, head_dim=64),
    FakeModel("llama:8b", size=5 * GIB, layers=32, kv_heads=8, head_dim=128),
    FakeModel("wide:12b", size=8 * GIB, layers=48, kv_heads=8, head_dim=256),
    FakeModel("spilled:70b", size=40 * GIB, layers=80, kv_heads=8, head_dim=128, gpu_share=0.4),
)
NAMES = [model.name for model in MODELS]


@pytest.fixture
async def engine() -> AsyncIterator[OllamaEngine]:
    with FakeOllama(models=MODELS, slots=SLOTS) as fake:
        engine = OllamaEngine(fake.url)
        yield engine
        await engine.aclose()


async def planned(
    engine: OllamaEngine, name: str, num_ctx: int, *, num_batch: int | None = None
) -> tuple[MemoryPlan, int]:
    """The plan of a load, and the bytes that the server says it took."""
    shape = ModelShape.from_metadata(name, await engine.metadata(name))
    plan = plan_memory(shape, num_ctx=num_ctx, slots=SLOTS, num_batch=num_batch)
    await engine.load(name, num_ctx=num_ctx, deadline=soon())
    loaded = await engine.loaded(name)
    assert loaded is not None
    assert loaded.size_bytes is not None
    return plan, loaded.size_bytes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_ctx", [2048, 8192, 32768])
async def test_a_plan_differs_from_what_is_reported_by_no_more_than_its_buffers(
    engine: OllamaEngine, name: str, num_ctx: int
) -> None:
    plan, reported = await planned(engine, name, num_ctx)
    assert abs(plan.engine_bytes - reported) <= plan.compute_bytes


@pytest.mark.parametrize("name", ["llama:8b", "wide:12b", "spilled:70b"])
@pytest.mark.parametrize("num_ctx", [2048, 8192, 32768])
async def test_a_plan_is_within_5_percent_of_what_is_reported(name: str, num_ctx: int) -> None:
    """The buffers are what llama.cpp logs for Llama 3 8B at a batch of 512 (258.50 MiB)."""
    buffers = round(258.5 * 2**20)
    with FakeOllama(models=MODELS, slots=SLOTS, memory=MemoryModel(overhead_bytes=buffers)) as fake:
        engine = OllamaEngine(fake.url)
        plan, reported = await planned(engine, name, num_ctx, num_batch=512)
        await engine.aclose()
    assert plan.engine_bytes == pytest.approx(reported, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
async def test_one_load_corrects_the_plans_of_the_model(
    engine: OllamaEngine, name: str, tmp_path: Path
) -> None:
    plan, reported = await planned(engine, name, 8192)
    loaded = await engine.loaded(name)
    assert loaded is not None
    learned = LearnedMemory(str(loaded.digest), folder=tmp_path)
    assert learned.observe(plan, loaded)
    assert learned.save()
    again = LearnedMemory(str(loaded.digest), folder=tmp_path).correct(plan)
    assert again.measured
    assert again.engine_bytes == reported
    other, reported = await planned(engine, name, 16384)
    assert not learned.correct(other).measured
    assert learned.correct(other).engine_bytes == pytest.approx(reported, rel=0.2)


async def test_a_recommended_load_fits_the_card_by_what_the_server_reports(engine: OllamaEngine) -> None:
    name, card = "wide:12b", 24 * GIB
    shape = ModelShape.from_metadata(name, await engine.metadata(name))
    best = recommend(shape, card, num_ctx=8192, slots=(SLOTS,), kv_types=("f16",))[0]
    assert best.slots == SLOTS
    _, reported = await planned(engine, name, best.num_ctx)
    assert reported + best.overhead_bytes <= 0.92 * card


async def test_a_spilled_model_is_told_by_the_guard(engine: OllamaEngine) -> None:
    name = "spilled:70b"
    plan, reported = await planned(engine, name, 4096)
    told = await EngineView(engine, name, remote=True).refresh()
    assert told.spilled.get() == pytest.approx(0.6 * reported, rel=0.01)
    decision = VramGuard(total="24GiB").decide(sample(0.0, engine=told))
    assert any("in host memory" in note for note in decision.notes)
    assert plan.engine_bytes > 24 * GIB
