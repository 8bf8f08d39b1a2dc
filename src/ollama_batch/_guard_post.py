"""One guard of a run: what it has asked for, and what of its words was told."""

from __future__ import annotations

import re
from typing import Final

from ollama_batch.memory import Guard, GuardDecision

TOLD_MOST: Final = 20
"""So many different notes of one guard are told in a phase."""

_NUMBER: Final = re.compile(r"(?<!\w)\d[\d.,]*")


class GuardPost:
    """A guard, and what holds for its sake at present.

    `pausing` is why it lets nothing be sent (None: it does not), `halved` the width it has last halved to
    since memory was well, `capped` whether it bounds the width at all.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
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

    def has_news(self, decision: GuardDecision) -> bool:
        """Whether it says something for the first time, numbers aside; from then on that is told."""
        said = {*decision.notes, *(() if decision.unknown is None else (f"unknown: {decision.unknown}",))}
        news = {_NUMBER.sub("#", each) for each in said} - self._told
        if not news or len(self._told) >= TOLD_MOST:
            return False
        self._told |= news
        return True
