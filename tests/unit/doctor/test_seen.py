"""How many slots a server is taken to have, by the best that is known of it."""

from __future__ import annotations

from typing import Any

import pytest

from memory_support import GIB
from ollama_batch.doctor.load_checks import Card, check_fit
from ollama_batch.doctor.measure import Parallel
from ollama_batch.doctor.place import Place
from ollama_batch.doctor.seen import Seen
from ollama_batch.memory import Layer, LearnedMemory, ModelShape, plan_memory
from ollama_batch.types import LoadedModel

SHAPE = ModelShape("m:1b", "llama", 4 * GIB, (Layer(8, 128, 128),) * 32, 128_256)
PLACE = Place("http://127.0.0.1:11434", None, "linux")


def learned(*slots: int) -> LearnedMemory:
    """Loads that were seen, the latest last."""
    found = LearnedMemory("d", folder=None)
    for count in slots:
        plan = plan_memory(SHAPE, num_ctx=4096, slots=count)
        assert found.observe(plan, LoadedModel("m:1b", plan.predicted_bytes, None))
    return found


def measured(slots: int | None) -> Parallel:
    return Parallel(8, slots, "answers were too fast", 45.0, 45.0, 0.0, 1.0)


KNOWN: list[tuple[dict[str, Any], int]] = [
    ({"parallel": measured(2)}, 2),
    ({"slots_loaded": 3}, 3),
    ({"slots_set": 5}, 5),
    ({"learned": learned(7, 6)}, 6),
    ({}, 1),
]
"""What may be known, the best first, and how many slots it tells."""


@pytest.mark.parametrize("first", range(len(KNOWN)))
def test_the_slots_are_those_measured_now_or_loaded_now_or_set_or_of_the_latest_load(first: int) -> None:
    seen = Seen(shape=SHAPE)
    for fields, _ in KNOWN[first:]:
        for name, value in fields.items():
            setattr(seen, name, value)
    plan = seen.plan(8192)
    assert plan is not None
    assert plan.slots == KNOWN[first][1]
    # Of the server itself nothing is known by what was loaded once.
    assert seen.slots == (KNOWN[first][1] if first < 3 else None)


def test_a_measurement_that_told_nothing_does_not_count() -> None:
    assert Seen(parallel=measured(None), slots_loaded=3).slots == 3


@pytest.mark.parametrize(
    ("card_gib", "known", "level"),
    [(16, False, "ok"), (10, False, "warning"), (10, True, "problem"), (5, False, "problem")],
)
def test_what_does_not_fit_is_a_warning_where_one_slot_would_and_the_slots_are_not_known(
    card_gib: int, known: bool, level: str
) -> None:
    """4 GiB of weights and 1 GiB a slot: 8 slots take 12 and more, one takes 6.5."""
    seen = Seen(8 if known else None, shape=SHAPE, learned=learned(8), card=Card(card_gib * GIB, 0))
    plan, single = seen.plan(8192), None if seen.slots else seen.plan(8192, 1)
    assert plan is not None
    if level == "ok":
        seen.card = Card(round(plan.total_bytes), 0)
    found = check_fit(plan, seen.card, PLACE, seen.best(8192), single)
    assert (found.level, (found.numbers or {})["slots"]) == (level, 8)
    assert any("with one (Ollama's default) about" in each for each in found.assumed) is not known
