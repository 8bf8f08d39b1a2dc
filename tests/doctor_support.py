"""A machine as a test wants it, for the doctor to examine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from memory_support import GIB, device, host, known, sample
from ollama_batch.doctor.machine import Disk, Machine
from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory import GpuProcess, MemorySample, Reading


@dataclass
class FakeMachine(Machine):
    """A machine with one free card of 16 GiB, 16 GiB of RAM and 100 GiB of disk, unless told otherwise."""

    found: MemorySample = field(default_factory=lambda: quiet_sample())
    users: tuple[GpuProcess, ...] | str = ()
    swapped: Reading = field(default_factory=lambda: known(0))
    free: Reading = field(default_factory=lambda: known(100 * GIB))
    refused: str | None = None
    closed: bool = False

    def memory(self) -> MemorySample:
        return self.found

    def card_users(self) -> tuple[GpuProcess, ...]:
        if isinstance(self.users, str):
            raise MemoryUnknownError(self.users)
        return self.users

    def swap_used(self) -> Reading:
        return self.swapped

    def disk(self, folder: Path) -> Disk:
        return Disk(folder, self.free, "ext4", self.refused)

    def close(self) -> None:
        self.closed = True


def card(free: float, total: float = 16 * GIB, busy: int | None = 0, name: str = "gpu0") -> MemorySample:
    """A sample of one card with so many bytes free, so many percent busy."""
    percent = Reading.unknown("not told", "test") if busy is None else known(busy)
    found = replace(device(free, total, name), busy_percent=percent)
    return sample(0.0, found, host=host(12 * GIB))


def quiet_sample() -> MemorySample:
    """A sample of one free, idle card."""
    return card(15.5 * GIB)
