"""What comes back from the engine, told to whoever decides how many requests may be out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from ollama_batch._portal import AddressLimit
from ollama_batch.control import LimitChange, SlotWatch
from ollama_batch.engines.base import Engine, QueueReporting
from ollama_batch.errors import (
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    JournalError,
    OutcomeError,
)
from ollama_batch.events import Decision, Event
from ollama_batch.types import Completion, EngineInfo

log = logging.getLogger("ollama_batch.run")

KIND: Final = "concurrency"
"""The kind of its decisions."""

NOTED: Final = 200
"""So many decisions of a session are kept in its journal; all are told to hooks."""

POLL_S: Final = 1.0
"""Seconds between two looks at the server's own count of waiting requests."""

PROMPT_WORK: Final = 0.1
"""What a new prompt token costs, as a share of a completion token."""

ONE_AT_A_TIME: Final = frozenset(
    {
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    }
)
"""Families of which Ollama answers one request at a time, whatever is set (its `Scheduler.load`)."""


class Steering:
    """Follows one run on one address: what its answers say of the queue, and which limit that leads to."""

    def __init__(
        self,
        limit: AddressLimit,
        *,
        info: EngineInfo,
        emit: Callable[[Event], None],
        note: Callable[[str, dict[str, Any]], Awaitable[None]],
        noticed: Callable[..., None],
    ) -> None:
        self._limit = limit
        self._info = info
        self._emit = emit
        self._note = note
        self._noticed = noticed
        self._slots = SlotWatch()
        self._told = False
        self._noted = 0
        self._noting: set[asyncio.Task[None]] = set()
        self.answers = 0
        """How many answers have come, of use or not."""
        if info.slots == 1 and info.engine != "embedded":
            self._name_one_slot(None)

    def answered(self, completion: Completion, latency_s: float) -> None:
        """An answer, of use or not, came `latency_s` after its request was sent; that still counts as out."""
        self.answers += 1
        timings, usage = completion.timings, completion.usage
        latency_s -= min(latency_s, timings.load_s or 0.0)  # nobody's wait for a slot
        served_s = None
        if timings.prompt_s is not None and timings.generate_s is not None:
            served_s = timings.prompt_s + timings.generate_s
        work = 1.0
        if usage is not None:
            new = usage.prompt_tokens - (usage.cached_tokens or 0)
            work = usage.completion_tokens + PROMPT_WORK * new
        queue_s = timings.queue_s
        self._told = queue_s is not None
        self._limit.answered(latency_s=latency_s, queue_s=queue_s, served_s=served_s, work=work)
        wait_s = self._slots.add(latency_s=latency_s, in_flight=self._limit.out, queue_s=queue_s)
        if wait_s is not None and self._info.slots is None:
            self._name_one_slot(wait_s)

    def failed(self, error: EngineError, latency_s: float) -> None:
        """An attempt ended without a usable answer; its request still counts as out."""
        if isinstance(error, OutcomeError):
            self.answered(error.completion, latency_s)
        elif isinstance(error, EngineBusyError):
            self._limit.refused(error.retry_after_s)
        elif isinstance(error, EngineTimeoutError):
            self._limit.timed_out()

    def changed(self, before: int, after: int, change: LimitChange | None) -> None:
        """The run may have another number of requests out: tell it, and keep it."""
        data: dict[str, Any] = {"before": before, "after": after}
        why = "more runs share the address"
        if change is not None:
            why, data["why"] = change.why, change.why
            if change.queue is not None:
                data["queue"] = change.queue
                why += f"; {change.queue:.1f} waiting"
            if change.wait_share is not None:
                data["wait_share"] = change.wait_share
                why += f" ({100 * change.wait_share:.0f} % of the time of answers)"
            if change.rate is not None:
                data["work_per_s"] = change.rate
        message = f"concurrency {before} -> {after}: {why}"
        log.info("%s", message)
        if change is not None and change.given_up is not None:
            self._name_given_up(change.given_up)
        self._emit(Decision(kind=KIND, message=message, data=data))
        if self._noted < NOTED:
            self._noted += 1
            task = asyncio.ensure_future(self._keep({**data, "message": message}))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    @asynccontextmanager
    async def under_way(self, engine: Engine) -> AsyncIterator[None]:
        """During the block the server is asked for its queue where answers do not tell it."""
        asking: asyncio.Task[None] | None = None
        if isinstance(engine, QueueReporting):
            asking = asyncio.create_task(self._ask(engine))
        try:
            yield
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await asyncio.gather(*self._noting)

    async def _ask(self, engine: QueueReporting) -> None:
        silent = 0
        while silent < 3:
            await asyncio.sleep(POLL_S)
            if self._told or self._limit.target is None or not self._limit.out:
                continue
            try:
                waiting = await engine.waiting()
            except EngineError as error:  # in trouble; the rows find out what kind
                log.debug("the engine's queue could not be asked for: %s", type(error).__name__)
                continue
            if waiting is None:
                silent += 1
            elif self._limit.target is not None:
                silent = 0
                self._limit.target.on_waiting(waiting)

    async def _keep(self, data: dict[str, Any]) -> None:
        try:
            await self._note(KIND, data)
        except JournalError as error:  # no room, or closed by now: rows have their own way to say that
            log.debug("a decision could not be noted: %s", type(error).__name__)

    def _name_given_up(self, least: int) -> None:
        """Say once that memory does not hold what the user wants out at the least."""
        message = (
            f"memory does not hold {least} requests at a time, the least that you asked for "
            f"(Concurrency(min={least})): fewer are out from now on, so that no row fails for it; more are "
            "tried again later"
        )
        self._noticed("memory_below_min", message, min=least)

    def _name_one_slot(self, wait_s: float | None) -> None:
        """Say once what a server costs that works on one request at a time."""
        info = self._info
        waits = "" if wait_s is None else f"; the others wait {wait_s:.1f} s each"
        told = "" if wait_s is None else ", by the times it tells"
        message = f"{info.address} answers one request at a time{told}{waits}"
        gain = (
            "several at a time share each reading of the weights: up to about three times the tokens/s "
            "with 4, for the memory of 4 contexts (an estimate)"
        )
        families = {info.details.get("family"), *(info.details.get("families") or ())}
        if info.engine == "ollama" and families & ONE_AT_A_TIME:
            message += (
                f"; Ollama does so with every model of this family, whatever is set. With others, {gain}"
            )
        elif info.engine == "ollama":
            message += (
                f"; {gain}. Start it with OLLAMA_NUM_PARALLEL=4 ollama serve, or: systemctl edit ollama, "
                'add [Service] Environment="OLLAMA_NUM_PARALLEL=4", systemctl restart ollama'
            )
        else:
            message += f"; {gain}. For llama-server: --parallel 4, with 4 times the --ctx-size"
        self._noticed("one_slot", message, wait_s=wait_s, slots=1)
