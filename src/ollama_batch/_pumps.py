"""Pulling items from an iterable without running its code on the loop that consumes them.

What an iterable's owner wrote may block or belong to a loop: a thread of its own pulls from a sync
iterable, a task on its own loop from an async one. Either pulls only while its sink wants more.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import Protocol

from ollama_batch.errors import InputError

_log = logging.getLogger("ollama_batch.sources")

_CLOSE_S = 1.0


class Sink(Protocol):
    """Takes what a pump pulls; called from the pump's thread."""

    @property
    def name(self) -> str:
        """What messages call the iterable."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing is to be pulled any more."""
        ...

    def wants_more(self) -> bool:
        """Whether one more item is to be pulled now."""
        ...

    def deliver(self, item: object) -> None:
        """Take one pulled item."""
        ...

    def failed(self, error: Exception) -> InputError:
        """What to raise for an `error` of the iterable itself."""
        ...

    def finish(self, error: BaseException | None = None) -> None:
        """Take note that nothing more comes: the iterable ended, or this `error` ended it."""
        ...


class Pump(Protocol):
    """Pulls items into a StreamSource while it wants more."""

    def wake(self) -> None:
        """Look again whether the sink wants more."""
        ...

    async def close(self) -> None:
        """Stop, and close the generator; waits a second at most."""
        ...


class ThreadPump:
    """Pulls from a sync iterable in one daemon thread, so a generator always runs in the same thread."""

    def __init__(self, source: Sink, items: Iterable[object]) -> None:
        self._source = source
        self._items = items
        self._asked = threading.Semaphore(0)
        self._done = threading.Event()
        context = contextvars.copy_context()
        # A daemon: a generator that never returns must not keep the process from ending.
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="ollama_batch-source", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Look again whether the sink wants more."""
        self._asked.release()

    def _run(self) -> None:
        source = self._source
        iterator: Iterator[object] | None = None
        error: BaseException | None = None
        try:
            while not source.ended:
                self._asked.acquire()
                while source.wants_more():
                    try:
                        if iterator is None:
                            iterator = iter(self._items)
                        item = next(iterator)
                    except StopIteration:
                        return
                    except Exception as exc:
                        error = source.failed(exc)
                        return
                    source.deliver(item)
        except BaseException as exc:  # the consumer raises it, in its own thread
            error = exc
        finally:
            _close(iterator)
            source.finish(error)
            self._done.set()

    async def close(self) -> None:
        """Stop, and close the generator; waits a second at most."""
        self.wake()
        # A generator that blocks cannot be closed from here; its thread closes it when it returns.
        await asyncio.to_thread(self._done.wait, _CLOSE_S)


def _close(iterator: object) -> None:
    if isinstance(iterator, Generator):
        try:
            iterator.close()
        except Exception as exc:
            _log.warning("a generator of requests failed while it was closed: %s", type(exc).__name__)


class TaskPump:
    """Pulls from an async iterable in one task on the loop it belongs to."""

    def __init__(self, source: Sink, items: AsyncIterable[object], loop: asyncio.AbstractEventLoop) -> None:
        self._source = source
        self._items = items
        self._loop = loop
        self._asked = asyncio.Event()
        self._done = threading.Event()
        self._task: asyncio.Task[None] | None = None
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run(), name="ollama_batch-source")
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        # A task that was cancelled before its end must not pass for the end of the input.
        if task.cancelled():
            self._source.finish(InputError(f"reading {self._source.name} was cancelled"))
        else:
            self._source.finish(task.exception())
        self._done.set()

    def wake(self) -> None:
        """Look again whether the sink wants more."""
        self._loop.call_soon_threadsafe(self._asked.set)

    async def _run(self) -> None:
        source = self._source
        iterator: AsyncIterator[object] | None = None
        try:
            while not source.ended:
                await self._asked.wait()
                self._asked.clear()
                while source.wants_more():
                    try:
                        if iterator is None:
                            iterator = aiter(self._items)
                        item = await anext(iterator)
                    except StopAsyncIteration:
                        return
                    except Exception as exc:
                        raise source.failed(exc) from exc
                    source.deliver(item)
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    async def close(self) -> None:
        """Stop, and close the generator; waits a second at most."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # its loop is closed, and the task with it
            return
        await asyncio.to_thread(self._done.wait, _CLOSE_S)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
