"""Requests that can be read only once: iterables, async iterables and open files."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ollama_batch._items import Check, ScannedRow, checked, duplicate_row, row_of_item, row_of_line
from ollama_batch._pumps import Pump, TaskPump, ThreadPump
from ollama_batch.errors import InputError
from ollama_batch.jsonl import Limits, RawLine, Readable, read_lines
from ollama_batch.types import InvalidRow, RowRecord

_LINGER_S = 0.005


def empty_input(name: str) -> InputError:
    """The error for a file that holds no requests."""
    row = InvalidRow(name, 1, "empty_file", "The file is empty: it must hold at least one request.")
    return InputError(f"{name} holds no requests", [row])


class _TextLines:
    """A text file as the binary file that `read_lines` reads."""

    def __init__(self, file: Any) -> None:
        self._readline = file.readline

    def readline(self, size: int = -1, /) -> bytes:
        text = self._readline(size)
        # Surrogates stand for bytes that were not the file's encoding: kept, for the parser to refuse.
        return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _lines_of(file: Readable | Path, name: str, limits: Limits) -> Iterator[RawLine]:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            yield from _lines_of(opened, name, limits)
        return
    empty = True
    for line in read_lines(file, limits=limits):
        empty = False
        yield line
    if empty:
        raise empty_input(name)


class StreamSource:
    """Requests from an iterable or open file: a row's line is its item number (or line), from 1.

    Items without an id get their position, from 0. Every item that is no valid request becomes an
    InvalidRow and the rest goes on. For one consumer at a time; end it with `aclose`.
    """

    def __init__(
        self,
        items: Iterable[object] | AsyncIterable[object],
        *,
        name: str,
        limits: Limits | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self._check: Check | None = None
        self._items = items
        self._all_there = isinstance(items, list | tuple)
        self._loop = loop
        self._lock = threading.Lock()
        self._rows: deque[ScannedRow | InvalidRow] = deque()
        self._wanted = 0
        self._count = 0
        self._ended = False
        self._error: BaseException | None = None
        self._pump: Pump | None = None
        self._consumer: tuple[asyncio.AbstractEventLoop, asyncio.Event, asyncio.Event] | None = None

    @classmethod
    def of_file(cls, file: Any, *, name: str, limits: Limits | None = None) -> StreamSource:
        """The lines of an open file, binary or text, from where it stands; left open at the end."""
        limits = limits or Limits()
        return cls(_lines_of(_TextLines(file), name, limits), name=name, limits=limits)

    @classmethod
    def of_path(cls, path: Path, *, limits: Limits | None = None) -> StreamSource:
        """The lines of a pipe or device, opened when first read."""
        limits = limits or Limits()
        return cls(_lines_of(path, str(path), limits), name=str(path), limits=limits)

    async def next_rows(self, limit: int, *, check: Check | None = None) -> list[ScannedRow | InvalidRow]:
        """The next rows: at least one and at most `limit`, none at the end.

        Waits for the first and then only for those that come at once, so rows of a slow source are
        handed on as they come; those of a list are all there. `check` has the last word on a body. What
        the iterable raises is raised as an InputError that names the item, after all rows before it.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._check = check
        some, enough = asyncio.Event(), asyncio.Event()
        with self._lock:
            self._consumer = (asyncio.get_running_loop(), some, enough)
            more = max(0, limit - len(self._rows) - self._wanted)
            if not self._ended:
                self._wanted += more
            self._signal()
        if self._pump is None:
            self._pump = self._start()
        self._pump.wake()
        await some.wait()
        try:
            await asyncio.wait_for(enough.wait(), None if self._all_there else _LINGER_S)
        except TimeoutError:
            pass  # a slow source: what is there goes on now
        with self._lock:
            rows = [self._rows.popleft() for _ in range(min(limit, len(self._rows)))]
        if not rows and self._error is not None:
            raise self._error
        return rows

    async def aclose(self) -> None:
        """Stop reading and close the generator; rows not handed out are dropped. May be repeated."""
        with self._lock:
            self._ended = True
            self._wanted = 0
            self._rows.clear()
            self._signal()
        if self._pump is not None:
            await self._pump.close()

    def duplicate(self, row: RowRecord, first_line: int) -> InvalidRow:
        """The InvalidRow for `row`, whose custom_id item `first_line` has already."""
        return duplicate_row(self.name, row, first_line)

    def _start(self) -> Pump:
        if isinstance(self._items, AsyncIterable):
            return TaskPump(self, self._items, self._loop or asyncio.get_running_loop())
        return ThreadPump(self, self._items)

    def _signal(self) -> None:
        """Tell the consumer what it waits for; called with the lock held."""
        if self._consumer is None:
            return
        loop, some, enough = self._consumer
        try:
            if self._rows or self._ended:
                loop.call_soon_threadsafe(some.set)
            if self._ended or self._wanted == 0:
                loop.call_soon_threadsafe(enough.set)
                self._consumer = None
        except RuntimeError:  # the consumer's loop is closed: nobody waits any more
            self._consumer = None

    # What the pumps call.

    def wants_more(self) -> bool:
        """Whether one more item is to be pulled now."""
        return self._wanted > 0 and not self._ended

    @property
    def ended(self) -> bool:
        """Whether nothing is to be pulled any more."""
        return self._ended

    def deliver(self, item: object) -> None:
        """Take one pulled item."""
        self._count += 1
        row = self._row(item)
        with self._lock:
            if self._ended:
                return
            first = not self._rows
            self._rows.append(row)
            self._wanted -= 1
            if first or self._wanted == 0:
                self._signal()

    def _row(self, item: object) -> ScannedRow | InvalidRow:
        if isinstance(item, RawLine):
            return checked(self.name, item.line, self._check, self._row_of_line, item)
        return checked(self.name, self._count, self._check, self._row_of_item, item)

    def _row_of_line(self, line: RawLine) -> ScannedRow:
        return row_of_line(line, self.limits, offset=0, length=0)

    def _row_of_item(self, item: object) -> ScannedRow:
        return row_of_item(item, self._count, self.limits)

    def failed(self, error: Exception) -> InputError:
        """What to raise for an `error` of the iterable itself."""
        if isinstance(error, InputError):
            return error
        name = type(error).__name__
        wrapped = InputError(f"item {self._count + 1} of {self.name} could not be read: {name}: {error}")
        wrapped.__cause__ = error
        return wrapped

    def finish(self, error: BaseException | None = None) -> None:
        """Take note that nothing more comes: the iterable ended, or this `error` ended it."""
        with self._lock:
            if not self._ended:
                self._error = error
            self._ended = True
            self._wanted = 0
            self._signal()
