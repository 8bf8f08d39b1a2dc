"""The event loop that runs live on: one daemon thread per process, started on first use.

Runs of any thread, notebook cell or event loop meet here, so that `run()` works beside a running loop
without patching it, an engine is used from one loop only, and runs on one server share its limit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class AddressLimit:
    """How many requests may be out to one address at a time: the widest of the runs that use it.

    Waiters are served in the order they came, so runs that share an address share it fairly.
    """

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._out = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def width(self) -> int:
        """The present limit."""
        return max(self._widths, default=1)

    @property
    def in_use(self) -> bool:
        """Whether a run goes on at this address."""
        return bool(self._widths)

    def join(self, width: int) -> None:
        """A run that wants `width` requests out begins."""
        self._widths.append(width)
        self._wake()

    def leave(self, width: int) -> None:
        """That run has ended."""
        self._widths.remove(width)

    async def __aenter__(self) -> None:
        if self._out < self.width and not self._queue:
            self._out += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._out -= 1  # the place was ours already: pass it on
                self._wake()
            elif turn in self._queue:  # else it was passed over already: one that is cancelled counts as done
                self._queue.remove(turn)
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._out -= 1
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._out < self.width:
            turn = self._queue.popleft()
            if not turn.done():
                self._out += 1
                turn.set_result(None)


class Portal:
    """A thread with an event loop, and the address limits of the runs on it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.limits: dict[str, AddressLimit] = {}
        self._thread = threading.Thread(target=self._serve, name="ollama-batch", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
                return
            except (SystemExit, KeyboardInterrupt):
                # Raised by somebody's hook, engine or generator, it ends the loop; the run it came from
                # has it as its error by now, and the other runs go on.
                continue

    @property
    def is_here(self) -> bool:
        """Whether the caller is on the loop's own thread, where waiting would stop everything."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `work` on the loop; its result or error arrives in the future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; not to be called on the loop itself."""
        return self.submit(work).result()

    def limit(self, address: str) -> AddressLimit:
        """The limit that all runs on `address` share."""
        return self.limits.setdefault(address, AddressLimit())


_portal: Portal | None = None
_starting = threading.RLock()  # a signal handler may come here while its own thread is here already


def portal() -> Portal:
    """The portal of this process; a forked child gets one of its own."""
    global _portal
    with _starting:
        if _portal is None or _portal.pid != os.getpid():
            _portal = Portal()
        return _portal
