"""While the engine refuses everything the run says that it is as good as paused, and that it stalls."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest

from ollama_batch._gate import Gate
from ollama_batch._stop import Stop
from ollama_batch._storm import TOLD_S, Storm
from ollama_batch._watch import watched
from ollama_batch._width import RunWidth
from ollama_batch.errors import EngineBusyError, EngineLoadingError, RunCancelledError
from ollama_batch.events import Event, RowFinished, RowSent, RunPaused, RunResumed, RunStalled
from ollama_batch.metrics import BatchMetrics, MetricsHook
from virtual_time import SlotEngine, VirtualRun, run_on, virtual_loop
from visible_support import started

BUSY = EngineBusyError("server busy (HTTP 503)", status=503)
LOADING = EngineLoadingError("the model is being loaded (HTTP 503)", status=503)
TOLD = (RunPaused, RunResumed, RunStalled)


@dataclass
class Timed:
    """A hook that keeps pauses and stalls with the time, when a row last finished, and metrics."""

    metrics: MetricsHook = field(default_factory=lambda: MetricsHook(clock=time.monotonic))
    told: list[tuple[float, Event]] = field(default_factory=list)
    finished_at: float = 0.0

    def on_event(self, event: Event) -> None:
        self.metrics.on_event(event)
        if isinstance(event, RowFinished):
            self.finished_at = time.monotonic()
        elif isinstance(event, TOLD):
            self.told.append((time.monotonic(), event))


async def refused(engine: SlotEngine, run: VirtualRun, timed: Timed, lasts_s: float) -> tuple[float, float]:
    """A run that goes well for a minute, is refused everything for `lasts_s`, and goes well for another;
    when it last finished a row before, and when the engine had room again.
    """
    timed.on_event(started(total=100_000))
    work = asyncio.create_task(run.pool.run())
    watching = watched(
        run.pool, engine=engine, model="m", gate=run.gate, recovery=run.recovery, emit=timed.on_event
    )  # type: ignore[arg-type]  # all that is asked of an engine
    async with watching:
        await asyncio.sleep(60)
        engine.refuses = True
        await asyncio.sleep(lasts_s)
        silent_from, free_at = timed.finished_at, time.monotonic()
        engine.refuses = False
        await asyncio.sleep(60)
        run.stop.now(RunCancelledError("end"))
        await asyncio.gather(work, return_exceptions=True)
    return silent_from, free_at


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_storm_is_told_as_a_pause_in_seconds_as_a_stall_after_two_minutes_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    random.seed(5)
    engine, snapshots = SlotEngine(slots=4, service_s=1.0), dict[int, BatchMetrics]()

    async def scene() -> tuple[Timed, float, float]:
        timed = Timed()
        run = VirtualRun(engine, RunWidth(concurrency), hook=timed)
        loop = asyncio.get_running_loop()
        for at in (50, 100, 290, 330):
            loop.call_later(at, lambda at=at: snapshots.update({at: timed.metrics.snapshot()}))
        return timed, *await refused(engine, run, timed, 240)

    with virtual_loop(monkeypatch) as loop:
        timed, silent_from, free_at = run_on(loop, scene())
    (paused_at, paused), (stalled_at, stalled), (resumed_at, resumed) = timed.told
    assert isinstance(paused, RunPaused)
    assert isinstance(stalled, RunStalled)
    assert isinstance(resumed, RunResumed)
    assert (paused.reason, resumed.reason) == ("refused", "refused")
    assert paused.message == "the engine refuses requests (server busy); one at a time is tried"
    assert paused.stops_in_s == pytest.approx(900, abs=6)
    assert TOLD_S <= paused_at - silent_from <= 6
    assert stalled_at - silent_from == pytest.approx(120, abs=2)
    assert free_at <= resumed_at <= free_at + 8
    assert resumed.paused_s == pytest.approx(resumed_at - paused_at)
    assert [snapshots[at].state for at in sorted(snapshots)] == ["running", "paused", "paused", "running"]
    for at in (100, 290):
        assert (snapshots[at].state_reason, snapshots[at].eta_s) == ("refused", None)
    assert snapshots[50].eta_s is not None
    assert snapshots[330].eta_s is not None
    assert snapshots[290].state_s == pytest.approx(snapshots[290].paused_s)
    assert snapshots[330].paused_s == snapshots[330].lost_s == pytest.approx(resumed.paused_s)


def test_the_row_that_asks_is_sent_while_the_run_is_said_to_be_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random.seed(6)
    engine = SlotEngine(slots=4, service_s=1.0)

    async def scene() -> tuple[list[Event], Timed]:
        timed = Timed()
        run = VirtualRun(engine, RunWidth(4), hook=timed)
        await refused(engine, run, timed, 60)
        return run.events, timed

    with virtual_loop(monkeypatch) as loop:
        events, timed = run_on(loop, scene())
    kinds = [type(each) for each in events]
    between = events[kinds.index(RunPaused) : kinds.index(RunResumed)]
    sent = [each for each in between if isinstance(each, RowSent)]
    assert len(sent) >= 60 / 6
    assert {each.in_flight for each in sent} == {1}
    assert [type(event) for _, event in timed.told] == [RunPaused, RunResumed], "a minute is no stall"


def test_refusals_that_are_over_in_a_second_are_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(7)
    engine = SlotEngine(slots=4, service_s=1.0)

    async def scene() -> Timed:
        timed = Timed()
        await refused(engine, VirtualRun(engine, RunWidth(1), hook=timed), timed, 1.0)
        return timed

    with virtual_loop(monkeypatch) as loop:
        timed = run_on(loop, scene())
    assert engine.refused
    assert timed.told == []


class Setting:
    """A storm and its gate; `out` is what the run is said to have out."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stop = Stop()
        self.gate = Gate(stop=self.stop, emit=self.events.append)
        self.out = False
        self.storm = Storm(self.gate, out=lambda: self.out, patience_s=900.0, load_patience_s=1800.0)

    def met(self, error: EngineBusyError | EngineLoadingError = BUSY) -> None:
        self.storm.met(error, at=time.monotonic())

    def told(self) -> list[str]:
        """The events since the last call, in short."""
        told = [f"{type(each).__name__} {getattr(each, 'reason', '')}" for each in self.events]
        self.events.clear()
        return told


async def test_a_long_retry_after_is_told_without_a_second_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_batch._storm.TOLD_S", 0.01)
    at = Setting()
    at.met(LOADING)
    assert at.events == []
    await asyncio.sleep(0.05)
    (paused,) = at.events
    assert isinstance(paused, RunPaused)
    assert paused.stops_in_s == pytest.approx(1800, abs=1)
    assert at.gate.open


async def test_a_request_that_is_out_may_be_taken_so_nothing_is_told_before_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ollama_batch._storm.TOLD_S", 0.01)
    at = Setting()
    at.met()
    at.out = True
    await asyncio.sleep(0.05)
    assert at.events == []
    at.met()
    assert at.told() == ["RunPaused refused"]
    at.storm.over()
    assert at.told() == ["RunResumed refused"]
    at.storm.over()
    assert at.told() == []


async def test_a_pause_of_the_users_is_told_in_a_storm_and_the_storm_again_after_it() -> None:
    at = Setting()
    at.gate.refused("busy", stops_in_s=900)
    at.gate.hold("user", "paused")
    at.gate.refused("busy", stops_in_s=890)
    assert at.told() == ["RunPaused refused", "RunPaused user"]
    assert not at.gate.kept_by_engine
    at.gate.release("user")
    assert at.told() == ["RunResumed user", "RunPaused refused"]
    assert at.gate.kept_by_engine
    at.gate.taken()
    assert at.told() == ["RunResumed refused"]
    assert not at.gate.kept_by_engine


async def test_a_storm_that_ends_in_a_pause_leaves_the_pause_to_be_told() -> None:
    at = Setting()
    at.gate.refused("busy", stops_in_s=900)
    at.gate.hold("user", "paused")
    at.gate.taken()
    assert at.told() == ["RunPaused refused", "RunPaused user"]
    at.gate.release("user")
    assert at.told() == ["RunResumed user"]


async def test_a_look_at_the_engine_that_nobody_is_told_of_changes_nothing_of_what_is_told() -> None:
    at = Setting()
    at.gate.refused("busy", stops_in_s=900)
    at.gate.shut("engine")
    at.gate.release("engine")
    assert at.told() == ["RunPaused refused"]
    at.gate.shut("engine")
    at.gate.taken()
    at.gate.release("engine")
    assert at.told() == ["RunResumed refused"]


async def test_an_engine_that_died_in_a_storm_and_is_well_again_is_not_said_to_refuse() -> None:
    at = Setting()
    at.gate.refused("busy", stops_in_s=900)
    at.gate.hold("engine", "nobody listens")
    at.gate.release("engine")
    assert at.told() == ["RunPaused refused", "RunPaused engine", "RunResumed engine"]
