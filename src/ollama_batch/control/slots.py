"""Whether an engine answers one request at a time, as its answers show."""

from __future__ import annotations

from typing import Final

ANSWERS: Final = 24
"""So many answers, that were with the engine together with others, are looked at together."""

ONE: Final = 1.3
"""Fewer than so many in work at once, on average, are one."""

WORTH_S: Final = 0.05
"""Shorter waits, on average, are no wait for another's answer."""


class SlotWatch:
    """Says once that an engine works on one request at a time, although more are with it.

    By Little's law: of the requests that are out, as large a share is in work as they are not waiting. It
    goes by waits that the engine tells, and says nothing where those are not told, or short.
    """

    __slots__ = ("_answers", "_in_flight", "_latency_s", "_queue_s", "_said")

    def __init__(self) -> None:
        self._said = False
        self._begin()

    def _begin(self) -> None:
        self._answers = self._in_flight = 0
        self._latency_s = self._queue_s = 0.0

    def add(self, *, latency_s: float, in_flight: int, queue_s: float | None) -> float | None:
        """Count an answer; the mean wait, in seconds, when it has become sure that there is one slot."""
        if self._said or queue_s is None or in_flight < 2:
            return None
        self._answers += 1
        self._in_flight += in_flight
        self._latency_s += latency_s
        self._queue_s += min(queue_s, latency_s)
        if self._answers < ANSWERS:
            return None
        wait_s = self._queue_s / self._answers
        working = (1 - self._queue_s / self._latency_s) * self._in_flight / self._answers if wait_s else ONE
        self._begin()
        self._said = working < ONE and wait_s >= WORTH_S
        return wait_s if self._said else None
