"""One guard of a run: what it has asked for, and what of its words was told."""

from __future__ import annotations

import re
from typing import Final

from ollama_batch.memory import Guard, GuardDecision, MemorySample, RamGuard, VramGuard

TOLD_MOST: Final = 20
"""So many different notes of one guard are told in a phase."""

LASTING: Final = 3
"""What cannot be read in so many samples from the beginning on, one in a second, will not be read later."""

_NUMBER: Final = re.compile(r"(?<!\w)\d[\d.,]*")


class GuardPost:
    """A guard, and what holds for its sake at present.

    `pausing` is why it lets nothing be sent (None: it does not), `halved` the width it has last halved to
    since memory was well, `capped` whether it bounds the width at all. `asked`: the user has given it.
    """

    def __init__(self, guard: Guard, *, asked: bool = True) -> None:
        self.guard = guard
        self._unsaid = asked and isinstance(guard, VramGuard | RamGuard)
        self._samples = 0
        self.pausing: str | None = None
        self.halved: int | None = None
        self.capped = False
        self.blamed = False
        self._told: set[str] = set()

    @property
    def name(self) -> str:
        """The class of the guard."""
        return type(self.guard).__name__

    def forget(self) -> None:
        """Nothing holds for its sake any more."""
        self.pausing = self.halved = None
        self.capped = False

    def powerless(self, sample: MemorySample) -> str | None:
        """Why a guard that the user has given cannot act, and what helps: said once, at the beginning."""
        self._samples += 1
        if not self._unsaid or not isinstance(self.guard, VramGuard | RamGuard):
            return None
        why = self.guard._powerless(sample, lasting=self._samples >= LASTING)
        self._unsaid = why is None and self._samples < LASTING
        return why

    def has_news(self, decision: GuardDecision) -> bool:
        """Whether it says something for the first time, numbers aside; from then on that is told."""
        said = {*decision.notes, *(() if decision.unknown is None else (f"unknown: {decision.unknown}",))}
        news = {_NUMBER.sub("#", each) for each in said} - self._told
        if not news or len(self._told) >= TOLD_MOST:
            return False
        self._told |= news
        return True
