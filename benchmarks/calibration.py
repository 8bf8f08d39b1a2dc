"""How near our count comes to an engine's that cannot be asked, after 200 prompts that it has reported.

Real llama.cpp with toy models of several vocabularies, so that its tokens are a tenth fewer or six times as
many as ours; `/tokenize` says what is true. Our base is a tiktoken vocabulary where the machine has one
(`pip install --group bench` brings one), else the estimate.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import toy_engine
from harness import Goal, Outcome

from ollama_batch.engines import EmbeddedEngine
from ollama_batch.testing._toy_words import WORDS
from ollama_batch.testing.toy import write_toy_gguf
from ollama_batch.tokens import CalibratedCounter, TokenCounter, default_counter
from ollama_batch.types import EngineInfo

SEEN = 200
HEAD_WORDS, OWN_WORDS = 350, (300, 900)
"""Words of the prompts that errors are measured on: criteria, and a profile of so many."""

LIMIT_VOCABULARIES = (None, 1000)
TOO_LARGE = "context_length_exceeded"

_FREQUENT = [1 / (rank + 10) for rank in range(len(WORDS))]


class SilentEngine(EmbeddedEngine):
    """An engine that does not say that it could count prompts, as most cannot."""

    async def describe(self, model: str) -> EngineInfo:
        return dataclasses.replace(await super().describe(model), tokenizes=False)


def prose(rng: random.Random, count: int) -> str:
    """Sentences of `count` words as frequent as in language, with numbers."""
    said: list[str] = []
    chosen = rng.choices(WORDS, _FREQUENT, k=count)
    while chosen:
        sentence = [chosen.pop() for _ in range(min(len(chosen), rng.randint(5, 18)))]
        if rng.random() < 0.3:
            sentence[rng.randrange(len(sentence))] = str(rng.randint(1, 2030))
        said.append(f"{' '.join(sentence).capitalize()}.")
    return " ".join(said)


def rare(rng: random.Random, count: int) -> str:
    """`count` words, each as likely as any other."""
    return toy_engine.words(rng, count)


def keys(rng: random.Random, count: int) -> str:
    """JSON of names that are run together from the commonest words."""
    pairs = zip(rng.choices(WORDS[:500], k=count), rng.choices(WORDS, k=count), strict=True)
    return "{" + "".join(f'"{one.capitalize()}{other}": "' for one, other in pairs) + "}"


Write = Callable[[random.Random, int], str]
CORPORA: Sequence[tuple[str, int | None, Write, Write]] = (
    ("keys", None, keys, keys),
    ("prose", None, prose, prose),
    ("prose", 2000, prose, prose),
    ("prose", 1000, prose, prose),
    ("prose", 512, prose, prose),
    ("rare words", 512, rare, rare),
    ("rare words, a head of prose", 512, prose, rare),
)
"""Kind of text, tokens of the model's vocabulary (None: all), and what writes the head and the rest.

Goals are for those that are written by one: where head and rest count in different ratios, no line through a
whole prompt says both.
"""


@contextmanager
def engine_of(vocabulary: int | None, **options: Any) -> Iterator[EmbeddedEngine]:
    with tempfile.TemporaryDirectory() as name:
        gguf = write_toy_gguf(Path(name) / "toy.gguf", vocab_size=vocabulary, n_layer=1)
        with toy_engine.toy_engine(gguf=gguf, kind=SilentEngine, **options) as engine:
            yield engine


def base_counter() -> tuple[TokenCounter, str]:
    base = default_counter()
    return base, f"our tokens: {base.source}"


def p99(errors: Sequence[float]) -> float:
    return sorted(errors)[math.ceil(0.99 * len(errors)) - 1]


def best_line(pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Errors, in %, of the line that fits these pairs best, known only afterwards: what no line can avoid."""
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    slope, intercept = statistics.linear_regression(ours, theirs)
    return [abs((slope * x + intercept) / y - 1) * 100 for x, y in pairs]


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--held-out", type=int, default=1000)
    args.add_argument("--seed", type=int, default=0)
    found = args.parse_args()
    base, note = base_counter()
    held_out = 100 if found.quick else found.held_out
    table, taken = [], []
    for name, vocabulary, write_head, write in CORPORA:
        rng = random.Random(found.seed)
        lengths = [rng.randint(*OWN_WORDS) for _ in range(SEEN + held_out)]
        system = write_head(rng, HEAD_WORDS)
        prompts = [toy_engine.user(write(rng, length), system=system) for length in lengths]
        with engine_of(vocabulary, slots=1, num_ctx=256) as engine:
            truth = toy_engine.tokenized(engine, prompts)
        counter = CalibratedCounter(base, model_digest=f"{name} {vocabulary}")
        for prompt, tokens in zip(prompts[:SEEN], truth[:SEEN], strict=True):
            counter.observe(prompt, tokens)
        pairs = list(zip(prompts[SEEN:], truth[SEEN:], strict=True))
        errors = sorted(abs(counter.estimate(prompt).tokens / tokens - 1) * 100 for prompt, tokens in pairs)
        best = best_line([(base.count_messages(prompt), tokens) for prompt, tokens in pairs])
        bounds = [counter.upper_bound(prompt).tokens / tokens for prompt, tokens in pairs]
        figures = {
            "ratio": sum(truth) / sum(map(base.count_messages, prompts)),
            "median_error": harness.median(errors),
            "p99_error": p99(errors),
            "p99_of_best_line": p99(best),
            "above_bound": sum(bound < 1 for bound in bounds) / len(bounds) * 100,
            "bound": (harness.median(bounds) - 1) * 100,
        }
        kind = f"{name}, {vocabulary or 'whole'} vocabulary"
        table.append([kind, *figures.values()])
        taken.append({"text": kind, "one_kind": write_head is write, **figures})
    uniform = [one for one in taken if one["one_kind"]]
    goals = [
        Goal("median error, worst text", max(one["median_error"] for one in uniform), 3.0, " %"),
        Goal("99 % of errors are below, worst text", max(one["p99_error"] for one in uniform), 8.0, " %"),
    ]
    columns = ["text", "ratio", "median error %", "p99 %", "p99 of the best line %", "beyond the bound %"]
    columns.append("bound above truth %")
    low, high = OWN_WORDS
    notes = [
        note,
        f"{held_out} prompts, {SEEN} learned from before: a head of {HEAD_WORDS} and {low} to {high} words",
        "no goal where the head counts in another ratio than the rest: one line cannot say both",
        "best line: fitted to the held-out prompts themselves, so what it leaves is in the texts",
    ]
    command = harness.command_line()
    Outcome("calibration", command, columns, table, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
