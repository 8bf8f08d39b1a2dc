"""What was seen of a server and a machine so far, and what it says of other settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_batch.doctor.load_checks import Card, best_plan, no_smaller
from ollama_batch.doctor.measure import Parallel
from ollama_batch.doctor.night import Pace
from ollama_batch.doctor.server import Running
from ollama_batch.memory.learned import LearnedMemory
from ollama_batch.memory.plan import MemoryPlan, plan_memory
from ollama_batch.memory.processes import GpuProcess
from ollama_batch.memory.recommend import KV_TYPES
from ollama_batch.memory.sample import MemorySample
from ollama_batch.memory.shape import ModelShape


@dataclass(slots=True)
class Seen:
    """What later findings need of earlier ones.

    `slots_set` is what a server started by hand was told to have, `slots_loaded` what was reckoned from what
    it has loaded now. `num_ctx` is the run's: asked for, or what it chooses for its rows (None: not known).
    """

    slots_set: int | None = None
    num_ctx: int | None = None
    sample: MemorySample | None = None
    users: tuple[GpuProcess, ...] | str = ()
    running: tuple[Running, ...] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    shape: ModelShape | None = None
    learned: LearnedMemory = field(default_factory=lambda: LearnedMemory("", folder=None))
    loaded: Running | None = None
    slots_loaded: int | None = None
    parallel: Parallel | None = None
    pace: Pace | None = None
    card: Card | None = None
    model_bytes_before: int = 0

    def learn(self, folder: Path | None) -> None:
        """Recall what the model took before (kept in `folder`), and take in what it takes now."""
        shape, loaded, found = self.shape, self.loaded, self.parallel
        if shape is None or shape.digest is None:
            return
        learned = self.learned = LearnedMemory(shape.digest, folder=folder)
        # On a busy machine some of the slots go unseen, but none is seen that is not there.
        seen = 1 if found is None or found.slots is None else found.slots
        if loaded is not None and learned.learn(shape, loaded.told(), at_least=seen):
            self.slots_loaded = learned.loads[-1].slots
            learned.save()

    @property
    def slots(self) -> int | None:
        """The slots that this server has: measured, reckoned from what it has loaded, or set; None: none of
        that is known.
        """
        if self.parallel is not None and self.parallel.slots is not None:
            return self.parallel.slots
        return self.slots_loaded or self.slots_set

    def plan(self, num_ctx: int | None, slots: int | None = None) -> MemoryPlan | None:
        """What a load will take with so many slots (None: the server's, or else those of the latest load that
        was learned, or else one). None where context or model are not known.
        """
        if self.shape is None or num_ctx is None:
            return None
        loads = self.learned.loads
        slots = slots or self.slots or (loads[-1].slots if loads else 1)
        return self.learned.correct(plan_memory(self.shape, num_ctx=num_ctx, slots=slots))

    def best(self, num_ctx: int | None, kinds: Sequence[str] = KV_TYPES) -> MemoryPlan | None:
        """The settings that fit the card with that context, as `best_plan` has them."""
        return best_plan(self.shape, self.card, num_ctx, kinds, correct=self.learned.correct)

    def fits(self, num_ctx: int) -> bool | None:
        """Whether a load with that context fits the card; None: not known."""
        plan = self.plan(num_ctx)
        if plan is None or self.card is None:
            return None
        return no_smaller(plan).total_bytes <= self.card.total - self.card.others
