"""The guards of GPU memory and of RAM: they judge samples and say what to do; others do it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Literal, Self

from ollama_batch.errors import ConfigError
from ollama_batch.memory._judge import ActionState
from ollama_batch.memory.amounts import parse_bytes, show
from ollama_batch.memory.decision import Action, GuardDecision
from ollama_batch.memory.initial_use import InitialUse
from ollama_batch.memory.levels import HOLD_S, Bounds, Level, LevelState
from ollama_batch.memory.probe import LocalProbe
from ollama_batch.memory.sample import MemorySample, Reading, Room
from ollama_batch.memory.sampler import MemorySampler
from ollama_batch.memory.thresholds import LEVELS, Thresholds

LIMIT: Final = 0.96
RESERVE: Final = "512MiB"
RELOAD_AFTER_S: Final = 30.0

NO_TRIM_GAIN: Final = (
    "the engine reserves its context when it loads a model, so trimming is not expected to free memory"
)


class _LevelGuard:
    """What both guards share: levels of each memory, actions, and reading this machine by itself."""

    name = ""
    _total_told = False

    def __init__(
        self, thresholds: Thresholds, *, trim_from: Level | None, hold_s: float, reload_after_s: float
    ) -> None:
        for option, seconds in (("hold_s", hold_s), ("reload_after_s", reload_after_s)):
            if not seconds >= 0:
                raise ConfigError(f"{option}={seconds!r}: give seconds, 0 or more")
        self._thresholds = thresholds
        self._trim_from = trim_from
        self._hold_s = hold_s
        self._reload_after_s = reload_after_s
        self._levels: dict[str, LevelState] = {}
        self._actions = ActionState()
        self._probe: LocalProbe | None = None
        self._initial: InitialUse | None = None

    def _sparing(self, initial: InitialUse) -> Self:
        """This guard, to which a memory of which no more is in use than `initial` says is at level ok."""
        self._initial = initial
        return self

    @property
    def level(self) -> Level:
        """The level after the last sample."""
        return self._actions.level

    def decide(self, sample: MemorySample) -> GuardDecision:
        """What to do, now that memory is as `sample` says. Samples come in the order of time.

        A sample without a reading that can be judged changes nothing and asks for nothing.
        """
        raise NotImplementedError

    def sample(self) -> MemorySample:
        """The memory of this machine now; reads it at once, which takes some milliseconds."""
        if self._probe is None:
            self._probe = LocalProbe()
        return self._probe.read()

    async def watch(self, sampler: MemorySampler | None = None) -> AsyncGenerator[GuardDecision]:
        """A decision for each sample of `sampler` (None: this machine, once a second), until it stops."""
        source = MemorySampler() if sampler is None else sampler
        try:
            async with aclosing(source.watch()) as samples:
                async for sample in samples:
                    yield self.decide(sample)
        finally:
            if sampler is None:
                source.stop()

    def _rooms(self, sample: MemorySample) -> tuple[list[Room], str]:
        """What of `sample` is looked at; with nothing, the second says why."""
        raise NotImplementedError

    def _powerless(self, sample: MemorySample, *, lasting: bool) -> str | None:
        """Why this guard cannot do what it was given for, memory being as `sample` has it, and what helps.

        None: it can; or there is no reading, which may come yet unless that is `lasting`.
        """
        rooms, missing = self._rooms(sample)
        if not rooms:
            return self._unread(missing)
        found = [self._hindered(room, lasting=lasting) for room in rooms]
        return None if None in found else found[0]

    def _hindered(self, room: Room, *, lasting: bool) -> str | None:
        kind, what, total = type(self).__name__, self.name.upper(), room.total.value
        levels, limit = self._thresholds, self._thresholds.limit
        if room.used.value is None:
            return self._unread(f"{room.name}: {room.used.reason}") if lasting else None
        if levels.bounds(total) is None:
            total_too = ', or say how much there is (VramGuard(total="16GiB"))' if self._total_told else ""
            return (
                f"the memory guard of {what} can never act: {levels.share} is a share of {room.name}, "
                f'and how much that has is unknown. Give a size, as in {kind}(limit="15GiB"){total_too}'
            )
        if total is None or limit.share is not None or limit.bytes <= total:
            return None
        return (
            f"the limit of {limit} for {what} lies beyond the {show(total)} that {room.name} has, so that "
            f"its guard pauses the run only once less than {show(levels.kept_free(total))} are free: "
            f'give a lower one, as in {kind}(limit="90%")'
        )

    def _unread(self, why: str) -> str:
        return (
            f"the memory guard of {self.name.upper()} cannot act, as what is in use cannot be read ({why}). "
            "The run goes on without it: what bounds memory then is a smaller num_ctx=, or fewer requests at "
            "a time (concurrency=)"
        )

    def _judge(self, rooms: Sequence[Room], missing: str, at: float, notes: Sequence[str]) -> GuardDecision:
        """The decision on `rooms`; `missing` says why, if there is none that can be judged."""
        used: dict[str, int] = {}
        judged: list[tuple[Room, Bounds]] = []
        said = list(notes)
        for room in rooms:
            bounds = self._thresholds.bounds(room.total.value)
            if room.used.value is None or bounds is None:
                why = f"{room.name}: {room.used.reason or room.total.reason}"
                missing = why
                said.append(f"unknown: {why}")
                continue
            if self._initial is not None:
                bounds = replace(bounds, spared=self._initial.spared(room))
            used[room.id] = room.used.value
            state = self._levels.get(room.id, LevelState())
            self._levels[room.id] = state.step(room.used.value, bounds, at, self._hold_s)
            judged.append((room, bounds))
            beyond = self._thresholds.beyond(room.total.value)
            said += [beyond] if beyond is not None else []
        if not judged:
            return GuardDecision(self.name, self.level, unknown=missing, notes=tuple(notes))
        # A memory that cannot be read now keeps its level; one that is no longer looked at has none.
        watched = {room.id for room in rooms}
        self._levels = {id_: state for id_, state in self._levels.items() if id_ in watched}
        level = max(state.level for state in self._levels.values())
        before = self.level
        self._actions, effects = self._actions.measured(used, at)
        actions: tuple[Action, ...] = ()
        # What is tight and cannot be read now is no reason to do anything.
        if level != before or level is max(self._levels[id_].level for id_ in used):
            self._actions, actions = self._actions.step(
                level,
                used,
                at,
                # Of the largest: what is judged together rises and falls together.
                margin=max(bounds.margin for _, bounds in judged),
                trim_from=self._trim_from,
                reload_after_s=self._reload_after_s,
            )
        tightest, bounds = max(judged, key=lambda each: self._tightness(each[0]))
        return GuardDecision(
            self.name,
            level,
            actions,
            _reason(tightest, bounds, level, before),
            tightest.name,
            tightest.used.value,
            tightest.total.value,
            None,
            effects,
            tuple(dict.fromkeys(said)),
        )

    def _tightness(self, room: Room) -> tuple[Level, float]:
        used, total = room.used.get(), room.total.value
        return self._levels[room.id].level, used / total if total else float(used)


def _reason(room: Room, bounds: Bounds, level: Level, before: Level) -> str:
    total = "" if room.total.value is None else f" of {show(room.total.value)}"
    text = f"{show(room.used.get())}{total} in use ({room.name}, {room.used.source})"
    if level is not Level.OK:
        text += f", {level} from {show(bounds.least(level))} on"
    return text if level == before else f"{text}; {before} before"


class VramGuard(_LevelGuard):
    """Watches the memory of the GPUs that hold the model.

    `warn`, `high`, `limit`: from which use on the levels warn, high and critical hold, in bytes ("14GiB",
    "14 GB", a whole number) or as a share of the card ("88%", 0.88); `warn` None is 11/12 of `limit`, `high`
    None half way. In use is what is not free. Less than `reserve` free is critical too. `device` is a GPU's
    id ("gpu0", "gpu0/mig1", "card0") or number; None: those that a process of the engine uses, where the
    driver tells, else all.
    `total`: how much memory an engine's card has that cannot be read from here; a remote engine is judged by
    what it reports. `trim_from`: the level from which on conversations are trimmed, by default "high" for an
    engine whose memory grows with use (`grows_with_use`), else never: Ollama and llama.cpp reserve theirs at
    load. `hold_s`: how long memory must be better before a level is left. `reload_after_s`: how long it may
    be critical before the model is to be loaded anew, smaller. Raises ConfigError for a wrong option.
    """

    name = "vram"
    _total_told = True  # it may be

    def __init__(
        self,
        *,
        warn: int | float | str | None = None,
        high: int | float | str | None = None,
        limit: int | float | str = LIMIT,
        reserve: int | str = RESERVE,
        device: int | str | None = None,
        total: int | str | None = None,
        trim_from: Literal["warn", "high", "critical"] | None = None,
        grows_with_use: bool = False,
        hold_s: float = HOLD_S,
        reload_after_s: float = RELOAD_AFTER_S,
    ) -> None:
        if trim_from is not None and trim_from not in LEVELS:
            raise ConfigError(f"trim_from={trim_from!r}: give one of {', '.join(LEVELS)}, or None")
        from_level = None if trim_from is None else LEVELS[trim_from]
        if from_level is None and grows_with_use:
            from_level = Level.HIGH
        super().__init__(
            Thresholds.of(warn, high, limit, reserve),
            trim_from=from_level,
            hold_s=hold_s,
            reload_after_s=reload_after_s,
        )
        self._device = f"gpu{device}" if isinstance(device, int) else device
        self._total = None if total is None else parse_bytes(total, "total")
        self._grows = grows_with_use

    @classmethod
    def original(cls) -> Self:
        """The limits of the batch server this package began with: warns, and trims, at 14 of 16 GB, and
        has its limit at 15 (counted as nvidia-smi does, in GiB).
        """
        return cls(warn="14GiB", limit="15GiB", trim_from="warn")

    def decide(self, sample: MemorySample) -> GuardDecision:
        """What to do, now that memory is as `sample` says. Samples come in the order of time.

        Of several GPUs the tightest decides. A sample without a reading that can be judged changes nothing
        and asks for nothing.
        """
        rooms, missing = self._rooms(sample)
        notes = []
        spilled = None if sample.engine is None else sample.engine.spilled.value
        if spilled:
            notes.append(f"{show(spilled)} of the model are in host memory, which is slow: reduce num_ctx")
        decision = self._judge(rooms, missing, sample.at, notes)
        if "trim" in decision.actions and not self._grows:
            return replace(decision, notes=(*decision.notes, NO_TRIM_GAIN))
        return decision

    def _rooms(self, sample: MemorySample) -> tuple[list[Room], str]:
        engine = sample.engine
        reported = None
        if engine is not None:
            reported = engine.room(self._total)
            if engine.remote:
                return [reported], ""
        devices = [each for each in sample.devices if self._device in (None, each.id)]
        if self._device is not None and not devices:
            seen = ", ".join(each.id for each in sample.devices)
            return [], f"no {self._device}" + (f", but {seen}" if seen else f": {sample.devices_unknown}")
        if self._device is None:
            devices = [each for each in devices if each.holds_model] or devices
        if not devices and reported is not None and reported.used.known:
            return [reported], ""
        # One that was there and is not listed now cannot be read: it is not well for that.
        listed = {"engine", *(each.id for each in sample.devices)}
        lost = Reading.unknown(sample.devices_unknown or "it is no longer there", "driver")
        gone = [Room(id_, id_, lost, lost) for id_ in self._levels if id_ not in listed]
        return [*(each.room for each in devices), *gone], sample.devices_unknown or "no GPU was found"


class RamGuard(_LevelGuard):
    """Watches the memory of this machine, or of the control group this process is limited to.

    llama.cpp keeps up to 8 GiB of saved prompts in RAM, and a machine without any ends processes at will.
    Options are those of `VramGuard`; in use is what is not available.
    """

    name = "ram"

    def __init__(
        self,
        *,
        warn: int | float | str | None = None,
        high: int | float | str | None = None,
        limit: int | float | str = LIMIT,
        reserve: int | str = RESERVE,
        hold_s: float = HOLD_S,
        reload_after_s: float = RELOAD_AFTER_S,
    ) -> None:
        super().__init__(
            Thresholds.of(warn, high, limit, reserve),
            trim_from=None,
            hold_s=hold_s,
            reload_after_s=reload_after_s,
        )

    def decide(self, sample: MemorySample) -> GuardDecision:
        """What to do, now that memory is as `sample` says. Samples come in the order of time.

        A sample without a reading of RAM changes nothing and asks for nothing.
        """
        rooms, missing = self._rooms(sample)
        return self._judge(rooms, missing, sample.at, ())

    def _rooms(self, sample: MemorySample) -> tuple[list[Room], str]:
        return [sample.host.room], ""
