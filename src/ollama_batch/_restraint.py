"""What trouble leaves of a fixed number of requests at a time: fewer, and step by step as many again."""

from __future__ import annotations

import time
from collections.abc import Callable

from ollama_batch.control import MemoryBound

ROUND = 8
"""A round of answers under a limit that is to be proven has at least so many, and twice the limit."""

IN_USE = 0.8
"""An answer counts for that only if so large a share of the limit was out: fewer prove nothing."""


class Restraint:
    """A bound on widths that do not follow what the engine says of its queue. `limit` is None without need.

    After a crash it is 1, and doubles with each round of answers. After memory ran out with n requests it
    goes back in this way to half of them, which the user's number is trusted to be worth; beyond that, more
    are tried as `MemoryBound` says, as they are where the number is found.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit: int | None = None
        self._clock = clock
        self._memory = MemoryBound()
        self._answers = 0
        self._most_out = 0

    def ran_out(self, in_flight: int) -> None:
        """Memory did not hold `in_flight` requests."""
        self._memory.failed(in_flight, self._clock(), trusted=in_flight // 2)
        self._begin(min(self._memory.fits, self.limit or in_flight))

    def crashed(self) -> None:
        """The engine is back after a crash: begin with one request."""
        self._begin(1)

    def answered(self, most: int, out: int) -> bool:
        """A request was answered, one of `out`, where `most` are wanted; returns whether the limit has
        changed.
        """
        limit, fits = self.limit, self._memory.fits
        if limit is None:
            return False
        without_memory = self._memory.most is None
        if without_memory or limit < fits:
            self._answers += 1
            if self._answers < limit:
                return False
            more = 2 * limit if without_memory else min(2 * limit, fits)
        else:
            if out < IN_USE * limit:
                return False
            self._answers += 1
            self._most_out = max(self._most_out, out)
            if self._answers < max(ROUND, 2 * limit):
                return False
            more = self._after_round(limit, most)
        self._begin(more)
        if without_memory and more >= most:
            self.limit = None
        return self.limit != limit

    def _after_round(self, limit: int, most: int) -> int:
        now = self._clock()
        self._memory.went_well(self._most_out, limit=limit, answers=self._answers, now=now)
        return max(limit, min(self._memory.ceiling(now) or limit, 2 * limit, most))

    def _begin(self, limit: int) -> None:
        self.limit, self._answers, self._most_out = limit, 0, 0
