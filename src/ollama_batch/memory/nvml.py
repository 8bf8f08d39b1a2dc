"""The memory of NVIDIA's GPUs, by NVML."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.sample import DeviceMemory, Reading

SOURCE: Final = "nvml"
LIBRARY: Final = "libnvidia-ml.so.1"
"""What pynvml loads, except on Windows."""

AGAIN_S: Final = 60.0
"""How long a driver that could not be used is left alone."""


class NvmlProbe:
    """Reads every GPU that NVIDIA's driver shows, MIG instances one by one.

    `nvml` is the module `pynvml` (None: imported at the first reading). Not for several threads at once.
    """

    def __init__(self, nvml: Any = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._now = now
        self._ready = False
        self._failure: tuple[float, str] | None = None

    def devices(
        self, engine_pids: Collection[int] = (), *, host: tuple[Reading, Reading] | None = None
    ) -> tuple[DeviceMemory, ...]:
        """The devices as they are now. `host` is total and available memory of the machine, for GPUs
        without memory of their own.

        Raises MemoryUnknownError if NVML cannot be used at all (no library, no driver); a single number that
        cannot be read is unknown.
        """
        nvml = self._start()
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as exc:
            self.close()  # a driver that was reloaded wants to be greeted anew
            raise MemoryUnknownError(f"NVML: {exc}") from exc
        found: list[DeviceMemory] = []
        for index in range(count):
            found += self._device(nvml, index, engine_pids, host)
        return tuple(found)

    def close(self) -> None:
        """Let go of the driver; the next reading begins anew."""
        if self._ready:
            self._ready = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                pass  # it is gone already

    def _start(self) -> Any:
        if self._ready:
            return self._nvml
        if self._failure is not None and self._now() - self._failure[0] < AGAIN_S:
            raise MemoryUnknownError(self._failure[1])
        if self._nvml is None:
            self._nvml = self._imported()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as exc:
            self._failure = (self._now(), f"NVML: {exc}")
            raise MemoryUnknownError(self._failure[1]) from exc
        self._failure = None
        self._ready = True
        return self._nvml

    def _imported(self) -> Any:
        """pynvml, whose import costs much more than the look whether there is anything that it could load."""
        if sys.platform != "win32":
            try:
                ctypes.CDLL(LIBRARY)
            except OSError as exc:
                # In the words of pynvml for this.
                self._failure = (self._now(), "NVML: NVML Shared Library Not Found")
                raise MemoryUnknownError(self._failure[1]) from exc
        import pynvml

        return pynvml

    def processes(self) -> tuple[tuple[str, int, Reading, bool], ...]:
        """The processes that have memory of a GPU: the device's id, theirs, how much, and whether they draw.

        A driver inside a container often hides those outside. Raises MemoryUnknownError if NVML cannot be
        used, or tells of none of its devices which processes they serve.
        """
        nvml = self._start()
        told: list[tuple[str, int, Reading, bool]] = []
        errors: list[str] = []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                for id_, handle, _ in _parts(nvml, index):
                    try:
                        told += [(id_, pid, *found) for pid, found in _users(nvml, handle).items()]
                    except nvml.NVMLError as exc:
                        errors.append(f"{id_}: {exc}")
        except nvml.NVMLError as exc:
            self.close()
            errors.append(str(exc))
        if errors and not told:
            raise MemoryUnknownError(f"NVML: {'; '.join(errors)}")
        return tuple(told)

    def _device(
        self, nvml: Any, index: int, pids: Collection[int], host: tuple[Reading, Reading] | None
    ) -> list[DeviceMemory]:
        try:
            parts = _parts(nvml, index)
        except nvml.NVMLError as exc:
            lost = Reading.unknown(str(exc), SOURCE)
            return [DeviceMemory(f"gpu{index}", f"GPU {index}", lost, lost, lost)]
        # An instance of a divided card has memory of its own.
        return [
            _memory(nvml, handle, id_, name, pids, None if "/" in id_ else host)
            for id_, handle, name in parts
        ]


def _parts(nvml: Any, index: int) -> list[tuple[str, Any, str]]:
    """Id, handle and name of a GPU, or of each instance it is divided into. Raises NVMLError."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = _name(nvml, handle, f"GPU {index}")
    try:
        divided = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        divided = False  # a card that cannot be divided
    if not divided:
        return [(f"gpu{index}", handle, name)]
    # The whole card can be read only by root, and says nothing of the room in one part.
    parts = []
    for part in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, part)
        except nvml.NVMLError:
            continue  # no instance has this number
        parts.append((f"gpu{index}/mig{part}", instance, _name(nvml, instance, f"{name} MIG {part}")))
    return parts


def _users(nvml: Any, handle: Any) -> dict[int, tuple[Reading, bool]]:
    """What each process has of a device, and whether it draws. Raises NVMLError."""
    found: dict[int, Reading] = {}
    running = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    drawing: list[Any] = []
    try:
        drawing = list(nvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
    except nvml.NVMLError:
        pass  # what computes is what matters
    for process in (*running, *drawing):
        used = process.usedGpuMemory
        reading = (
            Reading.unknown("the driver does not say", SOURCE) if used is None else Reading(SOURCE, used)
        )
        before = found.get(process.pid)
        # One that does both is told twice, with the same figure.
        if before is None or (reading.value or 0) > (before.value or 0):
            found[process.pid] = reading
    draws = {process.pid for process in drawing}
    return {pid: (reading, pid in draws) for pid, reading in found.items()}


def _memory(
    nvml: Any,
    handle: Any,
    id_: str,
    name: str,
    pids: Collection[int],
    host: tuple[Reading, Reading] | None,
) -> DeviceMemory:
    unified = False
    try:
        info = _info(nvml, handle)
        total, free = Reading(SOURCE, info.total), Reading(SOURCE, info.free)
        unified = info.total == 0
    except nvml.NVMLError_NotSupported as exc:
        total = free = Reading.unknown(str(exc), SOURCE)
        unified = True
    except nvml.NVMLError as exc:
        total = free = Reading.unknown(str(exc), SOURCE)
    if unified and host is not None:
        total, free = host
    elif unified:
        total = free = Reading.unknown("this GPU tells no memory of its own", SOURCE)
    return DeviceMemory(id_, name, total, free, _busy(nvml, handle), unified, _holds(nvml, handle, pids))


def _info(nvml: Any, handle: Any) -> Any:
    # `free` is what the decisions rest on, and both versions agree on it; they differ in what counts as used.
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError_FunctionNotFound:
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _busy(nvml: Any, handle: Any) -> Reading:
    try:
        return Reading(SOURCE, nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError as exc:
        return Reading.unknown(str(exc), SOURCE)


def _holds(nvml: Any, handle: Any, pids: Collection[int]) -> bool | None:
    if not pids:
        return None
    try:
        running = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except nvml.NVMLError:
        return None
    # Inside a container the driver's process ids are not ours: that none is found then says nothing.
    return True if not running.isdisjoint(pids) else None


def _name(nvml: Any, handle: Any, otherwise: str) -> str:
    try:
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return otherwise
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
