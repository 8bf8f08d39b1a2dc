"""Stand-ins for the programs `ollama` and `systemctl`, run as real processes, and how to see them gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

OLLAMA = '''#!{python} -I
"""What `ollama serve` is to its parent: a server at OLLAMA_HOST with a process of its own for the model."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

folder = Path(os.environ["STAND_IN"])
assert sys.argv[1:] == ["serve"], sys.argv
mode = os.environ.get("STAND_IN_MODE", "")
settings = {{name: value for name, value in os.environ.items() if name.startswith("OLLAMA_")}}
(folder / "env.json").write_text(json.dumps(settings))
print("time=now level=INFO msg=starting", flush=True)
if mode == "dies":
    print("Error: no room for anything", flush=True)
    sys.exit(3)
if mode == "silent":
    (folder / "pids").write_text(f"{{os.getpid()}}\\n")
    time.sleep(600)
runner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with (folder / "pids").open("a") as file:
    file.write(f"{{os.getpid()}} {{runner.pid}}\\n")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
from ollama_batch.testing.fake_ollama import main
port = os.environ["OLLAMA_HOST"].rpartition(":")[2]
ledger = str(folder / "ledger.jsonl")
model = os.environ.get("STAND_IN_MODEL", "toy:1b")
main(["--stay", "--port", port, "--ledger", ledger, "--slots", "4", "--latency", "0.01", "--model", model])
'''

SYSTEMCTL = '''#!{python} -IS
"""What `systemctl restart` is to its caller: the n-th call does what the n-th word of `plan` says."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

folder = Path({folder!r})
if "show" in sys.argv:  # asked whether there is such a unit, which is no restart
    if sys.argv[-1] == "elsewhere":
        sys.exit("System has not been booted with systemd as init system (PID 1). Can't operate.")
    print("LoadState=" + dict(nosuchunit="not-found", masked="masked").get(sys.argv[-1], "loaded"))
    sys.exit()
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
number = len((folder / "calls.jsonl").read_text().splitlines())
plan = (folder / "plan").read_text().split()
word = plan[min(number, len(plan)) - 1]
if word == "slow":
    time.sleep(600)
if word == "password":
    sys.exit("Failed to restart ollama.service: Interactive authentication required.\\n"
             "See system logs and 'systemctl status ollama.service' for details.")
if word == "missing":
    print("Failed to restart ollama.service: Unit ollama.service not found.", file=sys.stderr)
    sys.exit(5)
if word == "failed":
    sys.exit("Job for ollama.service failed because the control process exited with error code.")
server = [sys.executable, "-m", "ollama_batch.testing.fake_ollama", "--stay", "--latency", "0.01",
          "--port", (folder / "port").read_text(), "--ledger", str(folder / "ledger.jsonl")]
if (folder / "port").read_text() != "none":
    with (folder / "server.log").open("ab") as log:
        started = subprocess.Popen(
            server, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    with (folder / "pids").open("a") as file:
        file.write(f"{{started.pid}}\\n")
'''


def stand_in_ollama(folder: Path) -> Path:
    """The program `ollama` in `folder`; it needs the variable STAND_IN with that folder."""
    return _program(folder / "ollama", OLLAMA.format(python=sys.executable))


def stand_in_systemctl(folder: Path, *plan: str, port: int | None = None) -> Path:
    """The program `systemctl` in `folder`; with a `port`, its restarts start a fake server there."""
    (folder / "plan").write_text(" ".join(plan))
    (folder / "port").write_text("none" if port is None else str(port))
    return _program(folder / "systemctl", SYSTEMCTL.format(python=sys.executable, folder=str(folder)))


def _program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def pids(folder: Path) -> list[list[int]]:
    """The processes that stand-ins have started, one line for each start."""
    path = folder / "pids"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[int(word) for word in line.split()] for line in lines]


def alive(folder: Path) -> list[int]:
    """Those that still run."""
    return [pid for line in pids(folder) for pid in line if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def none_left(folder: Path, timeout: float = 15.0) -> bool:
    """Whether all of them end within `timeout` seconds."""
    gives_up_at = time.monotonic() + timeout
    while alive(folder):
        if time.monotonic() > gives_up_at:
            return False
        time.sleep(0.02)
    return True


def end_all(folder: Path) -> None:
    """Kill what is left, at the end of a test."""
    for pid in alive(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def calls(folder: Path) -> list[list[Any]]:
    """The calls of the stand-in systemctl: its process and its arguments."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def until(what: Any, timeout: float = 20.0) -> None:
    """Wait until `what()` is true."""
    async with asyncio.timeout(timeout):
        while not what():
            await asyncio.sleep(0.01)
