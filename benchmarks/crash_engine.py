"""The engine dies: it is killed by SIGKILL again and again in the middle of a run, which restarts it.

`--part embedded`: the real llama.cpp of an EmbeddedEngine with the toy model. `--part managed`: a stand-in
for the program `ollama` under `OllamaEngine.managed`, a real child process with a child of its own, which
answers as Ollama does. The server's process is killed `--every` seconds after the kill before, and not before
it has been up again for half a second (or for `--every`, if that is less). What the output file, the ledger
of the stand-in and the kernel say afterwards is what counts, not what the run says of itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import harness
import psutil
from harness import Goal, Outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from ollama_batch import BatchRequest, BatchRunner, OllamaEngine
from ollama_batch.engines import EmbeddedEngine
from ollama_batch.engines.managed import ManagedOllama
from ollama_batch.events import EngineRestarted, Event, RowFinished
from ollama_batch.testing.ledger import FileLedger
from supervisor_support import alive, end_all, stand_in_ollama

KILLS, EVERY_S, UP_S = 20, 2.0, 0.5
CONCURRENCY = 4
AT_ONCE = 500_000
"""Rows there are at most: the source ends soon after the last kill."""

Own = EmbeddedEngine | ManagedOllama


class Killer:
    """A hook that sees restarts and rows, and a thread that kills."""

    def __init__(self, engine: Own, *, kills: int, every_s: float) -> None:
        self._engine = engine
        self._wanted = kills
        self._every_s = every_s
        self._up_at = 0.0
        self._up = threading.Event()
        self.killed: list[int] = []
        self.done = threading.Event()
        self.restarts: list[EngineRestarted] = []
        self.finished: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def on_event(self, event: Event) -> None:
        if isinstance(event, EngineRestarted):
            self.restarts.append(event)
            if event.outcome == "ok":
                self._mark_up()
        elif isinstance(event, RowFinished):
            self.finished[event.result.custom_id or ""] += 1
            if not self._thread.is_alive() and not self.done.is_set():
                self._mark_up()
                self._thread.start()

    def _mark_up(self) -> None:
        self._up_at = time.monotonic()
        self._up.set()

    def _kill(self) -> None:
        due = time.monotonic() + self._every_s
        while len(self.killed) < self._wanted:
            if not self._up.wait(120):
                break  # it never came back; the run says why
            due = max(due, self._up_at + min(UP_S, self._every_s))
            time.sleep(max(0.0, due - time.monotonic()))
            pid = self._engine.pid
            self._up.clear()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)
            due = time.monotonic() + self._every_s
        self._up.wait(120)
        self.done.set()

    def rows(self) -> Any:
        """Rows as long as there are kills to come, and 100 more."""
        more = 100
        for index in range(AT_ONCE):
            if self.done.is_set():
                more -= 1
            if more < 0:
                return
            yield BatchRequest.chat(f"row-{index:06d}\nSay something.", custom_id=f"row-{index:06d}")


def campaign(
    name: str, engine: Own, folder: Path, *, model: str, kills: int, every_s: float
) -> dict[str, Any]:
    """One run; counts what is wrong, from its files and the kernel."""
    killer = Killer(engine, kills=kills, every_s=every_s)
    runner = BatchRunner(
        model=model,
        engine=engine,
        num_ctx=512,
        max_tokens=8,
        on_length="keep",
        order="input",  # reads no further ahead than it must
        concurrency=CONCURRENCY,
        hooks=[killer],
        progress="none",
        state_dir=folder / "state",
    )
    output = folder / "out.jsonl"
    started = time.monotonic()
    try:
        report = runner.run(killer.rows(), output=output)
    finally:
        asyncio.run(engine.aclose())
    wall_s = time.monotonic() - started
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    ids = Counter(line["custom_id"] for line in lines)
    rows = report.counts.total or 0
    wanted = {f"row-{index:06d}" for index in range(rows)}
    good = [line for line in lines if line["error"] is None and line["response"]["status_code"] == 200]
    downs = [event.duration_s for event in killer.restarts]
    return {
        "name": name,
        "every_s": every_s,
        "kills": len(killer.killed),
        "processes": len({*killer.killed}),
        "restarts": sum(event.outcome == "ok" for event in killer.restarts),
        "rows": rows,
        "lost": len(wanted - ids.keys()),
        "failed": report.counts.failed + len(lines) - len(good),
        "doubled": sum(n - 1 for n in ids.values()) + sum(n - 1 for n in killer.finished.values()),
        "more_tries": report.metrics.retried,
        "restart_s": harness.median(downs) if downs else None,
        "longest_restart_s": max(downs, default=None),
        "wall_s": wall_s,
        "orphans": 0,
    }


def embedded(every_s: float, kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        children = set(psutil.Process().children(recursive=True))
        engine = EmbeddedEngine.toy(num_ctx=512)
        told = campaign("embedded", engine, Path(name), model="toy", kills=kills, every_s=every_s)
        told["orphans"] = len(set(psutil.Process().children(recursive=True)) - children)
        return told


def managed(every_s: float, kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = OllamaEngine.managed(
            binary=stand_in_ollama(folder), env={"STAND_IN": name}, log=folder / "ollama.log"
        )
        try:
            told = campaign("managed", engine, folder, model=harness.MODEL, kills=kills, every_s=every_s)
            told["orphans"] = len(alive(folder))
        finally:
            with suppress(OSError):
                end_all(folder)
        asked = FileLedger(folder / "ledger.jsonl", readonly=True).counts()
        told["lost"] += sum(f"row-{index:06d}" not in asked for index in range(told["rows"]))
        return told


def measured(found: Any, part: str) -> Outcome:
    kills = 3 if found.quick else found.kills
    make = {"embedded": embedded, "managed": managed}[part]
    taken = [make(every_s, kills) for every_s in found.every or [EVERY_S]]
    columns = ["killed every", "kills", "restarts", "rows", "lost", "failed", "doubled", "left running",
               "tries more", "restart, median", "longest"]  # fmt: skip
    rows = [
        [
            f"{one['every_s']:g} s", one["kills"], one["restarts"], one["rows"], one["lost"], one["failed"],
            one["doubled"], one["orphans"], one["more_tries"], f"{one['restart_s'] or 0:.2f} s",
            f"{one['longest_restart_s'] or 0:.2f} s",
        ]
        for one in taken
    ]  # fmt: skip
    total = {
        key: float(sum(one[key] for one in taken)) for key in taken[0] if key not in ("name", "restart_s")
    }
    goals = [
        Goal(f"{part}: kills", total["kills"], float(kills * len(taken)), at_least=True),
        Goal(f"{part}: kills that were not followed by a restart", total["kills"] - total["restarts"], 0),
        Goal(f"{part}: rows failed", total["failed"], 0),
        Goal(f"{part}: rows lost or doubled", total["lost"] + total["doubled"], 0),
        Goal(f"{part}: processes left running", total["orphans"], 0),
    ]
    notes = [
        f"concurrency {CONCURRENCY}, answers of 8 tokens; rows come as long as there are kills to come",
        "the restart is the time from a probe that found the process gone to a server that answers again",
    ]
    name = f"kills_{part}"
    return Outcome(name, harness.command_line(), columns, rows, goals, taken, notes, found.quick)


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--kills", type=int, default=KILLS)
    args.add_argument("--every", type=float, action="append", help="seconds (2); may be repeated")
    return harness.run_parts(
        args, {part: lambda found, part=part: measured(found, part) for part in ("embedded", "managed")}
    )


if __name__ == "__main__":
    sys.exit(main())
