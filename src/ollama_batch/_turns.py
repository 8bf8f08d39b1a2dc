"""Whose turn it is: rows are out together, or one of them while nothing else of the run is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ollama_batch._stop import Stop


class Turns:
    """Lets requests go together, except a row that is to be alone: it waits until nothing else is out, and
    nothing else goes until it is back.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._moved = asyncio.Event()
        self._waiting = 0
        self._out: dict[int, float] = {}
        self._alone: int | None = None

    @property
    def out(self) -> frozenset[int]:
        """The rows that are out."""
        return frozenset(self._out)

    def may_go(self, row: int) -> bool:
        """Whether `row` may be sent now."""
        if self._alone is None:
            return True
        return self._alone == row and not self._out

    def is_alone(self, row: int) -> bool:
        """Whether `row` is to be the only one that is out."""
        return self._alone == row

    async def wait(self, row: int) -> None:
        """Return when `row` may be sent; raises Abandoned when the run is to end."""
        if not self.may_go(row):
            await self.until(lambda: self.may_go(row))

    async def claim(self, row: int) -> None:
        """From now on nothing but `row` is sent, until `free`; waits for what is out and others' turns."""
        try:
            await self.until(lambda: self._alone in (None, row))
            self._alone = row
            await self.until(lambda: not self._out)
        except BaseException:
            self.free(row)
            raise

    def free(self, row: int) -> None:
        """`row` is alone no more, if it was."""
        if self._alone == row:
            self._alone = None
            self.move()

    def sent(self, row: int) -> None:
        """`row` is out."""
        self._out[row] = time.monotonic()

    def sent_at(self, row: int) -> float | None:
        """Since when `row` is out; None if it is not."""
        return self._out.get(row)

    def back(self, row: int) -> None:
        """`row` is out no more."""
        self._out.pop(row, None)
        self.move()

    def move(self) -> None:
        """Have all who wait look again."""
        if self._waiting:
            self._moved.set()
            self._moved = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when `holds`, looked at after each move; raises Abandoned when the run is to end."""
        self._waiting += 1
        try:
            while not holds():
                await self._stop.unless_draining(self._moved.wait())
        finally:
            self._waiting -= 1
