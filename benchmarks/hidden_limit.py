"""An engine that stands shorter prompts than it says: how soon conversations know, and for how long.

A fake Ollama with a context of 8,192 tokens fails every prompt above a hidden limit, as a real one does whose
memory runs out while it answers, or which takes less than it was loaded with; one token is one word. Each
limit meets three runs of one conversation, with the same folder of learned things: one that does not know
it, one that does, and one of another model's weights, which must not believe it.

A probe is a prompt that reached the mark: one that was refused, or after which the conversation was cut
because the next request would have been beyond the mark.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch._limits import LearnedLimit
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.errors import RunStoppedError
from ollama_batch.events import Event, RowFinished
from ollama_batch.run import Run
from ollama_batch.testing import FakeModel, FakeOllama, FakeReply
from ollama_batch.testing.faults import KINDS

NUM_CTX, ANSWER = 8192, 64
LIMITS = (2000, 7000)
"""Between these, in tokens, lies the hidden limit."""

EXCHANGES = (20, 260)
"""Words of a request."""

PROBES = 20
WORDS = ("engineer", "team", "system", "design", "review", "data", "platform", "service", "customer", "scale")


class HiddenLimit:
    """What the fake answers: an error to every prompt above `limit` words, and else what it likes."""

    def __init__(self, limit: int, kind: str) -> None:
        self.limit = limit
        self.refused: list[int] = []
        self.answered: list[int] = []
        self._reply = FakeReply(status=KINDS[kind].status, body={"error": KINDS[kind].text})

    def __call__(self, body: Mapping[str, Any]) -> FakeReply | None:
        messages = body.get("messages") or []
        words = len("".join(f"<{m['role']}>{m['content']}\n" for m in messages).split())
        if words > self.limit:
            self.refused.append(words)
            return self._reply
        self.answered.append(words)
        return None


class Probes:
    """A hook that counts probes, and stops the run after so many."""

    def __init__(self, most: int | None = None) -> None:
        self.count = 0
        self.run: Run | None = None
        self._most = most

    def on_event(self, event: Event) -> None:
        trim = (event.result.trim or {}) if isinstance(event, RowFinished) else {}
        self.count += trim.get("why") in ("high", "refused")
        if self.run is not None and self.count == self._most:
            self.run.cancel()


def make_rows(count: int, seed: int) -> list[BatchRequest]:
    rng = random.Random(seed)
    system = " ".join(rng.choices(WORDS, k=200))
    texts = (" ".join(rng.choices(WORDS, k=rng.randint(*EXCHANGES))) for _ in range(count))
    return [
        BatchRequest.chat(text, system=system, custom_id=f"row-{index:05d}")
        for index, text in enumerate(texts)
    ]


def run(
    hidden: HiddenLimit,
    rows: list[BatchRequest],
    output: Path,
    *,
    digest: str = "",
    probes: int | None = None,
) -> Probes:
    """Run `rows` to their end, or until so many probes, on a fresh server."""
    seen = Probes(probes)
    with FakeOllama(
        models=(FakeModel(harness.MODEL, digest),), reply=hidden, num_ctx=NUM_CTX, tokenizer="words"
    ) as fake:
        runner = BatchRunner(
            model=harness.MODEL,
            base_url=fake.url,
            mode="conversation",
            conversation=ConversationPolicy(lanes=1),
            num_ctx=NUM_CTX,
            max_tokens=ANSWER,
            on_length="keep",
            state_dir=output.parent / "state",
            progress="none",
            hooks=[seen],
        )
        seen.run = runner.start(rows, output=output)
        try:
            report = seen.run.wait()
        except RunStoppedError:
            if probes is None:
                raise
            return
    if probes is not None:
        raise RuntimeError(f"only {seen.count} probes in {len(rows)} rows")
    if report.counts.failed:
        raise RuntimeError(f"{report.counts.failed} rows failed:\n{report}")


def learned(folder: Path) -> int | None:
    """The mark that is kept for later runs, in tokens."""
    (file,) = (folder / "state" / "limits").glob("*.json")
    limit = LearnedLimit({}, folder=None)
    limit.restore(json.loads(file.read_bytes()))
    return limit.ceiling


def one_limit(seed: int, kind: str, count: int) -> dict[str, Any]:
    """Everything about one hidden limit."""
    limit = random.Random(seed).randint(*LIMITS)
    rows = make_rows(count, seed)
    with tempfile.TemporaryDirectory() as name:
        first = HiddenLimit(limit, kind)
        run(first, rows, Path(name) / "first.jsonl", probes=PROBES)
        after_probes = learned(Path(name)) or 0
        run(first, rows, Path(name) / "first.jsonl")
        at_end = learned(Path(name)) or 0
        second = HiddenLimit(limit, kind)
        run(second, make_rows(count, seed + 1000), Path(name) / "second.jsonl")
        other = HiddenLimit(limit, kind)
        run(other, rows, Path(name) / "other.jsonl", digest="f" * 64)
    return {
        "seed": seed,
        "error": kind,
        "limit": limit,
        "mark": after_probes / limit,
        "mark_at_end": at_end / limit,
        "refused": len(first.refused),
        "second_refused": len(second.refused),
        "second_longest": max(second.answered) / limit,
        "other_refused": len(other.refused),
    }


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--seeds", type=int, default=5)
    args.add_argument("--rows", type=int, default=700)
    found = args.parse_args()
    taken = []
    for seed in range(1 if found.quick else found.seeds):
        for kind in ("context", "oom_runtime"):
            taken.append(one_limit(seed, kind, found.rows))
            print("  ".join(f"{key}={harness.show(value)}" for key, value in taken[-1].items()), flush=True)
    marks = [one["mark"] * 100 for one in taken]
    longest = [one["second_longest"] * 100 for one in taken]
    goals = [
        Goal(f"mark after {PROBES} probes, of the limit, lowest", min(marks), 95.0, " %", True),
        Goal(f"mark after {PROBES} probes, of the limit, highest", max(marks), 100.0, " %"),
        Goal("prompts refused in second runs", sum(one["second_refused"] for one in taken), 0),
        Goal("longest prompt of a second run, of the limit, least", min(longest), 95.0, " %", True),
        Goal("runs of other weights that believed it", sum(not one["other_refused"] for one in taken), 0),
    ]
    shares, counts = ("mark", "mark_at_end"), ("refused", "second_refused", "other_refused")
    table = []
    for one in taken:
        marked = [one[key] * 100 for key in shares]
        table.append([one["error"], one["limit"], *marked, *(one[key] for key in counts)])
    columns = ["error", "hidden limit", f"mark after {PROBES} probes, %", "at the end, %", "refused"]
    columns += ["refused, second run", "refused, other weights"]
    notes = [
        f"one lane, {found.rows} requests of {EXCHANGES[0]} to {EXCHANGES[1]} words, num_ctx {NUM_CTX}",
        "context: HTTP 400 without numbers; oom_runtime: HTTP 500, out of memory while running",
        f"the first run is stopped after {PROBES} probes, to read the mark, and then goes on",
    ]
    Outcome(
        "hidden_limit", harness.command_line(), columns, table, goals, taken, notes, found.quick
    ).publish()


if __name__ == "__main__":
    main()
