"""Keeps in the journal how much memory was in use while a run went on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from ollama_batch._memory_tally import MemoryTally
from ollama_batch.errors import JournalError
from ollama_batch.memory import MemorySample

EVERY_S: Final = 30.0
KEPT: Final = ("vram_used_bytes", "vram_total_bytes", "ram_used_bytes")


class MemoryNotes:
    """Notes one sample in 30 seconds, of those it is shown, under the kind "memory"; unknown is None."""

    def __init__(self, note: Callable[..., Awaitable[None]]) -> None:
        self._note = note
        self._next: float | None = None

    async def see(self, sample: MemorySample) -> None:
        """Keep `sample` if it is time."""
        if self._next is not None and sample.at < self._next:
            return
        self._next = sample.at + EVERY_S
        tally = MemoryTally()
        tally.add(sample)
        fields = tally.fields()
        try:
            await self._note("memory", {name: fields[name] for name in KEPT})
        except JournalError:
            pass  # a full disk, say: the results will meet it, and guards have to go on
