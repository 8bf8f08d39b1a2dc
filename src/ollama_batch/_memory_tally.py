"""What samples of memory add up to in the metrics of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ollama_batch.memory.sample import MemorySample, Reading

MEASURED: Final = ("vram_used_bytes", "vram_total_bytes", "ram_used_bytes", "gpu_share")
"""The fields that say unknown with a reason."""

NOT_MEASURED: Final = "not measured"
"""The reason of all of them before the first sample, and in a run without guards."""

LOW_SHARE: Final = 0.05
"""The low end of the GPU's use that is told: it shows whether the engine was kept busy."""


class MemoryTally:
    """The latest sample, the peaks, and how busy the GPU was. Constant in the number of samples."""

    def __init__(self) -> None:
        self._latest: MemorySample | None = None
        self._vram_peak: int | None = None
        self._ram_peak: int | None = None
        self._busy = [0] * 101  # samples by percent

    def add(self, sample: MemorySample) -> None:
        """Take in one sample."""
        self._latest = sample
        vram, _, busy = _gpu(sample)
        ram = sample.host.room.used
        self._vram_peak = _larger(self._vram_peak, vram)
        self._ram_peak = _larger(self._ram_peak, ram)
        if busy.value is not None:
            self._busy[min(100, busy.value)] += 1

    def fields(self) -> dict[str, Any]:
        """The fields of BatchMetrics that memory and GPU fill."""
        if self._latest is None:
            return {}
        vram, total, busy = _gpu(self._latest)
        readings = dict(zip(MEASURED, (vram, total, self._latest.host.room.used, busy), strict=True))
        found: dict[str, Any] = {name: each.value for name, each in readings.items()}
        if busy.value is not None:
            found["gpu_share"] = busy.value / 100
        samples = sum(self._busy)
        if samples:
            percents = enumerate(self._busy)
            found["gpu_share_mean"] = sum(percent * count for percent, count in percents) / samples / 100
            found["gpu_share_p5"] = self._low(samples) / 100
        return found | {
            "vram_peak_bytes": self._vram_peak,
            "ram_peak_bytes": self._ram_peak,
            "unmeasured": {name: each.reason for name, each in readings.items() if each.reason is not None},
        }

    def _low(self, samples: int) -> int:
        """The percent that 5 % of the samples do not exceed (nearest rank)."""
        rank = max(1, round(LOW_SHARE * samples))
        seen = 0
        for percent, count in enumerate(self._busy):
            seen += count
            if seen >= rank:
                return percent
        return 100


def _gpu(sample: MemorySample) -> tuple[Reading, Reading, Reading]:
    """Memory in use, memory in all and the busiest GPU's percent, of the GPUs that hold the model."""
    engine = sample.engine
    if engine is not None and engine.remote:
        far = Reading.unknown("the engine is on another machine", "engine")
        return engine.vram, far, far
    devices = [each for each in sample.devices if each.holds_model] or list(sample.devices)
    if not devices:
        none = Reading.unknown(sample.devices_unknown or "no GPU was found", "driver")
        vram = none if engine is None or not engine.vram.known else engine.vram
        return vram, none, none
    used = _sum([each.room.used for each in devices])
    busy = [each.busy_percent for each in devices]
    known = [each for each in busy if each.known]
    return used, _sum([each.total for each in devices]), max(known, key=Reading.get) if known else busy[0]


def _sum(readings: Sequence[Reading]) -> Reading:
    unknown = next((each for each in readings if not each.known), None)
    return unknown or Reading(readings[0].source, sum(each.get() for each in readings))


def _larger(peak: int | None, reading: Reading) -> int | None:
    if reading.value is None:
        return peak
    return reading.value if peak is None else max(peak, reading.value)
