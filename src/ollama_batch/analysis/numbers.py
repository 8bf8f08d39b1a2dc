"""Many numbers in a few figures, and in a histogram."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

BARS: Final = 30
"""At most so many bars has a histogram."""

_TAIL: Final = 3.0
"""A largest value this many times the 99th percentile would press all others into the first bars."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Values from `low` up to, not including, `high`; the last bar includes its end, None has no end."""

    low: float
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """`count` values, exact: mean, standard deviation of the sample (None for one value), extremes,
    quantiles.

    Quantiles interpolate linearly between the two values beside them, as numpy and pandas do by default.
    """

    count: int
    mean: float
    sd: float | None
    low: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    high: float
    bars: tuple[Bar, ...]


def distribution_of(values: Iterable[float]) -> Distribution | None:
    """The figures of `values`; None if there are none."""
    found = sorted(values)
    if not found:
        return None
    count, mean = len(found), math.fsum(found) / len(found)
    sd = None
    if count > 1:
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (count - 1))
    p5, p25, median, p75, p95 = (quantile(found, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95))
    return Distribution(count, mean, sd, found[0], p5, p25, median, p75, p95, found[-1], tuple(_bars(found)))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a `share` (0 to 1) of the sorted `values` lies."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def _bars(values: Sequence[float]) -> list[Bar]:
    low, high = values[0], values[-1]
    whole = all(value == math.floor(value) for value in values)
    tail = quantile(values, 0.99)
    open_end = len(values) >= 100 and tail > max(low, 0) and high > _TAIL * tail
    end = tail if open_end else high
    step = nice_step((end - low) / BARS, whole=whole)
    start = math.floor(low / step) * step
    number = max(1, math.floor((end - start) / step + 1e-9) + 1)
    counts = [0] * number
    more = 0
    for value in values:
        place = int((value - start) / step + 1e-9)
        if place < number:
            counts[place] += 1
        else:
            more += 1
    bars = [
        Bar(_even(start + n * step), _even(start + (n + 1) * step), count) for n, count in enumerate(counts)
    ]
    if more:
        bars.append(Bar(_even(start + number * step), None, more))
    return bars


def figure(value: float | None) -> str:
    """A number with four figures, whole from 1,000 on; `-` if there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def signed(value: float) -> str:
    """The same of a change, with its sign."""
    return f"{'+' if value >= 0 else ''}{figure(value)}"


def edges(values: Sequence[float], say: Callable[[float], str], suffix: str = "") -> list[str]:
    """Ascending values as `say` has them; where two neighbours would read alike, with as many decimals as
    tell them apart.
    """
    told = [say(value) for value in values]
    if all(a != b for a, b in pairwise(told)):
        return told
    step = min(b - a for a, b in pairwise(values))
    decimals = next(n for n in range(16) if n == 15 or all(abs(round(v, n) - v) <= step / 10 for v in values))
    return [f"{value:,.{decimals}f}{suffix}" for value in values]


def nice_step(least: float, *, whole: bool = False) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that is not below `least`; `whole`: at least 1."""
    if least <= 0 or not math.isfinite(least):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    steps = (1, 2, 5, 10) if whole and power <= 1 else (1, 2, 2.5, 5, 10)
    step = next((power * each for each in steps if power * each >= least * (1 - 1e-9)), 10 * power)
    return max(1.0, step) if whole else step


def _even(value: float) -> float:
    # What 0.1 + 0.2 leaves behind is no part of an edge.
    return float(f"{value:.10g}")


class Numbers:
    """A growing list of numbers at 8 bytes each; the place of an unknown one is held by NaN."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = array("d")

    def add(self, value: float | None) -> None:
        """Append `value`; None is unknown."""
        self.values.append(math.nan if value is None else value)

    @property
    def known(self) -> list[float]:
        """Those that are known, in the order they came."""
        return [value for value in self.values if not math.isnan(value)]
