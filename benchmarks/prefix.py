"""What is evaluated when requests begin alike: one head, eight heads, with and without a cache beside.

Real llama.cpp with a toy model, 4 slots; every run has a fresh engine process. "Evaluated" is the growth of
the engine's own `llamacpp:prompt_tokens_total`; heads, tails and the least that can be evaluated are
counted by `/tokenize`. Parts, one file of figures each (`--part` runs some of them):

- head: rows with one head, in the runner's usual order.
- heads: eight heads, interleaved at random, `order="prefix"` against `order="input"`, in alternating pairs.
- cache: the same, and the engine keeps displaced prompts in main memory, as llama.cpp does by itself.
- stream: the same rows from a generator, where only those read ahead can be put in order.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import toy_engine
from harness import Goal, Outcome

from ollama_batch import BatchRequest, BatchRunner

SLOTS = 4
ANSWER_TOKENS = 8
OWN_CACHE_MIB = 8192
"""What llama.cpp takes for displaced prompts if nobody says otherwise."""


@dataclass(frozen=True)
class Rows:
    """Requests in the order they come; `least` prompt tokens must be evaluated for all of them."""

    requests: list[BatchRequest]
    head_tokens: int
    least: int

    def write(self, path: Path) -> Path:
        lines = [json.dumps(request.to_openai()) for request in self.requests]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def make_rows(count: int, *, heads: int, head_tokens: int, tail_tokens: int, seed: int = 0) -> Rows:
    """`count` requests, as many for each head, in random order; each tail is another."""
    rng = random.Random(seed)
    systems = [toy_engine.words(rng, head_tokens) for _ in range(heads)]
    chosen = [number % heads for number in range(count)]
    rng.shuffle(chosen)
    requests, prompts = [], []
    for index, head in enumerate(chosen):
        messages = toy_engine.user(toy_engine.words(rng, tail_tokens), system=systems[head])
        requests.append(BatchRequest(messages=messages, custom_id=f"row-{index:05d}"))
        prompts.append(messages)
    alone = [toy_engine.user("", system=system) for system in systems]
    with toy_engine.toy_engine(slots=1, num_ctx=256) as engine:
        shared = toy_engine.tokenized(engine, alone)
        full = toy_engine.tokenized(engine, prompts)
    least = sum(shared) + sum(tokens - shared[head] for tokens, head in zip(full, chosen, strict=True))
    return Rows(requests, min(shared), least)


def run_once(
    source: Callable[[Path], Any], count: int, *, num_ctx: int, cache_mib: int = 0, **options: Any
) -> dict[str, Any]:
    """One run of `source(folder)` on a fresh engine: its time, and what was evaluated, said and reported."""
    with (
        tempfile.TemporaryDirectory() as name,
        toy_engine.toy_engine(slots=SLOTS, num_ctx=num_ctx, cache_ram_mib=cache_mib) as engine,
    ):
        runner = BatchRunner(
            model=harness.MODEL,
            engine=engine,
            max_tokens=ANSWER_TOKENS,
            on_length="keep",
            state_dir=None,
            progress="none",
            **options,
        )
        requests = source(Path(name))
        before = toy_engine.evaluated(engine)
        started = time.monotonic()
        report = runner.run(requests, output=Path(name) / "out.jsonl")
        wall_s = time.monotonic() - started
        grown = toy_engine.evaluated(engine) - before
        if report.counts.ok != count:
            raise RuntimeError(f"{report.counts.ok} of {count} rows are ok:\n{report}")
        prompts = sum(result.usage.prompt_tokens for result in report.results() if result.usage)
        return {
            "wall_s": wall_s,
            "prompt_tokens": prompts,
            "evaluated": grown,
            "cached": prompts - grown,
            "reported_cached": report.metrics.cached_tokens,
        }


def part_head(found: Any) -> Outcome:
    count = 40 if found.quick else found.rows
    rows = make_rows(count, heads=1, head_tokens=found.head, tail_tokens=found.tail)
    measured = run_once(
        lambda folder: rows.write(folder / "in.jsonl"), count, num_ctx=found.head + found.tail + 256
    )
    figures = [measured[key] for key in ("prompt_tokens", "evaluated", "cached", "reported_cached")]
    able = (count - SLOTS) * rows.head_tokens
    reported = measured["reported_cached"]
    goals = [
        Goal(
            "head tokens cached of (rows - slots) x head", measured["cached"] / able * 100, 97.0, " %", True
        ),
        Goal(
            "reported cached tokens against the engine's own count, difference",
            None if reported is None else abs(reported / measured["cached"] - 1) * 100,
            1.0,
            " %",
        ),
    ]
    return Outcome(
        "prefix_head",
        harness.command_line(),
        ["rows", "head tokens", "prompt tokens", "evaluated", "cached", "cached, as reported"],
        [[count, rows.head_tokens, *figures]],
        goals,
        [measured],
        [f"{SLOTS} slots, tails of {found.tail} words, {ANSWER_TOKENS} answer tokens at most"],
        found.quick,
    )


def compared(found: Any, name: str, cache_mib: int) -> tuple[Rows, list[dict[str, Any]], int]:
    """Both orders in alternating pairs, on the same rows."""
    count, pairs = (64, 1) if found.quick else (found.rows, found.pairs)
    rows = make_rows(count, heads=found.heads, head_tokens=found.head, tail_tokens=found.tail)
    taken = []
    for pair, order in harness.alternate(["input", "prefix"], pairs):
        measured = run_once(
            lambda folder: rows.write(folder / "in.jsonl"),
            count,
            num_ctx=found.num_ctx,
            cache_mib=cache_mib,
            order=order,
            concurrency=SLOTS,
        )
        taken.append({"order": order, "pair": pair, **measured})
        print(
            f"{name} pair {pair + 1}/{pairs} {order}: {measured['evaluated']:,} tokens evaluated in "
            f"{measured['wall_s']:.1f} s",
            flush=True,
        )
    return rows, taken, pairs


def ratios(taken: Sequence[dict[str, Any]], key: str) -> list[float]:
    """`prefix` over `input` in each pair."""
    by = {(one["order"], one["pair"]): one[key] for one in taken}
    return [by["prefix", pair] / by["input", pair] for order, pair in sorted(by) if order == "prefix"]


def table(taken: Sequence[dict[str, Any]], least: int) -> list[list[Any]]:
    lines = []
    for order in dict.fromkeys(one["order"] for one in taken):
        mine = [one for one in taken if one["order"] == order]
        tokens = harness.median([one["evaluated"] for one in mine])
        wall_s = harness.median([one["wall_s"] for one in mine])
        lines.append([order, len(mine), round(tokens), tokens / least, wall_s])
    return lines


COLUMNS = ["order", "runs", "prompt tokens evaluated", "of the least possible", "wall s"]


def notes(found: Any, rows: Rows) -> list[str]:
    count = len(rows.requests)
    return [
        f"{count} rows of {found.heads} heads of {found.head} words, at random; tails of {found.tail} words",
        f"{SLOTS} slots of {found.num_ctx} tokens, concurrency {SLOTS}, {ANSWER_TOKENS} answer tokens each",
        f"least possible: each head once and every tail, {rows.least:,} tokens by /tokenize",
    ]


def part_heads(found: Any) -> Outcome:
    rows, taken, _ = compared(found, "heads", 0)
    prefix = [one["evaluated"] for one in taken if one["order"] == "prefix"]
    goals = [
        Goal("tokens evaluated against input order", harness.median(ratios(taken, "evaluated")), 0.40, "x"),
        Goal("tokens evaluated against each head once and every tail", max(prefix) / rows.least, 1.10, "x"),
        Goal("wall time against input order", harness.median(ratios(taken, "wall_s")), 1.0, "x"),
    ]
    return Outcome(
        "prefix_heads",
        harness.command_line(),
        COLUMNS,
        table(taken, rows.least),
        goals,
        taken,
        notes(found, rows),
        found.quick,
    )


def part_cache(found: Any) -> Outcome:
    rows, taken, _ = compared(found, "cache", OWN_CACHE_MIB)
    goals = [
        Goal("tokens evaluated against input order, worst pair", max(ratios(taken, "evaluated")), 1.03, "x"),
        Goal(
            "wall time against input order (median of pairs)",
            harness.median(ratios(taken, "wall_s")),
            1.03,
            "x",
        ),
    ]
    more = f"the engine keeps displaced prompts in up to {OWN_CACHE_MIB} MiB of main memory"
    return Outcome(
        "prefix_cache",
        harness.command_line(),
        COLUMNS,
        table(taken, rows.least),
        goals,
        taken,
        [*notes(found, rows), more],
        found.quick,
    )


def part_stream(found: Any) -> Outcome:
    count = 64 if found.quick else found.rows
    rows = make_rows(count, heads=found.heads, head_tokens=found.head, tail_tokens=found.tail)

    def generated(folder: Path) -> Iterator[BatchRequest]:
        yield from rows.requests

    taken = []
    for order in ("input", "prefix"):
        measured = run_once(generated, count, num_ctx=found.num_ctx, order=order, concurrency=SLOTS)
        taken.append({"order": order, "pair": 0, **measured})
    ratio = ratios(taken, "evaluated")[0]
    return Outcome(
        "prefix_stream",
        harness.command_line(),
        COLUMNS,
        table(taken, rows.least),
        [],
        taken,
        [*notes(found, rows), f"from a generator; evaluated against input order: {ratio:.3f}x"],
        found.quick,
    )


PARTS = {"head": part_head, "heads": part_heads, "cache": part_cache, "stream": part_stream}


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--rows", type=int, default=320)
    args.add_argument("--heads", type=int, default=8)
    args.add_argument("--head", type=int, default=2400, help="words of a head")
    args.add_argument("--tail", type=int, default=600, help="words of a tail")
    args.add_argument("--num-ctx", type=int, default=4096, help="tokens of a slot")
    args.add_argument("--pairs", type=int, default=3)
    return harness.run_parts(args, PARTS)


if __name__ == "__main__":
    sys.exit(main())
