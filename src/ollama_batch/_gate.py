"""The gate before the engine: closed while somebody holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ollama_batch._stop import Abandoned, Stop
from ollama_batch.events import Event, RunPaused, RunResumed

ENGINE = "engine"


class Gate:
    """Workers pass before each attempt; while anything holds the gate they wait.

    `hold(reason)` and `release(reason)` are for whoever wants a pause; `shut(reason)` is a hold that nobody
    is told of, until a `hold` for the same reason tells.
    """

    def __init__(self, *, stop: Stop, emit: Callable[[Event], None]) -> None:
        self._stop = stop
        self._emit = emit
        self._held: set[str] = set()
        self._told: set[str] = set()
        self._closed_at = 0.0
        self._opened = asyncio.Event()  # set as long as the gate is open, so that no waiter can miss it
        self._opened.set()
        self.opened_at = 0.0
        """When the gate last opened (`time.monotonic()`)."""
        self.resumed_at = 0.0
        """When a hold that was not the engine's last ended: silence before it means nothing."""

    @property
    def open(self) -> bool:
        """Whether requests may be sent."""
        return not self._held

    def held_beside(self, reason: str) -> bool:
        """Whether something else than `reason` holds the gate as well."""
        return bool(self._held - {reason})

    def hold(self, reason: str, message: str, *, stops_in_s: float | None = None) -> None:
        """Send nothing until `release(reason)`; a second hold for the same reason changes nothing. Whoever
        holds it ends the run after `stops_in_s` seconds (None: never).
        """
        self.shut(reason)
        if reason not in self._told:
            self._told.add(reason)
            self._emit(RunPaused(reason=reason, message=message, stops_in_s=stops_in_s))

    def release(self, reason: str) -> None:
        """Take back a hold; sending goes on once nothing else holds the gate, unless the run is to end."""
        if reason not in self._held:
            return
        self._held.discard(reason)
        now = time.monotonic()
        if reason != ENGINE:
            self.resumed_at = now
        if self._held:
            return
        self.opened_at = now
        told = bool(self._told)
        self._told.clear()
        if told and not self._stop.draining.is_set():  # else nothing is sent any more
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

    def shut(self, reason: str) -> None:
        """Send nothing until `release(reason)`, and say nothing of it."""
        if not self._held:
            self._closed_at = time.monotonic()
            self._opened.clear()
        self._held.add(reason)
