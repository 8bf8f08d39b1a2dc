"""What models were seen to take corrects what is predicted, now and in later runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines_support import soon
from memory_support import GIB
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.memory import Layer, LearnedMemory, MemoryPlan, ModelShape, plan_memory
from ollama_batch.memory.learned import MOST_LOADS
from ollama_batch.testing import FakeModel, FakeOllama
from ollama_batch.types import LoadedModel

SHAPE = ModelShape("m:1b", "llama", 4 * GIB, (Layer(8, 128, 128),) * 32, 128_256)


def plan(num_ctx: int = 8192, slots: int = 2, **other: Any) -> MemoryPlan:
    return plan_memory(SHAPE, num_ctx=num_ctx, slots=slots, **other)


def taken(share: float, of: MemoryPlan, **other: Any) -> LoadedModel:
    return LoadedModel("m:1b", round(share * of.predicted_bytes), None, **other)


def test_the_same_settings_take_what_they_took() -> None:
    learned = LearnedMemory("d", folder=None)
    assert learned.correct(plan()) == plan()
    assert learned.observe(plan(), taken(1.1, plan()))
    found = learned.correct(plan())
    assert found.engine_bytes == pytest.approx(1.1 * plan().predicted_bytes, abs=1)
    assert found.measured
    assert "measured" in str(found)


def test_other_settings_are_corrected_by_the_load_most_like_them() -> None:
    learned = LearnedMemory("d", folder=None)
    learned.observe(plan(4096), taken(1.1, plan(4096)))
    learned.observe(plan(65536), taken(1.3, plan(65536)))
    learned.observe(plan(kv_type="q8_0"), taken(0.9, plan(kv_type="q8_0")))
    for settings, ratio in (((5000,), 1.1), ((60000,), 1.3)):
        found = learned.correct(plan(*settings))
        assert found.correction == pytest.approx(ratio, rel=1e-6)
        assert not found.measured
        assert "corrected" in str(found)
    assert learned.correct(plan(kv_type="q8_0", num_ctx=9000)).correction == pytest.approx(0.9, rel=1e-6)


def test_a_load_of_as_many_slots_counts_before_one_of_the_nearest_size() -> None:
    learned = LearnedMemory("d", folder=None)
    learned.observe(plan(8192, 8), taken(1.4, plan(8192, 8)))
    learned.observe(plan(4096, 1), taken(1.02, plan(4096, 1)))
    assert learned.correct(plan(65536, 1)).correction == pytest.approx(1.02, rel=1e-6)


@pytest.mark.parametrize(("slots", "share"), [(8, 1.3), (1, 1.3), (8, 0.8), (1, 0.8)])
def test_of_another_number_of_slots_the_difference_or_the_ratio_counts_whichever_is_less(
    slots: int, share: float
) -> None:
    learned = LearnedMemory("d", folder=None)
    learned.observe(plan(8192, 2), taken(share, plan(8192, 2)))
    wanted = plan(8192, slots)
    off = (share - 1) * plan(8192, 2).predicted_bytes
    by_ratio = (share - 1) * wanted.predicted_bytes
    found = learned.correct(wanted).engine_bytes - wanted.predicted_bytes
    assert found == pytest.approx(min(off, by_ratio, key=abs), abs=4)


@pytest.mark.parametrize(
    "seen",
    [
        LoadedModel("m:1b", None, None),
        taken(1.0, plan(), context_length=4096),
        taken(1.0, plan(), digest="another"),
        taken(0.4, plan()),
        taken(2.1, plan()),
    ],
    ids=["not told", "another context", "other weights", "too little", "too much"],
)
def test_what_is_not_of_this_plan_teaches_nothing(seen: LoadedModel) -> None:
    learned = LearnedMemory("d", folder=None)
    assert not learned.observe(plan(), seen)
    assert learned.correct(plan()) == plan()


def test_it_is_kept_for_the_next_run_and_for_this_model_only(tmp_path: Path) -> None:
    learned = LearnedMemory("d", folder=tmp_path)
    assert not learned.save()
    learned.observe(plan(), taken(1.1, plan()))
    assert learned.save()
    assert LearnedMemory("d", folder=tmp_path).correct(plan()) == learned.correct(plan())
    assert LearnedMemory("e", folder=tmp_path).loads == ()
    assert len(list(tmp_path.rglob("*.json"))) == 1
    forgetful = LearnedMemory("d", folder=None)
    forgetful.observe(plan(), taken(1.1, plan()))
    assert not forgetful.save()


def test_only_the_latest_loads_are_kept(tmp_path: Path) -> None:
    learned = LearnedMemory("d", folder=tmp_path)
    for number in range(1, MOST_LOADS + 11):
        learned.observe(plan(256 * number), taken(1.1, plan(256 * number)))
    learned.observe(plan(256 * 20), taken(1.2, plan(256 * 20)))
    learned.save()
    loads = LearnedMemory("d", folder=tmp_path).loads
    assert len(loads) == MOST_LOADS
    assert loads[0].num_ctx == 256 * 11
    assert (loads[-1].num_ctx, loads[-1].ratio) == (256 * 20, pytest.approx(1.2))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"[]",
        b'{"version": 9}',
        b'{"version": 1}',
        b'{"version": 1, "digest": "e", "loads": []}',
        b'{"version": 1, "digest": "d", "loads": [[1, 2]]}',
        b'{"version": 1, "digest": "d", "loads": [[4096, 1, "f16", 512, 0, 5]]}',
        b'{"version": 1, "digest": "d", "loads": [[4096, 1, 7, 512, 5, 5]]}',
        b'{"version": 1, "digest": "d", "loads": [[9, 1, "f16", 512, 5, 5], [9, 1, "q8_0", 512, 5, 500]]}',
    ],
)
def test_a_broken_file_is_ignored_with_a_warning(
    tmp_path: Path, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    learned = LearnedMemory("d", folder=tmp_path)
    learned.observe(plan(), taken(1.1, plan()))
    learned.save()
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        assert LearnedMemory("d", folder=tmp_path).loads == ()
    assert "ignored" in caplog.text


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8), st.floats(0.2, 3.0)), max_size=30))
def test_a_correction_stays_within_what_was_seen(loads: list[tuple[int, int, float]]) -> None:
    learned = LearnedMemory("d", folder=None)
    seen = [1.0]
    for thousands, slots, share in loads:
        each = plan(1000 * thousands, slots)
        if learned.observe(each, taken(share, each)):
            seen.append(share)
    found = learned.correct(plan(3333, 3))
    assert min(seen) - 1e-6 <= found.correction <= max(seen) + 1e-6
    json.dumps(learned.to_dict(), allow_nan=False)


async def test_what_a_server_reports_is_what_the_next_plan_says() -> None:
    """The ledger of sizes is the fake server's: weights, and f16 of every slot's context."""
    model = FakeModel("m:1b", size=2 * GIB, layers=16, kv_heads=4, head_dim=128)
    with FakeOllama(models=(model,), slots=4) as fake:
        engine = OllamaEngine(fake.url)
        shape = ModelShape.from_metadata("m:1b", await engine.metadata("m:1b"))
        assert shape.weights_bytes == model.size
        first = plan_memory(shape, num_ctx=8192, slots=4)
        assert first.weights_bytes + first.kv_bytes == model.loaded_bytes(8192, 4)
        await engine.load("m:1b", num_ctx=8192, deadline=soon())
        loaded = await engine.loaded("m:1b")
        assert loaded is not None
        learned = LearnedMemory(model.digest, folder=None)
        assert learned.observe(first, loaded)
        assert learned.correct(first).engine_bytes == model.loaded_bytes(8192, 4)
        await engine.aclose()


@pytest.mark.parametrize(
    ("known", "slots", "kv_type"),
    [
        ({}, 4, "f16"),
        ({"at_least": 3}, 4, "f16"),
        ({"at_least": 6}, 6, "f16"),  # so many were seen at work, whatever else its size says
        ({"slots": 5}, 5, "f16"),
        ({"slots": 8, "kv_type": "q8_0"}, 8, "q8_0"),
    ],
)
def test_slots_that_are_not_told_are_as_many_as_come_nearest_to_what_was_taken(
    known: dict[str, Any], slots: int, kv_type: str
) -> None:
    """4 GiB of weights and 128 KiB a token and slot: 4 slots of 8,192 tokens take 4 GiB more."""
    learned = LearnedMemory("d", folder=None)
    buffers = plan(8192, 4).compute_bytes
    loaded = LoadedModel("m:1b", 8 * GIB + buffers + GIB // 3, None, context_length=8192)
    assert learned.learn(SHAPE, loaded, **known)
    (load,) = learned.loads
    assert (load.slots, load.kv_type, load.actual) == (slots, kv_type, loaded.size_bytes)


def test_nothing_is_learned_of_a_load_whose_size_or_context_is_not_told() -> None:
    learned = LearnedMemory("d", folder=None)
    assert not learned.learn(SHAPE, LoadedModel("m:1b", None, None, context_length=8192))
    assert not learned.learn(SHAPE, LoadedModel("m:1b", 8 * GIB, None))
    assert learned.loads == ()
