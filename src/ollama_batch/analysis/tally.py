"""Counting rows, one after another, in a bounded amount of memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ollama_batch._text import plain
from ollama_batch.analysis.answers import ABSENT, as_number, look_up
from ollama_batch.analysis.figures import (
    Example,
    FieldFigures,
    TokenFigures,
    in_order,
)
from ollama_batch.analysis.labels import Labels
from ollama_batch.analysis.numbers import Numbers, distribution_of
from ollama_batch.analysis.rows import ResultRow
from ollama_batch.types import Usage

LABELS: Final = 1000
EXAMPLES: Final = 5
SHOWN: Final = 300


class FieldTally:
    """What answers have at one path."""

    def __init__(self, path: str, order: Sequence[str] | None, words: Sequence[str] = ()) -> None:
        self.path = path
        self._order = order
        self._labels = Labels(order, LABELS, words)
        self._counts: Counter[str] = Counter()
        self._others = self._null = self._absent = self._present = 0
        self._numbers = Numbers()

    def add(self, answer: Any) -> None:
        """Count what a parsed answer has there."""
        value = look_up(answer, self.path)
        if value is ABSENT:
            self._absent += 1
        elif value is None:
            self._null += 1
        else:
            self._present += 1
            label = self._labels.key(value)
            if label in self._counts or len(self._counts) < LABELS:
                self._counts[label] += 1
                self._labels.add(value)
            else:
                self._others += 1
            number = as_number(value)
            if number is not None:
                self._numbers.add(number)

    def figures(self) -> FieldFigures:
        """What it came to."""
        names = self._labels.names()
        return FieldFigures(
            self.path,
            self._present,
            self._null,
            self._absent,
            in_order({names[key]: number for key, number in self._counts.items()}, self._order),
            self._others,
            distribution_of(self._numbers.values),
            self._labels.respelt(),
        )


class TokenTally:
    """Usages."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._prompt, self._completion = Numbers(), Numbers()

    def add(self, row: ResultRow) -> None:
        """Count the usage of every answer of a row, failed or not, as far as there are any."""
        self.add_earlier((*row.replaced_usage, *row.earlier_usage))
        if row.usage is not None:
            self._sums["reported"] += 1
            self._prompt.add(row.usage.prompt_tokens)
            self._completion.add(row.usage.completion_tokens)
            self._add(row.usage)

    def add_earlier(self, usages: Iterable[Usage | None]) -> None:
        """Count answers before the last one of their row."""
        for usage in usages:
            if usage is not None:
                self._sums["earlier"] += 1
                self._add(usage)

    def _add(self, usage: Usage) -> None:
        sums = self._sums
        sums["estimated"] += usage.source == "estimate"
        sums["prompt"] += usage.prompt_tokens
        sums["completion"] += usage.completion_tokens
        if usage.cached_tokens is not None:
            sums["cached"] += usage.cached_tokens
            sums["cached_reported"] += 1
            sums["cached_of"] += usage.prompt_tokens
        if usage.reasoning_tokens is not None:
            sums["reasoning"] += usage.reasoning_tokens
            sums["reasoning_reported"] += 1

    def figures(self) -> TokenFigures:
        """What it came to."""
        sums = self._sums
        return TokenFigures(
            reported=sums["reported"],
            earlier=sums["earlier"],
            estimated=sums["estimated"],
            prompt=sums["prompt"],
            completion=sums["completion"],
            cached=sums["cached"] if sums["cached_reported"] else None,
            cached_reported=sums["cached_reported"],
            cached_of=sums["cached_of"],
            reasoning=sums["reasoning"] if sums["reasoning_reported"] else None,
            reasoning_reported=sums["reasoning_reported"],
            prompt_row=distribution_of(self._prompt.values),
            completion_row=distribution_of(self._completion.values),
        )


class Largest:
    """The few rows with the largest figure, the first of equal ones."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._seen = 0

    def add(self, value: float | None, custom_id: str) -> None:
        """Consider a row."""
        if value is None:
            return
        self._seen -= 1
        entry = value, self._seen, custom_id
        if len(self._heap) < EXAMPLES:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def found(self) -> list[tuple[str, float]]:
        """Id and figure of each, the largest first."""
        return [(custom_id, value) for value, _, custom_id in sorted(self._heap, reverse=True)]


class Examples:
    """The first few rows of a kind, with the beginning of their text."""

    def __init__(self) -> None:
        self._found: list[Example] = []

    def add(self, custom_id: str, text: str | None) -> None:
        """Keep it, if there is room."""
        if len(self._found) < EXAMPLES:
            self._found.append(Example(custom_id, plain(text or "", SHOWN)))

    def found(self) -> tuple[Example, ...]:
        """Those that were kept."""
        return tuple(self._found)
