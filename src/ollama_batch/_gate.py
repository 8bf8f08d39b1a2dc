"""The gate before the engine: closed while somebody holds it, watched while the engine is in trouble."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from ollama_batch._stop import Abandoned, Stop
from ollama_batch._supervision import Supervision
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.engines.base import Engine, Probed
from ollama_batch.errors import EngineDownError, EngineError, EngineExitedError, EngineStoppedError
from ollama_batch.events import Event, RunPaused, RunResumed

log = logging.getLogger("ollama_batch.run")

ENGINE = "engine"
FIRST_PROBE_S, LONGEST_PROBE_S = 0.25, 5.0
"""Seconds between two looks at an engine in trouble: growing, yet its return is soon noticed."""

PROBE_S = 30.0
"""Seconds a health check may take before it counts as failed."""


class Gate:
    """Workers pass before each attempt; while anything holds the gate they wait.

    `hold(reason)` and `release(reason)` are for whoever wants a pause. `engine_trouble` closes the gate
    by itself, probes the engine until it is healthy again, and ends the run (resumably) when that takes
    longer than `patience_s`. A trouble that is over at the first probe is not worth a `RunPaused`. Where a
    probe finds the engine unwell, `supervisor` may restart it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        stop: Stop,
        emit: Callable[[Event], None],
        patience_s: float,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._engine = engine
        self._stop = stop
        self._emit = emit
        self._patience_s = patience_s
        self.supervision = Supervision(supervisor, engine=engine, emit=emit)
        self._held: set[str] = set()
        self._told: set[str] = set()
        self._closed_at = 0.0
        self._opened = asyncio.Event()  # set as long as the gate is open, so that no waiter can miss it
        self._opened.set()
        self._watcher: asyncio.Task[None] | None = None
        self._next_probe_s = 0.0
        self.opened_at = 0.0
        """When the gate last opened (`time.monotonic()`)."""
        self.resumed_at = 0.0
        """When a hold that was not the engine's last ended: silence before it means nothing."""

    @property
    def open(self) -> bool:
        """Whether requests may be sent."""
        return not self._held

    def hold(self, reason: str, message: str) -> None:
        """Send nothing until `release(reason)`; a second hold for the same reason changes nothing."""
        self._close(reason)
        if reason not in self._told:
            self._told.add(reason)
            self._emit(RunPaused(reason=reason, message=message))

    def release(self, reason: str) -> None:
        """Take back a hold; sending goes on once nothing else holds the gate."""
        if reason not in self._held:
            return
        self._held.discard(reason)
        now = time.monotonic()
        if reason != ENGINE:
            self.resumed_at = now
        if self._held:
            return
        self.opened_at = now
        if self._told:
            self._told.clear()
            self._emit(RunResumed(reason=reason, paused_s=now - self._closed_at))
        self._opened.set()

    async def wait(self) -> None:
        """Return when the gate is open; raises Abandoned when the run is asked to end."""
        while not self._stop.draining.is_set():
            if self.open:
                return
            opened = asyncio.ensure_future(self._opened.wait())
            ending = asyncio.ensure_future(self._stop.draining.wait())
            try:
                await asyncio.wait((opened, ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                opened.cancel()
                ending.cancel()
        raise Abandoned

    def engine_trouble(self, error: EngineError) -> None:
        """Close the gate until the engine is healthy; `error` is what made us doubt it."""
        if isinstance(error, EngineStoppedError) and not self.supervision.revives(error):
            self._stop.drain(EngineDownError(self._last_words(error)))
        elif self._watcher is None or self._watcher.done():
            self._close(ENGINE)
            self._watcher = asyncio.create_task(self._watch(error))

    def engine_answered(self) -> None:
        """The engine has answered a request: the next trouble is a new one, and probed at once."""
        self._next_probe_s = 0.0
        self.supervision.answered()

    async def close(self) -> None:
        """End the watch, if one is on, and its hold."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if not self._stop.draining.is_set():
            self.release(ENGINE)

    def _close(self, reason: str) -> None:
        if not self._held:
            self._closed_at = time.monotonic()
            self._opened.clear()
        self._held.add(reason)

    async def _watch(self, error: EngineError) -> None:
        """Probe until the engine is healthy. The waits go on growing from one trouble to the next until
        something is answered: an engine may pass every probe and still answer nothing.
        """
        since = time.monotonic()
        gives_up_at = since + self._patience_s
        try:
            while True:
                await self._wait_for_probe(gives_up_at)
                exited = False
                try:
                    if await self._healthy():
                        break
                except EngineExitedError as gone:
                    if not self.supervision.revives(gone):
                        raise
                    error, exited = gone, True
                self.hold(ENGINE, str(error))
                if time.monotonic() >= gives_up_at:
                    self._stop.now(  # nothing that is still out will be answered any more
                        EngineDownError(
                            f"the engine at {self._engine.address} did not come back within "
                            f"{self._patience_s:g} s ({error}); run again to go on"
                        )
                    )
                    return
                unwell_s = time.monotonic() - since
                restart = self.supervision.restart_if_due(error, exited=exited, unwell_s=unwell_s)
                if await self._stop.unless_draining(restart):
                    self._next_probe_s = 0.0
        except Abandoned:
            return
        except EngineStoppedError as gone:
            self._stop.drain(EngineDownError(self._last_words(gone)))
            return
        except Exception as bug:  # nobody waits for this task: unsaid, the run would hang at the gate
            log.exception("the engine's health check failed")
            self._stop.drain(EngineDownError(f"the engine's health check failed: {bug!r}"))
            return
        self.release(ENGINE)

    def _last_words(self, error: EngineStoppedError) -> str:
        """What the run ends with when its engine is gone."""
        if isinstance(error, EngineExitedError):
            return f"{error}\nThe engine is not restarted: {self.supervision.refuses()}"
        return str(error)

    async def _wait_for_probe(self, gives_up_at: float) -> None:
        delay = self._next_probe_s
        self._next_probe_s = min(max(2 * delay, FIRST_PROBE_S), LONGEST_PROBE_S)
        delay = min(random.uniform(delay / 2, delay), max(0.0, gives_up_at - time.monotonic()))  # noqa: S311 - spreads probes
        if delay:
            await self._stop.sleep(delay)

    async def _healthy(self) -> bool:
        if not isinstance(self._engine, Probed):
            return True  # nothing to ask: the next attempt is the probe
        try:
            async with asyncio.timeout(PROBE_S):
                return await self._engine.healthy()
        except EngineStoppedError:
            raise
        except (EngineError, TimeoutError) as error:
            log.debug("the engine is not healthy yet: %s", type(error).__name__)
            return False
