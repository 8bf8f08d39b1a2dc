"""Watches memory while a phase of a run sends, and carries out what the guards decide."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

from ollama_batch._gate import Gate
from ollama_batch._guard_plan import GuardPlan
from ollama_batch._guard_post import GuardPost
from ollama_batch._stop import Stop
from ollama_batch._summary import NEW_RUN
from ollama_batch._text import duration
from ollama_batch.engines.base import Engine, MemoryReporting
from ollama_batch.errors import EngineError, JournalError, MemoryShortError
from ollama_batch.events import Decision, Event, MemoryMeasured
from ollama_batch.memory import (
    Action,
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
from ollama_batch.memory.initial_use import InitialUse
from ollama_batch.types import LoadedModel

log = logging.getLogger("ollama_batch.run")

KIND: Final = "memory_guard"
"""The kind of its decisions."""

POWERLESS: Final = "powerless_guard"
"""The kind of the notes on guards that were given and cannot act."""

MEMORY: Final = "memory"
GUARD: Final = "a memory guard"

NO_RELOAD: Final = (
    "the model cannot be loaded with smaller buffers: where the pause does not help, "
    f"{NEW_RUN} with a smaller num_ctx= does"
)

USUAL: Final = (GuardPlan(VramGuard), GuardPlan(RamGuard))
"""The guards of a run that was not told which to have."""

SILENT_S: Final = 10.0
"""A run that stops for memory says so where that was not read for so long."""


class Throttle(Protocol):
    """How many requests may be out, as far as a guard may change it."""

    @property
    def width(self) -> int:
        """The present limit."""
        ...

    def width_without(self, reason: str) -> int:
        """The limit without the caps for `reason`, whoever holds them."""
        ...

    def cap(self, limit: int | None, reason: str, holder: object) -> None:
        """Let at most `limit` be out until told otherwise for the same reason by the same holder; None takes
        that back.
        """
        ...


class Guarding:
    """Shows each sample to the guards, does what they say, and then tells it and notes it.

    `guards` None: the usual two. Nobody has asked for those: memory that was in use when the run began, which
    the engine reserves as it loads, is no reason for them to slow the run down. Of a GuardPlan it makes a
    guard of its own. `answers` counts what the model has answered. `reload` has the model loaded with smaller
    buffers (to be awaited; None: there are none). A pause of more than `patience_s` seconds ends the run,
    resumably, whether memory can be read meanwhile or not. `keep` is shown every sample, too; `powerless` is
    told why a guard that the user has given cannot act.

    A guard that fails is a matter of its own, and a note that cannot be kept no reason to stop.
    """

    def __init__(
        self,
        guards: Sequence[Guard] | None,
        *,
        throttle: Throttle,
        gate: Gate,
        stop: Stop,
        trim: Callable[[], None] | None,
        reload: Callable[[], Awaitable[None] | None],
        emit: Callable[[Event], None],
        note: Callable[[str, dict[str, Any]], Awaitable[None]],
        answers: Callable[[], int],
        patience_s: float,
        keep: Callable[[MemorySample], Awaitable[None]] | None = None,
        powerless: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._initial = InitialUse()
        chosen = USUAL if guards is None else guards
        self._posts = [
            GuardPost(each.made(self._initial), asked=bool(each.options))
            if isinstance(each, GuardPlan)
            else GuardPost(each)
            for each in chosen
        ]
        self._powerless = powerless
        self._throttle = throttle
        self._gate = gate
        self._stop = stop
        self._trim = trim
        self._reload = reload
        self._reloading: asyncio.Future[None] | None = None
        self._emit = emit
        self._note = note
        self._answers = answers
        self._patience_s = patience_s
        self._keep = keep
        self._forgetful = False  # and it was said
        self._giving_up: asyncio.TimerHandle | None = None
        self._paused_at = self._read_at = 0.0  # of the loop's clock

    @property
    def idle(self) -> bool:
        """Whether there is no guard."""
        return not self._posts

    async def judge(self, sample: MemorySample) -> None:
        """Let every guard decide on `sample`, in their order, and carry that out."""
        self._read_at = asyncio.get_running_loop().time()
        self._emit(MemoryMeasured(sample=sample))
        self._initial.see(sample, answers=self._answers())
        done: list[Decision] = []
        for post in self._posts:
            try:
                decision: object = post.guard.decide(sample)
                if not isinstance(decision, GuardDecision):
                    raise TypeError(f"decide() is to return a GuardDecision, not {type(decision).__name__}")
                told = self._carry_out(post, decision)
            except Exception as error:  # a guard of somebody's own: the run goes on without it
                if post.pausing is not None:
                    post.pausing = f"{post.name} failed: {error!r}"
                if not post.blamed:
                    post.blamed = True
                    log.exception("the guard %r failed; the run goes on", post.name)
            else:
                done += [] if told is None else [told]
            why = None if self._powerless is None else post.powerless(sample)
            if self._powerless is not None and why is not None:
                await self._kept(self._powerless(why))
        for each in done:
            self._emit(each)
        for each in done:
            await self._kept(self._note(KIND, {**each.data, "message": each.message}))
        if self._keep is not None:
            await self._kept(self._keep(sample))

    def let_go(self) -> None:
        """Take back what the guards have done to requests."""
        for post in self._posts:
            if post.capped:
                self._throttle.cap(None, GUARD, post)
            post.forget()
        self._go_on()

    async def end(self) -> None:
        """Take back what the guards have done; the phase is over."""
        self.let_go()
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)

    def _carry_out(self, post: GuardPost, decision: GuardDecision) -> Decision | None:
        """Do what a guard says; returns what is to be told of it, if anything is."""
        actions, notes = tuple(decision.actions), tuple(decision.notes)
        if "reload_smaller" in actions and not self._reloads():
            actions, notes = tuple(each for each in actions if each != "reload_smaller"), (*notes, NO_RELOAD)
        changed = [self._act(post, action, decision) for action in actions]
        if post.pausing is not None:
            why = decision.reason or f"unknown: {decision.unknown}"
            post.pausing = f"{decision.guard}: {why}"
        told = replace(decision, actions=actions, notes=notes)
        news = post.has_news(told)
        if not (any(changed) or decision.effects or news):
            return None
        return Decision(kind=KIND, message=str(told), data=told.to_dict())

    def _act(self, post: GuardPost, action: Action, decision: GuardDecision) -> bool:
        """Do one of the actions; returns whether that changes anything."""
        match action:
            case "pause" if post.pausing is None:
                self._pause(post, f"{decision.guard}: {decision.reason}")
            case "resume" if post.pausing is not None:
                post.pausing = None
                if not any(each.pausing for each in self._posts):
                    short_s = asyncio.get_running_loop().time() - self._paused_at
                    self._go_on()
                    if not self._stop.draining.is_set():
                        log.warning(
                            "the memory guard %s lets the run go on after %s: %s",
                            decision.guard,
                            duration(short_s),
                            decision.reason,
                        )
            case "stop_growth" if not post.capped:
                self._cap(post, self._throttle.width)
            case "halve":
                # Of the width that no guard has cut: runs that see the same memory halve it together once.
                width = self._throttle.width_without(GUARD)
                post.halved = max(1, min(width, post.halved or width) // 2)
                self._cap(post, post.halved)
            case "allow_growth" if post.capped:
                post.capped, post.halved = False, None
                self._throttle.cap(None, GUARD, post)
            case "trim" if self._trim is not None:
                self._trim()
            case "reload_smaller":
                pass  # it has begun
            case _:
                return False
        return True

    def _cap(self, post: GuardPost, limit: int) -> None:
        post.capped = True
        self._throttle.cap(limit, GUARD, post)

    def _pause(self, post: GuardPost, why: str) -> None:
        post.pausing = why
        loop = asyncio.get_running_loop()
        if self._giving_up is None:
            self._paused_at = loop.time()
            self._giving_up = loop.call_later(self._patience_s, self._give_up)
        left_s = max(0.0, self._paused_at + self._patience_s - loop.time())
        self._gate.hold(MEMORY, why, stops_in_s=left_s)
        log.warning(
            "paused since %s by the memory guard %s. Nothing is sent until there is room, what is out "
            "finishes; if it lasts, the run stops in %s (recover_timeout) and can be resumed",
            time.strftime("%H:%M:%S"),
            why,
            duration(left_s),
        )

    def _go_on(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self._gate.release(MEMORY)

    def _give_up(self) -> None:
        now = asyncio.get_running_loop().time()
        short_s = now - self._paused_at
        why = "; ".join(each.pausing for each in self._posts if each.pausing is not None)
        if now - self._read_at > SILENT_S:
            why += f"; it was last read {now - self._read_at:.0f} s ago"
        self._stop.drain(
            MemoryShortError(
                f"memory was short for {short_s:.0f} s ({why}); free some, then run again to go on"
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

    async def _kept(self, keeping: Awaitable[None]) -> None:
        """Wait until a note is kept; one that cannot be is no reason to stop."""
        try:
            await keeping
        except JournalError as error:  # a full disk, say: the results will meet it, and guards have to go on
            log.debug("a note on memory could not be kept: %s", type(error).__name__)
        except Exception:
            if not self._forgetful:
                self._forgetful = True
                log.exception("a note on memory could not be kept; the run goes on")


class _Silent:
    """Stands for an engine that does not tell its memory, so that it is known where it is."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def loaded(self, model: str) -> LoadedModel | None:
        raise EngineError(f"the engine at {self.address} does not tell what memory {model} takes")


@asynccontextmanager
async def guarded(
    guarding: Guarding, *, engine: Engine, model: str, probe: Probe | None = None
) -> AsyncIterator[None]:
    """Have `guarding` judge the memory of this machine and of the engine, about once a second, meanwhile."""
    if guarding.idle:
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
        log.exception("memory is not watched any more; the run goes on")
    finally:
        guarding.let_go()
