"""From which use of memory on a guard sees which level, and what to do about it, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from ollama_batch.errors import ConfigError
from ollama_batch.memory.amounts import Amount, parse_bytes, show
from ollama_batch.memory.levels import MARGIN, Bounds, Level

LEVELS = {"warn": Level.WARN, "high": Level.HIGH, "critical": Level.CRITICAL}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What of a memory may be in use: bytes, or shares of all there is.

    Critical is from `limit` on, and in any case once less than `reserve` bytes are free (at most a quarter
    of all). Without `high`, that level begins half way from `warn` to `limit`.
    """

    warn: Amount
    high: Amount | None
    limit: Amount
    reserve: int

    @classmethod
    def of(
        cls,
        warn: int | float | str | None,
        high: int | float | str | None,
        limit: int | float | str,
        reserve: int | str,
    ) -> Self:
        """The thresholds as a user writes them; without `warn` it is 11/12 of `limit`, and `high` at the
        most. Raises ConfigError for a wrong one or a wrong order.
        """
        top, middle = Amount.of(limit, "limit"), None if high is None else Amount.of(high, "high")
        low = _below(top, middle) if warn is None else Amount.of(warn, "warn")
        made = cls(low, middle, top, parse_bytes(reserve, "reserve"))
        named = [("warn", None if warn is None else low, warn), ("high", middle, high), ("limit", top, limit)]
        steps = [(f"{name}={given!r}", amount) for name, amount, given in named if amount is not None]
        for (lower, low), (upper, high_) in pairwise(steps):
            alike = (low.share is None) == (high_.share is None)
            if alike and (low.share or low.bytes) > (high_.share or high_.bytes):
                # As they were written: rounded, 14.01 and 14 GiB look alike.
                raise ConfigError(f"{lower} is above {upper}: give warn <= high <= limit")
        return made

    def bounds(self, total: int | None) -> Bounds | None:
        """The thresholds in bytes where `total` is all there is; None if it is unknown and a share of it
        is meant.
        """
        warn, limit = self.warn.of_total(total), self.limit.of_total(total)
        high = None if self.high is None else self.high.of_total(total)
        if warn is None or limit is None or (self.high is not None and high is None):
            return None
        if high is None:
            high = (warn + limit) // 2
        critical = limit
        if total is not None:
            critical = min(limit, total - self.kept_free(total))
        high = min(high, critical)
        return Bounds(min(warn, high), high, critical, round(MARGIN * (critical if total is None else total)))

    @property
    def share(self) -> str | None:
        """The highest that is a share of all there is, as a person reads it; None: all are bytes."""
        named = (("limit", self.limit), ("high", self.high), ("warn", self.warn))
        for name, each in named:
            if each is not None and each.share is not None:
                return f"{name} {each}"
        return None

    def kept_free(self, total: int) -> int:
        """So many bytes of `total` are kept free, whatever the limit is."""
        return min(self.reserve, total // 4)

    def beyond(self, total: int | None) -> str | None:
        """A word on thresholds that cannot be reached, as they lie beyond all there is."""
        for name, amount in (("warn", self.warn), ("limit", self.limit)):
            if total is not None and amount.share is None and amount.bytes > total:
                return f"{name} {amount} lies beyond the {show(total)} there are"
        return None


def _below(limit: Amount, high: Amount | None) -> Amount:
    """Where a run is slowed down before it is paused at `limit`."""
    share = None if limit.share is None else round(limit.share * 11 / 12, 9)
    low = Amount(limit.bytes * 11 // 12, share)
    if high is None or (high.share is None) != (share is None):
        return low
    return min(low, high, key=lambda each: each.share or each.bytes)
