"""A loaded model: who uses it, what it takes on the card, and how it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from math import inf
from time import monotonic
from typing import Any

from ollama_batch.testing._asks import Refusal
from ollama_batch.testing._slots import SlotPool
from ollama_batch.testing.config import FakeModel, usual_batch
from ollama_batch.testing.faults import KINDS, RUNNER_ERROR, Fault
from ollama_batch.testing.memory import OOM_KINDS, MemoryModel


class Runner:
    """A loaded model: with its digest and load options in `settings`, a request for others loads anew.

    `size` and `vram` are its bytes in all and on the card, as they were at its load.
    """

    def __init__(
        self, model: FakeModel, settings: tuple[Any, ...], num_ctx: int, pool: SlotPool | None, size: int
    ) -> None:
        self.model = model
        self.settings = settings
        self.num_ctx = num_ctx
        self.pool = pool
        self.size = self.vram = size
        self.grown = 0
        self.working = 0
        self.active = 0
        self.expires = inf
        self.keep_s = 300.0
        self.stuck = False
        self.drained: asyncio.Event | None = None
        self._users: dict[asyncio.Task[Any], None] = {}

    def enter(self) -> None:
        """One request more uses the model: the one whose task this is."""
        self.active += 1
        task = asyncio.current_task()
        if task is not None:
            self._users[task] = None

    def leave(self, keep_s: float) -> None:
        """One request less uses the model, which stays loaded for `keep_s` more seconds."""
        self.active -= 1
        task = asyncio.current_task()
        if task is not None:
            self._users.pop(task, None)
        self.keep_s = keep_s
        if not self.stuck:
            self.expires = monotonic() + keep_s
        if self.active == 0 and self.drained is not None:
            self.drained.set()

    def others(self) -> list[asyncio.Task[Any]]:
        """The tasks of all requests that use the model, except the one that asks."""
        return [task for task in self._users if task is not asyncio.current_task()]


class Card:
    """The memory that loaded models share. Without a `MemoryModel` everything fits."""

    def __init__(self, memory: MemoryModel | None) -> None:
        self._memory = MemoryModel() if memory is None else memory

    def loaded_bytes(self, model: FakeModel, num_ctx: int, slots: int, num_batch: int | None) -> int:
        """What a load takes in all, in bytes."""
        batch = usual_batch(num_ctx, slots) if num_batch is None else num_batch
        buffers = self._memory.overhead_bytes + self._memory.batch_bytes * batch
        return model.loaded_bytes(num_ctx, slots, batch) + buffers

    def fits(self, size: int, loaded: Iterable[Runner]) -> bool:
        """Whether a load of `size` bytes fits on the card beside those that are there."""
        room = self._memory.room_bytes
        return room is None or size + self.used(loaded) <= room

    def place(self, runner: Runner, loaded: Iterable[Runner]) -> None:
        """Say how much of a new load is on the card. Raises Refusal if it is to fail instead of spilling."""
        room = self._memory.room_bytes
        left = runner.size if room is None else max(room - self.used(loaded), 0)
        if left < runner.size and self._memory.too_big == "oom":
            raise Refusal(KINDS["oom"].status, KINDS["oom"].text, fault="oom")
        runner.vram = min(left, int(runner.size * runner.model.gpu_share))

    def used(self, loaded: Iterable[Runner]) -> int:
        """What this server takes on the card now, in bytes."""
        each = self._memory.request_bytes
        return sum(runner.vram + runner.grown + runner.working * each for runner in loaded)

    def grow(self, runner: Runner, tokens: int) -> None:
        """Count tokens that were evaluated or generated."""
        runner.grown += tokens * self._memory.growth_bytes

    def lack(self, runner: Runner, loaded: Iterable[Runner]) -> Refusal | None:
        """How it is said that memory has run out; None as long as it has not."""
        memory = self._memory
        crowded = memory.max_in_flight is not None and runner.working > memory.max_in_flight
        at_work = runner.working * memory.request_bytes + runner.grown
        room = memory.room_bytes
        full = room is not None and at_work > 0 and self.used(loaded) > room
        if not crowded and not full:
            return None
        kind = OOM_KINDS[memory.wording]
        return Refusal(KINDS[kind].status, KINDS[kind].text, fault=kind, raw=KINDS[kind].raw)

    @property
    def lack_kills(self) -> bool:
        """Whether the model's process dies when memory runs out."""
        return self._memory.wording == "ollama"


def died(fault: Fault) -> Refusal:
    """What those hear whose runner died of `fault`."""
    kind = KINDS[fault.kind]
    said = RUNNER_ERROR + "unexpected EOF" if fault.text is None else fault.text
    status = kind.status if fault.status is None else fault.status
    return Refusal(status, said, fault=fault.kind, reset=fault.kind == "runner_dies_reset")
