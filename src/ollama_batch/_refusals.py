"""Rows that the engine has refused: they wait together, so that many do not ask what one could."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ollama_batch._stop import Stop

SCOUT_S = 5.0
"""While all are refused, one asks at least so often, so that an engine with room again is soon noticed."""

ACCEPTED_S = 2.0
"""A refusal comes at once: one that asks and hears nothing for so long has been let in."""

ROUNDING_S = 0.001

STREAK = 2
"""So many refusals of the one that asks, without an answer between: its answer then lets all others go."""


class Refusals:
    """Where refused rows wait. While nothing is answered only one of them asks again, the scout; after an
    answer the others follow, each when its own wait is over, or at once if nothing was answered for long.
    `sent_at` says since when a row is out, None if it is not; `accepted` is told when the request was sent
    that the engine took again, as soon as that is known.
    """

    def __init__(
        self,
        stop: Stop,
        *,
        sent_at: Callable[[int], float | None],
        accepted: Callable[[float], None],
    ) -> None:
        self._stop = stop
        self._sent_at = sent_at
        self._tell = accepted
        self._scout: int | None = None
        self._streak = 0
        self._ended_streak = 0
        self._answers = 0
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, row: int, wait_s: float, *, least_s: float) -> None:
        """Return when `row` may be sent again: after `wait_s`, or earlier, but never before `least_s`, if the
        row is the scout or the engine has room again. Raises Abandoned when the run ends.
        """
        before, ready_at = self._answers, time.monotonic() + wait_s
        if self._scout == row and self._timer is not None:
            self._timer.cancel()
        if self._nobody_asks():
            self._scout = row
        elif self._scout == row:
            self._streak += 1
        while self._scout != row:
            if self._answers > before:
                await self._stop.sleep(max(0.0, ready_at - time.monotonic()))
                return
            await self._stop.unless_draining(self._news.wait())
            if self._answers > before and self._ended_streak >= STREAK and not least_s:
                return
            if self._nobody_asks() and self._answers == before:
                self._scout = row
        await self._stop.sleep(max(least_s, min(wait_s, SCOUT_S)))
        self._look_in(ACCEPTED_S, row)

    def answered(self) -> None:
        """Something was answered."""
        self._answers += 1
        if self._scout is not None:
            self._scout = None
            self._wake()

    def _look_in(self, seconds: float, row: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, row)

    def _look(self, row: int) -> None:
        """Whether the one that asks was not refused: that is as good as an answer."""
        if self._scout != row:
            return
        sent_at = self._sent_at(row)
        if sent_at is None:
            self.left(row)  # it waits for its turn, or for a place, and perhaps for those that wait here
            return
        left_s = sent_at + ACCEPTED_S - time.monotonic()
        if left_s > ROUNDING_S:
            self._look_in(left_s, row)
            return
        self._tell(sent_at)
        self.answered()

    def left(self, row: int) -> None:
        """`row` is refused no more, whatever became of it: another one asks in its place."""
        if self._scout == row:
            self._scout = None
            self._wake()

    def _nobody_asks(self) -> bool:
        return self._scout is None

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._streak, self._ended_streak = 0, self._streak
        news, self._news = self._news, asyncio.Event()
        news.set()
