"""Runs that meet a model which Ollama never finishes to unload: they say so, and end or get round it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from ollama_batch import Supervisor, _outage, _stuck, _watch
from ollama_batch.engines import _ollama_wire, ollama
from ollama_batch.errors import EngineDownError, EngineTimeoutError
from ollama_batch.events import EngineRestarted, RowRetried, RunPaused
from ollama_batch.testing import CostModel, FakeOllama, Fault
from trouble_support import Recorder, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]

WHY = r'toy:1b should have been unloaded \S+ ago and is still there \("Stopping\.\.\." in ollama ps\)'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)
    monkeypatch.setattr(_stuck, "OVERDUE_S", 0.0)
    monkeypatch.setattr(_outage, "FIRST_S", 0.2)
    # A server tells its clock in whole seconds.
    monkeypatch.setattr(_ollama_wire, "clock", lambda reply: datetime.now(UTC))


def test_a_run_that_begins_says_what_it_waits_for_and_gives_up_in_time(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ollama, "ASK_S", 1.0)  # the goodbye waits for the model as well
    fake = fake_ollama_factory(faults=[Fault("stuck_stopping", route="unload")])
    for keep_alive in (-1, 0):  # loaded, and to be unloaded
        body = {"model": "toy:1b", "messages": [], "keep_alive": keep_alive}
        httpx.post(f"{fake.url}/api/chat", json=body).raise_for_status()
    began = time.monotonic()
    with pytest.raises(EngineTimeoutError, match=WHY):
        quick_runner(fake, load_timeout=1.0).run(rows(20))
    assert time.monotonic() - began < 8
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("toy:1b is not loaded yet, after" in line and "(load_timeout)" in line for line in told)
    assert fake.ledger.completions() == []


def test_a_run_whose_model_gets_stuck_says_what_it_waits_for_and_stops_in_time(
    fake_ollama_factory: Factory,
) -> None:
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.01), faults=[Fault("stuck_stopping", when=30)])
    recorder = Recorder()
    began = time.monotonic()
    with pytest.raises(EngineDownError, match=WHY) as caught:
        quick_runner(fake, hooks=[recorder], guards=(), timeout=0.5, recover_timeout=1.5).run(rows(200))
    assert time.monotonic() - began < 15
    counts = caught.value.report.counts
    assert (counts.total, counts.failed) == (200, 0)
    assert 0 < counts.ok < 40
    (paused,) = recorder.all(RunPaused)
    assert "should have been unloaded" in paused.message


def test_a_stuck_model_is_found_in_silence_and_got_rid_of_by_a_restart(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does not wait until its requests have used up their time."""
    monkeypatch.setattr(_watch, "STALL_S", 0.3)
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.01), faults=[Fault("stuck_stopping", when=30)])

    def restart() -> None:
        fake.stop()
        fake.restart()

    recorder = Recorder()
    runner = quick_runner(
        fake, hooks=[recorder], guards=(), timeout=1.0, supervisor=Supervisor(restart, after_s=0.1)
    )
    report = runner.run(rows(200))
    assert (report.counts.ok, report.counts.failed) == (200, 0)
    paused = recorder.all(RunPaused)[0]
    assert "no row has finished for" in paused.message
    assert "should have been unloaded" in paused.message
    assert recorder.events.index(paused) < recorder.events.index(recorder.all(RowRetried)[0])
    assert "should have been unloaded" in recorder.all(EngineRestarted)[0].reason
