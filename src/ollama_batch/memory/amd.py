"""The memory of AMD's GPUs, from the files that the Linux driver amdgpu keeps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.amounts import GIB
from ollama_batch.memory.sample import DeviceMemory, Reading

SOURCE: Final = "amdgpu"
ROOT: Final = Path("/sys/class/drm")

CARVED_OUT: Final = 2 * GIB
"""A processor's own graphics sets aside this much at most (some far less) and uses host memory beside it."""


class AmdProbe:
    """Reads `mem_info_vram_*` and `gpu_busy_percent` of every card under `root`."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def devices(self) -> tuple[DeviceMemory, ...]:
        """The cards as they are now. Raises MemoryUnknownError if there is none."""
        try:
            folders = sorted(self._root.iterdir(), key=lambda folder: (len(folder.name), folder.name))
        except OSError as exc:
            raise MemoryUnknownError(f"amdgpu: {exc.strerror or exc}: {self._root}") from exc
        # Beside card0 there are its connectors, such as card0-DP-1.
        found = [
            _card(folder.name, folder / "device")
            for folder in folders
            if re.fullmatch(r"card\d+", folder.name) and (folder / "device/mem_info_vram_total").exists()
        ]
        if not found:
            raise MemoryUnknownError(f"amdgpu: no AMD GPU under {self._root}")
        return tuple(found)


def _card(id_: str, device: Path) -> DeviceMemory:
    total, used = _pair(device, "vram")
    unified = total.value is not None and total.value < CARVED_OUT
    if unified:
        more, taken = _pair(device, "gtt")
        total, used = _sum(total, more), _sum(used, taken)
    return DeviceMemory(
        id_, f"AMD {id_}", total, total.less(used), _number(device / "gpu_busy_percent"), unified
    )


def _pair(device: Path, kind: str) -> tuple[Reading, Reading]:
    total, used = (_number(device / f"mem_info_{kind}_{what}") for what in ("total", "used"))
    if total.value == 0:
        total = Reading.unknown(f"mem_info_{kind}_total is 0", SOURCE)
    return total, used


def _sum(first: Reading, second: Reading) -> Reading:
    for each in (first, second):
        if not each.known:
            return each
    return Reading(SOURCE, first.get() + second.get())


def _number(file: Path) -> Reading:
    try:
        return Reading(SOURCE, int(file.read_text()))
    except OSError as exc:
        return Reading.unknown(f"{exc.strerror or exc}: {file.name}", SOURCE)
    except ValueError as exc:
        return Reading.unknown(f"{file.name}: {exc}", SOURCE)
