"""Whether an engine answers one request at a time, by what its answers tell."""

from __future__ import annotations

import pytest

from control_support import SimulatedEngine, simulate
from ollama_batch.control import QueueTarget, SlotWatch
from ollama_batch.control.slots import ANSWERS


class Watched(QueueTarget):
    """A limit that stays, and a watch that is told what the limit is."""

    def __init__(self, limit: int, clock: list[float]) -> None:
        super().__init__(lowest=limit, highest=limit, clock=lambda: clock[0])
        self.watch = SlotWatch()
        self.said: list[float] = []

    def on_complete(
        self, *, latency_s: float, in_flight: int, queue_s: float | None = None, **_: float
    ) -> None:
        wait_s = self.watch.add(latency_s=latency_s, in_flight=in_flight, queue_s=queue_s)
        if wait_s is not None:
            self.said.append(wait_s)


@pytest.mark.parametrize(
    ("slots", "out", "one"), [(1, 2, 1), (1, 4, 1), (2, 4, 0), (4, 8, 0), (4, 2, 0), (1, 1, 0)]
)
def test_one_slot_is_said_once_and_several_never(slots: int, out: int, one: int) -> None:
    for seed in range(5):
        clock = [0.0]
        target = Watched(out, clock)
        simulate(SimulatedEngine(slots=slots), target, clock=clock, seed=seed, completions=600)
        assert len(target.said) == one
        assert all(wait_s > 1 for wait_s in target.said)


def test_what_does_not_tell_or_hardly_waits_is_not_doubted() -> None:
    watch = SlotWatch()
    for _ in range(3 * ANSWERS):
        assert watch.add(latency_s=1.0, in_flight=4, queue_s=None) is None
        assert watch.add(latency_s=0.04, in_flight=4, queue_s=0.03) is None
