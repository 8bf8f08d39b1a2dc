"""One sample of all memory of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, Self

from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.amd import AmdProbe
from ollama_batch.memory.engine_processes import Addressed, EngineProcesses
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.sample import DeviceMemory, MemorySample


class Probe(Protocol):
    """What a sampler calls about once a second, in a thread of its own."""

    def read(self) -> MemorySample:
        """Memory as it is now. May block; what cannot be read is unknown, not an error."""
        ...


class LocalProbe:
    """Reads the GPUs (NVIDIA's, then AMD's) and the RAM of this machine.

    A machine without GPUs gives a sample without devices that says why. Not for several threads at once.
    """

    def __init__(
        self,
        *,
        nvml: NvmlProbe | None = None,
        amd: AmdProbe | None = None,
        host: HostProbe | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = NvmlProbe() if nvml is None else nvml
        self._amd = AmdProbe() if amd is None else amd
        self._host = HostProbe() if host is None else host
        self._now = now
        self._seen: set[str] = set()  # the makers whose GPUs were there

    @classmethod
    def of(cls, engine: Addressed) -> Self:
        """One for which the engine's processes are those of `engine`, as far as that can be told."""
        return cls(host=HostProbe(EngineProcesses.of(engine)))

    def read(self) -> MemorySample:
        """Memory as it is now."""
        began = time.perf_counter()
        host = self._host.read()
        pids = self._host.engine_pids()
        devices: list[DeviceMemory] = []
        reasons = {}
        readers: dict[str, Callable[[], tuple[DeviceMemory, ...]]] = {
            "NVIDIA": lambda: self._nvml.devices(pids, host=(host.total, host.available)),
            "AMD": self._amd.devices,
        }
        for maker, devices_of in readers.items():
            try:
                devices += devices_of()
                self._seen.add(maker)
            except MemoryUnknownError as exc:
                reasons[maker] = exc.reason
        # Where there are GPUs of one maker, those of the other are missed only if they were there before.
        told = [reason for maker, reason in reasons.items() if not devices or maker in self._seen]
        return MemorySample(
            self._now(),
            host,
            tuple(devices),
            "; ".join(told) or (None if devices else "no GPU was found"),
            cost_s=time.perf_counter() - began,
        )

    def close(self) -> None:
        """Let go of the driver."""
        self._nvml.close()
