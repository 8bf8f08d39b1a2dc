"""Weighted least squares that forgets, and keeps what it believed where the data say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

SIZE: Final = 4
FORGETTING: Final = 0.995
"""What an observation weighs after each later one: half after 138."""

Features = tuple[float, float, float, float]
"""Text tokens x, messages m, 1, images."""

RANGES: Final = ((0.2, 10.0), (0.0, math.inf), (0.0, math.inf), (0.0, math.inf))
"""Where the ratio and the overheads may lie: a template takes no tokens away."""

_CONFIDENCE: Final = (1.0, 1 / 8**2, 1 / 30**2, 1 / 500**2)
"""How firmly the prior holds: it is believed to be wrong by about 1, 8, 30 and 500, in the order of a Line.

It is added anew at each solution and never forgotten. Where all prompts have the same number of messages,
only the sum o m + f shows in the data; without this the two would drift apart without limit.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """y = ratio x + per_message m + per_prompt + per_image images: an engine's tokens from ours."""

    ratio: float
    per_message: float
    per_prompt: float
    per_image: float

    def at(self, features: Features) -> float:
        """The prediction for `features`; 1 at least, since no prompt is empty."""
        x, messages, one, images = features
        y = self.ratio * x + self.per_message * messages + self.per_prompt * one + self.per_image * images
        return max(1.0, y)

    def shares(self, observed: Iterable[tuple[Features, float]]) -> list[float]:
        """Each count divided by what `at` predicts; in one go, as a call each would cost twice the time."""
        ratio, per_message, per_prompt = self.ratio, self.per_message, self.per_prompt
        per_image = self.per_image
        return [
            count / (y if y > 1.0 else 1.0)
            for (x, messages, one, images), count in observed
            for y in (ratio * x + per_message * messages + per_prompt * one + per_image * images,)
        ]


@dataclass(slots=True)
class Regression:
    """The sums of a weighted least squares fit with forgetting; weights 1/x, as the spread grows with x."""

    products: list[float] = field(default_factory=lambda: [0.0] * (SIZE * SIZE))
    targets: list[float] = field(default_factory=lambda: [0.0] * SIZE)

    def add(self, features: Features, y: float, weight: float = 1.0) -> None:
        """Take in one observation; `weight` is 1 for a trusted one."""
        scale = weight / max(features[0], 1.0)
        self.products = [FORGETTING * value for value in self.products]
        self.targets = [FORGETTING * value for value in self.targets]
        for i, left in enumerate(features):
            if left:
                self.targets[i] += scale * left * y
                for j, right in enumerate(features):
                    self.products[i * SIZE + j] += scale * left * right

    def variance(self, features: Features, noise: float) -> float:
        """How far off, squared, what `line` says of `features` may be, since the data leave it open.

        That of the posterior mean in Bayesian linear regression (Bishop 2006, section 3.3.2): small among
        what was seen, large where prompts were all of one size and `features` are of another.
        """
        rows = [
            [
                *(
                    self.products[i * SIZE + j] + (noise * _CONFIDENCE[i] if i == j else 0.0)
                    for j in range(SIZE)
                ),
                features[i],
            ]
            for i in range(SIZE)
        ]
        return noise * sum(map(math.prod, zip(features, _solved(rows), strict=True)))

    def line(self, prior: Line, noise: float) -> Line:
        """The best line, given what was believed before; its parts lie in `RANGES`.

        `noise` is the variance of an observation per token: the noisier, the more weight the prior has. If
        a part has to be held at an end of its range, the rest is fitted beside it.
        """
        believed = (prior.ratio, prior.per_message, prior.per_prompt, prior.per_image)
        held: dict[int, float] = {}
        while True:
            free = [i for i in range(SIZE) if i not in held]
            rows = []
            for i in free:
                firm = noise * _CONFIDENCE[i]
                left = [self.products[i * SIZE + j] + (firm if i == j else 0.0) for j in free]
                known = math.fsum(self.products[i * SIZE + j] * value for j, value in held.items())
                rows.append([*left, self.targets[i] + firm * believed[i] - known])
            found = dict(zip(free, _solved(rows), strict=True))
            outside = {i: value for i, value in found.items() if not RANGES[i][0] <= value <= RANGES[i][1]}
            if not outside:
                found |= held
                return Line(*(found[i] for i in range(SIZE)))
            first = min(outside)
            low, high = RANGES[first]
            held[first] = low if outside[first] < low else high


def _solved(rows: Sequence[list[float]]) -> list[float]:
    """The solution of a positive definite system given as rows with the right side at the end."""
    size = len(rows)
    rows = [list(row) for row in rows]
    for i in range(size):
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            for j in range(i, size + 1):
                rows[k][j] -= factor * rows[i][j]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = math.fsum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution
