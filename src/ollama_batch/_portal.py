"""The event loop that runs live on: one daemon thread per process, started on first use.

Runs of any thread, notebook cell or event loop meet here, so that `run()` works beside a running loop
without patching it, an engine is used from one loop only, and runs on one server share its limit.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from ollama_batch._restraint import Restraint
from ollama_batch._small_batch import SmallBatch
from ollama_batch._width import RunWidth
from ollama_batch.control import LimitChange, QueueTarget

T = TypeVar("T")


WAKE_S = 0.5

EXIT_S = 1.0
"""Longest wait of a process that ends for the connections of engines that nobody has closed."""


def result_of(future: concurrent.futures.Future[T]) -> T:
    """The future's result, however long it takes.

    Waited for in short turns: a signal that comes just as a thread begins to wait for a lock is handled only
    when that wait ends, so that one long wait could be deaf to Ctrl-C and SIGTERM.
    """
    while not concurrent.futures.wait([future], WAKE_S).done:
        pass
    return future.result()


class AddressLimit:
    """How many requests may be out to one address at a time: the widest of the runs that use it.

    Waiters are served in the order they came, so runs that share an address share it fairly. One that is to
    be `alone` waits until nothing is out, and holds up those behind it. Runs that find
    their width by themselves share one `QueueTarget`: what waits at the server are the requests of all of
    them, and each alone would take the others' for a slower engine. It is told what came back for any of
    them, and lives as long as one of them does.
    """

    def __init__(self) -> None:
        self._widths: list[int | RunWidth] = []
        self._steered: list[RunWidth] = []
        self._target: QueueTarget | None = None
        self._followed = 0
        self._caps: dict[tuple[str, object], int] = {}  # by the reason, and who has it
        self._uncapped: dict[str, int] = {}
        self._restraint = Restraint()
        self._ran_out_at = float("-inf")
        self.batch = SmallBatch()
        self._out = 0
        self._taken_alone = False
        self.taken_at = float("-inf")
        """When a place was last taken, by any run (`time.monotonic()`)."""
        self._lost: deque[tuple[float, object]] = deque(maxlen=256)
        self._queue: deque[tuple[asyncio.Future[None], bool]] = deque()

    @property
    def width(self) -> int:
        """The present limit."""
        widest = max((w if isinstance(w, int) else w.now for w in self._widths), default=1)
        if self._restraint.limit is not None and self._target is None:
            widest = min(widest, self._restraint.limit)
        return min(widest, *self._caps.values(), widest)

    @property
    def out(self) -> int:
        """How many requests are out, of all runs."""
        return self._out

    @property
    def in_use(self) -> bool:
        """Whether a run goes on at this address."""
        return bool(self._widths)

    @property
    def target(self) -> QueueTarget | None:
        """What the steered runs follow, None while there are none; after telling it, call `follow`."""
        return self._target

    def join(self, width: int | RunWidth) -> None:
        """A run that wants `width` requests out begins."""
        self._widths.append(width)
        if isinstance(width, RunWidth):
            if width.steered:
                self._steered.append(width)
                self._bound(width)
            else:
                width.follow(self._fixed(width))
        self._wake()

    def leave(self, width: int | RunWidth) -> None:
        """That run has ended."""
        self._widths.remove(width)
        if width in self._steered:
            self._steered.remove(width)
            self._bound()
        if not self._widths:
            self._restraint = Restraint()
            self._lost.clear()

    def cap(self, limit: int | None, reason: str, holder: object = None) -> None:
        """Never more than `limit` out, whatever the runs want, until told otherwise for the same `reason` by
        the same `holder`; None takes that back. Of several caps the lowest counts. What is out beyond it
        comes back first.
        """
        if limit is None:
            self._caps.pop((reason, holder), None)
        else:
            self._uncapped[reason] = self.width_without(reason)
            self._caps[reason, holder] = max(1, limit)
        lowest = self._lowest(reason)
        if self._target is not None:
            self._target.cap(lowest, reason)
        self._restrain(reason if lowest is not None else f"no more of: {reason}")
        self.follow()
        self._wake()

    def width_without(self, reason: str) -> int:
        """The limit without the caps for `reason`, as far as is known: where one of them is what counts now,
        what it was before the latest of them.
        """
        lowest = self._lowest(reason)
        if lowest is None or self.width < lowest:
            return self.width
        return max(self.width, self._uncapped[reason])

    def answered(
        self, *, latency_s: float, queue_s: float | None, served_s: float | None, work: float
    ) -> None:
        """An answer has come, of a request that still counts as out; see `QueueTarget.on_complete`."""
        if self._target is not None:
            self._target.spare = not any(width.spread() for width in self._steered)
            self._target.on_complete(
                latency_s=latency_s, in_flight=self._out, queue_s=queue_s, work=work, served_s=served_s
            )
            self.follow()
        before = self._restraint.limit
        if before is not None and self._restraint.answered(self._widest_wish(), self._out):
            self._restrain("it goes well again", before)

    def ran_out(self, *, in_flight: int, sent_at: float | None = None) -> None:
        """The engine ran out of memory with so many requests out: fewer from now on.

        Each run tells of it, those that do so late with fewer out than it failed at: a request that was sent
        (`sent_at`, None: unknown) before the last time says nothing new.
        """
        if sent_at is not None and sent_at <= self._ran_out_at:
            return
        self._ran_out_at = time.monotonic()
        if self._target is not None:
            self._target.on_oom(in_flight=in_flight)
            self.follow()
        before = self._restraint.limit
        self._restraint.ran_out(in_flight)
        self._restrain("the engine ran out of memory", before)

    def crashed(self, why: str = "the engine crashed") -> None:
        """The engine was gone and is back: one request, and then more again; `why` is told with it."""
        if self._target is not None:
            self._target.on_crash(why)
            self.follow()
        before = self._restraint.limit
        self._restraint.crashed()
        self._restrain(why, before)

    def lost(self, at: float, run: object) -> None:
        """A connection of `run` broke in mid-answer, at this moment of the monotonic clock."""
        self._lost.append((at, run))

    def others_lost(self, since: float, run: object) -> int:
        """How many connections of other runs than `run` have broken since then; counts to 256."""
        return sum(at >= since and each is not run for at, each in self._lost)

    def refused(self, retry_after_s: float | None) -> None:
        """The engine was too busy for a request that still counts as out."""
        if self._target is not None:
            self._target.on_busy(retry_after_s, in_flight=self._out)
            self.follow()

    def accepted(self, sent_at: float) -> None:
        """A request that was sent then, after others were refused, was not: it is worked on."""
        if self._target is not None:
            self._target.on_accepted(sent_at)
            self.follow()

    def timed_out(self) -> None:
        """A request got no answer in time."""
        if self._target is not None:
            self._target.on_timeout()
            self.follow()

    def follow(self) -> None:
        """Let the steered runs have what the target says now."""
        target = self._target
        if target is None or target.limit == self._followed:
            return
        self._followed = target.limit
        for width in self._steered:
            width.follow(target.limit, target.changes[-1])
        self._wake()

    def _restrain(self, why: str, before: int | None = None) -> None:
        """Let the fixed runs have what caps and trouble leave of their wishes."""
        wish, limit = self._widest_wish(), self._restraint.limit
        change = LimitChange(time.monotonic(), why, before or wish, limit or wish)
        for width in self._widths:
            if isinstance(width, RunWidth) and not width.steered:
                width.follow(self._fixed(width), change)
        self._wake()

    def _fixed(self, width: RunWidth) -> int:
        restraint = self._restraint.limit or width.wish
        return min(width.wish, restraint, *self._caps.values())

    def _lowest(self, reason: str) -> int | None:
        return min((cap for (why, _), cap in self._caps.items() if why == reason), default=None)

    def _widest_wish(self) -> int:
        return max((w if isinstance(w, int) else w.wish for w in self._widths), default=1)

    def _bound(self, new: RunWidth | None = None) -> None:
        """Keep the target to the bounds of those who follow it now."""
        if not self._steered:
            self._target = None
            return
        lowest = min(width.lowest for width in self._steered)
        highest = max(width.highest for width in self._steered)
        if self._target is not None:
            self._target.bound(lowest=lowest, highest=highest)
        elif new is not None:
            self._target = QueueTarget(lowest=lowest, highest=highest, start=new.wish, slots=new.slots)
            for reason in {reason for reason, _ in self._caps}:
                self._target.cap(self._lowest(reason), reason)
            self._followed = self._target.limit
        self.follow()
        if new is not None:
            new.follow(self._followed)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """A place for a request beside which nothing else is out, of any run; it waits in line."""
        await self._enter(alone=True)
        try:
            yield
        finally:
            self._leave_place()

    async def __aenter__(self) -> None:
        await self._enter(alone=False)

    async def __aexit__(self, *exc_info: object) -> None:
        self._leave_place()

    async def _enter(self, *, alone: bool) -> None:
        if not self._queue and self._has_room(alone):
            self._take(alone)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (turn, alone)
        self._queue.append(waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave_place()  # it was ours already: pass it on
            elif (
                waiting in self._queue
            ):  # else it was passed over already: one that is cancelled counts as done
                self._queue.remove(waiting)
                self._wake()  # there may be room for those behind
            raise

    def _has_room(self, alone: bool) -> bool:
        return not self._out if alone else self._out < self.width and not self._taken_alone

    def _take(self, alone: bool) -> None:
        self._out += 1
        self._taken_alone = alone
        self.taken_at = time.monotonic()

    def _leave_place(self) -> None:
        self._out -= 1
        self._taken_alone = False  # whoever had it alone was the only one
        self._wake()

    def _wake(self) -> None:
        while self._queue:
            turn, alone = self._queue[0]
            if not turn.done() and not self._has_room(alone):
                return
            self._queue.popleft()
            if not turn.done():
                self._take(alone)
                turn.set_result(None)


class Portal:
    """A thread with an event loop, and the address limits of the runs on it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.limits: dict[str, AddressLimit] = {}
        self._thread = threading.Thread(target=self._serve, name="ollama-batch", daemon=True)
        self._thread.start()
        self._under_way: set[concurrent.futures.Future[Any]] = set()
        atexit.register(self._close_connections)

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
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; not to be called on the loop itself."""
        return result_of(self.submit(work))

    def _close_connections(self) -> None:
        """As the process ends, close what engines that nobody has closed have open: else the HTTP library
        complains of it. Not while a run goes on, which would take that for trouble.
        """
        if self.pid == os.getpid() and not self._under_way and self.loop.is_running():
            with suppress(TimeoutError, RuntimeError):  # the process ends all the same
                asyncio.run_coroutine_threadsafe(self.loop.shutdown_asyncgens(), self.loop).result(EXIT_S)

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
