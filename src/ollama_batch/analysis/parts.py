"""The small things that pages are made of: cards, bars, and numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ollama_batch._text import count, duration, share
from ollama_batch.analysis.numbers import Distribution, figure
from ollama_batch.analysis.plots import Plot, histogram, number


@dataclass(frozen=True, slots=True)
class Card:
    """One figure that matters: what it is, the figure, and what to know beside it."""

    name: str
    value: str
    beside: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a whole: of a stacked bar, or a bar of its own. `share` is in percent."""

    name: str
    count: str
    share: float
    kind: str = ""

    @property
    def percent(self) -> str:
        """The share as text."""
        return share(self.share / 100)


def plotted(
    found: Distribution | None,
    title: str,
    unit: str,
    *,
    say: Any = number,
    suffix: str = "",
    what: str = "rows",
) -> Plot | None:
    """The histogram of a distribution, if there is one."""
    if found is None:
        return None
    return histogram(found, title=title, unit=unit, say=say, suffix=suffix, what=what)


def spread_of(found: Distribution | None) -> Sequence[tuple[str, str]]:
    """A distribution in figures, each with its name."""
    if found is None:
        return ()
    return (
        ("values", count(found.count)),
        ("mean", figure(found.mean)),
        ("std. deviation", figure(found.sd)),
        ("lowest", figure(found.low)),
        ("5 %", figure(found.p5)),
        ("25 %", figure(found.p25)),
        ("median", figure(found.median)),
        ("75 %", figure(found.p75)),
        ("95 %", figure(found.p95)),
        ("highest", figure(found.high)),
    )


def seconds(value: float) -> str:
    """A duration for an axis."""
    return "0" if value == 0 else duration(value)
