"""Which processes have memory of the GPUs of this machine, and whether they are the engine's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.sample import Reading


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that has memory of a GPU.

    `device` is the GPU's id ("gpu0"), `name` the program (None: it is not seen from here, as from inside a
    container), `used` its bytes there. `engine`: it belongs to the engine.
    """

    device: str
    pid: int
    name: str | None
    used: Reading
    engine: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "device": self.device,
            "pid": self.pid,
            "name": self.name,
            "used": self.used.to_dict(),
            "engine": self.engine,
        }


def program_name(pid: int) -> str | None:
    """What a process is called; None if it has ended or is not seen from here."""
    import psutil

    try:
        return psutil.Process(pid).name()
    except (OSError, psutil.Error):
        return None


def gpu_processes(
    nvml: NvmlProbe, engine_pids: Collection[int], *, named: Callable[[int], str | None] = program_name
) -> tuple[GpuProcess, ...]:
    """The processes that NVIDIA's driver tells of, those with most memory first.

    Raises MemoryUnknownError if it does not tell.
    """
    found = (
        GpuProcess(device, pid, named(pid), used, pid in engine_pids)
        for device, pid, used in nvml.processes()
    )
    return tuple(sorted(found, key=lambda each: (-(each.used.value or 0), each.pid)))
