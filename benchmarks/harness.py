"""What every benchmark shares: rows, child processes and their cost, pairs, tables and JSON files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "out"
MODEL = "toy:1b"
MIB = 1024 * 1024

_WORDS = [
    "engineer",
    "team",
    "system",
    "design",
    "review",
    "data",
    "platform",
    "service",
    "customer",
    "product",
    "scale",
    "latency",
    "search",
    "index",
    "storage",
    "network",
    "mobile",
    "backend",
    "frontend",
    "compiler",
    "kernel",
    "payment",
    "security",
    "research",
    "model",
    "training",
    "pipeline",
    "release",
    "quality",
    "support",
    "growth",
    "market",
    "analytics",
    "cloud",
    "cluster",
    "database",
    "stream",
]
_HEAD = (
    "You judge one profile at a time against the criteria below and answer in two sentences. "
    + "Weigh education, employers, growth over the years and hands-on engineering. " * 12
)


def write_rows(path: Path, count: int, *, body_bytes: int = 4500, seed: int = 0, **params: Any) -> None:
    """Write `count` OpenAI batch lines of about `body_bytes` each, the same for the same seed.

    The system message is the same in all; the first line of the user message is the custom_id, by
    which a server's ledger recognises the row.
    """
    rng = random.Random(seed)
    pool = " ".join(rng.choices(_WORDS, k=120_000))
    room = max(40, body_bytes - len(_HEAD) - 220)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            custom_id = f"row-{index:07d}"
            start = rng.randrange(len(pool) - room)
            body = {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": _HEAD},
                    {"role": "user", "content": f"{custom_id}\n{pool[start : start + room]}"},
                ],
                "temperature": 0,
                "max_tokens": 256,
                **params,
            }
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one child process cost: wall and CPU seconds (user and system, all threads), peak RSS in bytes.

    `work_s` is what the child itself timed, without interpreter start and imports; `stdout` is its
    last line, decoded.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    work_s: float | None = None
    stdout: Mapping[str, Any] = field(default_factory=dict)


def measure(command: Sequence[str], *, timeout_s: float = 1800, check: bool = True) -> Cost:
    """Run `command` to its end and say what it cost.

    A child may print one JSON object as its last line: `peak_rss_bytes` there (VmHWM, read by the
    child) wins over the kernel's ru_maxrss, which also counts the moment before exec.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=HERE)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - started > timeout_s:
                child.kill()
                os.wait4(child.pid, 0)
                child.returncode = -9
                raise TimeoutError(f"{' '.join(command)} ran longer than {timeout_s:.0f} s")
            time.sleep(0.002)
        wall_s = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if check and child.returncode != 0:
            tail = err.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{tail}")
        lines = out.read().decode(errors="replace").strip().splitlines()
    said: dict[str, Any] = {}
    if lines:
        with contextlib.suppress(ValueError):
            decoded = json.loads(lines[-1])
            said = decoded if isinstance(decoded, dict) else {}
    rss_unit = 1 if sys.platform == "darwin" else 1024
    return Cost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=int(said.get("peak_rss_bytes") or usage.ru_maxrss * rss_unit),
        work_s=said.get("work_s"),
        stdout=said,
    )


def own_peak_rss_bytes() -> int | None:
    """The peak resident size of this process in bytes; None where the kernel does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def serving(command: Sequence[str]) -> Iterator[str]:
    """Run a server that prints {"url": ...} first and ends when its stdin closes; gives the url."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)} did not start (exit code {child.wait()})")
        yield json.loads(line)["url"]
    finally:
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def fast_server() -> contextlib.AbstractContextManager[str]:
    """The fixed-reply server of these benchmarks, in a process of its own; gives its url."""
    return serving([sys.executable, str(HERE / "fast_server.py")])


@contextlib.contextmanager
def fake_ollama(*, slots: int, latency_s: float = 0.0, ledger: Path | None = None) -> Iterator[Any]:
    """FakeOllama in a process of its own: `slots` answers at once, each after `latency_s` seconds."""
    from ollama_batch.testing import CostModel, FakeModel, FakeOllama

    speed = CostModel(latency_s=latency_s) if latency_s else None
    with FakeOllama.spawn(models=(FakeModel(MODEL),), slots=slots, speed=speed, ledger=ledger) as fake:
        yield fake


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def alternate(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(pair, name) so that every pair runs all names, each second pair in reverse: drift cancels."""
    for pair in range(repeats):
        for name in names if pair % 2 == 0 else list(reversed(names)):
            yield pair, name


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure against its limit; `met` is None where the figure is missing."""

    text: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Outcome:
    """What a benchmark found: a table for people, goals, and every single pair."""

    name: str
    command: str
    columns: list[str]
    rows: list[list[Any]]
    goals: list[Goal]
    pairs: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    quick: bool = False

    def publish(self) -> Path:
        """Print the table, write benchmarks/out/NAME.json and return its path."""
        print(f"\n{self.name}" + (" (quick: not for publication)" if self.quick else ""))
        print(markdown_table(self.columns, self.rows))
        for goal in self.goals:
            sign = ">=" if goal.at_least else "<="
            word = {True: "met", False: "MISSED", None: "not measured"}[goal.met]
            wanted = f"{sign} {show(goal.limit)}{goal.unit}"
            print(f"goal: {goal.text}: {show(goal.value)}{goal.unit}, wanted {wanted}: {word}")
        for note in self.notes:
            print(f"note: {note}")
        OUT.mkdir(exist_ok=True)
        path = OUT / f"{self.name}{'.quick' if self.quick else ''}.json"
        data = {
            **asdict(self),
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path.relative_to(HERE.parent)}")
        return path


def show(value: Any) -> str:
    """A table cell: three significant digits for numbers, a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """`rows` as a Markdown table, padded so that it also reads well in a terminal."""
    cells = [list(columns), *[[show(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on: CPU count and name, system, Python and library versions."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    versions = {}
    for name in (
        "ollama-batch",
        "aiohttp",
        "httpx",
        "httpx-aiohttp",
        "openai",
        "orjson",
        "pydantic",
        "xllamacpp",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with the option every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a short run that proves the script works")
    return made


def run_parts(args: argparse.ArgumentParser, parts: Mapping[str, Callable[[Any], Outcome]]) -> int:
    """Run the parts that are asked for (`--part`, all without it) and publish each as soon as it is measured.

    A part that fails takes nothing from the others; the exit status is then 1.
    """
    args.add_argument("--part", choices=list(parts), action="append", help="only this part; may be repeated")
    found = args.parse_args()
    failed = []
    for name in found.part or parts:
        try:
            parts[name](found).publish()
        except Exception:
            failed.append(name)
            traceback.print_exc()
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def command_line() -> str:
    """The command that was run, as a reader would type it in the repository root."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
