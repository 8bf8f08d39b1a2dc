"""Results as they finish: nothing twice, nothing lost, and never more than the reader can hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import _results
from ollama_batch.errors import ConfigError, EngineUnreachableError, InputError, TooManyFailuresError
from ollama_batch.events import RunPaused
from ollama_batch.testing import FakeOllama, Fault
from runner_support import Events, ids, line, names, rows_file, runner_on, told, write_lines


@pytest.fixture
def fake(fake_ollama: FakeOllama) -> FakeOllama:
    return fake_ollama


async def test_results_come_while_the_run_goes_on(fake: FakeOllama) -> None:
    fake.inject(Fault("hang", match="last"))
    stream = runner_on(fake, concurrency=2).stream(["x", "last"])
    first = await anext(stream)
    assert first.custom_id == "0"
    await stream.aclose()
    assert fake.ledger.answered() == 1


async def test_leaving_the_loop_early_stops_the_run(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
    fake.inject(Fault("hang", when=list(range(6, 60))))
    runner = runner_on(fake, concurrency=2)
    stream = runner.stream(source, output=output)
    async for _ in stream:
        break
    await stream.aclose()
    assert list(runner._under_way) == [] or all(run.done for run in runner._under_way)
    assert fake.ledger.count() < 10
    fake.clear_faults()
    assert (await runner.arun(source, output=output)).ok
    assert ids(output) == names(50)


def test_leaving_an_iterator_early_stops_the_run(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 50), tmp_path / "out.jsonl"
    fake.inject(Fault("hang", when=list(range(6, 60))))
    runner = runner_on(fake, concurrency=2)
    for _ in runner.iter_results(source, output=output):
        break
    fake.clear_faults()
    assert runner.run(source, output=output).ok
    assert fake.ledger.count() < 60
    assert ids(output) == names(50)


async def test_the_run_waits_for_a_slow_reader(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_results, "HIGH", 20)
    monkeypatch.setattr(_results, "LOW", 10)
    events = Events()
    runner = runner_on(fake, concurrency=4, hooks=[events])
    stream = runner.stream(rows_file(tmp_path / "in.jsonl", 200))
    seen = [(await anext(stream)).custom_id]
    while not any(event.reason == "consumer" for event in events.of(RunPaused)):
        await asyncio.sleep(0.005)
    (run,) = runner._under_way
    while run.metrics.in_flight:
        await asyncio.sleep(0.005)
    # What the reader took, what the queue holds, and what was out when it was full.
    assert 20 <= fake.ledger.count() <= 10 + 20 + 4 + 1
    seen += [result.custom_id async for result in stream]
    assert sorted(seen) == sorted(names(200))
    assert set(fake.ledger.counts().values()) == {1}


async def test_results_of_earlier_sessions_come_first_and_once(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 30), tmp_path / "out.jsonl"
    runner = runner_on(fake, concurrency=2)
    runner.run(source, output=output, limit=20)
    seen = [result.custom_id async for result in runner.stream(source, output=output)]
    assert seen[:20] == names(20)
    assert sorted(seen) == sorted(names(30))
    again = [result.custom_id async for result in runner.stream(source, output=output)]
    assert again == names(30)
    assert set(fake.ledger.counts().values()) == {1}


async def test_more_earlier_results_than_the_queue_holds_come_all(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 90), tmp_path / "out.jsonl"
    runner_on(fake).run(source, output=output)
    monkeypatch.setattr(_results, "HIGH", 20)
    monkeypatch.setattr(_results, "LOW", 10)
    assert [result.custom_id async for result in runner_on(fake).stream(source, output=output)] == names(90)


async def test_a_row_that_is_sent_again_is_told_once(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    fake.inject(Fault("status", status=400, match="r2"))
    runner = runner_on(fake)
    assert runner.run(source, output=output).counts.failed == 1
    fake.clear_faults()
    results = [r async for r in runner.stream(source, output=output, retry_failed=True)]
    assert sorted(r.custom_id for r in results) == names(6)
    assert all(r.ok for r in results)
    assert fake.ledger.counts()["r2"] == 2


@pytest.mark.parametrize("as_file", [True, False])
async def test_invalid_rows_are_results_like_others(fake: FakeOllama, tmp_path: Path, as_file: bool) -> None:
    lines = [line("a"), line("b", n=3), line("a"), line("d")]
    source: Any = write_lines(tmp_path / "in.jsonl", lines) if as_file else lines
    events = Events()
    runner = runner_on(fake, hooks=[events])
    results = [r async for r in runner.stream(source, on_invalid="skip")]
    assert told(sorted(results, key=lambda r: r.index)) == told(
        runner.run(source, on_invalid="skip").results()
    )
    codes = {r.index: None if r.error is None else r.error.code for r in results}
    assert codes == {0: None, 1: "unsupported_parameter", 2: "duplicate_custom_id", 3: None}
    assert [r.custom_id for r in sorted(results, key=lambda r: r.index)] == ["a", "b", "a", "d"]


def test_the_metrics_count_skipped_rows_as_failed_not_as_resumed(fake: FakeOllama, tmp_path: Path) -> None:
    lines = [line("a"), line("b", n=3), line("c", n=3)]
    for source in (write_lines(tmp_path / "in.jsonl", lines), lines):
        report = runner_on(fake).run(source, on_invalid="skip")
        metrics, counts = report.metrics, report.counts
        assert (counts.ok, counts.failed, counts.resumed, counts.sent) == (1, 2, 0, 1)
        assert (metrics.completed, metrics.ok, metrics.failed, metrics.resumed) == (3, 1, 2, 0)
        assert metrics.errors == {"unsupported_parameter": 2}


async def test_what_stops_the_run_is_raised_after_the_last_result(fake: FakeOllama, tmp_path: Path) -> None:
    fake.inject(Fault("status", status=400, match="r3"))
    stream = runner_on(fake, concurrency=1).stream(rows_file(tmp_path / "in.jsonl", 9), max_failures=0)
    seen = [(await anext(stream)).custom_id for _ in range(4)]
    with pytest.raises(TooManyFailuresError) as caught:
        await anext(stream)
    assert seen == names(4)
    assert caught.value.report.counts.done == 4


async def test_what_keeps_a_run_from_starting_is_raised_at_once(fake: FakeOllama, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        await anext(runner_on(fake).stream(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError):
        next(runner_on(fake).iter_results([{"messages": 3}]))
    with pytest.raises(ConfigError):
        await anext(runner_on(fake).stream(["x"], outputs="y"))  # type: ignore[call-arg]  # wrong on purpose
    fake.stop()
    with pytest.raises(EngineUnreachableError):
        await anext(runner_on(fake).stream(["x"]))


async def test_a_slow_source_is_sent_as_it_comes(fake: FakeOllama) -> None:
    def requests() -> Iterator[str]:
        for n in range(5):
            yield f"q{n}"
            fake.wait_until(lambda ledger, n=n: ledger.count() == n + 1)

    results = [r async for r in runner_on(fake, concurrency=4).stream(requests())]
    assert sorted(r.custom_id for r in results) == [str(n) for n in range(5)]
