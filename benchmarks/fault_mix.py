"""Ten thousand rows through a mix of faults: 5 % connections reset, 5 % 500, 3 % 429 with Retry-After, 2 %
bodies cut short, 1 % calls that are never answered, 1 % garbage, and answers that take 0 to 200 ms.

A fake Ollama in a process of its own makes the faults, chosen by a seed, and writes down what each call
met. Every row must end as that says: ok exactly if its last call was answered, failed exactly by the name of
what it met once its repeats were spent; none twice, none again after it was answered. Seeds are printed with
every failure.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mix_support as mix
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import FakeModel, FakeOllama

CONCURRENCY = 64
JITTER_S = 0.2
TIMEOUT_S = 3.0
RETRY = RetryPolicy()


def one(seed: int, rows: int) -> dict[str, Any]:
    """One run, judged."""
    with FakeOllama.spawn(
        models=(FakeModel(harness.MODEL),),
        slots=CONCURRENCY,
        seed=seed,
        speed=mix.speed(JITTER_S),
        faults=mix.faults(),
    ) as fake:
        started = time.monotonic()
        verdict = mix.run(fake, rows, concurrency=CONCURRENCY, timeout_s=TIMEOUT_S, retry=RETRY)
        wall_s = time.monotonic() - started
    for problem in verdict.problems:
        print(f"FAILED seed {seed}: {problem}", flush=True)
    return {
        "seed": seed,
        "rows": verdict.rows,
        "ok": verdict.ok,
        "failed": verdict.failed,
        "problems": len(verdict.problems),
        "calls_per_row": round(verdict.calls_per_row, 4),
        "wall_s": round(wall_s, 1),
        **{kind: verdict.met[kind] for kind in mix.SHARES},
    }


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--seeds", type=int, default=20, help="how many seeds (20)")
    args.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    args.add_argument("--rows", type=int, default=10_000, help="rows of each run (10,000)")
    found = args.parse_args()
    seeds, rows = (1, 1000) if found.quick else (found.seeds, found.rows)
    taken = []
    for seed in range(found.seed, found.seed + seeds):
        taken.append(one(seed, rows))
        print(taken[-1], flush=True)
    columns = ["seed", "ok", "failed", "not as they must", "calls per row", *mix.SHARES, "wall s"]
    table = [
        [
            each["seed"],
            each["ok"],
            each["failed"],
            each["problems"],
            each["calls_per_row"],
            *(each[kind] for kind in mix.SHARES),
            each["wall_s"],
        ]
        for each in taken
    ]
    goals = [
        Goal("rows that did not end as they must", float(sum(each["problems"] for each in taken)), 0),
        Goal("calls per row, at most in one run", max(each["calls_per_row"] for each in taken), 1.35),
        Goal("seeds", float(len(taken)), seeds, at_least=True),
    ]
    notes = [
        f"{rows:,} rows each, {CONCURRENCY} at a time, a deadline of {TIMEOUT_S:g} s, default repeats",
        "a row fails by right only if it meets more of one kind than it has repeats, as two calls that hang",
    ]
    Outcome("fault_mix", harness.command_line(), columns, table, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
