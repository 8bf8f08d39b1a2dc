"""Samples of memory, and a fake of the module pynvml, for the tests of guards and probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from ollama_batch.memory import DeviceMemory, EngineMemory, HostMemory, MemorySample, Reading

GIB = 2**30
MIB = 2**20


def known(value: float) -> Reading:
    return Reading("test", round(value))


def unknown(reason: str = "the cable is out") -> Reading:
    return Reading.unknown(reason, "test")


def host(free: float | None = 8 * GIB, total: float = 16 * GIB) -> HostMemory:
    available = unknown() if free is None else known(free)
    return HostMemory(known(total), available, unknown("no limit"), known(50 * MIB), unknown("none"))


def device(free: float | None, total: float = 16 * GIB, name: str = "gpu0", **other: Any) -> DeviceMemory:
    return DeviceMemory(
        name, name.upper(), known(total), unknown() if free is None else known(free), known(50), **other
    )


def sample(at: float, *devices: DeviceMemory, **other: Any) -> MemorySample:
    settings = {"host": host(), "devices": devices, **other}
    if not devices:
        settings.setdefault("devices_unknown", "no driver")
    return MemorySample(at, **settings)


def engine(vram: float | None, size: float | None = None, *, remote: bool = True) -> EngineMemory:
    readings = [unknown("not said") if each is None else known(each) for each in (size or vram, vram)]
    return EngineMemory("m:1b", *readings, remote)


@dataclass
class Card:
    """A GPU of the fake driver: numbers, or the errors that reading them raises."""

    total: int = 16 * GIB
    free: int = 10 * GIB
    memory_error: type[Exception] | None = None
    busy: int | None = 37
    pids: tuple[int, ...] = ()
    parts: dict[int, Card] | None = None
    old_driver: bool = False
    lost: bool = False


@dataclass
class FakeNvml:
    """The functions of pynvml that the probe uses; what is an error is pynvml's own class."""

    cards: list[Card]
    init_error: type[Exception] | None = None
    count_error: type[Exception] | None = None
    calls: list[str] = field(default_factory=list)
    nvmlMemory_v2: int = pynvml.nvmlMemory_v2  # noqa: N815 - its real name
    NVML_DEVICE_MIG_ENABLE: int = pynvml.NVML_DEVICE_MIG_ENABLE
    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound

    def nvmlInit(self) -> None:  # noqa: N802 - its real name, like those below
        self.calls.append("init")
        if self.init_error is not None:
            raise self.init_error()

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.count_error is not None:
            raise self.count_error()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost:
            raise pynvml.NVMLError_GpuIsLost()
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: Card) -> str:  # noqa: N802
        return "NVIDIA Fake 4080"

    def nvmlDeviceGetMigMode(self, handle: Card) -> list[int]:  # noqa: N802
        if handle.parts is None:
            raise pynvml.NVMLError_NotSupported()
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Card, index: int) -> Card:  # noqa: N802
        if handle.parts is None or index not in handle.parts:
            raise pynvml.NVMLError_NotFound()
        return handle.parts[index]

    def nvmlDeviceGetMemoryInfo(self, handle: Card, version: int | None = None) -> Any:  # noqa: N802
        if handle.memory_error is not None:
            raise handle.memory_error()
        if version is not None and handle.old_driver:
            raise pynvml.NVMLError_FunctionNotFound()
        reserved = 300 * MIB
        used = handle.total - handle.free - (reserved if version else 0)
        return SimpleNamespace(total=handle.total, free=handle.free, used=used, reserved=reserved)

    def nvmlDeviceGetUtilizationRates(self, handle: Card) -> Any:  # noqa: N802
        if handle.busy is None:
            raise pynvml.NVMLError_NotSupported()
        return SimpleNamespace(gpu=handle.busy, memory=1)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Card) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in handle.pids]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Card) -> list[Any]:  # noqa: N802
        raise pynvml.NVMLError_NotSupported()
