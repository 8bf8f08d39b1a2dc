"""Counting rows, one after another, in a bounded amount of memory."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from ollama_batch._text import plain
from ollama_batch.analysis.answers import ABSENT, as_label, as_number, look_up
from ollama_batch.analysis.figures import (
    ErrorGroup,
    ErrorKind,
    Example,
    FieldFigures,
    TokenFigures,
    in_order,
)
from ollama_batch.analysis.numbers import Numbers, distribution_of
from ollama_batch.analysis.rows import ResultRow

LABELS: Final = 1000
CODES: Final = 200
KINDS: Final = 20
IDS: Final = 3
EXAMPLES: Final = 5
SHOWN: Final = 300

_DIGITS: Final = re.compile(r"\d+")


class FieldTally:
    """What answers have at one path."""

    def __init__(self, path: str, order: Sequence[str] | None) -> None:
        self.path = path
        self._order = order
        self._labels: Counter[str] = Counter()
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
            label = as_label(value)
            if label in self._labels or len(self._labels) < LABELS:
                self._labels[label] += 1
            else:
                self._others += 1
            number = as_number(value)
            if number is not None:
                self._numbers.add(number)

    def figures(self) -> FieldFigures:
        """What it came to."""
        return FieldFigures(
            self.path,
            self._present,
            self._null,
            self._absent,
            in_order(self._labels, self._order),
            self._others,
            distribution_of(self._numbers.values),
        )


class ErrorTally:
    """Failed rows by code, and within a code by message, numbers in it aside."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._kinds: dict[str, dict[str, tuple[str, list[int], list[str]]]] = {}

    def add(self, row: ResultRow) -> None:
        """Count a failed row."""
        code = plain(row.error_code or "unknown", 80)
        if code not in self._counts and len(self._counts) >= CODES:
            code = "(other codes)"
        self._counts[code] += 1
        kinds = self._kinds.setdefault(code, {})
        message = plain(row.error_message or "", SHOWN)
        shape = _DIGITS.sub("#", message)
        if shape not in kinds:
            if len(kinds) >= KINDS:
                return
            kinds[shape] = message, [0], []
        _, count, ids = kinds[shape]
        count[0] += 1
        if len(ids) < IDS:
            ids.append(row.custom_id)

    def groups(self) -> tuple[ErrorGroup, ...]:
        """Every code, the most frequent first."""
        groups = []
        for code, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            kinds = [
                ErrorKind(message, number[0], tuple(ids))
                for message, number, ids in self._kinds[code].values()
            ]
            kinds.sort(key=lambda kind: (-kind.count, kind.message))
            groups.append(ErrorGroup(code, count, tuple(kinds), count - sum(kind.count for kind in kinds)))
        return tuple(groups)


class TokenTally:
    """Usages."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._prompt, self._completion = Numbers(), Numbers()

    def add(self, row: ResultRow) -> None:
        """Count the usage of a row, failed or not, if there is one."""
        usage, sums = row.usage, self._sums
        if usage is None:
            return
        sums["reported"] += 1
        sums["estimated"] += usage.source == "estimate"
        sums["prompt"] += usage.prompt_tokens
        sums["completion"] += usage.completion_tokens
        self._prompt.add(usage.prompt_tokens)
        self._completion.add(usage.completion_tokens)
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
