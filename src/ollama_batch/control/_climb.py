"""The search for a limit where the engine tells nothing of its queue: by the rate alone."""

from __future__ import annotations

from typing import Final, Literal

WORTH: Final = 0.05
"""Twice as many requests must raise the rate by this share, or they are of no use."""

NO_LOSS: Final = 0.03
"""Fewer requests may lower the rate by this share, and are still preferred."""

FEWER: Final = 1.5
"""By this factor fewer are tried."""

HOLD_ROUNDS: Final = 30
"""Rounds between two trials, which go up and down in turn."""

FELL: Final = 0.6
"""Two rounds below this share of the usual rate: the engine is another than before."""


class Climb:
    """Tries another limit now and then, and keeps the one with the better rate.

    It doubles as long as that pays, then looks whether fewer do as well. Compared is always with the best
    rate that was found, so that many small losses do not add up.
    """

    __slots__ = ("_base", "_best", "_kept", "_rounds", "_slow", "_trying", "_up_next")

    def __init__(self) -> None:
        self._up_next = True
        self.restart()

    def restart(self, *, hold: bool = False) -> None:
        """Something else has changed the limit: what was learned counts no more.

        With `hold` nothing is tried for a while.
        """
        self._base = 0
        self._best = 0.0
        self._kept = 1.0  # the share of the best rate that there is at the base
        self._rounds = 0 if hold else HOLD_ROUNDS
        self._slow = 0
        self._trying: Literal["more", "fewer"] | None = None

    def judge(self, limit: int, rate: float, *, lowest: int, highest: int) -> tuple[int, str] | None:
        """The next limit and why, after a round at `limit` that came to `rate`; None = go on as it is."""
        trying, self._trying = self._trying, None
        if trying == "more":
            if rate < (1 + WORTH) * self._best:
                self._up_next = False
                return self._back("more did not raise the rate")
            self._keep(limit, rate, rate)
            return self._more(limit, highest)
        if trying == "fewer":
            if rate < (1 - NO_LOSS) * self._best:
                self._up_next = True
                return self._back("fewer lowered the rate")
            self._keep(limit, rate, max(rate, self._best))
            return self._fewer(limit, lowest)
        if self._base != limit:
            self._base, self._best, self._kept = limit, rate, 1.0
        elif rate < FELL * self._best:
            self._slow += 1
            if self._slow >= 2:
                self.restart()
                self._up_next = True
                return max(lowest, limit // 4), "the rate fell"
            return None
        else:
            self._best = 0.8 * self._best + 0.2 * rate / self._kept
        self._slow = 0
        self._rounds += 1
        if self._rounds <= HOLD_ROUNDS:
            return None
        first, second = (self._more, self._fewer) if self._up_next else (self._fewer, self._more)
        bounds = (highest, lowest) if self._up_next else (lowest, highest)
        return first(limit, bounds[0]) or second(limit, bounds[1])

    def _keep(self, limit: int, rate: float, best: float) -> None:
        self._base, self._best, self._kept = limit, best, rate / best if best > 0 else 1.0
        self._rounds = 0

    def _back(self, why: str) -> tuple[int, str]:
        self._rounds = 0
        return self._base, why

    def _more(self, limit: int, highest: int) -> tuple[int, str] | None:
        if limit >= highest:
            return None
        self._trying = "more"
        return min(2 * limit, highest), "the rate may rise"

    def _fewer(self, limit: int, lowest: int) -> tuple[int, str] | None:
        less = max(lowest, int(limit / FEWER))
        if less >= limit:
            return None
        self._trying = "fewer"
        return less, "fewer may do as well"
