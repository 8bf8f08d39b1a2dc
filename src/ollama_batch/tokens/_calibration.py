"""What was learned of one kind of prompt: a line, and how far the engine's counts lie from it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.tokens._regression import SIZE, Features, Line, Regression

PRIOR: Final = Line(ratio=1.1, per_message=4.0, per_prompt=3.0, per_image=768.0)
"""Believed before anything was seen: ratio and overheads of common models against o200k_base."""

WINDOW: Final = 500
ENOUGH: Final = 30
"""Observations from which the spread is trusted; before, a fixed factor stands for it."""

_MOST_OPEN: Final = 0.05
"""So much of a prediction may be left open by the data; beyond, too little is known for it."""

_OURS: Final = 0.05  # by so much our own counts are off: differences smaller than that teach no ratio
_MEAN_OF: Final = 200
_FURTHER: Final = 2.0  # times their mean is longer than those that were seen
_OPEN_REACH: Final = 2.6  # standard deviations that 99.5 % stay within, of a normal distribution

_LEAST_MARGIN: Final = 0.02
_MARGIN_OF_FEW: Final = 0.03  # on top with ENOUGH prompts, whose ratio may be off by so much; soon gone
_LEAST_PART: Final = 0.5  # of what a short text is off by: some of it is of its sort, and stays
_WIDEST: Final = 4.0
_QUANTILE: Final = 0.995
_ROBUST: Final = 64  # latest residuals whose spread says what an outlier is
_OUTLIER_SPREADS: Final = 3.0
_LEAST_SPREAD: Final = 0.02
_GROSS: Final = 3.0
_NOISE_STEP: Final = 0.05
_LEAST_NOISE: Final = 1e-3
_OVERFLOW_STEP: Final = 1.1
_MOST_OVERFLOWS: Final = 5


@dataclass(frozen=True, slots=True)
class Margins:
    """Factors on an estimate: hardly a prompt's count lies outside `lower` to `upper` times it."""

    lower: float
    upper: float


class Calibration:
    """Learns from the token counts of an engine how to correct ours, and how wide to aim."""

    def __init__(self) -> None:
        self.seen = 0
        self.overflows = 0
        self._overflowed_at = 0
        self._noise = 1.0  # variance of a count per token, as far as seen
        self._mean = 0.0  # of our tokens of a prompt, of late
        self._regression = Regression()
        self._window: deque[tuple[Features, float]] = deque(maxlen=WINDOW)
        self._line: tuple[Line, Line] | None = None  # the prior and what was made with it
        self._margins: dict[int, Margins] = {}  # by the binary order of a prompt's size
        self._margins_at = 0
        self._scattered: float | None = None

    @property
    def trusted(self) -> bool:
        """Whether enough was seen for the spread to be known."""
        return self.seen >= ENOUGH

    def line(self, prior: Line = PRIOR) -> Line:
        """The line now; `prior` fills in what the observations leave open."""
        if self._line is None or self._line[0] != prior:
            self._line = (prior, self._regression.line(prior, self._noise))
        return self._line[1]

    def observe(self, features: Features, y: int, prior: Line = PRIOR) -> None:
        """Learn that the engine counted `y` tokens.

        One far from the rest weighs little: were it the first of many, the spread grows with the next ones
        and they weigh in full.
        """
        trust = self._trust(features, y, prior)
        if self.trusted:
            error = y - self.line(prior).at(features)
            self._noise += (trust * error**2 / max(features[0], 1.0) - self._noise) * _NOISE_STEP
            self._noise = max(self._noise, _LEAST_NOISE)
        self._regression.add(features, y, trust)
        self._window.append((features, float(y)))
        self._line = None
        self.seen += 1
        self._mean += (features[0] - self._mean) / min(self.seen, _MEAN_OF)
        if self.overflows and self.seen - self._overflowed_at >= WINDOW:
            self.overflows -= 1
            self._overflowed_at = self.seen
        # Sorting 500 numbers after each of 170,000 rows would cost more than it tells.
        if self.seen < 64 or self.seen - self._margins_at >= 16:
            self._margins.clear()
            self._scattered = None
            self._margins_at = self.seen

    def overflowed(self) -> None:
        """Learn that a prompt within the bound did not fit: the bound grows by a tenth, for a while."""
        self.overflows = min(self.overflows + 1, _MOST_OVERFLOWS)
        self._overflowed_at = self.seen

    @property
    def overflow_factor(self) -> float:
        """What overflows have put on top of the bound."""
        return _OVERFLOW_STEP**self.overflows

    def open_share(self, line: Line, features: Features) -> float:
        """What the data leave open of a prediction: one standard deviation, as a share of it; 0 unless the
        prompt is longer than those that were seen, as a short one cannot be far off.

        Of prompts that were all of one size, nobody can tell the ratio from the overhead: what is learned
        of them says little of one that is ten times as long.
        """
        if features[0] <= _FURTHER * self._mean:
            return 0.0
        noise = max(_LEAST_NOISE, self._scatter(line), _OURS**2 * self._mean)
        return math.sqrt(max(0.0, self._regression.variance(features, noise))) / line.at(features)

    def _scatter(self, line: Line) -> float:
        """The variance of a count per token, over the window: known earlier than the running one."""
        if self._scattered is None:
            off = [(count - line.at(seen)) ** 2 / max(seen[0], 1.0) for seen, count in self._window]
            self._scattered = statistics.fmean(off) if off else 1.0
        return self._scattered

    def knows(self, line: Line, features: Features) -> bool:
        """Whether enough was seen to predict a prompt with `features`."""
        return self.trusted and self.open_share(line, features) <= _MOST_OPEN

    def margins_at(self, line: Line, features: Features) -> Margins:
        """`margins` of one prompt, wider by what the data leave open of it."""
        found = self.margins(line, features[0])
        left_open = self.open_share(line, features)
        if left_open <= _MOST_OPEN:
            return found
        further = _OPEN_REACH * left_open
        return Margins(
            lower=max(1 / _WIDEST, found.lower - further), upper=min(_WIDEST, found.upper + further)
        )

    def margins(self, line: Line, x: float = 0.0) -> Margins:
        """The factors for the bounds of what `line` says of a prompt with `x` of our tokens, or of one of any
        size. Only of worth once `trusted`.

        The quantiles of the window's residuals, and beyond them half as far again as they lie from the
        middle: of 5,000 prompts that crowd the limit, 99.5 % would leave 25 to overflow. With few
        observations further still, as their extremes are not yet those to come. What a shorter text is off by
        counts less, as chance evens out over a longer one: by the root of their sizes, down to half.
        """
        order = int(x).bit_length()
        if order not in self._margins:
            found = self._measured(line, float(1 << order >> 1))
            if order:
                widest = self.margins(line)
                found = Margins(max(found.lower, widest.lower), min(found.upper, widest.upper))
            self._margins[order] = found
        return self._margins[order]

    def _measured(self, line: Line, size: float) -> Margins:
        residuals = sorted(
            share if x >= size else 1 + (share - 1) * max(_LEAST_PART, math.sqrt(x / size))
            for share, ((x, _, _, _), _) in zip(line.shares(self._window), self._window, strict=True)
        )
        least = 1 + _LEAST_MARGIN + _MARGIN_OF_FEW * (ENOUGH / max(ENOUGH, len(residuals))) ** 2
        if not residuals:
            return Margins(1 / least, least)
        # A few counts that are off by a factor are somebody's mistake, not the spread.
        kept = [value for value in residuals if 1 / _GROSS <= value <= _GROSS]
        if len(residuals) - len(kept) <= max(1, len(residuals) // 50):
            residuals = kept or residuals
        count = len(residuals)
        rank = min(count, math.ceil((count + 1) * _QUANTILE))
        low, middle, high = residuals[count - rank], statistics.median(residuals), residuals[rank - 1]
        further = 0.5 + ENOUGH / count
        upper = high + (high - middle) * further
        lower = low - (middle - low) * further
        return Margins(
            lower=max(1 / _WIDEST, min(lower, 1 / least)),
            upper=min(_WIDEST, max(upper, least)),
        )

    def _trust(self, features: Features, y: float, prior: Line) -> float:
        """The weight of an observation: 1 near the line, falling with the square of its distance.

        Unlike Huber's, whose far outliers still pull with the force of one at the edge.
        """
        if not self.trusted:
            return 1.0
        line = self.line(prior)
        recent = line.shares(itertools.islice(reversed(self._window), _ROBUST))
        spread = 1.4826 * statistics.median([abs(share - 1) for share in recent])
        distance = abs(y / line.at(features) - 1)
        reach = _OUTLIER_SPREADS * max(_LEAST_SPREAD, spread)
        return 1.0 if distance <= reach else (reach / distance) ** 2

    def to_dict(self) -> dict[str, Any]:
        """What was learned, as JSON data."""
        return {
            "seen": self.seen,
            "overflows": self.overflows,
            "noise": self._noise,
            "products": self._regression.products,
            "targets": self._regression.targets,
            "window": [[*features, y] for features, y in self._window],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave. Raises ValueError, TypeError, KeyError or ArithmeticError for
        anything else.
        """
        made = cls()
        made.seen = _natural(data["seen"])
        made.overflows = min(_natural(data["overflows"]), _MOST_OVERFLOWS)
        made._overflowed_at = made.seen
        (made._noise,) = _finite([data["noise"]], 1)
        if made._noise < _LEAST_NOISE:
            raise ValueError(f"a noise of {made._noise}")
        made._regression = Regression(_finite(data["products"], SIZE * SIZE), _finite(data["targets"], SIZE))
        if any(made._regression.products[i * SIZE + i] < 0 for i in range(SIZE)):
            raise ValueError("a sum of squares below 0")
        for entry in list(data["window"])[-WINDOW:]:
            x, messages, one, images, y = _finite(entry, SIZE + 1)
            if y < 1:
                raise ValueError(f"a count of {y} tokens")
            made._window.append(((x, messages, one, images), y))
        if made._window:
            latest = list(made._window)[-_MEAN_OF:]
            made._mean = sum(features[0] for features, _ in latest) / len(latest)
        if made.seen < len(made._window) or (made.trusted and len(made._window) < ENOUGH):
            raise ValueError(f"{made.seen} observations with a window of {len(made._window)}")
        line = made.line()
        _finite([line.ratio, line.per_message, line.per_prompt, line.per_image], SIZE)
        return made


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _finite(values: Sequence[object], size: int) -> list[float]:
    found = [float(value) for value in values if isinstance(value, int | float)]
    if len(found) != size or len(values) != size or not all(map(math.isfinite, found)):
        raise ValueError(f"{size} numbers expected")
    return found
