"""Where none is to wait: how many were seen to fit, and when one more than that is tried."""

from __future__ import annotations

from typing import Final

HELD_ROUNDS: Final = 30
"""Rounds after which a limit at which some waited is tried again."""

HELD_ROUNDS_MOST: Final = 3200
"""The same at most: the rounds double each time that one more than ever fitted is tried in vain."""


class Alone:
    """What rounds have said of limits under which each request wants a slot's cache to itself."""

    def __init__(self) -> None:
        self._held: tuple[int, int] | None = None  # a ceiling for some rounds: the limit, and the last round
        self._rounds = HELD_ROUNDS
        self._fits = 0  # at so many nobody was seen to wait
        self._doubted = False

    def doubts(self, limit: int, *, wait: bool, in_use: bool) -> bool:
        """Take a round at `limit`, in which some `wait` or not; returns whether it is to be measured twice.

        That some wait where nobody did need not be the slots': the whole machine may have stood still. That
        nobody waits says nothing of a limit that is not `in_use`.
        """
        if in_use and not wait:
            self._fits = max(self._fits, limit)
        self._doubted = wait and limit <= self._fits and not self._doubted
        return self._doubted

    def left(self, limit: int, less: int, *, round_: int) -> None:
        """Some waited at `limit` in this round; it is `less` now."""
        did_fit = limit <= self._fits  # and may again
        self._fits = min(self._fits, less)
        if limit - less > 1:
            return
        self._held = (less, round_ + (HELD_ROUNDS if did_fit else self._rounds))
        if not did_fit:
            self._rounds = min(2 * self._rounds, HELD_ROUNDS_MOST)

    def ceiling(self, round_: int) -> int | None:
        """The most that may be tried in this round; None: any."""
        return None if self._held is None or round_ > self._held[1] else self._held[0]
