"""The one thread that writes: it takes all results that wait and commits them together.

While a commit waits for the disk, results gather; the next commit takes them all. So one sync serves
as many rows as there are workers, and each row still waits for its own commit.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ollama_batch.errors import JournalError
from ollama_batch.types import ResultRecord

T = TypeVar("T")

Outcome = JournalError | None
Commit = Callable[[sqlite3.Connection, Sequence[ResultRecord]], Sequence[Outcome]]
"""Commits a group and says for each record whether it was refused; raises if none was kept."""

_GROUP = 1024
_log = logging.getLogger("ollama_batch.journal")


@dataclass(frozen=True, slots=True)
class _Waiting:
    record: ResultRecord
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


class Writer:
    """Owns the writing connection and the thread it lives in.

    `commit` does the work of a group; `settled` is called after its waiters were told, for what need
    not be durable.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        commit: Commit,
        settled: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._connect = connect
        self._commit = commit
        self._settled = settled
        self._queue: SimpleQueue[_Waiting | _Job | None] = SimpleQueue()
        self._stopping = False
        self._gate = threading.Lock()  # nothing is handed over behind the request to stop
        self._thread = threading.Thread(target=self._serve, name="ollama-batch-journal", daemon=True)

    def start(self) -> None:
        """Open the connection; raises what opening it raises."""
        opened: Future[Any] = Future()
        self._put(_Job(lambda _con: None, opened))
        self._thread.start()
        opened.result()

    def submit(self, run: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Have `run` called with the connection, after everything handed over before it."""
        future: Future[T] = Future()
        self._put(_Job(run, future))
        return future

    async def commit(self, record: ResultRecord) -> None:
        """Return once `record` is committed. Cancelling the wait does not cancel the commit."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._put(_Waiting(record, loop, future))
        await future

    def stop(self) -> None:
        """Finish what was handed over, close the connection and end the thread; may be called again."""
        with self._gate:
            self._stopping = True
            self._queue.put(None)
        self._thread.join()

    def _put(self, item: _Waiting | _Job) -> None:
        with self._gate:
            if self._stopping:
                raise JournalError("the journal is closed: open it again")
            self._queue.put(item)

    def _serve(self) -> None:
        try:
            con = self._connect()
        except BaseException as exc:  # reported to whoever called start()
            first = self._queue.get()
            if isinstance(first, _Job):
                first.future.set_exception(exc)
            return
        try:
            item = self._queue.get()
            while item is not None:
                if isinstance(item, _Job):
                    _run(con, item)
                    item = self._queue.get()
                else:
                    item = self._serve_group(con, item)
        finally:
            con.close()

    def _serve_group(self, con: sqlite3.Connection, first: _Waiting) -> _Waiting | _Job | None:
        """Commit `first` and all that wait behind it; returns the next thing to do."""
        group = [first]
        after: _Waiting | _Job | None = None
        stopped = False
        while len(group) < _GROUP:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if not isinstance(item, _Waiting):
                after, stopped = item, item is None
                break
            group.append(item)
        outcomes: Sequence[BaseException | None]
        try:
            outcomes = self._commit(con, [waiting.record for waiting in group])
        except (
            BaseException
        ) as exc:  # every waiter gets its own copy: a raised exception is changed by its raising
            outcomes = [exc if n == 0 else _copy(exc) for n in range(len(group))]
        _tell(group, outcomes)
        try:
            self._settled(con)
        except Exception:
            _log.exception("what follows a commit failed; the results are safe")
        if after is not None or stopped:
            return after
        return self._queue.get()


def _run(con: sqlite3.Connection, job: _Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return  # nobody waits for it any more
    try:
        result = job.run(con)
    except BaseException as exc:  # goes to the caller, who waits
        job.future.set_exception(exc)
    else:
        job.future.set_result(result)


def _copy(exc: BaseException) -> BaseException:
    if not isinstance(exc, JournalError):
        return exc
    copy = type(exc)(exc.message, exc.path)
    copy.__cause__ = exc.__cause__
    return copy


def _tell(group: Sequence[_Waiting], outcomes: Sequence[BaseException | None]) -> None:
    """Wake each event loop once, with all its waiters."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[None], BaseException | None]]] = {}
    for waiting, outcome in zip(group, outcomes, strict=True):
        loops.setdefault(waiting.loop, []).append((waiting.future, outcome))
    for loop, ended in loops.items():
        try:
            loop.call_soon_threadsafe(_settle, ended)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits any more, and the rows are kept


def _settle(ended: Sequence[tuple[asyncio.Future[None], BaseException | None]]) -> None:
    for future, outcome in ended:
        if future.done():
            continue
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)
