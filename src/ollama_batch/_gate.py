"""The gate before the engine: closed while somebody holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ollama_batch._stop import Abandoned, Stop
from ollama_batch._trouble_tally import REFUSED
from ollama_batch.events import Event, RunPaused, RunResumed

ENGINE = "engine"


class Gate:
    """Workers pass before each attempt; while anything holds the gate they wait.

    `hold(reason)` and `release(reason)` are for whoever wants a pause; `shut(reason)` is a hold that nobody
    is told of, until a `hold` for the same reason tells. `refused` tells of a pause that holds nobody.
    """

    def __init__(self, *, stop: Stop, emit: Callable[[Event], None]) -> None:
        self._stop = stop
        self._emit = emit
        self._held: set[str] = set()
        self._told: dict[str, str] = {}
        self._refusal: tuple[str, float] | None = None
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

    @property
    def kept_by_engine(self) -> bool:
        """Whether the run is said to be paused for the engine's sake, and for nothing else."""
        return not self.held_beside(ENGINE) and not self._told.keys().isdisjoint((ENGINE, REFUSED))

    def hold(
        self, reason: str, message: str, *, stops_in_s: float | None = None, latest: bool = False
    ) -> None:
        """Send nothing until `release(reason)`; a second hold for the same reason changes nothing, unless its
        message is another and is to be told as the `latest`. Whoever holds it ends the run after `stops_in_s`
        seconds (None: never).
        """
        self.shut(reason)
        again = reason in self._told
        if again and not (latest and reason == next(reversed(self._told)) and self._told[reason] != message):
            return
        self._told[reason] = message
        self._emit(RunPaused(reason=reason, message=message, stops_in_s=stops_in_s, again=again))

    def refused(self, message: str, *, stops_in_s: float) -> None:
        """Say that the run is paused because the engine refuses whatever is sent, until `taken`; whoever
        asks may go on to do so. While something holds the gate, that is told instead.
        """
        self._refusal = message, time.monotonic() + stops_in_s
        self._tell_refusal()

    def taken(self) -> None:
        """The engine refuses requests no more, as far as is known."""
        self._refusal = None
        if self._told.pop(REFUSED, None) is not None and not self._told:
            self._resumed(REFUSED)

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
        self._opened.set()
        if not self._told.keys() <= {REFUSED}:  # else nobody was told of a hold
            self._told.clear()
            self._resumed(reason)
            if reason == ENGINE:
                self._refusal = None  # it was found well: what is refused from now on will tell
        self._tell_refusal()

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
            if not self._told:
                self._closed_at = time.monotonic()
            self._opened.clear()
        self._held.add(reason)

    def _tell_refusal(self) -> None:
        if self._refusal is None or self._held or REFUSED in self._told or self._stop.draining.is_set():
            return
        message, stops_at = self._refusal
        now = self._closed_at = time.monotonic()
        self._told[REFUSED] = message
        self._emit(RunPaused(reason=REFUSED, message=message, stops_in_s=max(0.0, stops_at - now)))

    def _resumed(self, reason: str) -> None:
        if not self._stop.draining.is_set():  # else nothing is sent any more
            self._emit(RunResumed(reason=reason, paused_s=time.monotonic() - self._closed_at))
