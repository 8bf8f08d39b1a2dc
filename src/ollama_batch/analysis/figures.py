"""The parts of an analysis: what errors, fields, scores and tokens come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollama_batch.analysis.numbers import Distribution


@dataclass(frozen=True, slots=True)
class Example:
    """One row that stands for others: its id, and the beginning of what it says or how long it took."""

    custom_id: str
    text: str


@dataclass(frozen=True, slots=True)
class FieldFigures:
    """What the parsed answers have at `path`.

    `present` answers have a value there, `null` have null, in `absent` there is nothing. `labels` counts
    equal values, in the order that was asked for or by how frequent they are; `other_labels` values are
    beyond the 1,000 that are told apart. `numbers`: the values that are numbers, None if there are none.
    Values that differ in letter case and white space alone are one label, unless the order has both; it is
    called as in the order, else as in the response model of the run (a journal has it), else as most of
    them are, and `respelt` values are spelt otherwise.
    """

    path: str
    present: int
    null: int
    absent: int
    labels: Mapping[str, int]
    other_labels: int
    numbers: Distribution | None
    respelt: int = 0

    @property
    def numeric(self) -> bool:
        """Whether every value is a number, so that it is a quantity rather than a label."""
        return self.numbers is not None and self.numbers.count == self.present


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """The scores: `name` is the path, or what the callable is called; `missing` parsed answers have none."""

    name: str
    missing: int
    numbers: Distribution | None


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Sums over the answers that came with a usage: the last ones of the `reported` rows, and `earlier` ones,
    which did not fit and were asked for again, or are of rows that were sent again in a later session.

    `estimated` answers were not counted by the engine. `cached` sums what `cached_reported` answers told of
    its cache, None if none did; `cached_of` are the prompt tokens of those same answers. `reasoning` likewise
    is part of `completion`. `prompt_row` and `completion_row` are of the last answers.
    """

    reported: int = 0
    earlier: int = 0
    estimated: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    cached_reported: int = 0
    cached_of: int = 0
    reasoning: int | None = None
    reasoning_reported: int = 0
    prompt_row: Distribution | None = None
    completion_row: Distribution | None = None

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def cached_share(self) -> float | None:
        """Cached tokens over the prompt tokens of the rows that told; None if none did."""
        return None if self.cached is None or self.cached_of == 0 else self.cached / self.cached_of


def in_order(labels: Mapping[str, int], order: Sequence[str] | None) -> dict[str, int]:
    """`labels`, those of `order` first, also where there are none, the others by how frequent they are."""
    wanted = {label: labels.get(label, 0) for label in order or ()}
    others = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    return {**wanted, **{label: count for label, count in others if label not in wanted}}
