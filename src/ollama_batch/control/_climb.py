"""The search for a limit where the engine tells nothing of its queue: by the rate alone."""

from __future__ import annotations

from typing import Final, Literal

WORTH: Final = 0.05
"""Twice as many requests must raise the rate by this share, or they are of no use."""

CLEAR: Final = 0.3
"""A round that raises it by so much needs no second one that says the same."""

HOPELESS: Final = 0.1
"""Nor does one that lowers it by so much while it climbs; later one that does not raise it is enough."""

NO_LOSS: Final = 0.03
"""Fewer requests may lower the rate by this share, and are still preferred."""

FEWER: Final = 1.5
"""By this factor fewer are tried."""

MORE_AFTER: Final = 4
"""So many rounds after more were of no use they are tried again, then after twice as many each time."""

MORE_AFTER_MOST: Final = 16
"""Often enough to follow an engine that has got more slots; it costs waiting, but hardly any throughput."""

FEWER_AFTER: Final = 90
"""Rounds until fewer are tried: seldom, as those leave slots without work."""

HOLD_ROUNDS: Final = 30
"""So many rounds nothing is tried after something else has changed the limit."""

FELL: Final = 0.6
"""Two rounds below this share of the usual rate: the engine is another than before."""


class Climb:
    """Tries another limit now and then, and keeps the one with the better rate.

    It doubles as long as that pays; later it looks whether fewer do as well. Compared is always with the best
    rate that was found, so that many small losses do not add up.
    """

    __slots__ = (
        "_base",
        "_best",
        "_first",
        "_kept",
        "_more_after",
        "_next_wait",
        "_since_fewer",
        "_since_more",
        "_slow",
        "_trying",
        "climbing",
    )

    def __init__(self) -> None:
        self.restart()

    def restart(self, *, hold: bool = False) -> None:
        """Something else has changed the limit: what was learned counts no more.

        With `hold` nothing is tried for a while.
        """
        self._base = 0
        self._best = 0.0
        self._kept = 1.0  # the share of the best rate that there is at the base
        self._since_more = self._since_fewer = 0
        self._more_after = HOLD_ROUNDS if hold else 0
        self._next_wait = MORE_AFTER
        if not hold:
            self._since_fewer = FEWER_AFTER - 1
        self._slow = 0
        self._trying: Literal["more", "fewer"] | None = None
        self._first: float | None = None  # the rate of a trial's first round, if there is to be a second
        self.climbing = not hold
        """Whether it doubles, so that short rounds say enough: what they miss is a large share."""

    def judge(self, limit: int, rate: float, *, lowest: int, highest: int) -> tuple[int, str] | None:
        """The next limit and why, after a round at `limit` that came to `rate`; None = go on as it is."""
        trying, self._trying = self._trying, None
        if trying == "more":
            return self._judge_more(limit, rate, highest)
        if trying == "fewer":
            if rate < (1 - NO_LOSS) * self._best:
                self._since_fewer = 0
                return self._base, "fewer lowered the rate"
            self._keep(limit, rate, max(rate, self._best))
            return self._fewer(limit, lowest)
        if self._base != limit:
            self._base, self._best, self._kept = limit, rate, 1.0
        elif rate < FELL * self._best:
            self._slow += 1
            if self._slow >= 2:
                self.restart()
                return max(lowest, limit // 4), "the rate fell"
            return None
        else:
            self._best = 0.8 * self._best + 0.2 * rate / self._kept
        self._slow = 0
        self._since_more += 1
        self._since_fewer += 1
        found = self._more(limit, highest) if self._since_more > self._more_after else None
        if found is None and self._since_fewer > FEWER_AFTER:
            found = self._fewer(limit, lowest)
        return found

    def _judge_more(self, limit: int, rate: float, highest: int) -> tuple[int, str] | None:
        first, self._first = self._first, None
        doubtful = 1 - HOPELESS if self.climbing else 1 + WORTH
        if first is not None:
            rate = (first + rate) / 2
        elif doubtful * self._best <= rate < (1 + CLEAR) * self._best:
            self._trying, self._first = "more", rate
            return None
        if rate < (1 + WORTH) * self._best:
            self._since_more, self._more_after = 0, self._next_wait
            self._next_wait = min(2 * self._next_wait, MORE_AFTER_MOST)
            self.climbing = False
            return self._base, "more did not raise the rate"
        self._keep(limit, rate, rate)
        self.climbing = True
        return self._more(limit, highest)

    def _keep(self, limit: int, rate: float, best: float) -> None:
        self._base, self._best, self._kept = limit, best, rate / best if best > 0 else 1.0
        self._since_more = self._since_fewer = 0
        self._next_wait = MORE_AFTER

    def _more(self, limit: int, highest: int) -> tuple[int, str] | None:
        if limit >= highest:
            self.climbing = False
            return None
        self._trying = "more"
        return min(2 * limit, highest), "the rate may rise"

    def _fewer(self, limit: int, lowest: int) -> tuple[int, str] | None:
        less = max(lowest, int(limit / FEWER))
        if less >= limit:
            return None
        self._trying = "fewer"
        return less, "fewer may do as well"
