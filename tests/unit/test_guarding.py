"""What a run does about memory: decisions of guards carried out, and given up on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable
from types import SimpleNamespace
from typing import Any

import pytest

from memory_support import GIB, device, engine, host, sample
from ollama_batch._gate import Gate
from ollama_batch._guard_plan import GuardPlan
from ollama_batch._guarding import Guarding, _watch, guarded
from ollama_batch._portal import AddressLimit
from ollama_batch._stop import Stop
from ollama_batch._width import RunWidth
from ollama_batch.errors import DiskFullError, MemoryShortError
from ollama_batch.events import Decision, Event, MemoryMeasured, RunPaused, RunResumed
from ollama_batch.memory import (
    DeviceMemory,
    EngineMemory,
    Guard,
    GuardDecision,
    MemorySample,
    RamGuard,
    VramGuard,
)
from virtual_time import run_on, virtual_loop


class Width:
    """The requests out at a time, and what they were capped to."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self.caps: list[int | None] = []

    @property
    def width(self) -> int:
        return self._limit if not self.caps or self.caps[-1] is None else min(self._limit, self.caps[-1])

    def width_without(self, reason: str) -> int:
        return self._limit

    def cap(self, limit: int | None, reason: str, holder: object = None) -> None:
        assert reason
        self.caps.append(limit)


class Watched:
    """A run's gate, stop, events and notes around guards that are shown GPUs with so much free."""

    def __init__(
        self,
        *guards: Guard,
        usual: bool = False,
        patience_s: float = 60.0,
        buffers: str = "small",
        throttle: AddressLimit | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.notes: list[dict[str, Any]] = []
        self.trims = 0
        self.buffers = buffers
        self.loaded = asyncio.Event()
        self.loads = 0
        self.width = Width()
        self.answers = 0
        self.powerless: list[str] = []
        self.disk: Exception | None = None  # what keeping a note meets
        self.stop = Stop()
        self.gate = Gate(stop=self.stop, emit=self.events.append)
        self.guarding = Guarding(
            None if usual else guards,
            throttle=self.width if throttle is None else throttle,
            gate=self.gate,
            stop=self.stop,
            trim=self._trim,
            reload=self._reload,
            emit=self.events.append,
            note=self._note,
            answers=lambda: self.answers,
            patience_s=patience_s,
            keep=self._keep,
            powerless=self._powerless,
        )
        self.now = 0.0

    def _reload(self) -> Awaitable[None] | None:
        if self.buffers == "small":
            return None
        self.buffers = "small"
        return self._load()

    async def _load(self) -> None:
        self.loads += 1
        await self.loaded.wait()

    def _trim(self) -> None:
        self.trims += 1

    async def _note(self, kind: str, data: dict[str, Any]) -> None:
        assert kind == "memory_guard"
        assert data["message"]
        if self.disk is not None:
            raise self.disk
        self.notes.append(data)

    async def _keep(self, sample: MemorySample) -> None:
        if self.disk is not None:
            raise self.disk

    async def _powerless(self, message: str) -> None:
        self.powerless.append(message)

    async def see(self, free_gib: float | None, *, seconds: int = 1, total: float = 16) -> None:
        free = None if free_gib is None else free_gib * GIB
        await self.see_cards(device(free, total * GIB), seconds=seconds)

    async def see_cards(self, *cards: DeviceMemory, seconds: int = 1, **other: Any) -> None:
        for _ in range(seconds):
            self.now += 1
            await self.guarding.judge(sample(self.now, *cards, **other))

    @property
    def told(self) -> list[Decision]:
        return [event for event in self.events if isinstance(event, Decision)]

    @property
    def paused(self) -> bool:
        return not self.gate.open


REMOTE, SILENT = engine(8 * GIB), engine(None)


@pytest.mark.parametrize(
    ("guard", "seen", "said"),
    [
        (
            VramGuard(limit="90%"),
            REMOTE,
            "can never act: limit 90% is a share of the engine's card, and how much that has is unknown. ",
        ),
        (VramGuard(limit="15GiB", warn="80%"), REMOTE, "can never act: warn 80% is a share"),
        (VramGuard(limit="15GiB"), SILENT, "what is in use cannot be read (the engine's card: not said)"),
        (VramGuard(device=7), None, "what is in use cannot be read (no gpu7: "),
        (
            RamGuard(limit="100GiB"),
            None,
            "lies beyond the 16.0 GiB that system memory has, so that its guard pauses the run only once",
        ),
        (VramGuard(limit="15GiB"), REMOTE, None),
        (VramGuard(limit="90%", total="16GiB"), REMOTE, None),
        (RamGuard(limit="15GiB"), None, None),
    ],
)
async def test_a_guard_that_was_given_and_cannot_act_is_told_of_once(
    guard: Guard, seen: EngineMemory | None, said: str | None
) -> None:
    run = Watched(guard)
    await run.see_cards(engine=seen, devices_unknown="no driver", seconds=8)
    assert len(run.powerless) == (said is not None)
    assert said is None or said in run.powerless[0]


async def test_usual_guards_that_cannot_act_are_not_told_of() -> None:
    run = Watched(usual=True)
    await run.see_cards(engine=SILENT, devices_unknown="no driver", seconds=8)
    assert run.powerless == []


async def test_the_run_pauses_at_the_limit_and_goes_on_once_there_is_room() -> None:
    run = Watched(VramGuard(warn="14GiB", limit="15GiB"))
    await run.see(3)
    assert not run.paused
    await run.see(1)
    assert run.paused
    await run.see(1, seconds=5)
    await run.see(8, seconds=12)
    assert not run.paused
    kinds = [type(event) for event in run.events if not isinstance(event, MemoryMeasured | Decision)]
    assert kinds == [RunPaused, RunResumed]
    assert [note["actions"] for note in run.notes if "pause" in note["actions"]]
    assert sum(isinstance(event, MemoryMeasured) for event in run.events) == 19


async def test_less_room_caps_the_requests_out_and_more_room_takes_that_back() -> None:
    run = Watched(VramGuard())
    await run.see(1.8)
    assert run.width.caps == [8], "warn: no more than now"
    await run.see(1.2)
    assert run.width.caps == [8, 4], "high: half of it"
    await run.see(9, seconds=12)
    assert run.width.caps[-1] is None
    assert not run.paused


async def test_two_guards_pause_once_and_the_last_to_be_content_resumes() -> None:
    run = Watched(VramGuard(), RamGuard())

    async def see(vram: float, ram: float, seconds: int) -> None:
        for _ in range(seconds):
            run.now += 1
            await run.guarding.judge(sample(run.now, device(vram * GIB), host=host(ram * GIB)))

    await see(0.2, 8, 1)
    await see(0.2, 0.2, 1)
    assert run.paused
    await see(9, 0.2, 15)
    assert run.paused
    await see(9, 9, 15)
    assert not run.paused
    assert [type(event) for event in run.events if isinstance(event, RunPaused | RunResumed)] == [
        RunPaused,
        RunResumed,
    ]


async def test_conversations_are_trimmed_where_that_may_free_memory() -> None:
    run = Watched(VramGuard(grows_with_use=True))
    await run.see(1.2)
    assert run.trims == 1


async def test_usual_guards_let_be_what_the_engine_has_reserved_before_the_first_request() -> None:
    run = Watched(usual=True)
    await run.see(0.3, seconds=40)
    assert not run.paused
    assert run.width.caps == []
    assert run.notes == []
    asked_for = Watched(VramGuard())
    await asked_for.see(0.3)
    assert asked_for.paused


async def test_usual_guards_act_on_what_comes_after_the_first_request() -> None:
    run = Watched(usual=True)
    await run.see(2)
    await run.see(0.3)
    assert run.paused


async def test_a_planned_guard_is_the_usual_one_unless_it_has_options() -> None:
    run = Watched(GuardPlan(VramGuard))
    await run.see(0.3, seconds=40)
    assert not run.paused
    await run.see(0.05)
    assert run.paused
    asked_for = Watched(GuardPlan(VramGuard, {"warn": 0.5, "limit": 0.75}))
    await asked_for.see(5)
    assert not asked_for.paused
    await asked_for.see(3.9)
    assert asked_for.paused


async def test_runs_side_by_side_do_not_share_a_planned_guard() -> None:
    plan = GuardPlan(VramGuard, {"limit": 0.9})
    runs = [Watched(plan), Watched(plan)]
    for run in runs:
        await run.see(0.3)
    assert [run.paused for run in runs] == [True, True]


async def test_what_was_in_use_of_one_card_excuses_no_other() -> None:
    run = Watched(usual=True)
    large = device(4 * GIB, 24 * GIB)
    await run.see_cards(large, device(12 * GIB, 16 * GIB, name="gpu1"))
    await run.see_cards(large, device(0.1 * GIB, 16 * GIB, name="gpu1"))
    assert run.paused


async def test_a_card_that_was_full_at_first_pauses_the_run_when_it_gets_fuller_and_not_a_moment_longer() -> (
    None
):
    run = Watched(usual=True)
    await run.see(0.03 * 16, seconds=5)
    assert not run.paused
    await run.see(0.005 * 16)
    assert run.paused
    (told,) = run.notes
    assert told["actions"] == ["stop_growth", "halve", "pause"]
    assert run.width.caps[-1] == 4
    await run.see(0.03 * 16, seconds=12)
    assert not run.paused
    assert run.width.caps[-1] is None


async def test_a_card_that_fills_beside_one_that_was_full_at_first_pauses_the_run() -> None:
    run = Watched(usual=True)
    full = device(0.1 * GIB)
    await run.see_cards(full, device(8 * GIB, name="gpu1"), seconds=3)
    await run.see_cards(full, device(0.3 * GIB, name="gpu1"))
    assert run.paused
    await run.see_cards(full, device(8 * GIB, name="gpu1"), seconds=12)
    assert not run.paused


async def test_what_another_program_held_at_first_counts_once_it_has_left_and_comes_back() -> None:
    run = Watched(usual=True)
    await run.see(0.4, seconds=3)
    run.answers = 1
    await run.see(9, seconds=3)
    run.answers = 2  # the model was there while the card had room
    await run.see(9)
    assert not run.paused
    await run.see(0.4)
    assert run.paused


async def test_a_model_that_is_loaded_anew_has_not_grown() -> None:
    run = Watched(usual=True)
    await run.see(0.4, seconds=3)
    run.answers = 5
    await run.see(14, seconds=60)  # unloaded, and loading: nothing is answered
    await run.see(0.4)
    run.answers = 6
    await run.see(0.4, seconds=10)
    assert not run.paused
    assert run.notes == []


async def paused_for(run: Watched, seconds: float) -> str:
    """Pause the run, and let so many seconds pass without another sample."""
    await run.see(0.2)
    assert run.paused
    await asyncio.sleep(seconds)
    return str(run.stop.reason)


def test_a_pause_that_lasts_too_long_stops_the_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether memory can be read meanwhile or not: a driver may hang."""
    with virtual_loop(monkeypatch) as loop:
        run = Watched(VramGuard(), patience_s=20)
        assert run_on(loop, paused_for(run, 19.9)) == "None"
        run_on(loop, asyncio.sleep(0.2))
        assert isinstance(run.stop.reason, MemoryShortError)
        text = str(run.stop.reason)
        assert text.startswith("memory was short for 20 s (vram: 15.8 GiB of 16.0 GiB in use")
        assert "it was last read 20 s ago" in text
        assert "run again" in text


def test_pauses_that_end_in_time_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pauses(run: Watched) -> None:
        for _ in range(5):
            await paused_for(run, 15)
            await run.see(9, seconds=12)
            assert not run.paused
        await asyncio.sleep(60)

    with virtual_loop(monkeypatch) as loop:
        run = Watched(VramGuard(), patience_s=20)
        run_on(loop, pauses(run))
        assert run.stop.reason is None


async def test_what_a_run_does_not_do_is_not_told_as_done() -> None:
    run = Watched(VramGuard())
    await run.see(0.2, seconds=40)
    (asked,) = (note for note in run.notes if any("smaller num_ctx" in text for text in note["notes"]))
    assert "reload_smaller" not in asked["actions"]


async def test_a_model_is_loaded_anew_with_smaller_buffers_once_as_long_as_that_takes() -> None:
    run = Watched(VramGuard(), buffers="large", patience_s=1000)
    await run.see(0.2, seconds=220)
    told = [note for note in run.notes if "reload_smaller" in note["actions"]]
    assert [note["notes"] for note in told] == [[], [], []]  # asked three times, still being done
    await asyncio.sleep(0)
    assert run.loads == 1
    await run.guarding.end()


async def test_memory_that_cannot_be_read_changes_nothing_and_is_told_once() -> None:
    run = Watched(VramGuard(), RamGuard())
    await run.see(None, seconds=30)
    assert not run.paused
    assert run.width.caps == []
    (note,) = run.notes
    assert (note["guard"], note["actions"], note["unknown"]) == ("vram", [], "GPU0: the cable is out")
    await run.see_cards(devices_unknown="NVML: GPU is lost", seconds=5)
    assert [each["unknown"] for each in run.notes[1:]] == ["NVML: GPU is lost"]


async def test_what_a_guard_has_to_say_is_told_once_in_a_phase_whatever_its_numbers() -> None:
    run = Watched(VramGuard(warn="14GiB", limit="15GiB"))
    small = device(9 * GIB, 12 * GIB)
    for spilled in (1.5, 1.5, 2.5):
        view = engine(9 * GIB, (9 + spilled) * GIB, remote=False)
        await run.see_cards(small, engine=view, seconds=10)
    (note,) = run.notes
    assert note["actions"] == []
    assert note["notes"] == [
        "1.5 GiB of the model are in host memory, which is slow: reduce num_ctx",
        "warn 14.0 GiB lies beyond the 12.0 GiB there are",
    ]
    (told,) = run.told
    assert {**told.data, "message": told.message} == note


async def test_words_without_end_are_not_all_told() -> None:
    class Chatty:
        def decide(self, sample: MemorySample) -> GuardDecision:
            return GuardDecision("chatty", notes=("a" * round(sample.at),))

    run = Watched(Chatty())
    await run.see(8, seconds=100)
    assert len(run.notes) == 20


async def test_an_action_that_changes_nothing_is_not_told_again() -> None:
    class Simple:
        def decide(self, sample: MemorySample) -> GuardDecision:
            return GuardDecision("simple", actions=("pause" if sample.at <= 5 else "resume",))

    run = Watched(Simple())
    await run.see(8, seconds=10)
    assert [note["actions"] for note in run.notes] == [["pause"], ["resume"]]


class Broken:
    def decide(self, sample: MemorySample) -> GuardDecision:
        raise ZeroDivisionError


class Answers:
    """A guard whose decision is what it was made with, whatever that is."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def decide(self, sample: MemorySample) -> GuardDecision:
        return self.answer  # type: ignore[no-any-return]  # that is the point


class Decides:
    """A guard that makes its decision of these actions, whatever they are."""

    def __init__(self, actions: Any) -> None:
        self.actions = actions

    def decide(self, sample: MemorySample) -> GuardDecision:
        return GuardDecision("mine", actions=self.actions)


@pytest.mark.parametrize("guard", [Broken(), Answers(None), Answers("pause"), Decides(None), Decides(("x",))])
async def test_a_guard_that_fails_is_named_once_and_the_others_go_on(
    guard: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = Watched(guard, VramGuard())
    await run.see(0.2, seconds=3)
    assert run.paused
    name = type(guard).__name__
    failed = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert failed == [f"the guard {name!r} failed; the run goes on"]


@pytest.mark.parametrize("actions", [("pause", "explode"), "explode", ["explode"]])
async def test_an_action_that_there_is_not_is_named_with_its_guard_and_those_there_are(
    actions: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = Watched(Decides(actions))
    await run.see(0.2, seconds=2)
    assert not run.paused
    (record,) = caplog.records
    assert "'Decides'" in record.message
    assert record.exc_info is not None
    said = str(record.exc_info[1])
    assert "the guard 'mine' decided on 'explode'" in said
    assert "stop_growth, allow_growth, halve, trim, pause, reload_smaller, resume" in said


def test_a_guard_that_fails_in_its_pause_stops_the_run_in_the_end_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = Answers(GuardDecision("mine", actions=("pause",)))

    async def fails(run: Watched) -> None:
        await run.see(8)
        guard.answer = None
        for _ in range(30):
            await asyncio.sleep(1)
            await run.see(8)

    with virtual_loop(monkeypatch) as loop:
        run = Watched(guard, patience_s=20)
        run_on(loop, fails(run))
        assert isinstance(run.stop.reason, MemoryShortError)
        assert "Answers failed: TypeError" in str(run.stop.reason)


@pytest.mark.parametrize("trouble", [DiskFullError("no space left"), RuntimeError("a bug")])
async def test_a_note_that_cannot_be_kept_does_not_keep_guards_from_their_work(trouble: Exception) -> None:
    run = Watched(VramGuard(), RamGuard())
    run.disk = trouble
    await run.see(0.2)
    assert run.paused
    await run.see(9, seconds=12)
    assert not run.paused
    assert run.width.caps[-1] is None
    done = [action for each in run.told for action in each.data["actions"]]
    assert done == ["stop_growth", "halve", "pause", "resume", "allow_growth"]
    run.disk = None
    await run.see(0.2)
    assert "pause" in run.notes[-1]["actions"]


async def test_guards_act_before_anything_is_noted() -> None:
    run = Watched(RamGuard(), VramGuard())
    kept = asyncio.Event()

    async def slow(kind: str, data: dict[str, Any]) -> None:
        await kept.wait()

    run.guarding._note = slow
    low = asyncio.create_task(run.see_cards(device(0.2 * GIB), host=host(1.2 * GIB)))
    await asyncio.sleep(0)
    assert run.paused, "the second guard does not wait for the disk either"
    assert [each.data["guard"] for each in run.told] == ["ram", "vram"]
    kept.set()
    await low


class Ends:
    """A sampler whose watch gives a sample of a full card, and then ends, or fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def watch(self) -> AsyncGenerator[MemorySample]:
        yield sample(1.0, device(0.2 * GIB))
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("can't start new thread")])
async def test_a_watch_that_is_over_leaves_nothing_of_what_guards_did(error: Exception | None) -> None:
    run = Watched(VramGuard())
    await _watch(run.guarding, Ends(error))  # type: ignore[arg-type]  # what is asked of one
    assert [type(event) for event in run.events if isinstance(event, RunPaused | RunResumed)] == [
        RunPaused,
        RunResumed,
    ]
    assert not run.paused
    assert run.width.caps[-1] is None


class Stuck:
    """A probe that finds a full card, and hangs when it is asked once more."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.read_so_far = 0

    def read(self) -> MemorySample:
        self.read_so_far += 1
        if self.read_so_far > 1:
            self.end.wait(30)
        return sample(float(self.read_so_far), device(0.2 * GIB))


async def test_a_driver_that_hangs_in_a_pause_does_not_hold_the_run_for_ever() -> None:
    run, probe = Watched(VramGuard(), patience_s=0.05), Stuck()
    silent = SimpleNamespace(address="http://127.0.0.1:1")
    async with guarded(run.guarding, engine=silent, model="m:1b", probe=probe):  # type: ignore[arg-type]  # that is all it asks
        await asyncio.wait_for(run.stop.draining.wait(), 30)
        probe.end.set()
    assert isinstance(run.stop.reason, MemoryShortError)
    assert not run.paused


# Runs that share an address


def sharing(count: int, limit: AddressLimit) -> list[Watched]:
    return [Watched(VramGuard(), throttle=limit) for _ in range(count)]


@pytest.mark.parametrize("steered", [False, True])
async def test_runs_that_see_the_same_memory_halve_their_width_together_once(steered: bool) -> None:
    limit = AddressLimit()
    limit.join(RunWidth(64, steered=steered))
    runs = sharing(8, limit)
    for free, width in ((1.8, 64), (1.2, 32), (1.2, 32), (0.85, 16)):
        for run in runs:
            await run.see(free)
        assert limit.width == width
    late = Watched(VramGuard(), throttle=limit)
    await late.see(0.85)
    assert limit.width == 16


async def test_the_first_run_that_ends_takes_back_no_cap_of_another() -> None:
    limit = AddressLimit()
    limit.join(RunWidth(64))
    runs = sharing(3, limit)
    for run in runs:
        await run.see(1.2)
    for number, run in enumerate(runs, start=1):
        await run.guarding.end()
        assert limit.width == (32 if number < 3 else 64)


async def test_at_the_end_of_a_phase_nothing_is_left_of_what_guards_did() -> None:
    run = Watched(VramGuard())
    await run.see(0.2)
    assert run.paused
    await run.guarding.end()
    assert not run.paused
    assert run.width.caps[-1] is None


async def test_a_pause_and_its_end_are_said_in_the_log_with_reading_threshold_and_what_will_happen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Watched(VramGuard(warn="14GiB", limit="15GiB"), patience_s=90.0)
    await run.see(0.5)
    (paused,) = caplog.records
    assert paused.levelname == "WARNING"
    assert "paused since " in paused.message
    assert "guard vram: 15.5 GiB of 16.0 GiB in use (GPU0, test), critical from 15.0 GiB on" in paused.message
    assert "the run stops in 1m30s (recover_timeout)" in paused.message
    (told,) = (event for event in run.events if isinstance(event, RunPaused))
    assert told.message in paused.message
    assert told.stops_in_s == pytest.approx(90.0, abs=1.0)
    await run.see(8, seconds=12)
    assert not run.paused
    assert caplog.records[-1].message.startswith("the memory guard vram lets the run go on after ")
    assert "8.0 GiB of 16.0 GiB in use" in caplog.records[-1].message


async def test_a_pause_that_ends_because_the_run_does_is_not_said_to_be_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Watched(VramGuard(), patience_s=0.0)
    await run.see(0.1)
    async with asyncio.timeout(5):
        await run.stop.draining.wait()
    await run.see(8, seconds=12)
    await run.guarding.end()
    assert not any(isinstance(event, RunResumed) for event in run.events)
    assert "go on after" not in caplog.text
