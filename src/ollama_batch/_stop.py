"""How a run is asked to end early: drain first, stop at once if asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ollama_batch.errors import OllamaBatchError, RunInterrupted

T = TypeVar("T")


class Abandoned(Exception):
    """Raised in a worker whose row is left for the next session because the run is ending."""


class Stop:
    """The wish to end a run early, and why.

    `drain`: no new row is begun, waits are cut short, requests that are out may finish.
    `now`: those are cancelled as well; their rows stay pending.
    The first reason given is the one reported.
    """

    def __init__(self) -> None:
        self.reason: OllamaBatchError | RunInterrupted | None = None
        self.draining = asyncio.Event()
        self.stopping = asyncio.Event()

    def drain(self, reason: OllamaBatchError | RunInterrupted) -> None:
        """Begin no new row."""
        if self.reason is None:
            self.reason = reason
        self.draining.set()

    def now(self, reason: OllamaBatchError | RunInterrupted) -> None:
        """Begin no new row and cancel what is out."""
        self.drain(reason)
        self.stopping.set()

    async def unless_draining(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; cancels it and raises Abandoned as soon as the run is asked to end."""
        task = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if task.cancelled():
                raise Abandoned
            return task.result()
        finally:
            task.cancel()
            ending.cancel()

    async def sleep(self, seconds: float) -> None:
        """Sleep; raises Abandoned as soon as the run is asked to end."""
        if not self.draining.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self.draining.wait()
            except TimeoutError:
                return
        raise Abandoned
