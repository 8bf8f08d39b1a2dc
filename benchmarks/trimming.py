"""Time of one trim of 150 exchanges to half their tokens, beside a counter that knows every message.

Each strategy trims the same conversations. `first` is a trim of exchanges never seen before, whose words
are read; `again` is one of exchanges that an earlier trim has read, as in a conversation that goes on.
Texts have words of Zipf's frequencies out of 20,000. Time is that of the process, so that other work on the
machine does not count.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import harness
from harness import Goal, Outcome

from ollama_batch.trim import AggressiveTrim, HybridTrim, ImportanceTrim, SlidingWindowTrim, TrimStrategy
from ollama_batch.trim.scoring import read_words
from ollama_batch.types import Message

EXCHANGES = 150
GOAL_MS = 10.0
STRATEGIES: dict[str, TrimStrategy] = {
    "SlidingWindowTrim": SlidingWindowTrim(),
    "ImportanceTrim": ImportanceTrim(),
    "HybridTrim": HybridTrim(),
    "AggressiveTrim": AggressiveTrim(),
}
# Words of the request and of the answer in one exchange; a word has about 1.5 tokens here.
LENGTHS = {"short": (30, 15), "middle": (120, 60), "long": (450, 225)}
GOAL_LENGTH = "middle"


class KnownCounter:
    """A counter that has counted every text before: a look-up each time."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def count_text(self, text: str) -> int:
        tokens = self._known.get(text)
        if tokens is None:
            tokens = self._known[text] = max(1, len(text) // 4)
        return tokens

    def count_message(self, message: Message) -> int:
        return 4 + self.count_text(message["content"])

    def count_messages(self, messages: Sequence[Message]) -> int:
        return 3 + sum(map(self.count_message, messages))


class Writer:
    """Texts of words that are as frequent as in language."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        lengths = [self._random.randint(2, 9) for _ in range(20_000)]
        self._words = ["".join(self._random.choices(letters, k=length)) for length in lengths]
        self._weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(20_000)))

    def text(self, words: int) -> str:
        return " ".join(self._random.choices(self._words, cum_weights=self._weights, k=words)) + "."

    def conversation(self, asked: int, answered: int) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.text(200)}]
        for _ in range(EXCHANGES):
            messages.append({"role": "user", "content": self.text(asked)})
            messages.append({"role": "assistant", "content": self.text(answered)})
        return messages


def timed_ms(
    strategy: TrimStrategy, messages: Sequence[Message], counter: KnownCounter, upcoming: Message
) -> tuple[float, int]:
    budget = counter.count_messages(messages) // 2
    started = time.process_time()
    result = strategy.trim(messages, budget=budget, counter=counter, upcoming=upcoming)
    return (time.process_time() - started) * 1000, len(result.kept_units)


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--repeats", type=int, default=31)
    found = args.parse_args()
    repeats = 3 if found.quick else found.repeats
    writer, counter = Writer(seed=1), KnownCounter()
    taken: list[dict[str, Any]] = []
    sizes = {}
    for length, (asked, answered) in LENGTHS.items():
        messages = writer.conversation(asked, answered)
        upcoming = {"role": "user", "content": writer.text(asked)}
        sizes[length] = counter.count_messages(messages)
        for strategy in STRATEGIES.values():  # once unmeasured: everything is compiled
            timed_ms(strategy, messages, counter, upcoming)
        for repeat, name in harness.alternate(list(STRATEGIES), repeats):
            read_words.cache_clear()
            first, kept = timed_ms(STRATEGIES[name], messages, counter, upcoming)
            again, _ = timed_ms(STRATEGIES[name], messages, counter, upcoming)
            taken.append(
                {
                    "strategy": name,
                    "length": length,
                    "repeat": repeat,
                    "first_ms": first,
                    "again_ms": again,
                    "kept": kept,
                }
            )

    def median(name: str, length: str, figure: str) -> float:
        return harness.median(
            [row[figure] for row in taken if (row["strategy"], row["length"]) == (name, length)]
        )

    rows = [
        [
            name,
            sizes[length],
            median(name, length, "kept"),
            median(name, length, "first_ms"),
            median(name, length, "again_ms"),
        ]
        for length in LENGTHS
        for name in STRATEGIES
    ]
    goals = [
        Goal(
            f"{name}, {EXCHANGES} exchanges of {sizes[GOAL_LENGTH] // EXCHANGES} tokens, {words}",
            median(name, GOAL_LENGTH, figure),
            GOAL_MS,
            " ms",
        )
        for figure, words in (("first_ms", "never seen"), ("again_ms", "words read before"))
        for name in STRATEGIES
    ]
    columns = ["strategy", "tokens before", "exchanges kept", "first ms", "again ms"]
    notes = [f"medians of {repeats} trims of {EXCHANGES} exchanges to half their tokens; time of the process"]
    Outcome("trimming", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
