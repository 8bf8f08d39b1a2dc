"""The real llama.cpp with a toy model, as several benchmarks use it: texts of known length, its own counts.

The engine is the child process of an `EmbeddedEngine`; its client is the process of the benchmark. What the
engine really evaluated is read from its `/metrics`, which know nothing of what answers or reports say.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.engines import EmbeddedEngine
from ollama_batch.testing._toy_words import WORDS
from ollama_batch.testing.toy import toy_gguf, toy_vocabulary
from ollama_batch.types import BatchResult, Message

_EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\S+)", re.MULTILINE)


def words(rng: random.Random, count: int) -> str:
    """A text of `count` words; each is one token of the toy's whole vocabulary."""
    return " ".join(rng.choices(WORDS, k=count))


@contextlib.contextmanager
def toy_engine(
    *, gguf: Path | None = None, kind: type[EmbeddedEngine] = EmbeddedEngine, **options: Any
) -> Iterator[EmbeddedEngine]:
    """A fresh engine that has loaded its model, of one thread; `options` are those of EmbeddedEngine."""
    engine = kind(toy_gguf() if gguf is None else gguf, threads=1, alias=harness.MODEL, **options)
    try:
        asyncio.run(engine.describe(harness.MODEL))
        yield engine
    finally:
        asyncio.run(engine.aclose())


def evaluated(engine: EmbeddedEngine) -> int:
    """The prompt tokens that the engine has evaluated since it started; those from a cache do not count.

    Beyond a million the engine tells six digits, as in 2.00483e+06.
    """
    assert engine.url is not None
    with urllib.request.urlopen(engine.url.rstrip("/").removesuffix("/v1") + "/metrics", timeout=30) as reply:
        found = _EVALUATED.search(reply.read().decode())
    if found is None:
        raise RuntimeError("the engine does not tell its prompt tokens")
    return round(float(found[1]))


def tokenized(engine: EmbeddedEngine, prompts: Sequence[Sequence[Message]]) -> list[int]:
    """The tokens of each prompt by `/tokenize`, template included."""

    async def count(messages: Sequence[Message], line: asyncio.Semaphore) -> int:
        async with line:
            return await engine.count_prompt(harness.MODEL, messages, deadline=time.monotonic() + 60)

    async def count_all() -> list[int]:
        line = asyncio.Semaphore(8)
        return list(await asyncio.gather(*(count(messages, line) for messages in prompts)))

    return asyncio.run(count_all())


def user(text: str, *, system: str | None = None) -> list[Message]:
    """The messages of a request with one text, behind an optional system message."""
    head: list[Mapping[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]


def of_one_length() -> dict[str, Any]:
    """Body fields for answers that are as long as they may be and made of words alone.

    Words are read as the tokens they were written as, so that an answer is found in the cache when the
    conversation comes back, as with real models; the toy's own marks would be joined in reading.
    """
    names = toy_vocabulary()
    banned = [
        [number, False] for number, name in enumerate(names) if not name[1:].isalpha() or name[0] != " "
    ]
    return {"ignore_eos": True, "logit_bias": banned}


def make_rows(count: int, *, head: int, own: int, seed: int = 0, **params: Any) -> list[BatchRequest]:
    rng = random.Random(seed)
    system = words(rng, head)
    return [
        BatchRequest.chat(words(rng, own), system=system, custom_id=f"row-{index:05d}", **params)
        for index in range(count)
    ]


def run_all(runner: BatchRunner, rows: Sequence[BatchRequest]) -> tuple[list[BatchResult[Any]], float]:
    """The results of a run in which every row is ok, and its wall seconds."""
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        report = runner.run(rows, output=Path(name) / "out.jsonl")
        wall_s = time.monotonic() - started
        if report.counts.ok != len(rows):
            raise RuntimeError(f"{report.counts.ok} of {len(rows)} rows are ok:\n{report}")
        return list(report.results()), wall_s
