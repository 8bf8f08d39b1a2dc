"""How tight memory is, in four levels that are entered at once and left with care."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

HOLD_S: Final = 10.0
MARGIN: Final = 0.02


class Level(IntEnum):
    """How tight memory is; a higher level is tighter."""

    OK = 0
    WARN = 1
    HIGH = 2
    CRITICAL = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes in use from which on a level holds, ascending, and how many fewer it takes to leave one.

    Up to `spared` bytes are level ok, whatever the others say.
    """

    warn: int
    high: int
    critical: int
    margin: int
    spared: int = -1

    def least(self, level: Level) -> int:
        """From how many bytes in use on `level` holds."""
        return (0, self.warn, self.high, self.critical)[level]

    def level(self, used: int) -> Level:
        """The level of so many bytes in use, without regard to what was before."""
        return Level.OK if used <= self.spared else self._level(used)

    def lasting(self, used: int) -> Level:
        """The lowest level that may be left for when so many bytes are in use: better by the margin, or no
        more than is spared.
        """
        return Level.OK if used <= self.spared else self._level(used + self.margin)

    def _level(self, used: int) -> Level:
        if used >= self.critical:
            return Level.CRITICAL
        if used >= self.high:
            return Level.HIGH
        return Level.WARN if used >= self.warn else Level.OK


@dataclass(frozen=True, slots=True)
class LevelState:
    """The level now, and since when (seconds) memory is well enough to leave it for `target`."""

    level: Level = Level.OK
    better_since: float | None = None
    target: Level = Level.OK

    def step(self, used: int, bounds: Bounds, at: float, hold_s: float = HOLD_S) -> LevelState:
        """The state after `used` bytes were seen `at` seconds.

        A higher level is entered at once. A level is left once `margin` bytes fewer than its bound were in
        use in every sample of `hold_s` seconds, for the highest level that any of these samples allows.
        """
        entered = bounds.level(used)
        if entered > self.level:
            return LevelState(entered)
        allowed = bounds.lasting(used)
        if allowed >= self.level:
            return replace(self, better_since=None)
        if self.better_since is None:
            since, target = at, allowed
        else:
            since, target = self.better_since, max(self.target, allowed)
        if at - since >= hold_s:
            return LevelState(target)
        return LevelState(self.level, since, target)
