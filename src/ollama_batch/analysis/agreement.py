"""How far two runs agree: labels by share and by kappa, scores by their differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.analysis.labels import Labels
from ollama_batch.analysis.numbers import Distribution, Numbers, distribution_of

PAIRS: Final = 10_000
"""So many pairs of labels are told apart; a field with more of them is free text, and has no kappa."""

_ENOUGH: Final = 30
_Z95: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Move:
    """So many rows had the label `a` in the first run and `b` in the second."""

    a: str
    b: str
    count: int


@dataclass(frozen=True, slots=True)
class FieldAgreement:
    """How far the two runs agree on the field `path`, over the `count` rows that have it in both.

    `agreed` of them have equal values, `agreement` is their share. `kappa` is Cohen's: the agreement beyond
    that of chance, (p_o - p_e) / (1 - p_e), where p_e is what labels as frequent as these would agree on if
    they had nothing to do with each other (Cohen, Educational and Psychological Measurement 20, 1960). 1 is
    full agreement, 0 that of chance; None where it is undefined: no rows, or one label alone.
    `weighted_kappa` is the same with linear weights for labels with an order (Cohen, Psychological Bulletin
    70, 1968); None without one. `only_a`, `only_b` rows have the field in one run alone. `labels` are all of
    them, `table` how often each pair occurred, `moves` the pairs that differ, the most frequent first.
    Values are equal that differ in letter case and white space alone, as in `FieldFigures`; of the values
    of both runs `respelt` are not spelt as their label is called.
    """

    path: str
    count: int
    agreed: int
    kappa: float | None
    weighted_kappa: float | None
    only_a: int
    only_b: int
    labels: tuple[str, ...]
    table: tuple[Move, ...]
    respelt: int = 0

    @property
    def agreement(self) -> float | None:
        """The share of equal values, 0 to 1; None without any."""
        return self.agreed / self.count if self.count else None

    @property
    def undefined(self) -> str | None:
        """Why there is no kappa; None where there is one."""
        if self.kappa is not None:
            return None
        if not self.count:
            return "no answer has it in both"
        return "one label alone" if len(self.labels) == 1 else f"more than {PAIRS:,} pairs of labels"

    @property
    def moves(self) -> list[Move]:
        """The pairs that differ."""
        return [move for move in self.table if move.a != move.b]


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """How the scores changed, over the `count` rows that have one in both runs.

    `mean_change` is the mean of second minus first, `sd` the standard deviation of these differences,
    `interval` the 95 % interval of the mean by the normal approximation (None below 30 rows). `up`, `down`
    and `same` count rows. `changes` are the differences of the rows that moved, in figures.
    """

    name: str
    count: int
    mean_a: float | None
    mean_b: float | None
    mean_change: float | None
    sd: float | None
    interval: tuple[float, float] | None
    up: int
    down: int
    same: int
    changes: Distribution | None


class AgreementTally:
    """Counts the values of one field in two runs."""

    def __init__(self, path: str, order: Sequence[str] | None, words: Sequence[str] = ()) -> None:
        self.path = path
        self._order = order
        self._labels = Labels(order, 2 * PAIRS, words)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._too_many = False
        self._n: Counter[str] = Counter()

    def add(self, a: Any, b: Any) -> bool:
        """Count a row; whether its values differ. None is no value."""
        if a is None or b is None:
            self._n["only_a"] += b is None and a is not None
            self._n["only_b"] += a is None and b is not None
            return (a is None) != (b is None)
        pair = self._labels.key(a), self._labels.key(b)
        self._n["count"] += 1
        self._n["agreed"] += pair[0] == pair[1]
        if pair in self._pairs or len(self._pairs) < PAIRS:
            self._pairs[pair] += 1
            self._labels.add(a)
            self._labels.add(b)
        else:
            self._too_many = True
        return pair[0] != pair[1]

    def figures(self) -> FieldAgreement:
        """What it came to."""
        names = self._labels.names()
        pairs = Counter({(names[a], names[b]): number for (a, b), number in self._pairs.items()})
        frequent = Counter[str]()
        for (a, b), number in pairs.items():
            frequent[a] += number
            frequent[b] += number
        first = [label for label in self._order or () if label in frequent]
        others = sorted(
            (label for label in frequent if label not in first), key=lambda each: (-frequent[each], each)
        )
        ordered = self._order if self._order and not others else None
        table = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return FieldAgreement(
            self.path,
            self._n["count"],
            self._n["agreed"],
            None if self._too_many else kappa(pairs),
            None if self._too_many or ordered is None else kappa(pairs, ordered),
            self._n["only_a"],
            self._n["only_b"],
            (*first, *others),
            tuple(Move(a, b, number) for (a, b), number in table),
            self._labels.respelt(),
        )


def kappa(pairs: Counter[tuple[str, str]], order: Sequence[str] | None = None) -> float | None:
    """Cohen's kappa of counted pairs, with the `order` of all labels weighted linearly; None if undefined."""
    total = pairs.total()
    if not total:
        return None
    place = {label: n for n, label in enumerate(order or ())}

    def distance(a: str, b: str) -> float:
        return float(abs(place[a] - place[b])) if order else float(a != b)

    first, second = Counter[str](), Counter[str]()
    for (a, b), number in pairs.items():
        first[a] += number
        second[b] += number
    # With distances instead of agreements: 1 - observed / expected, the same number.
    observed = math.fsum(number * distance(a, b) for (a, b), number in pairs.items()) / total
    expected = (
        math.fsum(n * m * distance(a, b) for a, n in first.items() for b, m in second.items()) / total**2
    )
    return None if expected == 0 else 1 - observed / expected


class ScoreTally:
    """Takes the scores of two runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._a, self._b, self._changes = Numbers(), Numbers(), Numbers()

    def add(self, a: float | None, b: float | None) -> bool:
        """Count a row; whether its scores differ."""
        if a is None or b is None:
            return (a is None) != (b is None)
        self._a.add(a)
        self._b.add(b)
        self._changes.add(b - a)
        return a != b

    def figures(self) -> ScoreChange:
        """What it came to."""
        values = self._changes.values
        n = len(values)
        every = distribution_of(values)
        mean = None if every is None else every.mean
        sd = None if every is None else every.sd
        interval = None
        if mean is not None and sd is not None and n >= _ENOUGH:
            half = _Z95 * sd / math.sqrt(n)
            interval = mean - half, mean + half
        up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
        return ScoreChange(
            self.name,
            n,
            math.fsum(self._a.values) / n if n else None,
            math.fsum(self._b.values) / n if n else None,
            mean,
            sd,
            interval,
            up,
            down,
            n - up - down,
            distribution_of(value for value in values if value),
        )
