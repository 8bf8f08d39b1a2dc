"""How many requests memory is believed to hold, and when more may be tried."""

from __future__ import annotations

from typing import Final

PROBE_S: Final = 15.0
"""Once memory has run out, what may not fit waits so many seconds; twice as many each time again."""

PROBE_MOST_S: Final = 600.0

FIRST_ANSWERS: Final = 8
"""So many answers lie between a lack of memory and the first try of more than is known to fit."""

SLOW_S: Final = 60.0
"""Or so many seconds, where answers take long."""

FULL_ROUNDS: Final = 50
"""Rounds without trouble before one more than did not fit is tried; doubled each time that fails."""

FULL_ROUNDS_MOST: Final = 3200

FULL_S: Final = 60.0
"""And at least so many seconds."""


class MemoryBound:
    """What running out of memory says of how many requests may be out: for a limit, or for a fixed number.

    Guarantees: what memory has failed at is not allowed again before `FULL_ROUNDS` good rounds with one less,
    and more than is known to fit only after `FIRST_ANSWERS` answers with fewer. `most` is None until memory
    runs out, then one less than failed. `proven` were out for a whole round; up to `trusted` the user's word
    is taken, until memory fails at that many.

    Up to half of what failed the number doubles with each good round. Beyond that it goes a quarter of the
    way to what failed, and not before `PROBE_S` seconds, twice as many after each further lack of memory.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.proven = 1
        self.trusted = 0
        self._half = 1
        self._answers = 0  # good ones since it ran out
        self._failed_at = float("-inf")
        self._wait_s = PROBE_S
        self._full = 0
        self._full_rounds = FULL_ROUNDS

    @property
    def fits(self) -> int:
        """So many are believed to fit."""
        return max(self.proven, self.trusted)

    @property
    def unanswered(self) -> bool:
        """Whether nothing has been answered since memory ran out."""
        return self.most is not None and not self._answers

    def failed(self, in_flight: int, now: float, *, trusted: int = 0) -> None:
        """Memory ran out with so many requests out; the user's word is that `trusted` fit."""
        if self.most is not None:
            self._wait_s = min(2 * self._wait_s, PROBE_MOST_S)
            if in_flight > self.proven:
                self._full_rounds = min(2 * self._full_rounds, FULL_ROUNDS_MOST)
        if in_flight <= self.proven:
            self.proven = max(1, in_flight // 2)  # it did fit, and does no more
        self.most = max(1, min(in_flight - 1, self.most or in_flight))
        self.trusted = trusted if trusted <= self.most else 0  # it may have failed at fewer before
        self._half = max(1, in_flight // 2)
        self._failed_at = now
        self._answers = self._full = 0

    def went_well(self, out: int, *, limit: int, answers: int, now: float) -> None:
        """A round of so many `answers` went well under `limit`, with `out` requests out."""
        self.proven = max(self.proven, min(out, limit))
        self._answers += answers
        if self.most is None or limit < self.most:
            return
        self._full += 1
        if self._full >= self._full_rounds and now - self._failed_at >= FULL_S:
            self.most += 1
            self._full = 0
            self._wait_s = PROBE_S

    def ceiling(self, now: float) -> int | None:
        """The most that may be tried now; None where memory has never run out."""
        if self.most is None:
            return None
        fits, passed_s = self.fits, now - self._failed_at
        if self._answers < FIRST_ANSWERS and passed_s < SLOW_S:
            return min(self.most, fits)
        if fits < self._half:
            return min(self.most, 2 * fits, self._half)
        more = -(-max(0, self.most - fits) // 4) if passed_s >= self._wait_s else 0
        return min(self.most, fits + more)
