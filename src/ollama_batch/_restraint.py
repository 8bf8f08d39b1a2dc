"""What trouble leaves of a fixed number of requests at a time: fewer, and step by step as many again."""

from __future__ import annotations

ANSWERS_THERE = 50
"""After so many answers at the most that memory is thought to hold, one more is tried."""

IN_USE = 0.8
"""An answer counts for that only if so large a share of the limit was out: fewer prove nothing."""


class Restraint:
    """A bound on widths that do not follow what the engine says of its queue. `limit` is None without need.

    After a crash it is 1, and doubles with each round of answers. After memory ran out with n requests it is
    half of them at the most, and n are not tried again while it lives.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._fits: int | None = None  # what memory is thought to hold
        self._failed: int | None = None  # what it does not
        self._answers = 0

    def ran_out(self, in_flight: int) -> None:
        """Memory did not hold `in_flight` requests."""
        self._failed = min(in_flight, self._failed or in_flight)
        self._fits = max(1, min(in_flight // 2, self._fits or in_flight))
        self.limit, self._answers = min(self._fits, self.limit or self._fits), 0

    def crashed(self) -> None:
        """The engine is back after a crash: begin with one request."""
        self.limit, self._answers = 1, 0

    def answered(self, most: int, out: int) -> bool:
        """A request was answered, one of `out`, where `most` are wanted; returns whether the limit has
        changed.
        """
        if self.limit is None:
            return False
        if self._fits is not None and self.limit >= self._fits:
            return out >= IN_USE * self.limit and self._one_more(self._fits)
        self._answers += 1
        if self._answers < self.limit:
            return False
        self.limit, self._answers = 2 * self.limit, 0
        if self._fits is not None:
            self.limit = min(self.limit, self._fits)
        elif self.limit >= most:
            self.limit = None
        return True

    def _one_more(self, fits: int) -> bool:
        self._answers += 1
        if self._answers < max(ANSWERS_THERE, 2 * fits) or (self._failed or 0) <= fits + 1:
            return False
        self._fits = self.limit = fits + 1
        self._answers = 0
        return True
