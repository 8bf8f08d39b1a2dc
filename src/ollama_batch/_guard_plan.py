"""A guard that every phase of a run makes for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_batch.memory import Guard, GuardDecision, MemorySample, RamGuard, VramGuard
from ollama_batch.memory.initial_use import InitialUse


@dataclass(frozen=True, slots=True)
class GuardPlan:
    """Stands among the guards of a runner for one of this kind: runs side by side share no levels of it.

    Without `options` it is the usual guard of its kind. Raises ConfigError for wrong options.
    """

    kind: type[VramGuard | RamGuard]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kind(**self.options)

    def made(self, initial: InitialUse) -> Guard:
        """A new guard; the usual one lets be what `initial` says was in use."""
        guard = self.kind(**self.options)
        return guard if self.options else guard._sparing(initial)

    def decide(self, sample: MemorySample) -> GuardDecision:
        """What a new guard decides on its first sample."""
        return self.kind(**self.options).decide(sample)
