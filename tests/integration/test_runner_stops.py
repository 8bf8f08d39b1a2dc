"""Runs that end early, or wait: deadlines, cancelling, a full disk, bugs; and what a run leaves behind."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRequest, RunJournal, _room
from ollama_batch._portal import portal
from ollama_batch._settings import TEST_QUESTION
from ollama_batch.errors import (
    DeadlineReachedError,
    DiskFullError,
    EngineDownError,
    RunCancelledError,
)
from ollama_batch.events import RowFinished, RowRetried, RowSent, RunFinished, RunPaused, RunResumed
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import CostModel, FakeOllama, Fault
from ollama_batch.types import ChatRequest, ResultRecord
from trouble_support import Recorder, ScriptedEngine, name, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)
    monkeypatch.setattr(_room, "RETRY_S", 0.01)


def finish(fake: FakeOllama, output: Path, count: int) -> None:
    """Run again: everything is ok at the end, and what was done is not sent again."""
    with RunJournal.open_readonly(output.with_name(f"{output.name}.run.db")) as journal:
        done = {row.custom_id for row, _ in journal.results(ok=True)}
    before = fake.ledger.counts()
    report = quick_runner(fake).run(rows(count), output=output)
    assert (report.counts.total, report.counts.ok) == (count, count)
    assert report.counts.resumed == len(done)
    after = fake.ledger.counts()
    assert {row for row in after if after[row] != before[row]} == {name(n) for n in range(count)} - done


# Deadlines


@pytest.mark.parametrize("form", ["seconds", "a time"])
def test_at_its_deadline_a_run_drains(fake_ollama_factory: Factory, tmp_path: Path, form: str) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.02))
    deadline: Any = 0.4 if form == "seconds" else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.4)
    recorder = Recorder()
    output = tmp_path / "out.jsonl"
    with pytest.raises(DeadlineReachedError, match="run again") as stopped:
        quick_runner(fake, hooks=[recorder]).run(rows(150), output=output, deadline=deadline)
    counts = stopped.value.report.counts
    assert 0 < counts.ok < 150
    assert fake.ledger.count() == fake.ledger.answered() == counts.ok  # what was out was kept
    assert recorder.check_balance() == 0
    finish(fake, output, 150)


def test_a_deadline_that_has_passed_sends_nothing(fake_ollama: FakeOllama) -> None:
    with pytest.raises(DeadlineReachedError):
        quick_runner(fake_ollama).run(rows(5), deadline=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert fake_ollama.ledger.count() == 0


def test_a_deadline_also_bounds_the_load_of_the_model(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("hang", route="preload")])
    began = time.monotonic()
    with pytest.raises(DeadlineReachedError):
        quick_runner(fake).run(rows(5), deadline=0.3)
    assert time.monotonic() - began < 20  # a hanging engine has half an hour to load
    assert fake.ledger.count() == 0


# Cancelling


def test_cancel_lets_what_is_out_finish(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    recorder = Recorder()
    output = tmp_path / "out.jsonl"
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[recorder]).start(rows(30), output=output)
    fake_ollama.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel()
    fake_ollama.release()
    with pytest.raises(RunCancelledError) as stopped:
        run.wait(30)
    assert stopped.value.report.counts.ok == fake_ollama.ledger.count() == 4
    assert recorder.check_balance() == 0
    finish(fake_ollama, output, 30)


def test_cancel_now_gives_up_what_is_out(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    recorder = Recorder()
    output = tmp_path / "out.jsonl"
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[recorder]).start(rows(30), output=output)
    fake_ollama.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError) as stopped:
        run.wait(30)
    assert stopped.value.report.counts.ok == 0
    assert recorder.check_balance() == 4
    fake_ollama.release()
    finish(fake_ollama, output, 30)


def test_a_reply_in_hand_is_committed_and_told_although_the_run_is_to_stop_at_once(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = RunJournal.commit
    in_commit = 0

    async def slow_commit(self: RunJournal, record: ResultRecord) -> None:
        nonlocal in_commit
        in_commit += 1
        if in_commit == 4:
            run.cancel(now=True)
        while not run._stop.stopping.is_set():
            await asyncio.sleep(0.001)  # ends with the stop
        await asyncio.sleep(0.01)  # long enough for a cancellation to get through
        await commit(self, record)

    recorder = Recorder()
    monkeypatch.setattr(RunJournal, "commit", slow_commit)
    output = tmp_path / "out.jsonl"
    run = quick_runner(fake_ollama, hooks=[recorder]).start(rows(30), output=output)
    with pytest.raises(RunCancelledError) as stopped:
        run.wait(30)
    monkeypatch.undo()
    assert stopped.value.report.counts.ok == len(recorder.all(RowFinished)) == fake_ollama.ledger.count() == 4
    assert recorder.check_balance() == 0
    finish(fake_ollama, output, 30)


def test_a_wait_before_a_retry_is_cut_short(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("status")])
    recorder = Recorder()
    policy = RetryPolicy(wait_s=3600, wait_max_s=3600)
    run = quick_runner(fake, retry=policy, hooks=[recorder]).start(rows(10))
    recorder.wait_for(RowRetried, 4)
    run.cancel()
    with pytest.raises(RunCancelledError) as stopped:
        run.wait(30)
    assert stopped.value.report.counts.failed == 0
    assert fake.ledger.count() - fake.ledger.count(TEST_QUESTION) == 4


def test_a_wait_for_the_next_item_of_a_stream_is_cut_short(fake_ollama: FakeOllama) -> None:
    async def endless() -> AsyncIterator[BatchRequest]:
        for row in rows(3):
            yield row
        await asyncio.Event().wait()

    async def main() -> None:
        recorder = Recorder()
        run = quick_runner(fake_ollama, concurrency=1, hooks=[recorder]).start(endless())
        await asyncio.to_thread(recorder.wait_for, RowFinished, 3)
        run.cancel()
        with pytest.raises(RunCancelledError):
            await asyncio.wait_for(asyncio.ensure_future(_await(run)), 10)

    async def _await(run: Any) -> None:
        await run

    asyncio.run(main())
    assert fake_ollama.ledger.count() == 3


def test_a_paused_run_sends_nothing_and_goes_on(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.005))

    def pause(event: object) -> None:
        if isinstance(event, RowFinished) and len(recorder.all(RowFinished)) == 10:
            run.pause()

    recorder = Recorder(pause)
    run = quick_runner(fake, hooks=[recorder]).start(rows(60))
    recorder.wait_for(RunPaused)
    fake.wait_until(lambda ledger: all(record.outcome == "answered" for record in ledger.completions()))
    sent = fake.ledger.count()
    assert sent < 60
    fake.inject(Fault("reset", first=1, count=2))  # trouble after a pause finds the run patient
    run.resume()
    assert run.wait(30).ok
    (resumed,) = recorder.all(RunResumed)
    assert resumed.reason == "user"
    assert resumed.paused_s > 0
    # Of what was sent after the pause was told, all had passed the gate before.
    paused_at = next(i for i, event in enumerate(recorder.events) if isinstance(event, RunPaused))
    resumed_at = recorder.events.index(resumed)
    assert not any(isinstance(event, RowSent) for event in recorder.events[paused_at:resumed_at])
    assert recorder.check_balance() == 0


def test_a_long_pause_is_not_taken_for_a_silent_engine(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_ollama_factory()

    def pause(event: object) -> None:
        if isinstance(event, RowFinished) and len(recorder.all(RowFinished)) == 4:
            run.pause()

    recorder = Recorder(pause)
    run = quick_runner(fake, hooks=[recorder], recover_timeout=0.3).start(rows(20))
    recorder.wait_for(RunPaused)
    fake.inject(Fault("status", first=1, count=8))
    until = time.monotonic() + 0.4
    while time.monotonic() < until:  # longer than the run has patience with its engine
        time.sleep(0.05)
    run.resume()
    assert run.wait(30).ok


def test_a_run_that_waits_for_a_place_behind_another_sends_nothing_once_it_is_to_end(
    fake_ollama: FakeOllama,
) -> None:
    fake_ollama.hold()
    first = quick_runner(fake_ollama, concurrency=1).start(rows(1))
    fake_ollama.wait_until(lambda ledger: ledger.count() == 1)
    second = quick_runner(fake_ollama, concurrency=1).start(rows(3, first=10))
    assert _settles(lambda: len(portal().limit(fake_ollama.url)._queue) == 1)
    second.cancel()
    fake_ollama.release()
    assert first.wait(30).ok
    with pytest.raises(RunCancelledError):
        second.wait(30)
    assert fake_ollama.ledger.keys() == {name(0)}


# A full disk


class FullDisk:
    """Makes the commits of every journal fail while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused = 0
        commit = RunJournal.commit

        async def maybe(journal: RunJournal, record: ResultRecord) -> None:
            if self.full:
                self.refused += 1
                raise DiskFullError("the journal cannot grow", str(journal.path))
            await commit(journal, record)

        monkeypatch.setattr(RunJournal, "commit", maybe)


def test_a_full_disk_stops_the_sending_until_there_is_room(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.002))
    disk = FullDisk(monkeypatch)

    def fill(event: object) -> None:
        if len(recorder.all(RowFinished)) == 20 and not recorder.all(RunPaused):
            disk.full = True

    recorder = Recorder(fill)
    output = tmp_path / "out.jsonl"
    run = quick_runner(fake, hooks=[recorder]).start(rows(100), output=output)
    recorder.wait_for(RunPaused)
    fake.wait_until(lambda ledger: all(record.outcome == "answered" for record in ledger.completions()))
    sent = fake.ledger.count()
    assert sent <= len(recorder.all(RowFinished)) + 4 < 40  # one for each worker, whose reply waits for room
    refused = disk.refused
    while disk.refused < refused + 8:  # tried again and again, yet nothing more is sent or told
        time.sleep(0.005)
    assert fake.ledger.count() == sent
    assert len(recorder.all(RunPaused)) == 1
    assert "waiting for room" in recorder.all(RunPaused)[0].message
    disk.full = False
    report = run.wait(30)
    assert (report.counts.ok, fake.ledger.count()) == (100, 100)
    assert [event.reason for event in recorder.all(RunResumed)] == ["disk"]
    assert len(output.read_text().splitlines()) == 100


def test_sending_goes_on_only_when_no_result_waits_for_room_any_more(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = RunJournal.commit
    stuck = {2}  # the index of a row for which there is no room yet
    order: list[str] = []

    async def maybe(journal: RunJournal, record: ResultRecord) -> None:
        if record.index in stuck:
            order.append("refused")
            if len(order) > 6:
                stuck.clear()
            raise DiskFullError("full", None)
        await commit(journal, record)

    monkeypatch.setattr(RunJournal, "commit", maybe)
    recorder = Recorder()
    assert quick_runner(fake_ollama, hooks=[recorder]).run(rows(12)).ok
    assert len(recorder.all(RunPaused)) == len(recorder.all(RunResumed)) == 1
    resumed = recorder.events.index(recorder.all(RunResumed)[0])
    stuck_row = next(
        i for i, e in enumerate(recorder.events) if isinstance(e, RowFinished) and e.result.index == 2
    )
    paused = recorder.events.index(recorder.all(RunPaused)[0])
    assert not any(isinstance(event, RowSent) for event in recorder.events[paused:resumed])
    assert resumed < stuck_row  # released as its commit went through, then told
    assert fake_ollama.ledger.count() == 12


def test_a_disk_that_stays_full_stops_the_run_and_loses_no_kept_row(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = FullDisk(monkeypatch)

    def fill(event: object) -> None:
        disk.full = len(recorder.all(RowFinished)) >= 10

    recorder = Recorder(fill)
    output = tmp_path / "out.jsonl"
    with pytest.raises(DiskFullError, match="cannot grow"):
        quick_runner(fake_ollama, recover_timeout=0.1, hooks=[recorder]).run(rows(40), output=output)
    assert recorder.all(RunFinished)[0].outcome == "stopped"
    told = len(recorder.all(RowFinished))
    assert fake_ollama.ledger.count() <= told + 4
    disk.full = False
    finish(fake_ollama, output, 40)


def test_cancelling_a_run_that_waits_for_room_ends_it(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = FullDisk(monkeypatch)
    disk.full = True
    recorder = Recorder()
    output = tmp_path / "out.jsonl"
    run = quick_runner(fake_ollama, hooks=[recorder]).start(rows(20), output=output)
    recorder.wait_for(RunPaused)
    run.cancel()
    with pytest.raises(RunCancelledError):
        run.wait(30)
    assert recorder.all(RowFinished) == []
    assert recorder.all(RunResumed) == []
    disk.full = False
    finish(fake_ollama, output, 20)


def test_a_journal_that_really_cannot_grow_is_waited_for(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_ollama_factory()
    opened: list[RunJournal] = []
    real_open = RunJournal.open.__func__  # type: ignore[attr-defined]  # the function behind a classmethod

    def remember(cls: type[RunJournal], *args: Any, **kwargs: Any) -> RunJournal:
        opened.append(real_open(cls, *args, **kwargs))
        return opened[-1]

    def limit(con: sqlite3.Connection, spare: int) -> None:
        pages = con.execute("PRAGMA page_count").fetchone()[0]
        con.execute(f"PRAGMA max_page_count = {pages + spare}")

    def fill(event: object) -> None:
        if isinstance(event, RowFinished) and not full.is_set():
            full.set()
            opened[0]._call(lambda con: limit(con, 2))

    monkeypatch.setattr(RunJournal, "open", classmethod(remember))
    full = threading.Event()
    recorder = Recorder(fill)
    output = tmp_path / "out.jsonl"
    run = quick_runner(fake, hooks=[recorder]).start(rows(300), output=output)
    recorder.wait_for(RunPaused)
    sent = fake.ledger.count()
    assert sent < 300
    for _ in range(5):
        time.sleep(0.02)
    assert fake.ledger.count() <= sent + 4
    opened[0]._call(lambda con: limit(con, 100_000))
    report = run.wait(20)
    assert (report.counts.ok, fake.ledger.count()) == (300, 300)
    assert recorder.check_balance() == 0


# Bugs end a run loudly


class Bug(Exception):
    pass


def test_a_bug_in_an_engine_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    def answer(request: ChatRequest) -> Any:
        if request.custom_id == name(20):
            raise Bug("of the engine")
        return asyncio.sleep(30) if request.custom_id > name(20) else None

    engine = ScriptedEngine(answer)
    recorder = Recorder()
    output = tmp_path / "out.jsonl"
    with pytest.raises(Bug, match="of the engine"):
        quick_runner(engine=engine, hooks=[recorder]).start(rows(40), output=output).wait(30)
    assert recorder.all(RunFinished)[0].outcome == "stopped"
    with RunJournal.open_readonly(output.with_name("out.jsonl.run.db")) as journal:
        assert 17 <= journal.counts().ok <= 20
    assert portal().limit("scripted")._out == 0


def test_a_bug_in_a_source_ends_the_run_and_keeps_what_is_out(fake_ollama: FakeOllama) -> None:
    def broken() -> Iterator[BatchRequest]:
        yield from rows(8)
        raise Bug("of the source")

    with pytest.raises(Exception, match="of the source"):
        quick_runner(fake_ollama).start(broken()).wait(30)
    assert fake_ollama.ledger.count() <= 8


def test_an_engine_error_that_is_no_trouble_of_ours_is_not_retried() -> None:
    from ollama_batch.errors import EngineError

    engine = ScriptedEngine(lambda request: EngineError("odd") if request.custom_id == name(1) else None)
    report = quick_runner(engine=engine).run(rows(6))
    assert (report.counts.ok, report.counts.failed) == (5, 1)
    # It fails only as the engine is seen to answer others, or a question of our own.
    assert sorted(each for each in engine.asked if each != "test") == [name(n) for n in range(6)]


# What results say, and what a run leaves behind


def test_latency_is_that_of_the_last_attempt(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(
        faults=[Fault("status", match=name(0), first=1, after_s=0.4)],
        speed=CostModel(latency_s=0.05),
    )
    first, second = quick_runner(fake, concurrency=2).run(rows(2)).results()
    assert (first.attempts, second.attempts) == (2, 1)
    assert first.latency_s is not None
    assert second.latency_s is not None
    assert 0.05 <= first.latency_s < 0.4
    assert second.latency_s >= 0.05


@pytest.mark.parametrize("ending", ["completed", "cancelled", "engine down", "bug"])
def test_a_run_leaves_no_task_thread_or_socket(fake_ollama: FakeOllama, tmp_path: Path, ending: str) -> None:
    portal().call(asyncio.sleep(0))
    gc.collect()
    tasks_before = portal().call(_tasks())
    threads_before, sockets_before = _threads(), _sockets()
    run = quick_runner(fake_ollama, recover_timeout=0.05).start(rows(40), output=tmp_path / "out.jsonl")
    if ending == "completed":
        assert run.wait(30).ok
    elif ending == "cancelled":
        run.cancel(now=True)
        with pytest.raises(RunCancelledError):
            run.wait(30)
    elif ending == "engine down":
        fake_ollama.stop()
        with pytest.raises((EngineDownError, Exception)):
            run.wait(30)
        fake_ollama.restart()
    else:
        engine = ScriptedEngine(lambda request: Bug("b"))
        run.wait(30)
        with pytest.raises(Bug):
            quick_runner(engine=engine).run(rows(9), output=tmp_path / "other.jsonl")
    assert _settles(lambda: portal().call(_tasks()) <= tasks_before)
    assert _settles(lambda: _threads() <= threads_before)
    assert _settles(lambda: _sockets() <= sockets_before)


async def _tasks() -> set[str]:
    here = asyncio.current_task()
    return {repr(task.get_coro()) for task in asyncio.all_tasks() if task is not here}


def _threads() -> set[str]:
    """All but the idle ones of pools, which are kept for the next use."""
    pools = ("asyncio_", "ThreadPoolExecutor")
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(pools)}


def _sockets() -> int:
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return sum("socket:" in link for link in links)


def _settles(holds: Callable[[], bool], timeout: float = 3.0) -> bool:
    until = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
