"""Runs whose engine runs out of memory, dies, hangs and refuses: what becomes of the rows, by the ledger."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_batch import Concurrency, OllamaEngine, RunJournal
from ollama_batch._portal import portal
from ollama_batch._settings import TEST_QUESTION
from ollama_batch.control import Supervisor, memory_bound
from ollama_batch.errors import EngineDownError, RunCancelledError
from ollama_batch.events import Decision, EngineRestarted, Noticed, RowRetried
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, Fault, MemoryModel
from tries_support import timed, tries
from trouble_support import Recorder, name, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]
POISON = name(13)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)


def memory_faults(fake: FakeOllama) -> list[Any]:
    return [each for each in fake.ledger.completions() if each.outcome.startswith("fault:oom")]


# Memory


def searches(fake: FakeOllama) -> list[list[int]]:
    """The completions that memory failed, by their numbers; what comes 50 answers later is another search."""
    found: list[list[int]] = []
    answers = 0
    for number, each in enumerate(fake.ledger.completions()):
        answers += each.outcome == "answered"
        if each.outcome.startswith("fault:oom"):
            if not found or answers >= 50:
                found.append([])
            found[-1].append(number)
            answers = 0
    return found


@pytest.mark.parametrize("wording", ["ollama", "llama.cpp", "vllm"])
@pytest.mark.parametrize(("fits", "count"), [(1, 100), (2, 150), (3, 150), (7, 250), (20, 500)])
@pytest.mark.parametrize("concurrency", ["auto", 32])
def test_a_run_settles_at_what_memory_holds_soon_and_no_row_fails_for_it(
    fake_ollama_factory: Factory,
    fits: int,
    count: int,
    wording: Any,
    concurrency: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers take long enough, compared with this process's own work, for all that may be out to be."""
    monkeypatch.setattr(memory_bound, "PROBE_S", 60.0)  # on a slow machine it takes longer than 15 s
    fake = fake_ollama_factory(
        slots=64,
        speed=CostModel(latency_s=max(0.004, 0.005 * fits)),
        memory=MemoryModel(max_in_flight=fits, wording=wording),
    )
    report = quick_runner(fake, concurrency=concurrency, guards=()).run(rows(count))
    assert (report.counts.ok, report.counts.failed) == (count, 0)
    assert max(Counter(r.custom_id for r in report.results()).values()) == 1
    assert fake.ledger.answered() - fake.ledger.answered(TEST_QUESTION) == count

    # In the end no more may be out than fit, and no more are.
    assert report.metrics.concurrency is not None
    assert report.metrics.concurrency <= fits
    assert max(each.in_flight for each in fake.ledger.completions()[-40:]) <= fits

    # Failures end soon after the first: measured, in 60 runs, within 48 requests, the first 32 at once.
    found = searches(fake)
    if not found:  # on a slow machine a number that is found may stay at 16
        assert (concurrency, fits) == ("auto", 20)
        return
    assert found[0][-1] - found[0][0] < 96
    # Later ones are tries of more, for which this run is too short.
    assert len(found) == 1


def test_a_least_number_that_memory_does_not_hold_is_given_up_and_that_is_said_once(
    fake_ollama_factory: Factory,
) -> None:
    fake = fake_ollama_factory(slots=16, speed=CostModel(latency_s=0.01), memory=MemoryModel(max_in_flight=3))
    recorder = Recorder()
    runner = quick_runner(fake, concurrency=Concurrency(min=6), hooks=[recorder], guards=())
    report = runner.run(rows(60))
    assert (report.counts.ok, report.counts.failed) == (60, 0)
    told = [event.message for event in recorder.all(Noticed) if event.kind == "memory_below_min"]
    assert len(told) == 1
    assert told[0].startswith("memory does not hold 6 requests at a time, the least that you asked for")


GIB = 2**30


def test_other_models_are_unloaded_where_memory_does_not_hold_one_request(
    fake_ollama_factory: Factory,
) -> None:
    """Both models fit, and no request does beside them."""
    fake = fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB), FakeModel("other:1b", size=GIB)],
        slots=4,
        speed=CostModel(latency_s=0.01),
        memory=MemoryModel(card_bytes=2 * GIB + GIB // 4, request_bytes=GIB // 2),
    )
    other = {"model": "other:1b", "messages": [], "keep_alive": -1}
    httpx.post(f"{fake.url}/api/chat", json=other).raise_for_status()
    recorder = Recorder()
    report = quick_runner(fake, concurrency=2, hooks=[recorder], guards=()).run(rows(40))
    assert (report.counts.ok, report.counts.failed) == (40, 0)
    told = [event.data.get("rung") for event in recorder.all(Decision) if event.kind == "recovery"]
    assert told[-1] == "unload_others"
    unloaded = [each.model for each in fake.ledger.records() if each.kind == "unload"]
    assert unloaded == ["other:1b"]
    m = report.metrics
    assert m.recoveries == sum(event.data.get("do") == "pause" for event in recorder.all(Decision))
    assert 0 < m.lost_s == m.paused_s < m.elapsed_s
    assert re.search(rf"^  trouble    {m.recoveries} recover(y|ies), 0 restarts; ", str(report), re.MULTILINE)


def test_prompts_are_evaluated_in_smaller_pieces_where_memory_does_not_hold_one_request_and_then_again(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollama_batch.control.recovery.UNDO_AFTER", 50)
    fake = fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB)],
        slots=4,
        speed=CostModel(latency_s=0.002),
        memory=MemoryModel(card_bytes=2 * GIB + 3 * GIB // 8, batch_bytes=GIB // 1024, request_bytes=GIB),
    )
    recorder = Recorder()
    report = quick_runner(fake, concurrency=2, hooks=[recorder], guards=()).run(rows(180))
    assert (report.counts.ok, report.counts.failed) == (180, 0)
    told = [(e.data["do"], e.data["rung"]) for e in recorder.all(Decision) if e.data.get("rung")]
    # Halved first; then the pieces, which are tried large again after 50 answers, and after twice as many.
    taken, undone = ("pause", "num_batch"), ("undo", "num_batch")
    assert told == [("pause", "concurrency"), taken, undone, taken, undone, taken]
    loads = [each.get("num_batch") for each in fake.ledger.load_settings()]
    assert loads[-1] == 256  # nor does the goodbye load it anew
    assert len(memory_faults(fake)) <= 8  # two at once, then a row and a question at the most, each time


def test_a_run_whose_every_request_runs_out_of_memory_stops_and_fails_no_row(
    fake_ollama_factory: Factory,
) -> None:
    fake = fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB)],
        slots=4,
        speed=CostModel(latency_s=0.002),
        memory=MemoryModel(card_bytes=2 * GIB, request_bytes=2 * GIB),
    )
    recorder = Recorder()
    with pytest.raises(EngineDownError, match="nothing left to give up") as stopped:
        quick_runner(fake, concurrency=2, hooks=[recorder], guards=()).run(rows(20))
    assert "overwrite=True) with a smaller num_ctx= than 2,048" in str(stopped.value)
    counts = stopped.value.report.counts
    assert (counts.total, counts.ok, counts.failed) == (20, 0, 0)
    told = [e.data["rung"] for e in recorder.all(Decision) if e.data.get("rung")]
    assert told[:3] == ["concurrency", "num_batch", "unload_others"]


def test_an_engine_of_ones_own_that_cannot_unload_others_has_a_rung_that_does_not_help(
    fake_ollama_factory: Factory,
) -> None:
    class Broken(OllamaEngine):
        async def unload_others(self, model: str) -> Sequence[str]:
            raise RuntimeError("not thought of")

    fake = fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB)],
        speed=CostModel(latency_s=0.002),
        memory=MemoryModel(card_bytes=2 * GIB, request_bytes=2 * GIB),
    )
    engine = Broken(fake.url)
    with pytest.raises(EngineDownError, match="nothing left to give up") as stopped:
        quick_runner(engine=engine, concurrency=2, guards=()).run(rows(20))
    portal().call(engine.aclose())
    counts = stopped.value.report.counts
    assert (counts.total, counts.ok, counts.failed) == (20, 0, 0)


def test_an_engine_whose_memory_grows_until_nothing_fits_is_restarted(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(
        models=[FakeModel("toy:1b", size=GIB)],
        slots=4,
        speed=CostModel(latency_s=0.005),
        memory=MemoryModel(card_bytes=GIB + GIB // 4, growth_bytes=GIB // 4096, wording="llama.cpp"),
    )

    def restart() -> None:
        fake.stop()
        fake.restart()

    recorder = Recorder()
    report = quick_runner(fake, supervisor=Supervisor(restart), hooks=[recorder], guards=()).run(rows(100))
    assert (report.counts.ok, report.counts.failed) == (100, 0)
    restarts = recorder.all(EngineRestarted)
    assert restarts
    assert {event.outcome for event in restarts} == {"ok"}
    assert report.metrics.restarts == len(restarts)
    assert report.metrics.recoveries >= len(restarts)
    assert 0 < report.metrics.lost_s <= report.metrics.paused_s


# Rows that kill the engine


@pytest.mark.parametrize("kind", ["runner_dies", "runner_dies_reset"])
@pytest.mark.parametrize("place", [0, 13, 39])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_row_that_kills_the_engine_is_quarantined_and_its_neighbours_are_unharmed(
    fake_ollama_factory: Factory, kind: str, place: int, concurrency: int
) -> None:
    poison = name(place)
    # Neighbours are with the server when it dies, not on their way.
    latency_s = 0.01 if concurrency == 1 else 0.2
    fake = fake_ollama_factory(
        slots=4, speed=CostModel(latency_s=latency_s), faults=[Fault(kind, match=poison, for_s=latency_s / 2)]
    )
    recorder = Recorder()
    report = quick_runner(fake, concurrency=concurrency, hooks=[recorder]).run(rows(40))
    assert (report.counts.ok, report.counts.failed) == (39, 1)
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.custom_id == poison
    assert failed.error is not None
    assert fake.ledger.loads - 1 <= 3
    assert fake.ledger.count(poison) == 3
    assert "died 3 times with this row, the last time with it alone" in failed.error.message
    (told,) = (each.data for each in recorder.all(Decision) if each.data.get("quarantined"))
    assert told["quarantined"] == [place]
    # Neighbours pay with what was out when it died, no more.
    assert fake.ledger.answered() - fake.ledger.answered(TEST_QUESTION) == 39


@pytest.mark.parametrize("displaced", [False, True])
def test_connections_that_break_for_another_reason_are_no_deaths(
    fake_ollama_factory: Factory, displaced: bool
) -> None:
    """A bad cable, and one row at a time. Where others have had the model displaced when it breaks first,
    that is taken for a death, until the row is answered; after that no more.
    """
    gone = Fault("json_null", route="/api/ps", when=1, body={"models": []})
    cable = Fault("reset", every=5)
    fake = fake_ollama_factory(faults=[cable, gone] if displaced else [cable])
    recorder = Recorder()
    quiet = {"guards": (), "state_dir": None}  # nobody else asks what is loaded
    report = quick_runner(fake, concurrency=1, hooks=[recorder], **quiet).run(rows(60))
    assert (report.counts.ok, report.counts.failed) == (60, 0)
    lost = [event.code for event in recorder.all(RowRetried)]
    assert lost == ["connection_lost"] * len(lost)
    assert len(lost) >= 12
    assert report.metrics.recoveries == int(displaced)
    assert report.metrics.quarantined == 0
    asked = [each for each in fake.ledger.records() if each.route == "/api/ps"]
    assert len(asked) <= 3  # twice for the first, and at the end


def test_a_row_that_killed_the_engine_in_an_earlier_session_is_known(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    fake = fake_ollama_factory(
        slots=4, speed=CostModel(latency_s=0.005), faults=[Fault("runner_dies", match=POISON)]
    )
    recorder = Recorder()
    runner = quick_runner(fake, hooks=[recorder])
    run = runner.start(rows(400), output=output)
    fake.wait_until(lambda _: sum(event.kind == "recovery" for event in recorder.all(Decision)) >= 2)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(30)
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        notes = journal.notes("recovery")
    assert notes[-1].data["state"]["suspicions"]
    before = fake.ledger.count(POISON)
    report = runner.run(rows(400), output=output)
    assert (report.counts.ok, report.counts.failed) == (399, 1)
    assert fake.ledger.count(POISON) - before == 3 - before


# Kills


def test_an_engine_that_is_killed_every_half_second_fails_no_row(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.02))
    run = quick_runner(fake).start(rows(400))  # two seconds, without kills
    over = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        for _ in range(8):
            if over.wait(0.5):
                return
            fake.stop()
            fake.restart()
            kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = run.wait(60)
    finally:
        over.set()
        killer.join()
    assert (report.counts.ok, report.counts.failed) == (400, 0)
    assert kills >= 3
    assert report.metrics.recoveries >= 1
    results = Counter(result.custom_id for result in report.results())
    assert len(results) == 400
    assert set(results.values()) == {1}


@pytest.mark.parametrize("dies", ["the runner", "the server"])
def test_a_model_that_is_loaded_anew_takes_its_time_and_costs_no_row(
    fake_ollama_factory: Factory, dies: str
) -> None:
    """The load takes longer than a row may, and ends only if whoever asked for it stays."""
    timeout_s, slots = 0.4, 4
    faults = [Fault("runner_dies", when=12)] if dies == "the runner" else []
    speed = CostModel(latency_s=0.01, load_s=0.6)
    for attempt in tries():
        with attempt:
            fake = fake_ollama_factory(slots=slots, speed=speed, faults=faults)

            def restart(server: FakeOllama = fake) -> None:
                server.stop()
                server.restart()

            supervisor = Supervisor(restart, after_s=0.1, wait_s=0.01) if dies == "the server" else None
            recorder = Recorder()
            runner = quick_runner(
                fake,
                timeout=timeout_s,
                recover_timeout=10.0,
                supervisor=supervisor,
                hooks=[recorder],
                guards=(),
            )
            run = runner.start(rows(200))
            if dies == "the server":
                fake.wait_until(lambda ledger: ledger.answered() >= 20)
                fake.stop()
            report = run.wait(30)
            assert (report.counts.ok, report.counts.failed) == (200, 0)
            assert bool(recorder.all(EngineRestarted)) == (dies == "the server")
            loads = len(fake.ledger.load_settings())
            assert loads >= 2
            timed(loads == 2, loads)
            # A question waits twice as long as the one before. On a machine that stalls the second may be
            # too short, and a row that was sent before the death was known may have begun a load.
            assert 1 <= len(fake.ledger.aborted_loads()) <= slots + 1
            codes = [event.code for event in recorder.all(RowRetried)]
            timed(codes.count("request_timeout") < slots, codes)
            timed(max(result.attempts for result in report.results()) <= 2, codes)


# Hangs


def run_for(server: FakeOllama, *, deadline_s: float, slots: int, count: int) -> tuple[float, Any]:
    began = time.monotonic()
    report = quick_runner(server, timeout=deadline_s, concurrency=slots).run(rows(count))
    return time.monotonic() - began, report


def test_requests_that_are_never_answered_cost_two_deadlines_at_most(fake_ollama_factory: Factory) -> None:
    hanging = {name(n) for n in range(37, 600, 100)}  # 1 %
    deadline_s, slots, count = 1.0, 8, 600
    speed = CostModel(latency_s=0.01)
    for attempt in tries():
        with attempt:
            faults = [Fault("hang", match=row, first=1) for row in hanging]
            fake = fake_ollama_factory(slots=slots, speed=speed, faults=faults)
            plain = fake_ollama_factory(slots=slots, speed=speed)
            ideal_s, undisturbed = run_for(plain, deadline_s=deadline_s, slots=slots, count=count)
            took_s, report = run_for(fake, deadline_s=deadline_s, slots=slots, count=count)
            for each in (undisturbed, report):
                assert (each.counts.ok, each.counts.failed) == (count, 0)
            assert fake.ledger.counts() | {TEST_QUESTION: 0} == {
                name(n): 2 if name(n) in hanging else 1 for n in range(count)
            } | {TEST_QUESTION: 0}
            timed(took_s - ideal_s <= 2 * deadline_s, took_s, ideal_s)


def test_rows_that_never_get_an_answer_fail_by_name_after_three_deadlines_and_hold_up_no_other(
    fake_ollama_factory: Factory,
) -> None:
    """One deadline, and once more with twice the time; rows that hang side by side do so at the same time."""
    hanging = {name(n) for n in range(7, 300, 100)}  # 1 %
    deadline_s, slots, count = 0.75, 8, 300
    speed = CostModel(latency_s=0.02)
    for attempt in tries():
        with attempt:
            faults = [Fault("hang", match=row) for row in hanging]
            fake = fake_ollama_factory(slots=slots, speed=speed, faults=faults)
            plain = fake_ollama_factory(slots=slots, speed=speed)
            ideal_s, undisturbed = run_for(plain, deadline_s=deadline_s, slots=slots, count=count)
            assert undisturbed.ok
            took_s, report = run_for(fake, deadline_s=deadline_s, slots=slots, count=count)
            ended = {result.custom_id: result for result in report.results()}
            assert len(ended) == count
            failed = {custom_id: result for custom_id, result in ended.items() if not result.ok}
            assert failed.keys() == hanging
            for result in failed.values():
                assert result.error is not None
                assert (result.error.code, result.attempts) == ("request_timeout", 2)
            assert took_s >= 3 * deadline_s
            asked = fake.ledger.counts()
            assert {row: asked[row] for row in ended} == {row: 1 + (row in hanging) for row in ended}
            timed(took_s - ideal_s <= 3.5 * deadline_s, took_s, ideal_s)


def test_a_row_that_hangs_gets_twice_the_time_once(fake_ollama_factory: Factory) -> None:
    """What takes longer than the deadline and less than twice as long is answered the second time."""
    fake = fake_ollama_factory(slots=4, reply=slow_row)
    recorder = Recorder()
    report = quick_runner(fake, timeout=0.5, hooks=[recorder]).run(rows(8))
    assert report.ok
    assert [event.code for event in recorder.all(RowRetried)] == ["request_timeout"]


def slow_row(body: Any) -> Any:
    from ollama_batch.testing import FakeReply

    return FakeReply("fine", delay_s=0.75) if body["messages"][-1]["content"] == name(3) else None


# Refusals


@pytest.mark.parametrize("concurrency", ["auto", 16])
def test_a_server_that_refuses_everything_is_asked_by_one_row_and_then_goes_on(
    fake_ollama_factory: Factory, concurrency: Any
) -> None:
    """Waits are a fifth of the usual ones. How soon all is as before: see tests/unit/test_refusals.py."""
    busy_s = 2.0
    fake = fake_ollama_factory(slots=8, speed=CostModel(latency_s=0.01))
    runner = quick_runner(fake, concurrency=concurrency, retry=RetryPolicy(wait_s=0.1, wait_max_s=1.0))
    run = runner.start(rows(1000))
    fake.wait_until(lambda ledger: ledger.answered() >= 300)
    fake.inject(Fault("busy"))
    time.sleep(busy_s)
    fake.clear_faults()
    report = run.wait(60)
    assert (report.counts.ok, report.counts.failed) == (1000, 0)
    refused = [each for each in fake.ledger.completions() if each.outcome == "fault:busy"]
    # What was out, some of it twice, and the one that asks, once in 0.5 to 1 s; each by itself: over 50.
    assert len(refused) <= 2 * 16 + 8 + 2 * busy_s


def test_a_server_that_stays_busy_stops_the_run_with_every_row_pending(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("busy", when=range(21, 10_000))])
    with pytest.raises(EngineDownError, match=r"busy for 0\.3 s, and nothing is answered") as stopped:
        quick_runner(fake, recover_timeout=0.3).run(rows(100))
    assert (stopped.value.report.counts.ok, stopped.value.report.counts.failed) == (20, 0)


# The breaker


def test_an_engine_that_dies_under_every_request_stops_the_run_and_no_row_pays(
    fake_ollama_factory: Factory,
) -> None:
    fake = fake_ollama_factory(faults=[Fault("crash")])
    with pytest.raises(EngineDownError) as stopped:
        quick_runner(fake, recover_timeout=1.0).run(rows(100))
    assert stopped.value.report.counts.failed == 0
    assert fake.ledger.answered() == 0
