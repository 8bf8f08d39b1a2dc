"""What this machine has of memory: `python -m ollama_batch.memory [--json]`.

Every number with what measured it, or unknown with the reason. Exit code 0, whatever is unknown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final

from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.amounts import show
from ollama_batch.memory.host import NO_LIMIT, HostProbe
from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.probe import LocalProbe
from ollama_batch.memory.processes import GpuProcess, gpu_processes
from ollama_batch.memory.sample import MemorySample, Reading

WIDTH: Final = 22


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what there is; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ollama_batch.memory",
        description="Print the memory of this machine: GPUs, RAM, the control group's limit, and what this "
        "process and the engine's have of it.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    options = parser.parse_args(arguments)
    nvml, host = NvmlProbe(), HostProbe()
    probe = LocalProbe(nvml=nvml, host=host)
    try:
        sample = probe.read()
        processes: tuple[GpuProcess, ...] = ()
        hidden = None
        try:
            processes = gpu_processes(nvml, host.engine_pids())
        except MemoryUnknownError as exc:
            hidden = exc.reason
    finally:
        probe.close()
    if options.json:
        data = {
            **sample.to_dict(),
            "processes": [each.to_dict() for each in processes],
            "processes_unknown": hidden,
        }
        text = json.dumps(data, indent=2)
    else:
        text = "\n".join(lines(sample, processes, hidden))
    sys.stdout.write(f"{text}\n")
    return 0


def lines(sample: MemorySample, processes: Sequence[GpuProcess] = (), hidden: str | None = None) -> list[str]:
    """`sample` for a person, and who has memory of the GPUs (`hidden`: why that is not known)."""
    said = ["GPU"]
    for device in sample.devices:
        kind = ", of the host's memory" if device.unified else ""
        said += [
            f"  {device.id}: {device.name}{kind}",
            _line("  total", device.total),
            _line("  free", device.free),
            _line("  busy", device.busy_percent, "%"),
        ]
        mine = [each for each in processes if each.device == device.id]
        said += [
            _line(f"  {each.name or 'unseen'} {each.pid}", each.used, owner=each.engine) for each in mine
        ]
    if sample.devices_unknown is not None:
        said.append(f"  unknown: {sample.devices_unknown}")
    if sample.devices and hidden is not None:
        said.append(f"  processes: unknown: {hidden}")
    host = sample.host
    said += [
        "RAM",
        _line("total", host.total),
        _line("available", host.available),
        _line("control group's limit", host.group_limit, none=NO_LIMIT),
        _line("this process", host.own),
        _line("the engine's", host.engine),
        f"read in {1000 * sample.cost_s:.1f} ms",
    ]
    return said


def _line(
    name: str, reading: Reading, unit: str | None = None, *, owner: bool = False, none: str | None = None
) -> str:
    if reading.value is None:
        said = "none" if reading.reason == none else f"unknown: {reading.reason}"
        return f"  {name:<{WIDTH}} {said} ({reading.source})"
    amount = show(reading.value) if unit is None else f"{reading.value}{unit}"
    return f"  {name:<{WIDTH}} {amount:<9} ({reading.source})" + (", of the engine" if owner else "")


if __name__ == "__main__":
    sys.exit(main())
