"""Guards what a script says of the GPUs, in a process that finds the stub in the place of NVIDIA's library.

Takes JSON as its argument: `script` (the file that the stub reads), `guard` (options of VramGuard), `pids` of
the engine, and `steps`: `at` in seconds and `tell`, names and values. Prints one object per step as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pynvml

from ollama_batch import VramGuard
from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory import LocalProbe, gpu_processes
from ollama_batch.memory.amd import AmdProbe
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.nvml import NvmlProbe


def main() -> None:
    settings = json.loads(sys.argv[1])
    script, clock = Path(settings["script"]), [0.0]
    nvml = NvmlProbe(pynvml, now=lambda: clock[0])
    host = HostProbe(settings.get("pids", [1]), group=lambda: None)
    probe = LocalProbe(nvml=nvml, amd=AmdProbe(Path("nowhere")), host=host, now=lambda: clock[0])
    guard = VramGuard(**settings.get("guard", {}))
    told = []
    for step in settings["steps"]:
        clock[0] = step["at"]
        script.write_text("".join(f"{name} {value}\n" for name, value in step["tell"].items()))
        sample = probe.read()
        decision = guard.decide(sample)
        users: Any
        try:
            users = [
                [each.device, each.pid, each.used.value, each.draws]
                for each in gpu_processes(nvml, host.engine_pids())
            ]
        except MemoryUnknownError as exc:
            users = exc.reason
        devices = [each.to_dict() for each in sample.devices]
        told.append(
            {**decision.to_dict(), "devices": devices, "ram": sample.host.total.value, "users": users}
        )
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
