"""Watches memory while a phase of a run sends, and carries out what the guards decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

from ollama_batch._gate import Gate
from ollama_batch._stop import Stop
from ollama_batch._summary import NEW_RUN
from ollama_batch.engines.base import Engine, MemoryReporting
from ollama_batch.errors import EngineError, MemoryShortError
from ollama_batch.events import Event, MemoryMeasured
from ollama_batch.memory import (
    EngineView,
    Guard,
    GuardDecision,
    LocalProbe,
    MemorySample,
    MemorySampler,
    Probe,
    RamGuard,
    VramGuard,
)
from ollama_batch.types import LoadedModel

log = logging.getLogger("ollama_batch.run")

MEMORY: Final = "memory"
GUARD: Final = "a memory guard"

NO_RELOAD: Final = (
    "the model cannot be loaded with smaller buffers: where the pause does not help, "
    f"{NEW_RUN} with a smaller num_ctx= does"
)

GROWN_SHARE: Final = 0.01
"""Use within this share of all memory of what the run began with is no use of the run's."""

TAKEN: Final = frozenset({"stop_growth", "halve", "pause", "reload_smaller"})
"""What is not done about memory that was in use before the first request."""


class Throttle(Protocol):
    """How many requests may be out, as far as a guard may change it."""

    @property
    def width(self) -> int:
        """The present limit."""
        ...

    def cap(self, limit: int | None, reason: str) -> None:
        """Let at most `limit` be out until told otherwise for the same reason; None takes that back."""
        ...


class Guarding:
    """Shows each sample to the guards, and does what they say.

    `reload` has the model loaded with smaller buffers (to be awaited; None: there are none). `usual` guards
    are those nobody asked for: memory that was in use when the run began, which the engine
    reserves as it loads, is no reason for them to slow the run down. A pause of more than `patience_s`
    seconds ends the run, resumably. `keep` is shown every sample, too.
    """

    def __init__(
        self,
        guards: Sequence[Guard],
        *,
        usual: bool,
        throttle: Throttle,
        gate: Gate,
        stop: Stop,
        trim: Callable[[], None] | None,
        reload: Callable[[], Awaitable[None] | None],
        emit: Callable[[Event], None],
        decide: Callable[..., Awaitable[None]],
        patience_s: float,
        keep: Callable[[MemorySample], Awaitable[None]] | None = None,
    ) -> None:
        self._keep = keep
        self._guards = tuple(guards)
        self._usual = usual
        self._throttle = throttle
        self._gate = gate
        self._stop = stop
        self._trim = trim
        self._reload = reload
        self._reloading: asyncio.Future[None] | None = None
        self._emit = emit
        self._decide = decide
        self._patience_s = patience_s
        self._first: dict[int, int] = {}
        self._pausing: dict[int, float] = {}
        self._capped: set[int] = set()
        self._blamed: set[int] = set()

    async def judge(self, sample: MemorySample) -> None:
        """Let every guard decide on `sample`, in their order, and carry that out."""
        self._emit(MemoryMeasured(sample=sample))
        if self._keep is not None:
            await self._keep(sample)
        for number, guard in enumerate(self._guards):
            try:
                decision = guard.decide(sample)
            except Exception:  # a guard of somebody's own: the run goes on without it
                if number not in self._blamed:
                    self._blamed.add(number)
                    log.exception("the guard %r failed; the run goes on", type(guard).__name__)
                continue
            await self._carry_out(number, decision, sample.at)

    async def end(self) -> None:
        """Take back what the guards have done; the phase is over."""
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        self._pausing.clear()
        self._capped.clear()
        self._gate.release(MEMORY)
        self._throttle.cap(None, GUARD)

    async def _carry_out(self, number: int, decision: GuardDecision, at: float) -> None:
        taken = self._usual and self._was_in_use(number, decision)
        actions = tuple(each for each in decision.actions if not (taken and each in TAKEN))
        told = replace(decision, actions=actions)
        if "reload_smaller" in actions and not self._reloads():
            actions = tuple(each for each in actions if each != "reload_smaller")
            told = replace(decision, actions=actions, notes=(*decision.notes, NO_RELOAD))
        if told.actions or told.notes != decision.notes or decision.effects:
            await self._decide("memory_guard", str(told), **told.to_dict())
        for action in actions:
            match action:
                case "pause":
                    self._pausing[number] = at
                    self._gate.hold(MEMORY, f"{decision.guard}: {decision.reason}")
                case "resume":
                    self._pausing.pop(number, None)
                    if not self._pausing:
                        self._gate.release(MEMORY)
                case "stop_growth" | "halve":
                    width = self._throttle.width
                    self._capped.add(number)
                    self._throttle.cap(max(1, width // 2) if action == "halve" else width, GUARD)
                case "allow_growth":
                    self._capped.discard(number)
                    if not self._capped:
                        self._throttle.cap(None, GUARD)
                case "trim" if self._trim is not None:
                    self._trim()
        since = self._pausing.get(number)
        if since is not None and at - since > self._patience_s:
            why = decision.reason or f"unknown: {decision.unknown}"
            self._stop.drain(
                MemoryShortError(
                    f"memory was short for {at - since:.0f} s ({decision.guard}: {why}); free some, then run "
                    "again to go on"
                )
            )

    def _reloads(self) -> bool:
        """Whether the model is being loaded with smaller buffers from now on."""
        if self._reloading is not None and not self._reloading.done():
            return True
        reload = self._reload()
        if reload is None:
            return False
        self._reloading = asyncio.ensure_future(reload)
        return True

    def _was_in_use(self, number: int, decision: GuardDecision) -> bool:
        """Whether no more is in use than was before the first request."""
        if decision.used_bytes is None:
            return False
        first = self._first.setdefault(number, decision.used_bytes)
        return decision.used_bytes <= first + GROWN_SHARE * (decision.total_bytes or first)


class _Silent:
    """Stands for an engine that does not tell its memory, so that it is known where it is."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def loaded(self, model: str) -> LoadedModel | None:
        raise EngineError(f"the engine at {self.address} does not tell what memory {model} takes")


def usual_guards() -> tuple[Guard, ...]:
    """The guards of a run that was not told which to have."""
    return VramGuard(), RamGuard()


@asynccontextmanager
async def guarded(
    guarding: Guarding | None, *, engine: Engine, model: str, probe: Probe | None = None
) -> AsyncIterator[None]:
    """Have `guarding` judge the memory of this machine and of the engine, about once a second, meanwhile."""
    if guarding is None:
        yield
        return
    view = EngineView(engine if isinstance(engine, MemoryReporting) else _Silent(engine.address), model)
    sampler = MemorySampler(LocalProbe.of(engine) if probe is None else probe, engine=view)
    task = asyncio.create_task(_watch(guarding, sampler))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(sampler.stop)  # a driver may take its time
        await guarding.end()


async def _watch(guarding: Guarding, sampler: MemorySampler) -> None:
    try:
        async with aclosing(sampler.watch()) as samples:
            async for sample in samples:
                await guarding.judge(sample)
    except Exception:  # nobody waits for this task; a run without guards is better than none
        log.exception("memory is not watched any more")
