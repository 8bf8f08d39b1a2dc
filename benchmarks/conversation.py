"""What trimming makes the engine evaluate again: one conversation, by our marks and by another rule.

The other is the rule of the batch server that this library grew out of (`ConversationPolicy.original`). Real
llama.cpp with a toy model; requests and answers have fixed lengths, so every figure follows from the rule,
and tokens are counted by the engine itself. "On paper" is what the rules give if all answers are reused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import toy_engine
from harness import Goal, Outcome

from ollama_batch import BatchRunner
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.testing.toy import write_toy_gguf

LIMIT = 32_768
ANSWER = 300
POLICIES = {"ours": ConversationPolicy(lanes=1), "original": ConversationPolicy.original()}
MESSAGE, MESSAGE_END, OPENING = 5, 2, 3
"""Tokens of the toy's template: around a message, of them behind it, and before the answer."""

WORKLOADS = [(head, own) for own in (900, 600) for head in (350, 2400)]
"""Tokens of the head, and of a request without its answer."""

GOAL_OWN = 900
"""The requests for which there is a goal: profiles of about this many tokens."""


def expected(count: int, *, head: int, own: int, policy: ConversationPolicy) -> tuple[int, int]:
    """What a rule makes the engine evaluate, on paper, and how often it trims.

    A conversation of k exchanges has head + k (own + answer) tokens and its template. All are cached
    when the next request comes, unless it was trimmed: then only the head is.
    """
    head, own, answer = head + MESSAGE, own + MESSAGE, ANSWER + MESSAGE
    exchange = own + answer
    marks = policy.marks(LIMIT)
    kept, cached, since, total, trims = 0, 0, 0, 0, 0
    for _ in range(count):
        prompt = head + kept * exchange + own + OPENING
        if kept and (prompt > marks.high or (policy.every is not None and since >= policy.every)):
            by_tokens = (marks.low - head - own) // exchange
            stay = by_tokens if policy.keep_messages is None else policy.keep_messages // 2
            if stay < kept:
                kept, cached, trims = stay, head, trims + 1
            since = 0
        total += head + kept * exchange + own + OPENING - cached
        kept += 1
        since += 1
        cached = head + kept * exchange - MESSAGE_END  # an answer is ended by the request that follows
    return total, trims


def trimmed(name: str, count: int, *, head: int, own: int, gguf: Path) -> dict[str, Any]:
    rows = toy_engine.make_rows(count, head=head, own=own)
    with toy_engine.toy_engine(
        gguf=gguf, slots=1, num_ctx=LIMIT + ANSWER, extra_body=toy_engine.of_one_length()
    ) as engine:
        runner = BatchRunner(
            model=harness.MODEL,
            engine=engine,
            mode="conversation",
            conversation=POLICIES[name],
            max_tokens=ANSWER,
            on_length="keep",
            state_dir=None,
            progress="none",
        )
        before = toy_engine.evaluated(engine)
        results, wall_s = toy_engine.run_all(runner, rows)
        grown = toy_engine.evaluated(engine) - before
    usages = [result.usage for result in results if result.usage is not None]
    if any(usage.completion_tokens != ANSWER for usage in usages):
        raise RuntimeError("an answer has another length than was asked for")
    on_paper, paper_trims = expected(count, head=head, own=own, policy=POLICIES[name])
    return {
        "rule": name,
        "head": head,
        "own": own,
        "rows": count,
        "evaluated": grown,
        "by_replies": sum(usage.prompt_tokens - (usage.cached_tokens or 0) for usage in usages),
        "longest_prompt": max(usage.prompt_tokens for usage in usages),
        "trims": sum(result.trim is not None for result in results),
        "expected": on_paper,
        "expected_trims": paper_trims,
        "wall_s": wall_s,
    }


def outcome(count: int, pairs: Sequence[Mapping[str, dict[str, Any]]], quick: bool) -> Outcome:
    """What was found so far."""
    table, goals = [], []
    for pair in pairs:
        ours, theirs = pair["ours"], pair["original"]
        head, exchange = ours["head"], ours["own"] + ANSWER
        ratio, told, paper = (ours[k] / theirs[k] for k in ("evaluated", "by_replies", "expected"))
        trims = f"{ours['trims']} / {theirs['trims']}"
        table.append([head, exchange, ours["evaluated"], theirs["evaluated"], ratio, paper, trims])
        if ours["own"] == GOAL_OWN:
            text = f"evaluated against the original, head {head:,}, exchanges of {exchange:,}"
            goals += [Goal(text, ratio, 0.5, "x"), Goal(f"{text}, by the replies", told, 0.5, "x")]
    return Outcome(
        "conversation",
        harness.command_line(),
        ["head", "exchange", "ours", "original", "ratio", "ratio on paper", "trims, ours / original"],
        table,
        goals,
        [figures for pair in pairs for figures in pair.values()],
        [
            f"{count} rows, one lane, a limit of {LIMIT:,} tokens, answers of {ANSWER}; figures are tokens",
            *(f"{name}: {policy}" for name, policy in POLICIES.items()),
        ],
        quick,
    )


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--rows", type=int, default=100)
    found = args.parse_args()
    count = 40 if found.quick else found.rows
    pairs: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as name:
        gguf = write_toy_gguf(Path(name) / "toy.gguf", n_layer=1)  # only tokens are counted here, not time
        for head, own in WORKLOADS[:1] if found.quick else WORKLOADS:
            pair = {}
            for rule in POLICIES:
                pair[rule] = trimmed(rule, count, head=head, own=own, gguf=gguf)
                print(
                    "  ".join(f"{key}={harness.show(value)}" for key, value in pair[rule].items()), flush=True
                )
            pairs.append(pair)
            outcome(count, pairs, found.quick).publish()  # each time: what was measured stays


if __name__ == "__main__":
    main()
