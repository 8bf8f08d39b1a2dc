"""How a run is asked to end early: drain first, stop at once if asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ollama_batch.errors import OllamaBatchError, RunInterrupted

T = TypeVar("T")

SOON_S = 1.0


class Abandoned(Exception):
    """Raised in a worker whose row is left for the next session because the run is ending."""


class Stop:
    """The wish to end a run early, and why.

    `drain`: no new row is begun, waits are cut short, requests that are out may finish.
    `now`: those are cancelled as well; their rows stay pending.
    The first reason given is the one reported, and told to `begun`.
    """

    def __init__(self, begun: Callable[[OllamaBatchError | RunInterrupted], None] | None = None) -> None:
        self._begun = begun
        self.reason: OllamaBatchError | RunInterrupted | None = None
        self.draining = asyncio.Event()
        self.stopping = asyncio.Event()

    def drain(self, reason: OllamaBatchError | RunInterrupted) -> None:
        """Begin no new row."""
        first = self.reason is None
        if first:
            self.reason = reason
        self.draining.set()
        if first and self._begun is not None:
            self._begun(reason)

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

    async def or_soon(self, work: Coroutine[Any, Any, object]) -> None:
        """Do `work`, which the run can do without; in a second at the most once it is to stop at once."""
        task = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((task,), timeout=SOON_S)
            if task.done() and not task.cancelled():
                task.result()
        finally:
            task.cancel()
            ending.cancel()
            await asyncio.gather(task, ending, return_exceptions=True)

    async def sleep(self, seconds: float) -> None:
        """Sleep; raises Abandoned as soon as the run is asked to end."""
        if not self.draining.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self.draining.wait()
            except TimeoutError:
                return
        raise Abandoned
