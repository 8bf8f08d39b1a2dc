"""What models were seen to take, beside what was predicted; kept between runs."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ollama_batch.memory.plan import MemoryPlan, plan_memory
from ollama_batch.memory.shape import ModelShape
from ollama_batch.tokens.state import read_state, write_state
from ollama_batch.types import LoadedModel

_log = logging.getLogger("ollama_batch.memory")

STATE_VERSION: Final = 1
MOST_LOADS: Final = 50
MOST_SLOTS: Final = 64
"""More are not looked for where they are not told."""

LEAST, MOST = 0.5, 2.0
"""A load beyond that was not the one that was planned: other slots, or another KV type."""


@dataclass(frozen=True, slots=True)
class Load:
    """One set of settings, and what the engine took with it, in bytes."""

    num_ctx: int
    slots: int
    kv_type: str
    num_batch: int
    predicted: int
    actual: int

    @property
    def settings(self) -> tuple[int, int, str, int]:
        """What was set."""
        return self.num_ctx, self.slots, self.kv_type, self.num_batch

    @property
    def ratio(self) -> float:
        """What was taken, by what was predicted."""
        return self.actual / self.predicted


class LearnedMemory:
    """Corrects plans of one model by what the engine took in earlier loads.

    `digest` says whose weights; `folder` is where it is kept (`user_state_dir()`, None: nowhere).
    """

    def __init__(self, digest: str, *, folder: Path | None) -> None:
        self._digest = digest
        self._path = None
        if folder is not None:
            name = hashlib.sha256(digest.encode()).hexdigest()[:16]
            self._path = folder / "memory" / f"{name}.json"
        self._loads: dict[tuple[int, int, str, int], Load] = {}
        if self._path is not None:
            self._read(self._path)

    @property
    def loads(self) -> tuple[Load, ...]:
        """What was seen, the latest last."""
        return tuple(self._loads.values())

    def observe(self, plan: MemoryPlan, loaded: LoadedModel) -> bool:
        """Learn what the engine says that `plan` takes; returns whether that was taken over.

        Nothing is learned from an engine that does not say, that loaded another context than planned, or
        that took less than half or more than twice of what was predicted: its slots or its KV type, which
        no server tells, are not those of the plan.
        """
        size = loaded.size_bytes
        if size is None or loaded.context_length not in (None, plan.num_ctx):
            return False
        if loaded.digest is not None and loaded.digest != self._digest:
            return False
        seen = Load(plan.num_ctx, plan.slots, plan.kv_type, plan.num_batch, plan.predicted_bytes, size)
        if not LEAST <= seen.ratio <= MOST:
            return False
        self._add(seen)
        return True

    def learn(
        self,
        shape: ModelShape,
        loaded: LoadedModel,
        *,
        slots: int | None = None,
        at_least: int = 1,
        kv_type: str = "f16",
        num_batch: int | None = None,
    ) -> bool:
        """`observe` a load of `shape` with these settings; returns whether it was taken over.

        `slots` None: they are not told. As many are taken, `at_least` or more, as come nearest to what the
        load took.
        """
        if loaded.size_bytes is None or loaded.context_length is None:
            return False
        size, num_ctx = loaded.size_bytes, loaded.context_length
        counts = range(at_least, max(at_least, MOST_SLOTS) + 1) if slots is None else (slots,)
        plans = [
            plan_memory(shape, num_ctx=num_ctx, slots=count, kv_type=kv_type, num_batch=num_batch)
            for count in counts
        ]
        return self.observe(min(plans, key=lambda plan: abs(plan.predicted_bytes - size)), loaded)

    def correct(self, plan: MemoryPlan) -> MemoryPlan:
        """`plan` with what was learned: as measured where the same was loaded before, else by the load that
        was most like it (first of the same KV type, then of as many slots, then of the nearest size).

        Of as many slots its ratio counts. Of another number nobody knows which part of a load was off, that
        of each slot or that of all: its ratio or its difference in bytes, whichever corrects less.
        """
        settings = (plan.num_ctx, plan.slots, plan.kv_type, plan.num_batch)
        same = self._loads.get(settings)
        if same is not None:
            return plan.corrected(same.actual / plan.predicted_bytes, measured=True)
        if not self._loads:
            return plan

        def unlike(load: Load) -> tuple[bool, bool, float]:
            size = abs(math.log(load.predicted / plan.predicted_bytes))
            return load.kv_type != plan.kv_type, load.slots != plan.slots, size

        load = min(self._loads.values(), key=unlike)
        if load.slots == plan.slots:
            return plan.corrected(load.ratio)
        by_bytes = 1.0 + (load.actual - load.predicted) / plan.predicted_bytes
        return plan.corrected(min(load.ratio, by_bytes, key=lambda ratio: abs(ratio - 1.0)))

    def save(self) -> bool:
        """Keep it for later runs; returns whether there was anything to keep, and that worked."""
        if self._path is None or not self._loads:
            return False
        return write_state(self._path, self.to_dict(), version=STATE_VERSION)

    def to_dict(self) -> Mapping[str, Any]:
        """What was learned, as JSON data."""
        return {
            "digest": self._digest,
            "loads": [[*load.settings, load.predicted, load.actual] for load in self._loads.values()],
        }

    def _add(self, load: Load) -> None:
        self._loads.pop(load.settings, None)
        self._loads[load.settings] = load
        while len(self._loads) > MOST_LOADS:
            del self._loads[next(iter(self._loads))]

    def _read(self, path: Path) -> None:
        state = read_state(path, version=STATE_VERSION)
        if state is None:
            return
        try:
            if state["digest"] != self._digest:
                raise ValueError(f"it belongs to {state['digest']!r}")
            for num_ctx, slots, kv_type, num_batch, predicted, actual in state["loads"]:
                numbers = (num_ctx, slots, num_batch, predicted, actual)
                if any(type(each) is not int or each < 1 for each in numbers) or not isinstance(kv_type, str):
                    raise ValueError(f"{numbers} of {kv_type!r} is no load")
                load = Load(num_ctx, slots, kv_type, num_batch, predicted, actual)
                if not LEAST <= load.ratio <= MOST:
                    raise ValueError(f"{actual} bytes where {predicted} were predicted")
                self._add(load)
        except (KeyError, TypeError, ValueError) as error:
            self._loads.clear()
            _log.warning("ignored what was learned of memory in %s: %s", path, error)
