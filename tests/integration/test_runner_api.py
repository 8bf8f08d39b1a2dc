"""Every way to call a run does the same thing, from wherever it is called."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import OllamaEngine, RunStoppedError
from ollama_batch._portal import portal
from ollama_batch.errors import ConfigError, EngineStoppedError, JournalLockedError, RunCancelledError
from ollama_batch.events import RowFinished, RunFinished, RunStarted
from ollama_batch.testing import FakeModel, FakeOllama, Fault
from runner_support import Events, files_in, ids, line, names, rows_file, runner_on, told, write_lines

Factory = Callable[..., FakeOllama]


@pytest.fixture
def fake(fake_ollama: FakeOllama) -> FakeOllama:
    return fake_ollama


async def test_every_way_to_call_gives_the_same_results(fake: FakeOllama, tmp_path: Path) -> None:
    fake.inject(Fault("status", status=400, match="bad", route="completion"))
    source = write_lines(tmp_path / "in.jsonl", [line(name) for name in ["a", "bad", "c", "d", "e"]])
    runner = runner_on(fake)

    def in_order(results: list[Any]) -> Any:
        return told(sorted(results, key=lambda result: result.index))

    expected = told((await asyncio.to_thread(runner.run, source)).results())
    assert [code for *_, code in expected] == [None, "request_rejected", None, None, None]
    assert told((await runner.arun(source)).results()) == expected
    assert in_order([result async for result in runner.stream(source)]) == expected
    assert in_order(await asyncio.to_thread(lambda: list(runner.iter_results(source)))) == expected
    assert told((await runner.start(source)).results()) == expected
    assert told((await asyncio.to_thread(runner.start(source).wait)).results()) == expected
    assert fake.ledger.counts() == dict.fromkeys(["a", "bad", "c", "d", "e"], 6)


async def test_run_works_where_a_loop_is_running(fake: FakeOllama, tmp_path: Path) -> None:
    report = runner_on(fake).run(rows_file(tmp_path / "in.jsonl", 5), output=tmp_path / "out.jsonl")
    assert report.ok
    assert ids(tmp_path / "out.jsonl") == names(5)
    assert sorted(r.custom_id for r in runner_on(fake).iter_results(["x", "y"])) == ["0", "1"]


async def test_a_call_that_would_block_the_loop_of_its_own_input_is_refused(fake: FakeOllama) -> None:
    async def requests() -> AsyncIterator[str]:
        yield "x"

    runner = runner_on(fake)
    with pytest.raises(ConfigError, match="arun"):
        runner.run(requests())
    with pytest.raises(ConfigError, match="stream"):
        next(runner.iter_results(requests()))
    assert (await runner.start(requests())).ok
    assert fake.ledger.count() == 1


def test_an_async_iterable_runs_where_no_loop_does(fake: FakeOllama) -> None:
    async def requests() -> AsyncIterator[str]:
        for text in ("x", "y"):
            yield text

    assert told(runner_on(fake).run(requests()).results())[1][0] == "1"


def test_an_async_generator_of_the_callers_loop_is_read_on_that_loop(fake: FakeOllama) -> None:
    where: list[asyncio.AbstractEventLoop] = []

    async def requests() -> AsyncIterator[str]:
        where.append(asyncio.get_running_loop())
        yield "x"

    async def main() -> None:
        where.append(asyncio.get_running_loop())
        assert (await runner_on(fake).arun(requests())).ok

    asyncio.run(main())
    assert where[0] is where[1]


async def test_a_cancelled_arun_can_be_resumed(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    runner = runner_on(fake, concurrency=2)
    fake.inject(Fault("hang", when=7))
    task = asyncio.create_task(runner.arun(source, output=output))
    await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() >= 8)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    done = fake.ledger.answered()
    report = await runner.arun(source, output=output)
    assert report.ok
    assert ids(output) == names(20)
    assert report.counts.resumed >= done - 2
    assert max(fake.ledger.counts().values()) <= 2
    assert sum(n - 1 for n in fake.ledger.counts().values()) <= 2


async def test_a_handle_pauses_resumes_and_tells_how_the_run_stands(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    events = Events()
    run = runner_on(fake, concurrency=2, hooks=[events]).start(rows_file(tmp_path / "in.jsonl", 10))
    await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 2)
    assert (run.done, run.metrics.state, run.metrics.in_flight, run.metrics.total) == (
        False,
        "running",
        2,
        10,
    )
    run.pause()
    run.pause()
    fake.release()
    await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.answered() == 2)
    await _until(lambda: run.metrics.completed == 2)
    assert run.metrics.state == "paused"
    assert fake.ledger.count() == 2
    run.resume()
    report = await run
    assert report.ok
    assert (run.done, run.metrics.state, run.metrics.completed) == (True, "completed", 10)
    assert "completed" in repr(run)
    kinds = events.kinds()
    assert kinds.count("RunPaused") == kinds.count("RunResumed") == 1


async def test_a_pause_before_the_first_request_holds(fake: FakeOllama) -> None:
    events = Events()
    run = runner_on(fake, hooks=[events]).start(["x"])
    run.pause()
    await _until(lambda: bool(events.of(RunStarted)))
    assert run.metrics.state == "paused"
    assert fake.ledger.count() == 0
    run.resume()
    assert (await run).ok


def test_a_handle_serves_several_threads(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    run = runner_on(fake, concurrency=2).start(rows_file(tmp_path / "in.jsonl", 30))
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(run.wait) for _ in range(3)]
        asked = [threads.submit(lambda: (run.pause(), run.metrics, run.resume())) for _ in range(30)]
        for future in asked:
            future.result()
        with pytest.raises(TimeoutError):
            run.wait(timeout=0.01)
        fake.release()
        reports = [future.result() for future in waiting]
    assert reports[0] is reports[1] is reports[2]
    assert reports[0].ok
    assert set(fake.ledger.counts().values()) == {1}


@pytest.mark.parametrize("now", [False, True])
async def test_cancel_keeps_the_run_resumable(fake: FakeOllama, tmp_path: Path, now: bool) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 10), tmp_path / "out.jsonl"
    fake.hold()
    runner = runner_on(fake, concurrency=2)
    run = runner.start(source, output=output)
    await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 2)
    run.cancel(now=now)
    if not now:
        await _until(lambda: run._stop.draining.is_set())
        fake.release()
    with pytest.raises(RunCancelledError) as caught:
        await run
    assert caught.value.report.outcome == "stopped"
    assert caught.value.report.counts.ok == (0 if now else 2)
    assert not output.exists()
    fake.release()
    assert runner.run(source, output=output).ok
    assert fake.ledger.count() == (12 if now else 10)
    assert ids(output) == names(10)


def test_a_run_cancelled_while_its_input_is_read_can_be_resumed(fake: FakeOllama, tmp_path: Path) -> None:
    """A wish to stop may come at any moment of the validation, which writes to the journal all the time."""
    source, output = rows_file(tmp_path / "in.jsonl", 1100), tmp_path / "out.jsonl"
    for n in range(10):
        run = runner_on(fake).start(source, output=output)
        timer = threading.Timer(0.003 * n, run.cancel, kwargs={"now": n % 2 == 0})
        timer.start()
        with pytest.raises(RunStoppedError):
            run.wait(timeout=20)
        timer.join()
    report = runner_on(fake, concurrency=8).run(source, output=output)
    assert report.ok
    assert ids(output) == names(1100)


def test_two_runs_at_once_share_the_limit_of_their_engine(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    runner = runner_on(fake, concurrency=3)
    runs = [runner.start(rows_file(tmp_path / f"{name}.jsonl", 30, name)) for name in "ab"]
    fake.wait_until(lambda ledger: ledger.count() == 3)
    fake.release()
    assert all(run.wait().ok for run in runs)
    assert fake.ledger.max_in_flight == 3
    assert fake.ledger.loads == 1
    assert set(fake.ledger.counts().values()) == {1}


def test_a_run_stopped_at_once_leaves_the_other_on_its_engine_alone(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    runner = runner_on(fake, concurrency=3)
    first = runner.start(rows_file(tmp_path / "a.jsonl", 30, "a"))
    second = runner.start(rows_file(tmp_path / "b.jsonl", 30, "b"))
    fake.wait_until(lambda ledger: ledger.count() == 3)
    first.cancel(now=True)
    with pytest.raises(RunCancelledError):
        first.wait(timeout=20)
    fake.release()
    assert second.wait(timeout=20).ok
    assert fake.ledger.max_in_flight <= 6  # three given up, three of the other run


def test_the_second_run_on_one_output_is_refused(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    fake.hold()
    first = runner_on(fake).start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count() == 4)
    with pytest.raises(JournalLockedError, match=r"out\.jsonl\.run\.db"):
        runner_on(fake).run(source, output=output)
    fake.release()
    assert first.wait().ok
    assert fake.ledger.count() == 4


def test_an_engine_serves_two_runs_and_two_loops_and_is_the_callers_to_close(fake: FakeOllama) -> None:
    engine = OllamaEngine(fake.url)
    runner = runner_on(fake, engine=engine)

    async def main() -> None:
        assert (await runner.arun(["x", "y"])).ok
        assert (await engine.describe("toy:1b")).engine == "ollama"  # on a loop of its own

    assert runner.run(["x"]).ok
    asyncio.run(main())
    asyncio.run(main())
    asyncio.run(engine.aclose())
    with pytest.raises(EngineStoppedError):
        runner.run(["x"])
    assert fake.ledger.count() == 5


def test_a_context_manager_stops_its_runs(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    with runner_on(fake, concurrency=2) as runner:
        runs = [runner.start(rows_file(tmp_path / f"{name}.jsonl", 5, name)) for name in "ab"]
        fake.wait_until(lambda ledger: ledger.count() == 2)
    assert all(run.done for run in runs)
    for run in runs:
        with pytest.raises(RunCancelledError):
            run.wait()


async def test_an_async_context_manager_stops_its_runs(fake: FakeOllama) -> None:
    fake.hold()
    async with runner_on(fake) as runner:
        run = runner.start(["x"])
        await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.count() == 1)
    with pytest.raises(RunCancelledError):
        await run


async def test_a_run_leaves_no_task_and_no_journal_thread(fake: FakeOllama, tmp_path: Path) -> None:
    runner = runner_on(fake)
    assert runner.run(rows_file(tmp_path / "in.jsonl", 5), output=tmp_path / "out.jsonl").ok

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    assert portal().call(tasks()) == 0
    gc.collect()  # the temporary journals of other tests end with their reports
    assert [thread.name for thread in threading.enumerate() if thread.name == "ollama-batch-journal"] == []


def test_hooks_hear_everything_in_order_on_one_thread(fake: FakeOllama, tmp_path: Path) -> None:
    where: list[threading.Thread] = []

    class Where(Events):
        def on_event(self, event: Any) -> None:
            super().on_event(event)
            where.append(threading.current_thread())

    hook = Where()
    assert runner_on(fake, hooks=[hook]).run(rows_file(tmp_path / "in.jsonl", 3)).ok
    kinds = hook.kinds()
    assert (kinds[0], kinds[-1]) == ("RunStarted", "RunFinished")
    assert (kinds.count("RowSent"), kinds.count("RowFinished")) == (3, 3)
    assert len(set(where)) == 1


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt()])
def test_a_hook_that_ends_the_process_ends_its_run_and_no_other(
    fake: FakeOllama, raised: BaseException
) -> None:
    class Exits:
        def on_event(self, event: Any) -> None:
            if isinstance(event, RowFinished):
                raise raised

    with pytest.raises(type(raised)):
        runner_on(fake, hooks=[Exits()]).start(["x"]).wait(timeout=10)
    assert runner_on(fake).start(["x"]).wait(timeout=10).ok


@pytest.mark.parametrize("num_ctx", ["auto", 4096])
@pytest.mark.parametrize("rows", [1, 20])
def test_a_generator_that_ends_the_process_ends_its_run_and_no_other(
    fake: FakeOllama, num_ctx: Any, rows: int
) -> None:
    def requests() -> Any:
        yield from map(str, range(rows))
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        runner_on(fake, num_ctx=num_ctx).start(requests()).wait(timeout=10)
    assert runner_on(fake).start(["x"]).wait(timeout=10).ok


def test_a_hook_that_waits_for_a_run_is_told_why_it_cannot(fake: FakeOllama) -> None:
    said: list[str] = []

    class Waits:
        def on_event(self, event: Any) -> None:
            if isinstance(event, RunFinished) and not said:
                try:
                    runner_on(fake).start(["y"]).wait()
                except RuntimeError as error:
                    said.append(str(error))

    assert runner_on(fake, hooks=[Waits()]).start(["x"]).wait(timeout=10).ok
    assert said == ["a hook cannot wait for a run: all runs wait for their hooks"]


def test_the_report_tells_what_the_engine_saw(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    fake = fake_ollama_factory(
        reports_cached=True, faults=[Fault("status", when=3), Fault("empty", match="r7")]
    )
    report = runner_on(fake, concurrency=1).run(rows_file(tmp_path / "in.jsonl", 12), output=tmp_path / "o")
    ledger, counts, metrics = fake.ledger, report.counts, report.metrics
    results = list(report.results())
    assert (counts.total, counts.ok, counts.failed, counts.resumed, counts.left) == (12, 11, 1, 0, 0)
    assert counts.sent == len(ledger.keys()) == 12
    assert (metrics.sent, metrics.retried) == (ledger.count(), ledger.count() - 12) == (13, 1)
    assert {r.custom_id: r.attempts for r in results} == ledger.counts()
    usages = [r.usage for r in results if r.usage is not None]
    assert len(usages) == metrics.answers
    assert metrics.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert metrics.completion_tokens == sum(usage.completion_tokens for usage in usages)
    assert metrics.cached_tokens == sum(usage.cached_tokens or 0 for usage in usages)
    assert metrics.errors == {"output_empty": 1}
    assert [(e.code, e.count, e.custom_ids) for e in report.error_examples] == [("output_empty", 1, ("r7",))]
    assert report.error_examples[0].message
    assert (report.concurrency, report.num_ctx) == (1, ledger.load_settings()[0]["num_ctx"])
    assert report.engine is not None
    assert report.engine.digest == FakeModel("toy:1b").digest
    assert (report.outcome, report.durable, report.ok) == ("completed", True, False)
    assert report.files[0].output == str(tmp_path / "o")
    assert report.files[0].partial is None


def test_without_output_nothing_is_left_on_disk(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = runner_on(fake).run(["x", "y"])
    assert files_in(tmp_path) == []
    assert report.durable is False
    assert report.journal is None
    assert [r.custom_id for r in report.results()] == ["0", "1"]
    assert [r.custom_id for r in report.results()] == ["0", "1"]  # as often as one likes


def test_nothing_to_do_is_a_clean_empty_report(fake: FakeOllama, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    report = runner_on(fake).run([], output=output)
    assert (report.ok, report.counts.total, report.counts.done) == (True, 0, 0)
    assert output.read_text() == ""
    assert list(runner_on(fake).iter_results(iter(()))) == []
    assert list(fake.ledger.records()) == []


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_results_can_be_read_to_the_end_though_nobody_keeps_their_report(fake: FakeOllama) -> None:
    results = runner_on(fake).run(names(200)).results()
    first = next(results)
    gc.collect()
    assert [first.custom_id, *(each.custom_id for each in results)] == [str(n) for n in range(200)]
