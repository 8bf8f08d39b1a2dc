"""What the engine's prefix cache saved, head by head, as the engine reports it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from ollama_batch.types import Usage

HEADS_KEPT = 1000
"""Heads that are counted one by one; the rows of any further ones are counted together."""

HEADS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadUsage:
    """The prompts of the rows that share a head: how many tokens they have, and how many were cached.

    `head` names the head (16 hexadecimal digits; see `RowFinished.head`), `custom_id` the first of its rows
    to finish. `rows` counts those with an answer that came with a usage, `prompt_tokens` sums the prompts of
    all their answers, cached or not: that is what the engine would have evaluated without reuse.
    `cached_tokens` sums what `cached_reported` of the answers told of their cache, None if none did, and
    `cached_share` is its share (0 to 1) of the prompt tokens of those same answers. Nothing here is ever
    estimated from times.

    The first 1,000 heads of a run are kept apart. One with `head` None stands for all further ones together.
    """

    head: str | None
    custom_id: str
    rows: int
    prompt_tokens: int
    cached_tokens: int | None
    cached_reported: int
    cached_share: float | None


class _Sums:
    __slots__ = ("cached", "cached_of", "custom_id", "head", "prompt_tokens", "reported", "rows")

    def __init__(self, head: str | None, custom_id: str) -> None:
        self.head = head
        self.custom_id = custom_id
        self.rows = self.prompt_tokens = self.cached = self.reported = self.cached_of = 0

    def frozen(self) -> HeadUsage:
        return HeadUsage(
            head=self.head,
            custom_id=self.custom_id,
            rows=self.rows,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached if self.reported else None,
            cached_reported=self.reported,
            cached_share=self.cached / self.cached_of if self.cached_of else None,
        )


class HeadTally:
    """Sums usage by head. Memory is bounded: `HEADS_KEPT` heads, and one sum for all others. Not locked."""

    def __init__(self) -> None:
        self._heads: dict[str, _Sums] = {}
        self._others: _Sums | None = None
        self._largest: Sequence[HeadUsage] | None = ()

    @property
    def total(self) -> int:
        """Heads met; `HEADS_KEPT` + 1 says more than `HEADS_KEPT`, however many."""
        return len(self._heads) + (self._others is not None)

    def add(self, head: str, custom_id: str, usages: Sequence[Usage]) -> bool:
        """Count a row by the usage of each of its answers. Returns whether it is the first of its head, False
        where that is not known.
        """
        sums = self._heads.get(head)
        first = sums is None and len(self._heads) < HEADS_KEPT
        if sums is None:
            if first:
                sums = self._heads[head] = _Sums(head, custom_id)
            else:
                sums = self._others = self._others or _Sums(None, custom_id)
        sums.rows += 1
        for usage in usages:
            sums.prompt_tokens += usage.prompt_tokens
            if usage.cached_tokens is not None:
                sums.cached += usage.cached_tokens
                sums.reported += 1
                sums.cached_of += usage.prompt_tokens
        self._largest = None
        return first

    def largest(self) -> Sequence[HeadUsage]:
        """The heads with most prompt tokens, `HEADS_SHOWN` at most, largest first; the others come last."""
        if self._largest is None:
            room = HEADS_SHOWN - (self._others is not None)
            top = heapq.nlargest(room, self._heads.values(), key=attrgetter("prompt_tokens"))
            if self._others is not None:
                top.append(self._others)
            self._largest = tuple(sums.frozen() for sums in top)
        return self._largest
