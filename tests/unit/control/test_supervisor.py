"""Whether and when an engine is restarted, on a clock of the test's own, and what became of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ollama_batch.control import Outcome, Restart, Supervisor, SystemdUnit
from ollama_batch.errors import ConfigError, EngineExitedError, RestartError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Own:
    """An engine's own way to be restarted: counts, takes its time on the clock, may fail."""

    def __init__(self, clock: Clock, *, takes_s: float = 0.0, error: Exception | None = None) -> None:
        self.clock = clock
        self.takes_s = takes_s
        self.error = error
        self.times: list[float] = []

    async def restart(self) -> None:
        self.times.append(self.clock.now)
        self.clock.now += self.takes_s
        if self.error is not None:
            raise self.error


async def tried(supervisor: Supervisor, own: Any = None, *, unwell_s: float | None = None) -> Restart | None:
    """One attempt; without `unwell_s` the engine's process has ended."""
    exited = unwell_s is None
    return await supervisor.attempt(own, exited=exited, unwell_s=unwell_s or 0.0, reason="it died")


def made(**options: Any) -> tuple[Supervisor, Clock, Own]:
    clock = Clock()
    return Supervisor(clock=clock, **options), clock, Own(clock)


async def test_an_engine_that_has_exited_is_restarted_at_once() -> None:
    supervisor, clock, own = made()
    own.takes_s = 2.5
    assert await tried(supervisor, own.restart) == Restart(
        reason="it died", outcome=Outcome.OK, message="", duration_s=2.5
    )
    assert own.times == [1000.0]
    assert clock.now == 1002.5


async def test_an_engine_of_somebody_else_is_not_restarted_unless_that_is_allowed() -> None:
    supervisor, _, _ = made()
    assert supervisor.refuses(None) == "nobody has allowed to restart it"
    assert await tried(supervisor, None, unwell_s=9999.0) is None


async def test_restarts_without_an_answer_between_them_are_ever_further_apart() -> None:
    supervisor, clock, own = made(wait_s=1.0, wait_most_s=8.0, within_s=1e6)
    waits = []
    for _ in range(7):
        waits.append(supervisor.due_in(exited=True, unwell_s=0.0))
        clock.now += waits[-1]
        assert await tried(supervisor, own.restart) is not None
        assert await tried(supervisor, own.restart) is None  # the next one is not due yet
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    supervisor.answered()
    assert supervisor.due_in(exited=True, unwell_s=0.0) == 0.0


async def test_an_engine_that_is_there_and_unwell_has_time_to_come_back_by_itself() -> None:
    supervisor, clock, own = made(after_s=30.0, wait_s=1.0)
    assert supervisor.due_in(exited=False, unwell_s=10.0) == 20.0
    assert await tried(supervisor, own.restart, unwell_s=29.0) is None
    assert await tried(supervisor, own.restart, unwell_s=30.0) is not None
    # And again after a restart that did not help, however long it has been unwell by then.
    clock.now += 5.0
    assert supervisor.due_in(exited=False, unwell_s=35.0) == 25.0


async def test_whoever_gives_up_before_that_has_it_restarted_after_half_of_its_patience() -> None:
    supervisor, clock, own = made(after_s=30.0, wait_s=1.0)
    assert supervisor.due_in(exited=False, unwell_s=4.0, patience_s=20.0) == 6.0
    assert await tried(supervisor, own.restart, unwell_s=10.0) is None
    attempt = supervisor.attempt(own.restart, exited=False, unwell_s=10.0, reason="silent", patience_s=20.0)
    assert await attempt is not None
    clock.now += 5.0
    assert supervisor.due_in(exited=False, unwell_s=15.0, patience_s=20.0) == 5.0


@pytest.mark.parametrize(
    ("most", "allowed"), [(0, 0), (1, 1), (3, 3), (None, 30)], ids=["none", "one", "three", "usual"]
)
async def test_no_more_restarts_than_allowed_in_a_while(most: int | None, allowed: int) -> None:
    supervisor, clock, own = made(most=most, within_s=600.0, wait_s=0.001)
    for _ in range(40):
        await tried(supervisor, own.restart)
        supervisor.answered()
        clock.now += 1.0
    assert len(own.times) == allowed
    refused = supervisor.refuses(own.restart)
    assert refused is not None
    assert ("no restart is allowed" if most == 0 else f"tried {allowed} times within 600 s") in refused
    clock.now = 1000.0 + 600.0 + 0.5  # the first of them is no longer counted
    assert (supervisor.refuses(own.restart) is None) is (allowed > 0)


async def test_somebody_elses_engine_is_restarted_less_often_than_ones_own() -> None:
    times: list[float] = []
    clock = Clock()
    supervisor = Supervisor(lambda: times.append(clock.now), after_s=0.0, clock=clock)
    for _ in range(40):
        await tried(supervisor, None)
        supervisor.answered()
        clock.now += 1.0
    assert len(times) == 5


async def test_the_users_way_wins_over_the_engines_own() -> None:
    clock, asked = Clock(), []
    own = Own(clock)
    await tried(Supervisor(lambda: asked.append("user"), clock=clock), own.restart)
    assert (asked, own.times) == (["user"], [])


def of_a_thread(threads: list[str]) -> Any:
    return lambda: threads.append(threading.current_thread().name)


async def test_a_callable_runs_beside_the_loop_and_an_async_one_on_it() -> None:
    threads: list[str] = []

    async def on_loop() -> None:
        threads.append(threading.current_thread().name)

    class Callable:
        async def __call__(self) -> None:
            threads.append(threading.current_thread().name)

    for way in (of_a_thread(threads), on_loop, Callable(), lambda: on_loop()):
        told = await tried(Supervisor(way))
        assert told is not None
        assert told.outcome is Outcome.OK
    here = threading.current_thread().name
    assert threads == ["ollama-batch restart", here, here, here]


def raising(error: Exception) -> Any:
    def restart() -> None:
        raise error

    return restart


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (RuntimeError("no such thing"), Outcome.FAILED, "RuntimeError: no such thing"),
        (TimeoutError("too late"), Outcome.FAILED, "TimeoutError: too late"),
        (EngineExitedError("it died again"), Outcome.FAILED, "it died again"),
        (RestartError("it broke"), Outcome.FAILED, "it broke"),
        (RestartError("not allowed", "refused"), Outcome.REFUSED, "not allowed"),
        (RestartError("who are you", "password"), Outcome.PASSWORD, "who are you"),
    ],
    ids=lambda value: value if isinstance(value, Outcome) else "",
)
async def test_a_restart_that_does_not_work_is_told_and_raises_nothing(
    error: Exception, outcome: Outcome, message: str
) -> None:
    told = await tried(Supervisor(raising(error)))
    assert told is not None
    assert (told.outcome, told.message) == (outcome, message)
    assert told.to_note()["outcome"] == outcome.value


@pytest.mark.parametrize("outcome", ["refused", "password"])
async def test_a_refusal_is_not_asked_again_until_the_engine_has_answered(outcome: Any) -> None:
    asked = []

    def restart() -> None:
        asked.append(1)
        raise RestartError("no", outcome)

    clock = Clock()
    supervisor = Supervisor(restart, after_s=0.0, wait_s=1.0, clock=clock)
    for _ in range(3):
        await tried(supervisor)
        clock.now += 100.0
    assert len(asked) == 1
    assert supervisor.refuses(None) == "no"
    supervisor.answered()
    await tried(supervisor)
    assert len(asked) == 2


async def test_a_slow_restart_is_given_up_and_an_async_one_cancelled() -> None:
    ended = asyncio.Event()

    async def restart() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    told = await tried(Supervisor(restart, timeout_s=0.05))
    assert told is not None
    assert told.outcome is Outcome.SLOW
    assert ended.is_set()


async def test_nothing_is_tried_while_a_slow_thread_still_restarts() -> None:
    go_on, ended = threading.Event(), threading.Event()
    count = []

    def restart() -> None:
        count.append(1)
        assert go_on.wait(20)
        ended.set()

    clock = Clock()
    supervisor = Supervisor(restart, timeout_s=0.05, after_s=0.0, wait_s=1.0, wait_most_s=60.0, clock=clock)
    told = await tried(supervisor)
    assert told is not None
    assert told.outcome is Outcome.SLOW
    clock.now += 1000.0
    assert supervisor.due_in(exited=True, unwell_s=0.0) == 60.0
    assert await tried(supervisor) is None
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 20)
    async with asyncio.timeout(20):
        while await tried(supervisor) is None:
            await asyncio.sleep(0.001)
    assert len(count) == 2


async def test_two_runs_in_the_same_trouble_restart_the_engine_once() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def restart() -> None:
        begun.set()
        await go_on.wait()

    supervisor = Supervisor(restart)
    first = asyncio.create_task(tried(supervisor))
    await begun.wait()
    assert await tried(supervisor) is None
    go_on.set()
    assert await first is not None


async def test_a_restart_that_is_cancelled_counts_and_blocks_nothing() -> None:
    begun = asyncio.Event()

    async def restart() -> None:
        begun.set()
        await asyncio.Event().wait()

    clock = Clock()
    supervisor = Supervisor(restart, most=1, clock=clock)
    task = asyncio.create_task(tried(supervisor))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "tried 1 times" in (supervisor.refuses(None) or "")
    clock.now += 601.0
    assert supervisor.due_in(exited=True, unwell_s=0.0) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restart": "systemctl restart ollama"}, "must be a callable"),
        ({"restart": RestartError}, "must be a callable"),
        ({"most": -1}, "most=-1"),
        ({"most": 1.5}, "most=1.5"),
        ({"within_s": 0}, "within_s=0"),
        ({"wait_s": float("inf")}, "wait_s=inf"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"after_s": -1}, "after_s=-1"),
        ({"after_s": "30"}, "after_s='30'"),
        ({"wait_most_s": True}, "wait_most_s=True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Supervisor(**options)


def test_what_an_async_callable_returns_is_refused_with_what_to_give() -> None:
    with pytest.raises(ConfigError, match="give the callable itself"):
        Supervisor(SystemdUnit("ollama")())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome.OK, "restarted the engine in 2.0 s"),
        (Outcome.REFUSED, "could not restart the engine: Access denied"),
        (Outcome.PASSWORD, "could not restart the engine: Access denied"),
        (Outcome.FAILED, "the restart of the engine failed after 2.0 s: Access denied"),
        (Outcome.SLOW, "the restart of the engine takes long: Access denied"),
    ],
)
def test_a_restart_says_what_came_of_it(outcome: Outcome, told: str) -> None:
    message = "" if outcome is Outcome.OK else "Access denied"
    assert str(Restart(reason="gone", outcome=outcome, message=message, duration_s=2.0)) == told
