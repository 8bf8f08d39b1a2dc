"""Rows that crowd the limit, on an engine that cannot be asked how long they are.

Real llama.cpp with toy models; the runner is kept from asking `/tokenize`, the benchmark asks it for what is
true. Parts, one file of figures each (`--part` runs some of them):

- fail: none of the rows may reach the engine and be refused there, and of those that are too long none may
  be answered; how many are refused here although they would have fitted is told by length.
- trim: what is too long is trimmed; the engine must see just what was kept.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import toy_engine
from calibration import base_counter, engine_of, prose
from harness import Goal, Outcome

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.engines import EmbeddedEngine
from ollama_batch.events import Decision, Event
from ollama_batch.trim import SlidingWindowTrim
from ollama_batch.types import BatchResult, Message

NUM_CTX, ANSWER = 1024, 16
LIMIT = NUM_CTX - ANSWER
CROWD = (0.5, 1.0)
TOO_LONG = (1.01, 2.0)
"""Lengths of the rows that fit and of the planted ones, in shares of the limit, as likely one as another."""

VOCABULARIES = (None, 1000)
"""Tokens of the models: with all of them a word is mostly one token, with fewer it may be ten."""

TOO_LARGE = "context_length_exceeded"


@dataclass(frozen=True)
class Crowd:
    """Rows near the limit and planted ones beyond it, mixed; `truth` has their tokens by /tokenize."""

    rows: list[BatchRequest]
    truth: dict[str, int]

    def too_long(self, custom_id: str | None) -> bool:
        return self.truth[str(custom_id)] > LIMIT


def make_crowd(engine: EmbeddedEngine, *, fitting: int, planted: int, seed: int, units: bool) -> Crowd:
    """Rows whose true lengths lie in CROWD and TOO_LONG; with `units` in several exchanges."""
    rng = random.Random(seed)
    system = prose(rng, 60)

    def messages(words: int) -> list[Message]:
        if not units:
            return toy_engine.user(prose(rng, words), system=system)
        sizes = [max(5, words // 5)] * 4
        said = [
            {"role": "assistant" if number % 2 else "user", "content": prose(rng, size)}
            for number, size in enumerate(sizes)
        ]
        return [{"role": "system", "content": system}, *said, *toy_engine.user(prose(rng, words // 5))]

    sample = [messages(300) for _ in range(50)]
    per_word = sum(toy_engine.tokenized(engine, sample)) / 50 / 360
    rows: list[BatchRequest] = []
    truth: dict[str, int] = {}
    for wanted, (low, high) in ((fitting, CROWD), (planted, TOO_LONG)):
        have = 0
        while have < wanted:
            targets = [rng.uniform(low, high) * LIMIT for _ in range(wanted - have + 20)]
            tried = [messages(max(5, round(target / per_word) - 60)) for target in targets]
            for prompt, tokens in zip(tried, toy_engine.tokenized(engine, tried), strict=True):
                if low * LIMIT < tokens <= high * LIMIT and have < wanted:
                    custom_id = f"row-{len(rows):05d}"
                    rows.append(BatchRequest(messages=prompt, custom_id=custom_id))
                    truth[custom_id] = tokens
                    have += 1
    rng.shuffle(rows)
    return Crowd(rows, truth)


class Decisions:
    """A hook that counts the decisions of a run by kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def on_event(self, event: Event) -> None:
        if isinstance(event, Decision):
            self.kinds[event.kind] += 1


def run(
    engine: EmbeddedEngine, crowd: Crowd, **options: Any
) -> tuple[list[BatchResult[Any]], Decisions, float]:
    decisions = Decisions()
    runner = BatchRunner(
        model=harness.MODEL,
        engine=engine,
        num_ctx=NUM_CTX,
        max_tokens=ANSWER,
        on_length="keep",
        state_dir=None,
        progress="none",
        counter=base_counter()[0],
        hooks=[decisions],
        **options,
    )
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        report = runner.run(crowd.rows, output=Path(name) / "out.jsonl")
        return list(report.results()), decisions, time.monotonic() - started


def overflows(results: Sequence[BatchResult[Any]], decisions: Decisions) -> int:
    """How often the engine was sent a prompt that it had no room for."""
    refused = [r for r in results if r.attempts and r.error and r.error.code == TOO_LARGE]
    return max(len(refused), decisions.kinds["bound_widened"])


def crowded(found: Any, vocabulary: int | None) -> dict[str, Any]:
    """One run of rows near the limit: what became of them, by tenths of the limit."""
    fitting, planted = (300, 20) if found.quick else (found.rows, found.planted)
    with engine_of(vocabulary, slots=4, num_ctx=NUM_CTX) as engine:
        crowd = make_crowd(engine, fitting=fitting, planted=planted, seed=found.seed, units=False)
        results, decisions, wall_s = run(engine, crowd)
    long = [result for result in results if crowd.too_long(result.custom_id)]
    short = [result for result in results if not crowd.too_long(result.custom_id)]
    by_tenth: dict[str, list[bool]] = {}
    for result in sorted(short, key=lambda result: crowd.truth[result.custom_id]):
        tenth = math.ceil(crowd.truth[result.custom_id] / LIMIT * 10) * 10
        by_tenth.setdefault(f"{tenth - 10} to {tenth} %", []).append(result.ok)
    by_tenth["all that fit"] = [result.ok for result in short]
    answered = [result for result in results if result.ok and result.usage]
    return {
        "vocabulary": vocabulary or "whole",
        "overflows": overflows(results, decisions),
        "planted": len(long),
        "planted_not_failed": sum(result.ok for result in long),
        "not_as_sent": sum(r.usage.prompt_tokens != crowd.truth[r.custom_id] for r in answered if r.usage),
        "other_errors": sum(r.error.code != TOO_LARGE for r in results if r.error),
        **{length: f"{oks.count(False)}/{len(oks)}" for length, oks in by_tenth.items()},
        "wall_s": wall_s,
    }


def part_fail(found: Any) -> Outcome:
    taken = [crowded(found, vocabulary) for vocabulary in VOCABULARIES]
    goals = [
        Goal(text, sum(one[key] for one in taken), 0)
        for key, text in (
            ("overflows", "prompts that the engine had no room for"),
            ("planted_not_failed", "planted rows that did not fail"),
            ("not_as_sent", "rows answered from another prompt than their own"),
            ("other_errors", "rows that failed for another reason"),
        )
    ]
    lengths = [key for key in taken[0] if key.endswith("%") or key == "all that fit"]
    table = [[length, *(one[length] for one in taken)] for length in lengths]
    shares = f"{TOO_LONG[0]:.0%} to {TOO_LONG[1]:.0%}"
    notes = [
        base_counter()[1],
        "refused by our count, of all rows of that length that fit: who cannot count exactly keeps a margin",
        f"a limit of {LIMIT} tokens by /tokenize; {taken[0]['planted']} planted rows of {shares} of it",
    ]
    columns = ["length, of the limit", *(f"{one['vocabulary']} vocabulary" for one in taken)]
    return Outcome(
        "near_limit_fail", harness.command_line(), columns, table, goals, taken, notes, found.quick
    )


def part_trim(found: Any) -> Outcome:
    fitting, planted = (100, 20) if found.quick else (500, found.planted)
    with engine_of(VOCABULARIES[-1], slots=4, num_ctx=NUM_CTX) as engine:
        crowd = make_crowd(engine, fitting=fitting, planted=planted, seed=found.seed + 1, units=True)
        results, decisions, _ = run(engine, crowd, trim=SlidingWindowTrim())
        sent = [kept_of(crowd.rows[result.index].messages, result) for result in results]
        truth = toy_engine.tokenized(engine, sent)
    long = [result for result in results if crowd.too_long(result.custom_id)]
    trimmed = [result for result in long if result.ok and result.trim is not None]
    unlike = [
        result
        for result, tokens in zip(results, truth, strict=True)
        if result.ok and (result.usage is None or result.usage.prompt_tokens != tokens)
    ]
    kept = [result.usage.prompt_tokens / LIMIT * 100 for result in trimmed if result.usage]
    figures = {
        "planted": len(long),
        "trimmed": len(trimmed),
        "fitting": len(results) - len(long),
        "trimmed_though_fitting": sum(
            r.trim is not None and not crowd.too_long(r.custom_id) for r in results
        ),
        "overflows": overflows(results, decisions),
    }
    goals = [
        Goal("planted rows not trimmed and answered", len(long) - len(trimmed), 0),
        Goal("rows of whose prompt the engine saw another than was kept", len(unlike), 0),
        Goal("prompts that the engine had no room for", figures["overflows"], 0),
    ]
    columns = ["planted", "trimmed", "others", "trimmed though they fit", "a trimmed prompt, % of limit"]
    table = [
        [figures[key] for key in ("planted", "trimmed", "fitting", "trimmed_though_fitting")]
        + [harness.median(kept)]
    ]
    notes = [base_counter()[1], "rows of three exchanges; whole ones are left out, the last always stays"]
    return Outcome(
        "near_limit_trim", harness.command_line(), columns, table, goals, [figures], notes, found.quick
    )


def kept_of(messages: Sequence[Message], result: BatchResult[Any]) -> list[Message]:
    """What of a row's messages (a head, then exchanges of two, the last of one) was sent."""
    if result.trim is None:
        return list(messages)
    return [messages[0], *messages[-(2 * result.trim["kept"] - 1) :]]


PARTS = {"fail": part_fail, "trim": part_trim}


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--rows", type=int, default=5000)
    args.add_argument("--planted", type=int, default=100)
    args.add_argument("--seed", type=int, default=0)
    return harness.run_parts(args, PARTS)


if __name__ == "__main__":
    sys.exit(main())
