"""How near `concurrency="auto"` comes to the best fixed number, which nobody knows beforehand.

Parts, one file of figures each (`--part` runs some of them):

- simulated: an engine with slots, steps and prefill, on a clock of its own; and slots that change as it runs.
- engine: real llama.cpp with 1, 2, 4 and 8 slots. The best fixed number comes from a first sweep; then that
  number and "auto" alternate, once with the slots told and once with them hidden, as Ollama hides them.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Sequence
from typing import Any

import harness
import toy_engine
from harness import HERE, Goal, Outcome

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.control import QueueTarget
from ollama_batch.engines import EmbeddedEngine
from ollama_batch.report import BatchReport
from ollama_batch.testing.toy import toy_gguf
from ollama_batch.types import EngineInfo

sys.path.insert(0, str(HERE.parent / "tests"))
from control_support import SimulatedEngine, simulate

ANSWERS = 3000
STEPS = ((16, 4), (4, 16))
CHANGE_AT, FOLLOWED_WITHIN = 1500, 600


def fixed_about(slots: int) -> list[int]:
    """The numbers among which the best is looked for."""
    return sorted({max(1, slots - 1), slots, slots + 1, slots + 2, slots + slots // 4, 2 * slots})


def adaptive(slots: int, seed: int, **options: Any) -> tuple[float, list[int], int]:
    """Rate, the limit after each answer, and the number of changes of one simulated run."""
    clock = [0.0]
    target = QueueTarget(clock=lambda: clock[0])
    outcome = simulate(
        SimulatedEngine(slots=slots), target, clock=clock, seed=seed, completions=ANSWERS, **options
    )
    return outcome.rate, outcome.limits, len(target.changes)


def part_simulated(found: Any) -> Outcome:
    seeds = range(3 if found.quick else 10)
    table: list[list[Any]] = []
    taken: list[dict[str, Any]] = []
    shares: list[float] = []
    for slots in (1, 2, 4, 8, 16, 32):
        mine = []
        for seed in seeds:
            best = max(
                (
                    simulate(
                        SimulatedEngine(slots=slots), limit, clock=[0.0], seed=seed, completions=ANSWERS
                    ).rate,
                    limit,
                )
                for limit in fixed_about(slots)
            )
            rate, limits, changes = adaptive(slots, seed)
            mine.append(rate / best[0])
            taken.append(
                {
                    "slots": slots,
                    "seed": seed,
                    "share": mine[-1],
                    "best_fixed": best[1],
                    "settled_from": min(limits[ANSWERS // 2 :]),
                    "settled_to": max(limits[ANSWERS // 2 :]),
                    "changes": changes,
                }
            )
        own = [one for one in taken if one["slots"] == slots]
        table.append(
            [
                slots,
                sum(mine) / len(mine),
                min(mine),
                f"{min(one['settled_from'] for one in own)} to {max(one['settled_to'] for one in own)}",
                max(one["changes"] for one in own),
            ]
        )
        shares += mine
    slowest = {}
    for before, after in STEPS:
        needed = []
        for seed in seeds:
            _, limits, _ = adaptive(before, seed, slots_after={CHANGE_AT: after})
            there = [after <= limit <= after + max(3, after // 2) for limit in limits]
            # from the last answer at which it was not there
            last = max((n for n, good in enumerate(there) if not good), default=0)
            needed.append(max(0, last + 1 - CHANGE_AT))
            taken.append({"slots": f"{before} -> {after}", "seed": seed, "answers": needed[-1]})
        slowest[before, after] = max(needed)
        table.append([f"{before} -> {after}", None, None, f"within {max(needed)} answers", None])
    goals = [
        Goal(
            "share of the best fixed number, lowest mean of any number of slots",
            min(r[1] for r in table[:6]),
            0.97,
            "",
            True,
        ),
        Goal("share of the best fixed number, worst seed of any", min(shares), 0.95, "", True),
        *(
            Goal(
                f"answers until {before} -> {after} slots is followed, worst seed",
                float(answers),
                FOLLOWED_WITHIN,
            )
            for (before, after), answers in slowest.items()
        ),
    ]
    notes = [
        f"{ANSWERS:,} answers a run, {len(seeds)} seeds, slow start included; the same rows for both",
        "prompts of 600 tokens, answers of exponential length, 300 on average",
        "a step takes 10 ms and 0.4 ms a sequence; prefill of 2,000 tokens/s halts all",
    ]
    columns = ["slots", "mean", "worst", "limit, second half", "changes at most"]
    return Outcome("auto_simulated", harness.command_line(), columns, table, goals, taken, notes, found.quick)


class HiddenSlots(EmbeddedEngine):
    """An engine that does not tell its slots."""

    async def describe(self, model: str) -> EngineInfo:
        return dataclasses.replace(await super().describe(model), slots=None)


def some_rows(count: int, found: Any) -> list[BatchRequest]:
    """Rows with one head and answers of different lengths, the same each time."""
    rng = random.Random(1)
    return [
        dataclasses.replace(row, params={"max_tokens": rng.randint(found.answer // 4, found.answer * 7 // 4)})
        for row in toy_engine.make_rows(count, head=200, own=60)
    ]


def once(
    engine: EmbeddedEngine, rows: Sequence[BatchRequest], concurrency: Any
) -> tuple[float, BatchReport[Any]]:
    """Rows in a second while sending, and the report."""
    runner = BatchRunner(
        model=harness.MODEL,
        engine=engine,
        concurrency=concurrency,
        on_length="keep",
        state_dir=None,
        progress="none",
    )
    report = runner.run(rows)
    if report.counts.ok != len(rows):
        raise RuntimeError(f"{report.counts.ok} of {len(rows)} rows are ok:\n{report}")
    return len(rows) / report.metrics.elapsed_s, report


def part_engine(found: Any) -> Outcome:
    pairs, seconds = (1, 4.0) if found.quick else (found.pairs, found.seconds)
    sweep_s = 3.0 if found.quick else found.sweep_seconds
    taken: list[dict[str, Any]] = []
    table: list[list[Any]] = []
    ratios: dict[str, list[float]] = {which: [] for which in found.slots_are}
    medians: list[float] = []
    shortest = math.inf
    for slots in found.slots:
        options = {
            "gguf": toy_gguf(size_mib=found.size_mib),
            "slots": slots,
            "num_ctx": 1024,
            "extra_body": toy_engine.of_one_length(),
        }
        with (
            toy_engine.toy_engine(**options) as told,
            toy_engine.toy_engine(kind=HiddenSlots, **options) as hidden,
        ):
            once(told, some_rows(4 * slots, found), slots)
            if "hidden" in found.slots_are:
                once(hidden, some_rows(4 * slots, found), slots)
            pace, _ = once(told, some_rows(8 * slots, found), slots)
            rows = some_rows(max(8 * slots, math.ceil(pace * sweep_s)), found)
            rates = {number: once(told, rows, number)[0] for number in fixed_about(slots)}
            best = max(rates, key=lambda number: rates[number])
            print(f"{slots} slots, sweep: {rates}: best {best}", flush=True)
            taken += [{"slots": slots, "sweep": n, "rows_per_s": rate} for n, rate in rates.items()]
            rows = some_rows(max(8 * slots, math.ceil(1.05 * rates[best] * seconds)), found)
            mine: dict[str, list[float]] = {which: [] for which in ("fixed", *found.slots_are)}
            last: dict[str, Any] = {}
            for pair, which in harness.alternate(list(mine), pairs):
                engine = hidden if which == "hidden" else told
                rate, report = once(engine, rows, best if which == "fixed" else "auto")
                m = report.metrics
                mine[which].append(rate)
                last[which] = m
                shortest = min(shortest, m.elapsed_s)
                taken.append(
                    {
                        "slots": slots,
                        "pair": pair,
                        "concurrency": f"{best}" if which == "fixed" else f"auto, slots {which}",
                        "rows_per_s": rate,
                        "seconds": m.elapsed_s,
                        "at_the_end": m.concurrency,
                        "most": m.concurrency_max,
                        "changes": m.concurrency_changes,
                        "queue_share": m.queue_share,
                        "idle": m.engine_idle_share,
                    }
                )
                print(f"{slots} slots, pair {pair + 1}/{pairs}: {taken[-1]}", flush=True)
        for which in found.slots_are:
            each = [ours / fixed for ours, fixed in zip(mine[which], mine["fixed"], strict=True)]
            ratios[which] += each
            medians.append(harness.median(each))
            table.append(
                [
                    slots,
                    best,
                    which,
                    harness.median(mine["fixed"]),
                    harness.median(mine[which]),
                    medians[-1],
                    " ".join(f"{value:.3f}" for value in each),
                    f"{last[which].concurrency} ({last[which].concurrency_changes} changes)",
                ]
            )
    goals = [
        Goal("rate against the best fixed number, lowest median of pairs", min(medians), 0.97, "", True),
        Goal("shortest run of a pair, seconds", shortest, 4.0 if found.quick else 60.0, " s", True),
    ]
    columns = [
        "slots",
        "best fixed",
        "slots are",
        "rows/s fixed",
        "rows/s auto",
        "median ratio",
        "every pair",
        "auto at the end",
    ]
    notes = [
        f"{pairs} alternating pairs for each number of slots; a model of {found.size_mib} MiB on one thread",
        f"rows of one head of 200 tokens and 60 of their own, {found.answer} answer tokens on average",
        "the engine and the client share the machine's cores",
    ]
    return Outcome("auto_engine", harness.command_line(), columns, table, goals, taken, notes, found.quick)


PARTS = {"simulated": part_simulated, "engine": part_engine}


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--seconds", type=float, default=66.0, help="how long a run of a pair lasts at least")
    args.add_argument("--sweep-seconds", type=float, default=20.0, help="how long each fixed number is tried")
    args.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    args.add_argument("--slots-are", nargs="+", default=["told", "hidden"], choices=["told", "hidden"])
    args.add_argument("--answer", type=int, default=200, help="answer tokens of engine, on average")
    # One that a core's own cache holds: larger ones go as fast as the host's other tenants let them.
    args.add_argument("--size-mib", type=int, default=2, help="the model of engine")
    return harness.run_parts(args, PARTS)


if __name__ == "__main__":
    sys.exit(main())
