"""An engine in trouble: what each kind costs a row, and what becomes of the run. The fake's ledger counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import _watch
from ollama_batch._settings import TEST_QUESTION
from ollama_batch._stop import Stop
from ollama_batch.errors import (
    EngineConnectionError,
    EngineDownError,
    EngineUnreachableError,
    ModelNotFoundError,
    TooManyFailuresError,
)
from ollama_batch.events import RowRetried, RowSent, RunPaused, RunResumed, RunStalled
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import CostModel, FakeOllama, Fault
from ollama_batch.types import ChatRequest
from trouble_support import QUICK, Recorder, ScriptedEngine, name, quick_ladder, quick_runner, rows

Factory = Callable[..., FakeOllama]
POISON = name(3)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)


# What each kind of trouble costs


@pytest.mark.parametrize(
    ("kind", "policy", "code", "sends"),
    [
        ("reset", QUICK, "connection_lost", 6),
        ("close", QUICK, "connection_lost", 6),
        ("cut", QUICK, "connection_lost", 6),
        ("status", QUICK, "engine_error", 4),
        ("crash", QUICK, "engine_crashed", 3),
        ("oom", QUICK, "out_of_memory", 3),
        ("garbage", QUICK, "invalid_reply", 3),
        ("not_done", QUICK, "invalid_reply", 3),
        ("hang", QUICK, "request_timeout", 2),
        ("reset", RetryPolicy(transport=2, wait_s=0.002), "connection_lost", 3),
        ("status", RetryPolicy(server=0), "engine_error", 1),
        ("garbage", RetryPolicy(reply=1, wait_s=0.002), "invalid_reply", 2),
        ("hang", RetryPolicy(timeout=0), "request_timeout", 1),
    ],
)
def test_each_budget_allows_its_number_of_sends(
    fake_ollama_factory: Factory, kind: str, policy: RetryPolicy, code: str, sends: int
) -> None:
    fake = fake_ollama_factory(faults=[Fault(kind, match=POISON)])
    recorder = Recorder()
    report = quick_runner(fake, retry=policy, timeout=0.3, hooks=[recorder]).run(rows(6))
    asked = fake.ledger.counts()
    # One after each death, and one more where no other row was left to answer before the last send.
    assert asked.pop(TEST_QUESTION, 0) <= sends + 1
    assert asked == {name(n): sends if name(n) == POISON else 1 for n in range(6)}
    failed = next(result for result in report.results() if not result.ok)
    assert (failed.custom_id, failed.attempts) == (POISON, sends)
    assert failed.error is not None
    assert failed.error.code == code
    assert not failed.error.row_caused
    assert (report.counts.ok, report.counts.failed) == (5, 1)
    assert recorder.check_balance() == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("status", status=400, match=POISON), "request_rejected"),
        (Fault("context", match=POISON), "context_length_exceeded"),
        (Fault("length", match=POISON), "output_truncated"),
        (Fault("length_empty", match=POISON), "output_truncated"),
        (Fault("empty", match=POISON), "output_empty"),
        (Fault("whitespace", match=POISON), "output_empty"),
        (Fault("thinking_only", match=POISON), "output_reasoning_only"),
    ],
)
def test_what_cannot_succeed_is_sent_once(fake_ollama_factory: Factory, fault: Fault, code: str) -> None:
    fake = fake_ollama_factory(faults=[fault])
    report = quick_runner(fake).run(rows(6))
    # A prompt that is refused for its length sets off questions about how the engine counts.
    asked = fake.ledger.counts()
    assert [asked[name(n)] for n in range(6)] == [1] * 6
    assert [(r.custom_id, r.error.code, r.attempts) for r in report.results() if r.error is not None] == [
        (POISON, code, 1)
    ]


@pytest.mark.parametrize("kind", ["too_many", "busy", "loading", "cancelled", "no_slots"])
def test_a_busy_engine_costs_a_row_nothing(fake_ollama_factory: Factory, kind: str) -> None:
    times = 3 if kind == "no_slots" else 12  # the last is a plain server error
    fake = fake_ollama_factory(faults=[Fault(kind, match=POISON, first=times)])
    report = quick_runner(fake).run(rows(6))
    assert report.ok
    assert fake.ledger.count(POISON) == times + 1
    assert [r.attempts for r in report.results()] == [1, 1, 1, times + 1, 1, 1]


def test_a_row_that_is_always_refused_as_busy_fails_in_the_end(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("too_many", match=POISON)])
    report = quick_runner(fake, recover_timeout=0.5).run(rows(6))
    assert (report.counts.ok, report.counts.failed) == (5, 1)
    assert report.error_examples[0].code == "engine_busy"
    assert fake.ledger.count(TEST_QUESTION) >= 1


def test_an_engine_that_is_busy_for_too_long_stops_the_run(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("busy")])
    with pytest.raises(EngineDownError, match="server busy") as stopped:
        quick_runner(fake, recover_timeout=0.1).run(rows(6))
    assert stopped.value.report.counts.failed == 0


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5, 1.5),
        ({"Retry-After": "0"}, 0, 0),
        ({"Retry-After": "9999"}, 300, 300),
        ({"Retry-After": formatdate(4102444800, usegmt=True)}, 300, 300),
        ({"Retry-After": "soon"}, 0.001, 0.002),
    ],
)
def test_retry_after_is_obeyed_in_all_its_forms(
    fake_ollama_factory: Factory,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    least: float,
    most: float,
) -> None:
    slept: list[float] = []

    async def sleep(self: Stop, seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(Stop, "sleep", sleep)
    fake = fake_ollama_factory(faults=[Fault("too_many", match=POISON, first=1, headers=headers)])
    recorder = Recorder()
    assert quick_runner(fake, hooks=[recorder]).run(rows(6)).ok
    assert len(slept) == 1
    assert least <= slept[0] <= most
    assert [event.wait_s for event in recorder.all(RowRetried)] == slept


@pytest.mark.parametrize(
    "fault",
    [
        Fault("crash", when=range(1, 4)),
        Fault("oom_runtime", when=(1, 6)),
        Fault("loading", first=4),
        Fault("busy", when=range(1, 31)),
        Fault("error_in_200", first=3),
    ],
)
def test_trouble_that_passes_fails_no_row(fake_ollama_factory: Factory, fault: Fault) -> None:
    fake = fake_ollama_factory(faults=[fault])
    report = quick_runner(fake).run(rows(20))
    assert report.ok
    assert fake.ledger.answered() - fake.ledger.answered(TEST_QUESTION) == 20


# An engine that dies, is away, or never was there


def test_an_engine_that_is_restarted_again_and_again_fails_no_row(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.002))
    recorder = Recorder()
    run = quick_runner(fake, hooks=[recorder]).start(rows(240))
    for n in range(1, 6):
        enough = 40 * n
        fake.wait_until(lambda ledger: ledger.answered() >= enough)  # noqa: B023 - called before the next
        told = len(recorder.all(RunPaused))
        fake.stop()
        recorder.wait_for(RunPaused, told + 1)
        fake.restart()
    report = run.wait(30)
    assert (report.counts.ok, report.counts.failed) == (240, 0)
    asked = fake.ledger.counts()
    assert asked.pop(TEST_QUESTION) <= 5 * 5  # the probes of each pause
    assert sum(asked.values()) - 240 <= 4 * 5
    # What never left for want of a listener is no attempt; what left as the server died it may not have seen.
    attempts = {r.custom_id: r.attempts for r in report.results()}
    assert all(attempts[row] >= asked[row] for row in attempts)
    assert sum(attempts.values()) - 240 <= 4 * 5
    begun = [event for event in recorder.all(RunPaused) if not event.again]
    # At least: the first listener to answer again may be gone once more before all that was out is back.
    assert 5 <= len(begun) == len(recorder.all(RunResumed)) <= 2 * 5
    assert all(event.reason == "engine" for event in recorder.all(RunResumed))
    assert recorder.check_balance() == 0


def test_an_engine_away_for_too_long_stops_the_run_and_the_next_goes_on(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(slots=4, speed=CostModel(latency_s=0.002))
    output = tmp_path / "out.jsonl"
    runner = quick_runner(fake, recover_timeout=0.2)
    run = runner.start(rows(60), output=output)
    fake.wait_until(lambda ledger: ledger.answered() >= 20)
    fake.stop()
    with pytest.raises(EngineDownError, match=r"did not come back within 0\.2 s .*run again") as stopped:
        run.wait(30)
    done = stopped.value.report.counts.ok
    assert 16 <= done < 60
    assert stopped.value.report.outcome == "stopped"
    fake.restart()
    kept = {r.custom_id for r in stopped.value.report.results()}
    before = fake.ledger.counts()
    report = runner.run(rows(60), output=output)
    assert (report.counts.ok, report.counts.resumed) == (60, done)
    after = fake.ledger.counts()
    assert all(after[row] == before[row] for row in kept)
    assert sum(after.values()) - 60 <= 4


def test_an_engine_that_is_not_there_is_named_with_what_to_do(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory()
    fake.stop()
    with pytest.raises(EngineUnreachableError, match="ollama serve"):
        quick_runner(fake).run(rows(2))
    assert fake.ledger.count() == 0


def test_a_missing_model_is_named_with_the_command_that_gets_it(fake_ollama: FakeOllama) -> None:
    with pytest.raises(ModelNotFoundError, match=r"(?m)^ollama pull nowhere:7b$"):
        quick_runner(fake_ollama, model="nowhere:7b").run(rows(2))
    assert fake_ollama.ledger.count() == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", status=401, text="unauthorized", when=range(10, 9999)), "check api_key"),
        (Fault("missing", when=range(10, 9999)), "ollama pull toy:1b"),
    ],
)
def test_what_every_row_would_meet_stops_the_run_at_once(
    fake_ollama_factory: Factory, fault: Fault, says: str
) -> None:
    fake = fake_ollama_factory(faults=[fault])
    with pytest.raises(EngineDownError, match=says) as stopped:
        quick_runner(fake).run(rows(50))
    counts = stopped.value.report.counts
    assert (counts.ok, counts.failed) == (fake.ledger.answered(), 0)
    assert fake.ledger.count() <= 9 + 4


def test_one_row_that_hangs_does_not_hold_the_others(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("hang", match=POISON, first=1)])
    recorder = Recorder()
    report = quick_runner(fake, timeout=0.3, hooks=[recorder]).run(rows(40))
    assert report.ok
    assert fake.ledger.counts() == {name(n): 2 if name(n) == POISON else 1 for n in range(40)}
    assert [event.code for event in recorder.all(RowRetried)] == ["request_timeout"]
    # While it hung everything else was answered.
    order = [record.key for record in fake.ledger.completions()]
    assert order[-1] == POISON


def test_no_worker_is_lost_to_requests_that_never_end(fake_ollama_factory: Factory) -> None:
    hanging = {name(n) for n in range(25, 400, 50)}
    fake = fake_ollama_factory(
        faults=[Fault("hang", match=row, first=1) for row in hanging],
        slots=4,
        speed=CostModel(latency_s=0.002),
    )
    report = quick_runner(fake, timeout=0.6).run(rows(400))
    assert report.ok
    asked = fake.ledger.counts()
    questions = asked.pop(TEST_QUESTION, 0)  # a machine that stalls may let several rows hang at a time
    assert asked == {name(n): 2 if name(n) in hanging else 1 for n in range(400)}
    assert fake.ledger.answered() == 400 + questions
    assert fake.ledger.max_in_flight == 4


def test_an_engine_without_a_health_check_is_asked_with_growing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    refused = 12

    def answer(request: ChatRequest) -> Any:
        # After the first answer trouble is new trouble: one more refusal is probed at once.
        refuse = len(engine.asked) <= refused or len(engine.asked) == refused + 3
        return EngineUnreachableError("nobody there") if refuse else None

    engine = ScriptedEngine(answer)

    async def sleep(self: Stop, seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(Stop, "sleep", sleep)
    recorder = Recorder()
    report = quick_runner(engine=engine, concurrency=1, hooks=[recorder]).run(rows(3))
    assert report.ok
    # The row is refused once; then our own question is asked instead, until it is answered.
    assert engine.asked[: refused + 2] == [name(0), *["test"] * refused, name(0)]
    assert [r.attempts for r in report.results()] == [1, 1, 1]
    assert len(slept) == refused - 1  # the first look is at once, before and after
    assert slept[-1] > slept[0]
    assert len([event for event in recorder.all(RunPaused) if not event.again]) == 1


def test_a_health_check_that_breaks_stops_the_run() -> None:
    class Broken(ScriptedEngine):
        async def healthy(self) -> bool:
            raise ZeroDivisionError

    engine = Broken(lambda request: EngineConnectionError("lost"))
    with pytest.raises(EngineDownError, match="ZeroDivisionError"):
        quick_runner(engine=engine).run(rows(3))


# Is it the row, or the engine?


def test_a_poison_row_among_good_ones_fails_alone(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("crash", match=POISON)])
    report = quick_runner(fake).run(rows(40))
    assert (report.counts.ok, report.counts.failed) == (39, 1)
    asked = fake.ledger.counts()
    # One after each death, and one more where no other row was left to answer before the last send.
    assert asked.pop(TEST_QUESTION, 0) <= 3 + 1
    assert asked == {name(n): 3 if name(n) == POISON else 1 for n in range(40)}
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.error is not None
    assert failed.error.code == "engine_crashed"
    assert "died 3 times with this row, the last time with it alone" in failed.error.message


def test_a_poison_row_in_front_does_not_block_a_single_worker(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("crash", match=name(0))])
    report = quick_runner(fake, concurrency=1).run(rows(5))
    assert [r.ok for r in report.results()] == [False, True, True, True, True]
    assert fake.ledger.counts()[name(0)] == 3


def test_an_engine_that_fails_every_row_stops_the_run_and_fails_none(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(faults=[Fault("status")])
    output = tmp_path / "out.jsonl"
    with pytest.raises(EngineDownError, match=r"did not come back within 0\.3 s") as stopped:
        quick_runner(fake, concurrency=1, recover_timeout=0.3).run(rows(30), output=output)
    assert stopped.value.report.counts.failed == 0
    asked = fake.ledger.counts()
    assert asked.pop(TEST_QUESTION) <= 60  # with growing waits
    assert asked == {name(0): 3}  # three troubles without an answer, and it is the engine that is asked
    fake.clear_faults()
    report = quick_runner(fake).run(rows(30), output=output)
    assert (report.counts.ok, report.counts.failed) == (30, 0)


def test_poison_rows_in_front_are_found_out_one_after_the_other(fake_ollama_factory: Factory) -> None:
    poisoned = [Fault("crash", match=name(n)) for n in range(6)]
    fake = fake_ollama_factory(faults=poisoned)
    report = quick_runner(fake, concurrency=1).run(rows(12))
    assert [r.ok for r in report.results()] == [False] * 6 + [True] * 6
    asked = fake.ledger.counts()
    assert [asked[name(n)] for n in range(12)] == [3] * 6 + [1] * 6


def test_rows_that_stopped_a_run_stay_pending_as_long_as_the_engine_answers_nothing(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(faults=[Fault("status")])
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        with pytest.raises(EngineDownError) as stopped:
            quick_runner(fake, concurrency=1, recover_timeout=0.1).run(rows(12), output=output)
        assert stopped.value.report.counts.failed == 0
    assert fake.ledger.answered() == 0


@pytest.mark.parametrize("alive", [True, False])
def test_the_last_rows_fail_only_if_the_engine_answers_something_else(
    fake_ollama_factory: Factory, alive: bool
) -> None:
    fake = fake_ollama_factory(faults=[Fault("status", match="row-" if alive else None)])
    if alive:
        report = quick_runner(fake).run(rows(3))
        assert report.counts.failed == 3
        assert fake.ledger.answered(TEST_QUESTION) >= 1
    else:
        with pytest.raises(EngineDownError, match=r"no answer between|did not come back") as stopped:
            quick_runner(fake, recover_timeout=0.2).run(rows(3))
        assert stopped.value.report.counts.failed == 0


def test_the_test_question_reloads_no_model(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("status", match="row-")])
    quick_runner(fake).run(rows(2))
    assert fake.ledger.count(TEST_QUESTION) >= 1
    assert fake.ledger.loads == 1


# Everything at once


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 20261])
def test_a_mix_of_faults_costs_calls_but_no_row(fake_ollama_factory: Factory, seed: int) -> None:
    mix = [
        # `first` keeps chance from spending a row's whole budget, and from making it look like poison.
        Fault("reset", share=0.05, first=2),
        Fault("status", share=0.05, first=3),
        Fault("too_many", share=0.03, headers={"Retry-After-Ms": "5"}),
        Fault("cut", share=0.02),
        Fault("garbage", share=0.01, first=2),
        Fault("not_done", share=0.01, first=2),
    ]
    fake = fake_ollama_factory(seed=seed, faults=mix, slots=8)
    recorder = Recorder()
    report = quick_runner(fake, concurrency=8, hooks=[recorder]).run(rows(1000))
    asked = fake.ledger.counts()
    answered = fake.ledger.answered() - fake.ledger.answered(TEST_QUESTION)
    assert asked.pop(TEST_QUESTION, 0) <= 60
    assert (report.counts.ok, report.counts.failed) == (1000, 0)
    assert answered == 1000
    assert sum(asked.values()) > 1100  # it was a mix
    assert sum(asked.values()) <= 1350
    assert {r.custom_id: r.attempts for r in report.results()} == asked
    assert recorder.check_balance() == 0
    assert len(recorder.all(RowSent)) == sum(asked.values())
    assert fake.ledger.max_in_flight <= 8


# Told while it happens


def test_silence_of_all_workers_is_told_once_and_a_pause_is_no_silence(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_watch, "STALL_S", 0.15)
    recorder = Recorder()
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[recorder]).start(rows(8))
    with caplog.at_level(logging.WARNING, "ollama_batch.run"):
        recorder.wait_for(RunStalled)
    fake_ollama.release()
    assert run.wait(30).ok
    (stalled,) = recorder.all(RunStalled)
    assert stalled.in_flight == 4
    assert 0.15 < stalled.silent_s < 5
    assert "4 requests are out" in caplog.text
    assert recorder.all(RunPaused) == []  # the engine still answers its health check


def test_silence_of_an_engine_that_is_gone_closes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "STALL_S", 0.05)
    import asyncio

    class Silent(ScriptedEngine):
        async def healthy(self) -> bool:
            return False

    engine = Silent(lambda request: asyncio.sleep(30))
    recorder = Recorder()
    with pytest.raises(EngineDownError, match="does not answer health checks"):
        quick_runner(engine=engine, recover_timeout=0.1, timeout=30, hooks=[recorder]).start(rows(2)).wait(30)
    assert len(recorder.all(RunStalled)) == 1


def test_a_hook_that_raises_is_blamed_once_and_the_run_goes_on(
    fake_ollama: FakeOllama, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy:
        def on_event(self, event: object) -> None:
            raise LookupError("clumsy")

    recorder = Recorder()
    report = quick_runner(fake_ollama, hooks=[Clumsy(), recorder]).run(rows(10))
    assert report.ok
    blamed = [record for record in caplog.records if "Clumsy" in record.getMessage()]
    assert len(blamed) == 1
    (note,) = report.notes
    assert "the hook Clumsy raised" in note
    assert recorder.check_balance() == 0


# Rows that fail by themselves


@pytest.mark.parametrize(("bad", "stops"), [(49, False), (50, True), (80, True)])
def test_the_first_fifty_rows_failing_alike_stop_the_run(
    fake_ollama_factory: Factory, bad: int, stops: bool
) -> None:
    fake = fake_ollama_factory(faults=[Fault("length", when=range(1, bad + 1))])
    runner = quick_runner(fake, concurrency=1)
    if not stops:
        report = runner.run(rows(100))
        assert (report.counts.ok, report.counts.failed) == (51, 49)
        return
    with pytest.raises(TooManyFailuresError, match="first 50 rows all failed with output_truncated") as error:
        runner.run(rows(100))
    assert error.value.report.counts.failed == 50
    assert fake.ledger.count() == 50


def test_a_run_with_good_rows_of_earlier_sessions_is_not_hopeless(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(faults=[Fault("empty", when=range(2, 9999))])
    output = tmp_path / "out.jsonl"
    assert quick_runner(fake, concurrency=1).run(rows(61), output=output).counts.failed == 60
    report = quick_runner(fake).run(rows(61), output=output, retry_failed=True)
    assert (report.counts.ok, report.counts.failed) == (1, 60)
    assert fake.ledger.count() == 61 + 60


@pytest.mark.parametrize(
    ("most", "allowed"), [(0, 0), (3, 3), (0.1, 4)], ids=["none", "a number", "a share of all 40"]
)
def test_max_failures_stops_the_run(
    fake_ollama_factory: Factory, tmp_path: Path, most: float, allowed: int
) -> None:
    fake = fake_ollama_factory(faults=[Fault("length", every=2)])
    source = tmp_path / "in.jsonl"
    write(source, 40)
    with pytest.raises(TooManyFailuresError, match="max_failures") as stopped:
        quick_runner(fake, concurrency=1).run(source, max_failures=most)
    assert stopped.value.report.counts.failed == allowed + 1
    assert fake.ledger.count() == 2 * (allowed + 1)


def test_a_share_of_a_stream_is_one_of_the_rows_so_far(fake_ollama_factory: Factory) -> None:
    fake = fake_ollama_factory(faults=[Fault("length", every=10)])

    assert quick_runner(fake, concurrency=1).run(iter(rows(200)), max_failures=0.2).counts.failed == 20
    fake.clear_faults()
    fake.inject(Fault("length", every=3))
    with pytest.raises(TooManyFailuresError) as stopped:
        quick_runner(fake, concurrency=1).run((name(n) for n in count()), max_failures=0.2)
    assert stopped.value.report.counts.failed == 17  # of 51: the first failure from the 50th row on


def write(path: Path, count: int) -> None:
    import json

    with path.open("w") as file:
        for n in range(count):
            body = {"messages": [{"role": "user", "content": name(n)}]}
            line = {"custom_id": name(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("route", ["preload", "/api/show"])
def test_an_engine_that_is_busy_at_the_start_is_waited_for(
    fake_ollama_factory: Factory, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    fake = fake_ollama_factory(faults=(Fault("busy", route=route, count=2),))
    waits: list[float] = []

    async def sleep(self: object, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("ollama_batch._stop.Stop.sleep", sleep)
    assert quick_runner(fake).run(rows(3)).ok
    assert len(waits) == 2
