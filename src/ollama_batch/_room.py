"""Waiting for room on a full disk."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ollama_batch._gate import Gate
from ollama_batch._stop import Abandoned, Stop
from ollama_batch.errors import DiskFullError

T = TypeVar("T")

FULL_DISK = "disk"
RETRY_S = 1.0


class DiskRoom:
    """Lets writes wait for room, and holds the gate as long as one of them waits.

    Room that does not come within `patience_s` seconds stops the run, resumably; so does any other wish
    to end it: what could not be written is then asked again in the next session.
    """

    def __init__(self, *, gate: Gate, stop: Stop, patience_s: float) -> None:
        self._gate = gate
        self._stop = stop
        self._patience_s = patience_s
        self._waiting = 0

    async def keep(self, write: Callable[[], Awaitable[T]]) -> T:
        """The result of `write()`, repeated until there is room for it; raises Abandoned as the run ends."""
        try:
            return await write()
        except DiskFullError as error:
            full = error
        self._waiting += 1
        try:
            return await self._keep_trying(write, full)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._stop.draining.is_set():
                self._gate.release(FULL_DISK)

    async def _keep_trying(self, write: Callable[[], Awaitable[T]], full: DiskFullError) -> T:
        gives_up_at = time.monotonic() + self._patience_s
        while True:
            left_s = max(0.0, gives_up_at - time.monotonic())
            self._gate.hold(FULL_DISK, f"{full}; waiting for room", stops_in_s=left_s)
            if time.monotonic() >= gives_up_at:
                self._stop.now(full)
                raise Abandoned from full
            await self._stop.sleep(RETRY_S)
            try:
                return await write()
            except DiskFullError as error:
                full = error
