"""The gate before the engine: closed while somebody holds it, watched while the engine is in trouble."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from ollama_batch._stop import Abandoned, Stop
from ollama_batch.engines.base import Engine, Probed
from ollama_batch.errors import EngineDownError, EngineError, EngineStoppedError
from ollama_batch.events import Event, RunPaused, RunResumed

log = logging.getLogger("ollama_batch.run")

ENGINE = "engine"
FIRST_PROBE_S, LONGEST_PROBE_S = 0.25, 10.0


class Gate:
    """Workers pass one by one before each attempt; while anything holds the gate they wait.

    `hold(reason)` and `release(reason)` are for whoever wants a pause. `engine_trouble` holds the gate
    itself, probes the engine until it is healthy again, and ends the run (resumably) when that takes
    longer than `patience_s`.
    """

    def __init__(
        self, *, engine: Engine, stop: Stop, emit: Callable[[Event], None], patience_s: float
    ) -> None:
        self._engine = engine
        self._stop = stop
        self._emit = emit
        self._patience_s = patience_s
        self._held: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.engine_absences = 0

    @property
    def open(self) -> bool:
        """Whether requests may be sent."""
        return not self._held

    def hold(self, reason: str, message: str) -> None:
        """Send nothing until `release(reason)`; a second hold for the same reason changes nothing."""
        if reason not in self._held:
            self._held[reason] = time.monotonic()
            self._emit(RunPaused(reason=reason, message=message))

    def release(self, reason: str) -> None:
        """Take back a hold."""
        first = min(self._held.values(), default=0.0)
        if self._held.pop(reason, None) is None or self._held:
            return
        self._emit(RunResumed(reason=reason, paused_s=time.monotonic() - first))
        self._changed.set()
        self._changed.clear()

    async def wait(self) -> None:
        """Return when the gate is open; raises Abandoned when the run is asked to end."""
        while not self._stop.draining.is_set():
            if self.open:
                return
            opened = asyncio.ensure_future(self._changed.wait())
            ending = asyncio.ensure_future(self._stop.draining.wait())
            try:
                await asyncio.wait((opened, ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                opened.cancel()
                ending.cancel()
        raise Abandoned

    def engine_trouble(self, error: EngineError) -> None:
        """Hold the gate until the engine is healthy; `error` is what made us doubt it."""
        if isinstance(error, EngineStoppedError):
            self.hold(ENGINE, str(error))
            self._stop.drain(EngineDownError(str(error)))
        elif self._watcher is None or self._watcher.done():
            self.hold(ENGINE, str(error))
            self._watcher = asyncio.create_task(self._watch(error))

    async def _watch(self, error: EngineError) -> None:
        began, delay = time.monotonic(), FIRST_PROBE_S
        try:
            while not await self._healthy():
                self.engine_absences += delay == FIRST_PROBE_S
                waited = time.monotonic() - began
                if waited > self._patience_s:
                    self._stop.drain(
                        EngineDownError(
                            f"the engine at {self._engine.address} did not come back within "
                            f"{self._patience_s:.0f} s ({error}); run again to go on"
                        )
                    )
                    return
                await self._stop.sleep(random.uniform(delay / 2, delay))  # noqa: S311 - spreads probes
                delay = min(2 * delay, LONGEST_PROBE_S)
        except EngineStoppedError as gone:
            self._stop.drain(EngineDownError(str(gone)))
        except Abandoned:
            pass
        else:
            self.release(ENGINE)

    async def _healthy(self) -> bool:
        if not isinstance(self._engine, Probed):
            return True  # nothing to ask: the next attempt is the probe
        try:
            return await self._engine.healthy()
        except EngineStoppedError:
            raise
        except EngineError as error:
            log.debug("the engine is not healthy yet: %s", type(error).__name__)
            return False

    async def close(self) -> None:
        """End the watch, if one is on."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
