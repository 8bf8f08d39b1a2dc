"""The least that was in use of each memory, while the model was loaded."""

from __future__ import annotations

from typing import Any

from memory_support import GIB, device, engine, host, sample
from ollama_batch.memory import MemorySample
from ollama_batch.memory.initial_use import InitialUse
from ollama_batch.memory.sample import Room


def seen(*steps: tuple[float | None, int]) -> InitialUse:
    """After samples of a card of 100 GiB with so much in use, and so many answers until then."""
    initial = InitialUse()
    for at, (used, answers) in enumerate(steps):
        card = device(None if used is None else (100 - used) * GIB, 100 * GIB)
        initial.see(sample(float(at), card), answers=answers)
    return initial


def spared(initial: InitialUse, each: MemorySample | None = None) -> float:
    """What is spared of the card, in GiB; 1 % of it is 1 GiB."""
    room = device(0, 100 * GIB).room if each is None else each.devices[0].room
    return initial.spared(room) / GIB


def test_what_was_in_use_at_first_is_spared_and_a_hundredth_of_all_with_it() -> None:
    assert spared(seen((97, 0))) == 98
    assert spared(seen((97, 0), (99, 5), (99, 9))) == 98, "growth is not"


def test_less_counts_once_the_model_has_answered_between_two_samples_of_it() -> None:
    assert spared(seen((97, 0), (60, 0), (60, 0))) == 98
    assert spared(seen((97, 0), (60, 1))) == 98, "the answer may be from before"
    assert spared(seen((97, 0), (60, 1), (62, 2))) == 63
    assert spared(seen((97, 0), (60, 1), (97, 2))) == 98, "the model was on its way"
    assert spared(seen((97, 0), (60, 1), (None, 1), (60, 2), (97, 9))) == 61


def test_each_memory_has_its_own() -> None:
    cards: list[Any] = [device(4 * GIB, 24 * GIB), device(12 * GIB, 16 * GIB, name="gpu1")]
    initial = InitialUse()
    initial.see(
        sample(0.0, *cards, host=host(2 * GIB), engine=engine(5 * GIB, remote=False)),
        answers=0,
    )
    rooms: list[Room] = [each.room for each in cards] + [host(2 * GIB).room, engine(5 * GIB).room(None)]
    assert [round(initial.spared(room) / GIB, 2) for room in rooms] == [20.24, 4.16, 14.16, 5.05]
    assert initial.spared(device(1, name="gpu7").room) == -1
