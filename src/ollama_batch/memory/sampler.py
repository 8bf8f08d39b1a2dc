"""Takes a sample of memory about once a second, in a thread of its own, for any number of readers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from ollama_batch.errors import ConfigError
from ollama_batch.memory.engine import EngineView
from ollama_batch.memory.probe import LocalProbe, Probe
from ollama_batch.memory.sample import EngineMemory, MemorySample

_log = logging.getLogger("ollama_batch.memory")

FIRST_VIEW_S: Final = 1.0
"""A watcher's first sample waits so long for the engine's first answer; later ones wait for none."""


class MemorySampler:
    """Samples `probe` every `interval_s` seconds between `start` and `stop`; also a context manager.

    `engine` adds what the engine itself says; it is asked on the loop of whoever watches, in a task of its
    own. No reader ever waits for a reading: all get the latest one.
    """

    def __init__(
        self, probe: Probe | None = None, *, engine: EngineView | None = None, interval_s: float = 1.0
    ) -> None:
        if not interval_s > 0:
            raise ConfigError(f"interval_s={interval_s!r}: give seconds above 0")
        self._probe = LocalProbe() if probe is None else probe
        self._engine = engine
        self._interval_s = interval_s
        self._lock = threading.Lock()  # of the four below
        self._latest: MemorySample | None = None
        self._taken = 0
        self._watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    @property
    def latest(self) -> MemorySample | None:
        """The newest sample; None before the first."""
        with self._lock:
            found = self._latest
        return found if found is None or self._engine is None else replace(found, engine=self._engine.latest)

    @property
    def taken(self) -> int:
        """How many samples were taken."""
        with self._lock:
            return self._taken

    def start(self) -> Self:
        """Begin to sample; nothing if it has begun."""
        with self._lock:
            if self._thread is None:
                self._end = threading.Event()
                self._thread = threading.Thread(
                    target=self._work, args=(self._end,), name="ollama-batch-memory", daemon=True
                )
                self._thread.start()
        return self

    def stop(self) -> None:
        """End sampling, and every `watch`; waits for the sample being taken, 5 s at most."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._end.set()
        if thread is not None:
            thread.join(timeout=5.0)
        self._wake()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def watch(self) -> AsyncGenerator[MemorySample]:
        """Each new sample; a reader that is slow misses some. Starts sampling, and ends when it stops."""
        news = asyncio.Event()
        news.set()  # there may be a sample already
        watcher = (asyncio.get_running_loop(), news)
        asking: asyncio.Task[EngineMemory] | None = None
        with self._lock:
            self._watchers.append(watcher)
        try:
            self.start()
            seen = 0
            while True:
                if self._engine is not None and (asking is None or asking.done()):
                    first = asking is None
                    asking = asyncio.create_task(self._engine.refresh())
                    if first:
                        await asyncio.wait((asking,), timeout=FIRST_VIEW_S)
                await news.wait()
                news.clear()
                with self._lock:
                    ended, taken = self._thread is None, self._taken
                found = self.latest
                if found is not None and taken > seen:
                    seen = taken
                    yield found
                if ended:
                    return
        finally:
            with self._lock:
                self._watchers.remove(watcher)
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    def _work(self, end: threading.Event) -> None:
        failed = ""
        while not end.is_set():
            try:
                found = self._probe.read()
            except Exception as exc:  # a probe of someone's own: the run goes on without it
                if repr(exc) != failed:
                    failed = repr(exc)
                    _log.exception("a reading of memory failed")
            else:
                failed = ""
                with self._lock:
                    self._latest = found
                    self._taken += 1
                self._wake()
            end.wait(self._interval_s)

    def _wake(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for loop, news in watchers:
            try:
                loop.call_soon_threadsafe(news.set)
            except RuntimeError:
                pass  # its loop is closed: nobody waits there any more
