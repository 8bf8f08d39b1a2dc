"""Two runs on one server: what one of them does to it is not held against the other's rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ollama_batch.events import Decision
from ollama_batch.testing import CostModel, FakeOllama, FakeReply, Fault
from trouble_support import Recorder, name, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]
SLOW, POISON = name(1), name(100)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)


def slow_row(body: Any) -> FakeReply:
    slow = body["messages"][-1]["content"] == SLOW
    return FakeReply("fine", delay_s=0.5 if slow else 0.01)


@pytest.mark.parametrize("kind", ["runner_dies", "runner_dies_reset"])
def test_a_slow_row_is_not_blamed_for_what_another_runs_row_does(
    fake_ollama_factory: Factory, kind: str
) -> None:
    """Both runs suspect the row of theirs that is out whenever the server dies, and ask it alone."""
    fake = fake_ollama_factory(
        slots=16,
        speed=CostModel(latency_s=0.005),
        reply=slow_row,
        faults=[Fault(kind, match=POISON, after_s=0.1)],
    )
    recorder = Recorder()
    innocent = quick_runner(fake, concurrency=2, hooks=[recorder], guards=()).start(rows(40))
    fake.wait_until(lambda ledger: ledger.count(SLOW) >= 1)
    guilty = quick_runner(fake, concurrency=2, guards=()).start(rows(40, first=100))
    report, other = innocent.wait(60), guilty.wait(60)
    assert (report.counts.ok, report.counts.failed) == (40, 0)
    assert [result.custom_id for result in other.results() if not result.ok] == [POISON]
    assert fake.ledger.count(POISON) == 3
    assert not any(event.data.get("quarantined") for event in recorder.all(Decision))
