"""What is read of this machine: memory, who uses the GPUs, swap, disks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ollama_batch.errors import JournalError
from ollama_batch.journal.place import check_place, file_system
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.probe import LocalProbe
from ollama_batch.memory.processes import GpuProcess, gpu_processes
from ollama_batch.memory.sample import MemorySample, Reading


@dataclass(frozen=True, slots=True)
class Disk:
    """Where a journal would be: bytes free for this user, the type of the file system (None: not told), and
    why no journal can be there (None: it can).
    """

    folder: Path
    free: Reading
    kind: str | None
    refused: str | None


class Machine:
    """Reads this machine. Blocks for some milliseconds; what cannot be read is unknown."""

    def __init__(self) -> None:
        self._nvml, self._host = NvmlProbe(), HostProbe()
        self._probe = LocalProbe(nvml=self._nvml, host=self._host)

    def memory(self) -> MemorySample:
        """All memory, and how busy the GPUs are."""
        return self._probe.read()

    def card_users(self) -> tuple[GpuProcess, ...]:
        """Who has memory of the GPUs. Raises MemoryUnknownError."""
        return gpu_processes(self._nvml, self._host.engine_pids())

    def swap_used(self) -> Reading:
        """Bytes of this machine's memory that lie on a disk."""
        import psutil

        try:
            return Reading("psutil", psutil.swap_memory().used)
        except (OSError, RuntimeError, ValueError, psutil.Error) as exc:
            return Reading.unknown(str(exc), "psutil")

    def disk(self, folder: Path) -> Disk:
        """The disk of `folder`."""
        import psutil

        refused = None
        try:
            check_place(folder / "x.run.db")
            if not os.access(folder, os.W_OK | os.X_OK):
                refused = "you may not write there"
        except JournalError as exc:
            refused = str(exc)
        try:
            free = Reading("psutil", psutil.disk_usage(str(folder)).free)
        except (OSError, psutil.Error) as exc:
            return Disk(folder, Reading.unknown(str(exc), "psutil"), None, refused)
        return Disk(folder, free, file_system(folder), refused)

    def close(self) -> None:
        """Let go of the driver."""
        self._probe.close()
