"""What the memory guards cost: a run that the client's CPU limits, with them and without.

Each run is a process of its own, against a server in another process that answers at once. What guards take
is counted inside runs that have them: the CPU of the thread that samples, and of every step on the run's loop
that watches, asks the engine, judges and tells, with the imports these do, as a share of all CPU that the
process takes. The same runs alternate with runs without guards, for what a difference can say on this
machine; a difference there is of the two runs of one pair. A process that samples and judges and does nothing
else says what guards take for good.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import clients
import harness
from harness import Goal, Outcome

INSIDE, WATCH = "--inside", "--watch"


class CpuClock:
    """Seconds of CPU that what it is put around has taken, of whatever thread."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted."""

        @functools.wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **named)
            finally:
                self.seconds += time.thread_time() - began

        return counted

    def around_steps(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """The coroutine function `function`, each of its steps counted, and not what runs between them."""

        @types.coroutine
        def steps(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
            advance: Callable[..., Any] = coroutine.send
            given: Any = None
            while True:
                try:
                    wanted = self.around(advance)(given)
                except StopIteration as end:
                    return end.value
                try:
                    given = yield wanted
                    advance = coroutine.send
                except BaseException as error:
                    advance, given = coroutine.throw, error

        @functools.wraps(function)
        async def counted(*args: Any, **named: Any) -> Any:
            return await steps(function(*args, **named))

        return counted


def inside(job: clients.Job) -> dict[str, float]:
    """Run `job`: all CPU of this process, and what of it the guards took, in seconds."""
    from ollama_batch import _guarding
    from ollama_batch.memory import EngineView, LocalProbe, MemorySampler

    loop, thread = CpuClock(), CpuClock()
    patches = (
        (MemorySampler, "_work", thread.around(MemorySampler._work)),
        (LocalProbe, "of", staticmethod(loop.around(LocalProbe.of))),
        (EngineView, "refresh", loop.around_steps(EngineView.refresh)),
        (_guarding, "_watch", loop.around_steps(_guarding._watch)),
    )
    for owner, name, counted in patches:
        setattr(owner, name, counted)
    rows = clients.ollama_batch(job)()
    return {"rows": rows, "thread_s": thread.seconds, "loop_s": loop.seconds, "cpu_s": time.process_time()}


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
    args.add_argument("--pairs", type=int, default=11)
    args.add_argument("--rows", type=int, default=12_000)
    args.add_argument("--concurrency", type=int, default=8)
    args.add_argument("--watched-s", type=float, default=65.0, help="seconds that the guards watch alone")
    args.add_argument(WATCH, type=float, metavar="S", help="watch for so long and print what it took")
    args.add_argument(INSIDE, type=json.loads, metavar="JSON", help="run this job and print what guards took")
    found = args.parse_args()
    if found.watch is not None:
        print(json.dumps(asyncio.run(watch(found.watch))))
        return
    if found.inside is not None:
        paths = {key: Path(found.inside[key]) for key in ("input", "output")}
        print(json.dumps(inside(clients.Job(**{**found.inside, **paths}))))
        return
    count, pairs = (1000, 1) if found.quick else (found.rows, found.pairs)
    watched_s = 3.0 if found.quick else found.watched_s
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, harness.fast_server() as url:
        folder = Path(name)
        harness.write_rows(folder / "in.jsonl", count)
        for pair, guards in harness.alternate(["with", "without"], pairs):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                job: dict[str, Any] = {
                    "input": str(folder / "in.jsonl"),
                    "output": str(Path(out) / "out.jsonl"),
                    "url": url,
                    "concurrency": found.concurrency,
                    "options": {} if guards == "with" else {"runner": {"guards": []}},
                }
                cost = harness.measure([sys.executable, __file__, INSIDE, json.dumps(job)])
                if cost.stdout.get("rows") != count:
                    raise RuntimeError(f"answered {dict(cost.stdout)} for {count} rows")
            inner = {key: cost.stdout[key] for key in ("thread_s", "loop_s")}
            taken.append(
                {"guards": guards, "pair": pair, "cpu_s": cost.cpu_s, "wall_s": cost.wall_s, **inner}
            )
            print(f"pair {pair + 1}/{pairs} {guards}: {cost.cpu_s:.2f} s of CPU, {inner}", flush=True)
        alone = harness.measure([sys.executable, __file__, WATCH, str(watched_s)])
    by = {(t["guards"], t["pair"]): t for t in taken}
    extra = [(by["with", p]["cpu_s"] / by["without", p]["cpu_s"] - 1) * 100 for p in range(pairs)]
    mine = [by["with", p] for p in range(pairs)]
    counted = [(t["thread_s"] + t["loop_s"]) / t["cpu_s"] * 100 for t in mine]
    rows = []
    for guards in ("with", "without"):
        runs = [t for t in taken if t["guards"] == guards]
        cpu, wall, thread, loop = (
            [t[key] for t in runs] for key in ("cpu_s", "wall_s", "thread_s", "loop_s")
        )
        middle = harness.median
        rows.append([guards, middle(cpu), min(cpu), middle(wall), middle(thread), middle(loop)])
    goals = [
        Goal("CPU added by the guards (median over pairs)", harness.median(extra), 1.0, " %"),
        Goal("CPU of the guards in a run (median)", harness.median(counted), 1.0, " %"),
        Goal("CPU of the guards in a run (most)", max(counted), 1.0, " %"),
        Goal("CPU of the guards alone, of one core", alone.stdout["cpu_s"] / watched_s * 100, 1.0, " %"),
    ]
    notes = [
        f"{pairs} alternating pairs of {count:,} rows of 4.5 KB, concurrency {found.concurrency}",
        f"difference of a pair: from {min(extra):.1f} to {max(extra):.1f} %",
        f"alone: {alone.stdout['samples']} samples in {watched_s:g} s, after the first",
    ]
    columns = ["guards", "CPU s", "least CPU s", "wall s", "their thread s", "their steps s"]
    Outcome("guard_cost", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
