"""Two runs on one server: what one of them does to it is not held against the other's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ollama_batch import OllamaEngine
from ollama_batch._portal import portal
from ollama_batch.errors import RunCancelledError
from ollama_batch.events import Decision
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, FakeReply, Fault, MemoryModel
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
    # A connection that breaks while nothing else is with the server, which is back at once, is no death yet.
    assert fake.ledger.count(POISON) in ((3,) if kind == "runner_dies" else (3, 4))
    assert not any(event.data.get("quarantined") for event in recorder.all(Decision))


GIB = 2**30


@pytest.fixture
def one_fits_in_small_pieces(fake_ollama_factory: Factory) -> FakeOllama:
    """A card that holds one request beside the buffers of a num_batch of 256, and none beside usual ones."""
    return fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB)],
        slots=4,
        speed=CostModel(latency_s=0.005),
        memory=MemoryModel(card_bytes=2 * GIB + 3 * GIB // 8, batch_bytes=GIB // 1024, request_bytes=GIB),
    )


@pytest.fixture
def engine(one_fits_in_small_pieces: FakeOllama) -> Iterator[OllamaEngine]:
    engine = OllamaEngine(one_fits_in_small_pieces.url)
    yield engine
    portal().call(engine.aclose())


def loads_small(fake: FakeOllama) -> list[bool]:
    return [load.get("num_batch") == 256 for load in fake.ledger.load_settings()]


def test_a_run_that_leaves_takes_from_no_other_what_it_needs_of_the_engine_they_share(
    one_fits_in_small_pieces: FakeOllama, engine: OllamaEngine
) -> None:
    fake = one_fits_in_small_pieces
    options: dict[str, Any] = {"engine": engine, "concurrency": 1, "guards": ()}
    first = quick_runner(**options).start(rows(100))
    fake.wait_until(lambda _: any(loads_small(fake)))
    second = quick_runner(**options).start(rows(150, first=100))
    for run, count in ((first, 100), (second, 150)):
        report = run.wait(60)
        assert (report.counts.ok, report.counts.failed) == (count, 0)
    assert loads_small(fake)[-1]
    large_again = loads_small(fake)[loads_small(fake).index(True) :].count(False)
    assert large_again == 0
    assert engine.num_batch is None


def test_an_engine_is_as_it_was_after_a_run_whose_goodbye_is_not_answered(
    one_fits_in_small_pieces: FakeOllama, engine: OllamaEngine
) -> None:
    fake = one_fits_in_small_pieces
    run = quick_runner(engine=engine, concurrency=1, guards=()).start(rows(5000))
    fake.wait_until(lambda _: any(loads_small(fake)))
    assert engine.num_batch == 256
    fake.inject(Fault("hang", route="preload"))
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert engine.num_batch is None
