"""What the memory guards cost: a run that the client's CPU limits, with them and without.

Each run is a process of its own, against a server in another process that answers at once; its CPU is user
plus system time of all threads, start-up and first sample included. Runs alternate; a ratio is of the two
runs of one pair. What guards do is hardly more than the noise of a machine that has other work, so it is also
measured by itself: a process that samples and judges and does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clients
import harness
from harness import Goal, Outcome

GUARDS: dict[str, dict[str, Any]] = {"with": {}, "without": {"guards": []}}
"""What each variant passes to `BatchRunner`."""

WATCH = "--watch"


async def watch(seconds: float) -> dict[str, float]:
    """CPU seconds that two guards and their sampler take in so many seconds, once they have begun."""
    from ollama_batch.memory import MemorySampler, RamGuard, VramGuard

    guards, samples, began, end = (VramGuard(), RamGuard()), 0, 0.0, time.monotonic() + seconds
    with MemorySampler() as sampler:
        async for sample in sampler.watch():
            if not samples:
                began = time.process_time()
                end = time.monotonic() + seconds
            samples += 1
            for guard in guards:
                guard.decide(sample)
            if time.monotonic() >= end:
                break
    return {"cpu_s": time.process_time() - began, "samples": samples}


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=21)
    args.add_argument("--rows", type=int, default=12_000)
    args.add_argument("--concurrency", type=int, default=8)
    args.add_argument("--watched-s", type=float, default=65.0, help="seconds that the guards watch alone")
    args.add_argument(WATCH, type=float, metavar="S", help="watch for so long and print what it took")
    found = args.parse_args()
    if found.watch is not None:
        print(json.dumps(asyncio.run(watch(found.watch))))
        return
    count, pairs = (1000, 1) if found.quick else (found.rows, found.pairs)
    watched_s = 3.0 if found.quick else found.watched_s
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, harness.fast_server() as url:
        folder = Path(name)
        harness.write_rows(folder / "in.jsonl", count)
        for pair, guards in harness.alternate(list(GUARDS), pairs):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                line = clients.command(
                    "ollama_batch",
                    input=folder / "in.jsonl",
                    output=Path(out) / "out.jsonl",
                    url=url,
                    concurrency=found.concurrency,
                    options={"runner": GUARDS[guards]},
                )
                cost = harness.measure(line)
                if cost.stdout.get("rows") != count:
                    raise RuntimeError(f"answered {dict(cost.stdout)} for {count} rows")
            taken.append({"guards": guards, "pair": pair, "cpu_s": cost.cpu_s, "wall_s": cost.wall_s})
            print(f"pair {pair + 1}/{pairs} {guards}: {cost.cpu_s:.2f} s of CPU", flush=True)
        alone = harness.measure([sys.executable, __file__, WATCH, str(watched_s)])
    by = {(t["guards"], t["pair"]): t["cpu_s"] for t in taken}
    extra = harness.median([(by["with", p] / by["without", p] - 1) * 100 for p in range(pairs)])
    share = alone.stdout["cpu_s"] / watched_s * 100
    rows = []
    for guards in GUARDS:
        mine = [t for t in taken if t["guards"] == guards]
        cpu, wall = ([t[key] for t in mine] for key in ("cpu_s", "wall_s"))
        rows.append([guards, harness.median(cpu), min(cpu), harness.median(wall)])
    goals = [
        Goal("CPU added by the guards (median over pairs)", extra, 1.0, " %"),
        Goal("CPU of the guards alone, of one core", share, 1.0, " %"),
    ]
    notes = [
        f"{pairs} alternating pairs of {count:,} rows of 4.5 KB, concurrency {found.concurrency}",
        f"alone: {alone.stdout['samples']} samples in {watched_s:g} s, after the first",
    ]
    columns = ["guards", "CPU s", "least CPU s", "wall s"]
    Outcome("guard_cost", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
