"""A server that belongs to one engine: started on first use, restarted on demand, ended with the engine."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final

from ollama_batch.engines._server_process import ServerProcess, settled
from ollama_batch.errors import EngineExitedError, EngineStoppedError

_EXIT_NOTICE_S: Final = 2.0
"""How long a broken connection waits to learn whether the server's process is gone."""

_LOOK_S: Final = 0.05
"""Between two looks at a server that is starting."""


class OwnedServer:
    """At most one child process at a time, from whichever loop or thread it is asked for.

    `launch` makes the process; it must not refer to the engine, whose end ends the process. `answers` says
    whether a process that has come up can be used (None: it can at once). The process has `start_timeout`
    seconds to come up and `stop_s` to end when it is asked to, before it is killed.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], ServerProcess],
        *,
        start_timeout: float,
        stop_s: float,
        answers: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._name = name
        self._launch = launch
        self._start_timeout = start_timeout
        self._stop_s = stop_s
        self._answers = answers
        self._lock = threading.Lock()  # guards those below
        self._child: ServerProcess | None = None
        self._serving: ServerProcess | None = None
        self._restarting: Future[None] | None = None
        self._closed = False
        self._finalizer: weakref.finalize[[], OwnedServer] | None = None

    @property
    def child(self) -> ServerProcess | None:
        """The present process, however it fares; None before the first use."""
        return self._child

    @property
    def pid(self) -> int | None:
        """The id of the server's process, None before it has started."""
        child = self._child
        return child.ready.result().pid if child is not None and child.is_ready else None

    def serves(self, child: ServerProcess) -> bool:
        """Whether `child` is the present process, has come up, and has not been seen to end."""
        return child is self._serving and not self._closed and not child.ended.done()

    async def running(self) -> ServerProcess:
        """The process, up and usable; it is started if it never has been.

        Raises EngineExitedError if it has ended or does not come up in time, EngineStoppedError once closed.
        """
        child = self._serving
        if child is not None and self.serves(child):
            return child
        with self._lock:
            self._check_open()
            child = self._child
            if child is None:
                child = self._child = self._launch()
                self._finalizer = weakref.finalize(self, child.stop)
        if child.ended.done():
            raise EngineExitedError(child.epitaph())
        if not await self._comes_up(child):
            await self._end(child)
            raise EngineExitedError(
                f"{self._name} did not start within {self._start_timeout:g} s; {child.epitaph()}"
            )
        with self._lock:
            self._check_open()
            if child is self._child:
                self._serving = child
        return child

    async def restart(self) -> ServerProcess:
        """A new process in place of the present one. Two calls at once are one restart."""
        with self._lock:
            self._check_open()
            others = self._restarting
            if others is None:
                mine = self._restarting = Future[None]()
                mine.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for others
            old = self._child
        if others is not None:
            await settled(others, 2 * self._stop_s + self._start_timeout)
            return await self.running()
        try:
            if old is not None:
                await self._end(old)
            with self._lock:
                self._child = self._serving = None
                if self._finalizer is not None:
                    self._finalizer.detach()
            return await self.running()
        finally:
            with self._lock:
                self._restarting = None
            mine.set_result(None)

    async def close(self) -> None:
        """End the process and wait until it is gone; nothing can be started any more."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            await self._end(child)

    async def raise_if_ended(self, child: ServerProcess, cause: Exception | None) -> None:
        """Raise EngineExitedError, from `cause`, if that is what became of `child`; waits 2 s to learn it."""
        if not await settled(child.ended, _EXIT_NOTICE_S):
            return
        if self._closed:
            raise EngineStoppedError(child.epitaph()) from cause
        raise EngineExitedError(child.epitaph()) from cause

    async def _comes_up(self, child: ServerProcess) -> bool:
        deadline = child.started_at + self._start_timeout
        if not await settled(child.ready, deadline - time.monotonic()):
            return False
        while True:
            if not child.is_ready or child.ended.done():
                await settled(child.ended, self._stop_s)
                raise EngineExitedError(child.epitaph())
            if self._answers is None:
                return True
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    if await self._answers():
                        return True
            except TimeoutError:
                return False
            if await settled(child.ended, min(_LOOK_S, deadline - time.monotonic())):
                continue
            if time.monotonic() >= deadline:
                return False

    async def _end(self, child: ServerProcess) -> None:
        child.stop()
        if not await settled(child.ended, self._stop_s):
            child.kill()
            await settled(child.ended, self._stop_s)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineStoppedError(f"{self._name} was closed; make a new engine")
