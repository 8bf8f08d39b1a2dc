"""The gate before the engine, the room on the disk, and the watch for silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ollama_batch import _check, _room
from ollama_batch._check import EngineCheck
from ollama_batch._gate import Gate
from ollama_batch._portal import AddressLimit
from ollama_batch._record import RecoveryRecord
from ollama_batch._recovery import Recovery
from ollama_batch._room import DiskRoom
from ollama_batch._settings import SendSettings
from ollama_batch._stop import Abandoned, Stop
from ollama_batch._supervision import Supervision
from ollama_batch._watch import watched
from ollama_batch.control import Supervisor, recovery
from ollama_batch.errors import (
    DiskFullError,
    EngineDownError,
    EngineExitedError,
    EngineStoppedError,
    EngineUnreachableError,
    RunCancelledError,
)
from ollama_batch.events import Decision, EngineRestarted, Event, RunPaused, RunResumed, RunStalled
from ollama_batch.retry import RetryPolicy
from trouble_support import completion

AWAY = EngineUnreachableError("nobody there")
END = RunCancelledError("end")


class Health:
    """An engine that says how it is, one answer after the other, and answers any question."""

    address = "health"

    def __init__(self, *answers: bool | BaseException) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.questions = 0

    async def complete(self, request: Any, *, deadline: float) -> Any:
        self.questions += 1
        return completion()

    async def healthy(self) -> bool:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


EXITED = EngineExitedError("the server ended with signal SIGKILL; its last log lines:\nbad\nworse")


class OwnServer(Health):
    """An engine whose server is its own: its process has ended, and `restart` brings it back."""

    def __init__(self, *restarts: BaseException | None) -> None:
        super().__init__(EXITED)
        self.restarts = list(restarts)
        self.restarted = 0

    async def restart(self) -> None:
        self.restarted += 1
        error = self.restarts.pop(0)
        if error is not None:
            raise error
        self.answers = [True]


class Setting:
    def __init__(
        self, engine: Any = None, patience_s: float = 60.0, supervisor: Supervisor | None = None
    ) -> None:
        self.events: list[Event] = []
        self.stop = Stop()
        self.engine: Any = Health(True) if engine is None else engine
        self.gate = Gate(stop=self.stop, emit=self.events.append)
        limit = AddressLimit()
        settings = SendSettings(
            model="toy:1b",
            defaults={},
            max_tokens=8,
            num_ctx=None,
            think=False,
            timeout_s=5.0,
            on_length="fail",
            patience_s=patience_s,
        )
        self.notes: list[dict[str, Any]] = []

        async def note(kind: str, data: dict[str, Any]) -> None:
            self.notes.append(data)

        self.recovery = Recovery(
            check=EngineCheck(self.engine, settings=settings, limit=limit),
            gate=self.gate,
            stop=self.stop,
            limit=limit,
            supervision=Supervision(supervisor, engine=self.engine, emit=self.events.append),
            record=RecoveryRecord((), emit=self.events.append, note=note),
            retry=RetryPolicy(),
            patience_s=patience_s,
            load_patience_s=patience_s,
            emit=self.events.append,
        )

    def told(self) -> list[str]:
        return [
            f"{type(event).__name__} {getattr(event, 'reason', '')}".strip()
            for event in self.events
            if not isinstance(event, Decision)
        ]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PROBE_S", 0.001)
    monkeypatch.setattr(recovery, "PROBE_MOST_S", 0.004)
    monkeypatch.setattr(_room, "RETRY_S", 0.001)


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)


async def test_an_open_gate_is_passed_at_once() -> None:
    at = Setting()
    assert at.gate.open
    await asyncio.wait_for(at.gate.wait(), 1)


async def test_all_who_hold_must_release() -> None:
    at = Setting()
    at.gate.hold("user", "paused")
    at.gate.hold("disk", "full")
    at.gate.hold("user", "paused again")
    waiting = asyncio.create_task(at.gate.wait())
    await asyncio.sleep(0.005)
    at.gate.release("user")
    at.gate.release("nobody")
    await asyncio.sleep(0.005)
    assert not waiting.done()
    at.gate.release("disk")
    await asyncio.wait_for(waiting, 1)
    assert at.told() == ["RunPaused user", "RunPaused disk", "RunResumed disk"]
    (resumed,) = (event for event in at.events if isinstance(event, RunResumed))
    assert resumed.paused_s >= 0.01  # counted from the first hold, not the last


async def test_nobody_misses_a_gate_that_opens_as_he_begins_to_wait() -> None:
    at = Setting()
    at.gate.hold("disk", "full")
    waiting = asyncio.create_task(at.gate.wait())
    # The release comes in the very turn of the loop in which the waiter sees the closed gate.
    asyncio.get_running_loop().call_soon(at.gate.release, "disk")
    await asyncio.wait_for(waiting, 1)


async def test_a_closed_gate_is_left_when_the_run_is_to_end() -> None:
    at = Setting()
    at.gate.hold("user", "paused")
    waiting = asyncio.create_task(at.gate.wait())
    await asyncio.sleep(0.005)
    at.stop.drain(END)
    with pytest.raises(Abandoned):
        await waiting
    at.gate.release("user")
    with pytest.raises(Abandoned):
        await at.gate.wait()


async def test_trouble_that_the_first_probe_denies_is_not_told() -> None:
    at = Setting()
    at.recovery.doubt(AWAY)
    assert not at.gate.open
    await asyncio.wait_for(at.gate.wait(), 1)
    assert at.events == []
    assert at.engine.asked == 1


async def test_an_engine_that_comes_back_opens_the_gate() -> None:
    """Meanwhile the reason is the latest that a look at it met, not what the pause began with."""
    at = Setting(Health(False, EngineUnreachableError("still away"), False, True))
    at.recovery.doubt(AWAY)
    at.recovery.doubt(AWAY)  # one watch is enough
    await asyncio.wait_for(at.gate.wait(), 5)
    assert at.engine.asked == 4
    assert at.told() == ["RunPaused engine", "RunPaused engine", "RunResumed engine"]
    pauses = [(each.message, each.again) for each in at.events if isinstance(each, RunPaused)]
    assert pauses == [("nobody there", False), ("still away", True)]
    assert at.stop.reason is None


async def test_an_engine_that_does_not_come_back_stops_the_run_at_once() -> None:
    at = Setting(Health(False), patience_s=0.03)
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.stop.stopping.wait(), 5)
    assert isinstance(at.stop.reason, EngineDownError)
    assert "did not come back within 0.03 s (nobody there)" in str(at.stop.reason)
    assert not at.gate.open


async def test_what_a_run_stops_with_names_the_first_trouble_and_the_last() -> None:
    at = Setting(Health(EngineUnreachableError("still away.")), patience_s=0.03)
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.stop.stopping.wait(), 5)
    assert "did not come back within 0.03 s (nobody there; at last: still away);" in str(at.stop.reason)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(EngineStoppedError("exit code 9"), "exit code 9"), (ZeroDivisionError("bug"), "ZeroDivisionError")],
)
async def test_a_probe_that_never_will_succeed_ends_the_run(answer: Exception, says: str) -> None:
    at = Setting(Health(answer))
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.stop.draining.wait(), 5)
    assert isinstance(at.stop.reason, EngineDownError)
    assert says in str(at.stop.reason)


async def test_a_probe_without_an_end_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "HEALTH_S", 0.005)

    class Hangs(Health):
        async def healthy(self) -> bool:
            self.asked += 1
            await asyncio.Event().wait()
            return True

    at = Setting(Hangs(True), patience_s=0.02)
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.stop.draining.wait(), 5)
    assert at.engine.asked >= 2


async def test_trouble_after_trouble_is_probed_ever_later_until_something_is_answered() -> None:
    at = Setting()
    waits: list[float] = []
    sleep = at.stop.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    at.stop.sleep = noted  # type: ignore[method-assign]  # to see the waits without waiting
    for _ in range(5):
        at.recovery.doubt(AWAY)
        await asyncio.wait_for(at.gate.wait(), 5)
    assert len(waits) == 4  # the first look is at once
    assert all(
        ceiling / 2 <= wait <= ceiling
        for wait, ceiling in zip(waits, (0.001, 0.002, 0.004, 0.004), strict=True)
    )
    at.recovery.answered(0)
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.gate.wait(), 5)
    assert len(waits) == 4


async def test_a_stopped_engine_needs_no_probe() -> None:
    at = Setting()
    at.recovery.doubt(EngineStoppedError("SIGKILL"))
    assert isinstance(at.stop.reason, EngineDownError)
    assert at.engine.asked == 0


async def test_closing_ends_the_watch_and_its_hold() -> None:
    at = Setting(Health(False))
    at.recovery.doubt(AWAY)
    await soon(lambda: at.engine.asked > 1)
    await at.recovery.aclose()
    assert at.gate.open  # the next model of the run may begin
    asked = at.engine.asked
    await asyncio.sleep(0.02)
    assert at.engine.asked == asked


# Room on the disk


class Disk:
    def __init__(self, fails: int) -> None:
        self.fails = fails
        self.tries = 0

    async def write(self) -> str:
        self.tries += 1
        if self.tries <= self.fails:
            raise DiskFullError("full", None)
        return "kept"


async def test_a_write_that_succeeds_holds_nothing() -> None:
    at = Setting()
    room = DiskRoom(gate=at.gate, stop=at.stop, patience_s=1)
    assert await room.keep(Disk(0).write) == "kept"
    assert at.events == []


async def test_writes_wait_for_room_and_the_last_opens_the_gate() -> None:
    at = Setting()
    room = DiskRoom(gate=at.gate, stop=at.stop, patience_s=60)
    short, long = Disk(2), Disk(20)
    first = asyncio.create_task(room.keep(short.write))
    second = asyncio.create_task(room.keep(long.write))
    assert await first == "kept"
    assert at.told() == ["RunPaused disk"]
    assert await second == "kept"
    assert at.gate.open
    assert (short.tries, long.tries) == (3, 21)
    assert at.told() == ["RunPaused disk", "RunResumed disk"]


async def test_room_that_does_not_come_stops_the_run() -> None:
    at = Setting()
    room = DiskRoom(gate=at.gate, stop=at.stop, patience_s=0.02)
    with pytest.raises(Abandoned):
        await room.keep(Disk(10**9).write)
    assert isinstance(at.stop.reason, DiskFullError)
    assert at.stop.stopping.is_set()


async def test_a_write_that_waits_gives_up_when_the_run_is_to_end() -> None:
    at = Setting()
    room = DiskRoom(gate=at.gate, stop=at.stop, patience_s=60)
    writing = asyncio.create_task(room.keep(Disk(10**9).write))
    await soon(lambda: not at.gate.open)
    at.stop.drain(END)
    with pytest.raises(Abandoned):
        await writing
    assert at.told() == ["RunPaused disk"]


async def test_any_other_failure_is_not_waited_for() -> None:
    at = Setting()

    async def write() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await DiskRoom(gate=at.gate, stop=at.stop, patience_s=60).keep(write)
    assert at.events == []


# Silence


class Pool:
    def __init__(self) -> None:
        self.last_finished = asyncio.get_running_loop().time()
        self.in_flight = 2


async def stalls(at: Setting, pool: Any, seconds: float, stall_s: float = 0.03) -> list[RunStalled]:
    async with watched(
        pool,
        engine=at.engine,
        model="m",
        gate=at.gate,
        recovery=at.recovery,
        emit=at.events.append,
        stall_s=stall_s,
    ):
        await asyncio.sleep(seconds)
    return [event for event in at.events if isinstance(event, RunStalled)]


async def test_silence_is_told_once() -> None:
    at = Setting()
    (stalled,) = await stalls(at, Pool(), 0.2)
    assert stalled.in_flight == 2
    assert at.engine.asked == 1


async def test_silence_without_requests_out_is_none() -> None:
    at, pool = Setting(), Pool()
    pool.in_flight = 0
    assert await stalls(at, pool, 0.1) == []


@pytest.mark.parametrize("reason", ["refused", "engine"])
async def test_a_pause_for_the_engines_sake_is_a_stall_and_no_further_doubt(reason: str) -> None:
    at, pool = Setting(), Pool()
    pool.in_flight = 0
    if reason == "refused":
        at.gate.refused("busy", stops_in_s=900)
    else:
        at.gate.hold("engine", "away")
    (stalled,) = await stalls(at, pool, 0.1)
    assert stalled.in_flight == 0
    assert at.engine.asked == 0
    pool.last_finished = asyncio.get_running_loop().time()
    at.gate.hold("user", "paused")
    assert await stalls(at, pool, 0.1) == [stalled], "the user knows"


@pytest.mark.parametrize("open_again", [True, False])
async def test_the_time_behind_a_closed_gate_is_no_silence(open_again: bool) -> None:
    at, pool = Setting(), Pool()
    pool.last_finished -= 3600
    at.gate.hold("user", "paused")
    if open_again:
        at.gate.release("user")
    assert await stalls(at, pool, 0.1, stall_s=5) == []


async def test_a_silent_engine_that_fails_its_check_closes_the_gate() -> None:
    at = Setting(Health(False))
    async with watched(
        Pool(),
        engine=at.engine,
        model="m",
        gate=at.gate,
        recovery=at.recovery,
        emit=at.events.append,
        stall_s=0.01,
    ):  # type: ignore[arg-type]  # all that is asked of a pool
        await soon(lambda: any(isinstance(event, RunPaused) for event in at.events))


async def test_a_check_that_breaks_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    at, pool = Setting(Health(ZeroDivisionError())), Pool()
    async with watched(
        pool,
        engine=at.engine,
        model="m",
        gate=at.gate,
        recovery=at.recovery,
        emit=at.events.append,
        stall_s=0.01,
    ):  # type: ignore[arg-type]  # as above
        await soon(lambda: at.engine.asked == 1)
        pool.last_finished = asyncio.get_running_loop().time()
        await soon(lambda: at.engine.asked == 2)
    assert "health check failed" in caplog.text


async def test_an_engine_that_has_exited_is_restarted_and_the_gate_opens() -> None:
    at = Setting(OwnServer(None), supervisor=Supervisor())
    at.recovery.doubt(EXITED)
    assert not at.gate.open
    await asyncio.wait_for(at.gate.wait(), 5)
    assert at.engine.restarted == 1
    assert [type(event) for event in at.events] == [RunPaused, EngineRestarted, RunResumed]
    (told,) = (event for event in at.events if isinstance(event, EngineRestarted))
    assert (told.reason, told.outcome, told.message) == ("the server ended with signal SIGKILL", "ok", "")
    assert at.stop.reason is None


async def test_a_restart_that_fails_is_tried_again() -> None:
    at = Setting(OwnServer(EngineExitedError("no room"), None), supervisor=Supervisor(wait_s=0.001))
    at.recovery.doubt(EXITED)
    await asyncio.wait_for(at.gate.wait(), 5)
    told = [event for event in at.events if isinstance(event, EngineRestarted)]
    assert [(event.outcome, event.message) for event in told] == [("failed", "no room"), ("ok", "")]


@pytest.mark.parametrize(
    ("supervisor", "why"),
    [(None, "nobody has allowed"), (Supervisor(most=0), "no restart is allowed")],
    ids=["nobody", "never"],
)
async def test_an_engine_that_has_exited_and_may_not_be_restarted_ends_the_run(
    supervisor: Supervisor | None, why: str
) -> None:
    at = Setting(OwnServer(None), supervisor=supervisor)
    at.recovery.doubt(EXITED)
    with pytest.raises(Abandoned):
        await asyncio.wait_for(at.gate.wait(), 5)
    assert isinstance(at.stop.reason, EngineDownError)
    assert "SIGKILL" in str(at.stop.reason)
    assert why in str(at.stop.reason)
    assert at.engine.restarted == 0


async def test_the_run_ends_when_no_more_restarts_are_allowed() -> None:
    at = Setting(OwnServer(*[EXITED] * 9), supervisor=Supervisor(most=3, wait_s=0.001))
    at.recovery.doubt(EXITED)
    with pytest.raises(Abandoned):
        await asyncio.wait_for(at.gate.wait(), 5)
    assert at.engine.restarted == 3
    assert isinstance(at.stop.reason, EngineDownError)
    assert "tried 3 times within 600 s" in str(at.stop.reason)


async def test_an_engine_that_is_there_and_unwell_is_restarted_only_after_a_while() -> None:
    engine = OwnServer(None)
    engine.answers = [False]
    at = Setting(engine, supervisor=Supervisor(after_s=0.05))
    loop = asyncio.get_running_loop()
    began = loop.time()
    at.recovery.doubt(AWAY)
    await asyncio.wait_for(at.gate.wait(), 5)
    assert engine.restarted == 1
    assert engine.asked >= 2
    assert loop.time() - began >= 0.05


async def test_old_news_of_an_exit_does_not_restart_an_engine_that_is_merely_slow_to_answer() -> None:
    """A request that was out when the engine died may say so when another one is already up."""
    engine = OwnServer()
    engine.answers = [False, False, True]
    at = Setting(engine, supervisor=Supervisor())
    at.recovery.doubt(EXITED)
    await asyncio.wait_for(at.gate.wait(), 5)
    assert (engine.restarted, engine.asked) == (0, 3)


async def test_a_run_that_is_to_end_does_not_wait_for_a_restart() -> None:
    begun = asyncio.Event()

    class Slow(OwnServer):
        async def restart(self) -> None:
            begun.set()
            await asyncio.Event().wait()

    at = Setting(Slow(), supervisor=Supervisor())
    at.recovery.doubt(EXITED)
    await asyncio.wait_for(begun.wait(), 5)
    at.stop.drain(END)
    with pytest.raises(Abandoned):
        await asyncio.wait_for(at.gate.wait(), 5)
    await asyncio.wait_for(at.recovery.aclose(), 5)


async def test_an_engine_that_answers_makes_the_next_trouble_a_new_one() -> None:
    at = Setting(OwnServer(None, None), supervisor=Supervisor(wait_s=3600.0, wait_most_s=3600.0))
    for _ in range(2):
        at.engine.answers = [EXITED]
        at.recovery.doubt(EXITED)
        await asyncio.wait_for(at.gate.wait(), 5)
        at.recovery.answered(0)
    assert at.engine.restarted == 2


async def test_a_pause_that_ends_with_the_run_is_not_said_to_be_over() -> None:
    at = Setting()
    at.gate.hold("memory", "full", stops_in_s=3.0)
    at.stop.drain(END)
    at.gate.release("memory")
    assert at.gate.open
    assert at.told() == ["RunPaused memory"]
    (paused,) = (event for event in at.events if isinstance(event, RunPaused))
    assert paused.stops_in_s == 3.0
