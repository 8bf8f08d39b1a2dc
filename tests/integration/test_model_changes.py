"""Runs under which somebody exchanges the model: they end, and no answer has another one's digest unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_batch import OllamaEngine, _weights
from ollama_batch._portal import portal
from ollama_batch._settings import TEST_QUESTION
from ollama_batch.errors import EngineServerError, JournalMismatchError, ModelChangedError
from ollama_batch.events import Decision, RowFinished, RunPaused
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, Fault
from runner_support import rows_file
from trouble_support import Recorder, name, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]
FIRST = FakeModel("toy:1b", digest="a" * 64)
LOADS = CostModel(load_s=0.3, latency_s=0.01)
"""A load that shows in the answers that waited for it."""


def answered_before(fake: FakeOllama, swap: int) -> set[str]:
    """The rows that were asked before the completion that exchanged the model: the first model had them."""
    return {record.key for record in fake.ledger.completions()[: swap - 1]}


def stopped(runner: Any, requests: Any, **arguments: Any) -> ModelChangedError:
    with pytest.raises(ModelChangedError) as caught:
        runner.run(requests, **arguments)
    return caught.value


@pytest.mark.parametrize("guards", [(), None])
def test_an_answer_that_waited_for_another_model_to_be_loaded_is_not_kept(
    fake_ollama_factory: Factory, tmp_path: Path, guards: Any
) -> None:
    fake = fake_ollama_factory(models=[FIRST], speed=LOADS, faults=[Fault("model_swapped", when=20)])
    recorder = Recorder()
    runner = quick_runner(fake, concurrency=1, guards=guards, hooks=[recorder])
    error = stopped(runner, rows(200), output=tmp_path / "out.jsonl")
    results = list(error.report.results())
    assert [result.custom_id for result in results] == [name(n) for n in range(19)]
    assert {result.model_digest for result in results} == {FIRST.digest}
    (told,) = (event for event in recorder.all(Decision) if event.kind == "model_changed")
    assert told.data["before"] == FIRST.digest != told.data["after"]
    assert fake.ledger.count(name(19)) == 1
    assert fake.ledger.count(name(20)) == 0
    assert error.message == told.message
    assert f"toy:1b is another model now: the name stood for {'a' * 12}" in error.message
    assert "overwrite=True" in error.message


@pytest.mark.parametrize("speed", [LOADS, CostModel(latency_s=0.01)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_answers_that_may_be_of_either_model_are_named(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, speed: CostModel, concurrency: int
) -> None:
    """A load that takes no time shows in no answer: the digest is looked at all the same, now and again."""
    monkeypatch.setattr(_weights, "EVERY_S", 0.2)
    monkeypatch.setattr(_weights, "LEAST_S", 0.0)  # how many rows that is depends on the machine
    swap = 30
    fake = fake_ollama_factory(
        models=[FIRST], slots=4, speed=speed, faults=[Fault("model_swapped", when=swap)]
    )
    recorder = Recorder()
    error = stopped(quick_runner(fake, concurrency=concurrency, guards=(), hooks=[recorder]), rows(2000))
    done = {result.custom_id for result in error.report.results()}
    (told,) = (event for event in recorder.all(Decision) if event.kind == "model_changed")
    assert done - answered_before(fake, swap) <= set(told.data["unsure"])
    assert told.data["unsure_count"] == len(told.data["unsure"]) <= 100
    assert len(done) < 200
    assert error.report.counts.failed == 0


def test_it_is_seen_before_a_hundred_rows_more_however_seldom_is_looked(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_weights, "EVERY_S", 3600.0)
    monkeypatch.setattr(_weights, "LEAST_S", 0.0)
    fake = fake_ollama_factory(
        models=[FIRST], slots=4, speed=CostModel(latency_s=0.01), faults=[Fault("model_swapped", when=30)]
    )
    error = stopped(quick_runner(fake, guards=()), rows(2000))
    assert error.report.counts.ok < 130


def test_a_run_whose_model_has_changed_goes_on_with_the_first_one_alone(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 100), tmp_path / "out.jsonl"
    swapping = fake_ollama_factory(models=[FIRST], speed=LOADS, faults=[Fault("model_swapped", when=20)])
    error = stopped(quick_runner(swapping, concurrency=1), source, output=output)
    assert error.report.counts.ok == 19
    with pytest.raises(JournalMismatchError, match="digest of toy:1b was"):
        quick_runner(swapping, concurrency=1).run(source, output=output)
    first = fake_ollama_factory(models=[FIRST])
    report = quick_runner(first).run(source, output=output)
    assert (report.counts.ok, report.counts.resumed) == (100, 19)
    assert {result.model_digest for result in report.results()} == {FIRST.digest}
    assert first.ledger.answered() == 81


def test_an_engine_that_comes_back_with_another_model_is_sent_no_row(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_ladder(monkeypatch)
    fake = fake_ollama_factory(models=[FIRST], speed=CostModel(latency_s=0.01))
    recorder = Recorder()
    run = quick_runner(fake, hooks=[recorder], guards=()).start(rows(2000))
    recorder.wait_for(RowFinished, 20)
    fake.stop()
    recorder.wait_for(RunPaused)
    other = FakeOllama(models=[FakeModel("toy:1b", digest="b" * 64)], port=fake.port)
    with other, pytest.raises(ModelChangedError, match=f"{'a' * 12} and stands for {'b' * 12}"):
        run.wait(60)
    assert {record.key for record in other.ledger.completions()} == {TEST_QUESTION}


def test_a_model_that_changes_while_the_one_before_it_is_at_work_is_sent_no_row(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(
        models=[FIRST, FakeModel("late:1b", digest="c" * 64)], faults=[Fault("model_swapped", match="pull")]
    )
    source = tmp_path / "in.jsonl"
    lines = [
        f'{{"custom_id": "{model}-{n}", "method": "POST", "url": "/v1/chat/completions", "body": '
        f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{model}-{n}"}}]}}}}\n'
        for model in ("toy:1b", "late:1b")
        for n in range(10)
    ]
    source.write_text("".join(lines))

    def pull(event: Any) -> None:
        if isinstance(event, RowFinished) and event.result.custom_id == "toy:1b-5":
            chat = {"model": "late:1b", "messages": [{"role": "user", "content": "pull"}], "stream": False}
            httpx.post(f"{fake.url}/api/chat", json=chat).raise_for_status()

    runner = quick_runner(fake, allow_models=["late:1b"], hooks=[Recorder(on=pull)])
    with pytest.raises(JournalMismatchError, match="digest of late:1b was"):
        runner.run(source, output=tmp_path / "out.jsonl")
    assert not any(record.key.startswith("late:1b-") for record in fake.ledger.completions())


def test_an_engine_that_does_not_tell_its_digest_in_time_or_fails_to_is_no_reason_to_stop(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_weights, "EVERY_S", 0.01)
    monkeypatch.setattr(_weights, "LEAST_S", 0.0)
    fake = fake_ollama_factory(models=[FIRST], speed=CostModel(latency_s=0.01))

    class Mute(OllamaEngine):
        asked = 0

        async def digest(self, model: str) -> str | None:
            self.asked += 1
            if self.asked < 5:
                raise EngineServerError("not now")
            if self.asked == 5:
                raise RuntimeError("not thought of")
            raise AssertionError("asked again")

    engine = Mute(fake.url)
    report = quick_runner(engine=engine, guards=()).run(rows(100))
    portal().call(engine.aclose())
    assert (report.counts.ok, report.counts.failed) == (100, 0)
    assert engine.asked == 5
    assert any("could not be asked for the digest" in record.message for record in caplog.records)
