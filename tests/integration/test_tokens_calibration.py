"""Calibration against a real llama.cpp, whose `/tokenize` is the oracle that the counter never sees."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from ollama_batch.engines.embedded import EmbeddedEngine
from ollama_batch.errors import OutputTruncatedError, VocabularyMissingError
from ollama_batch.testing._toy_words import WORDS
from ollama_batch.tokens import (
    CalibratedCounter,
    EstimateCounter,
    ExactCounter,
    TextCounter,
    TiktokenCounter,
    byte_bound,
)
from ollama_batch.types import ChatRequest, Message

pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")

LEARNED, HELD_OUT = 200, 150
NAMES = ("Aanya", "Björn", "Chukwuma", "Dmitri", "Eszter", "Fatoumata", "Giuseppe", "Hideyoshi")
HEAD = "You judge candidates. " + "Weigh education, employers, growth and hands-on engineering. " * 8


class LlamaServer:
    """Counts as the server does: its own template, then its own tokenizer."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=60)

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float = 0.0,
    ) -> int:
        rendered = await self.client.post("/apply-template", json={"messages": list(messages)})
        options = {"content": rendered.json()["prompt"], "add_special": True, "parse_special": True}
        return len((await self.client.post("/tokenize", json=options)).json()["tokens"])


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine.toy(slots=2, num_ctx=8192)
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture
async def server(engine: EmbeddedEngine) -> AsyncIterator[LlamaServer]:
    server = LlamaServer((await engine.describe("toy")).address)
    yield server
    await server.client.aclose()


@pytest.fixture(params=["tiktoken", "estimate"])
def base(request: pytest.FixtureRequest) -> TextCounter:
    if request.param == "estimate":
        return EstimateCounter()
    try:
        return TiktokenCounter()
    except VocabularyMissingError:
        pytest.skip("no vocabulary on this machine: set TIKTOKEN_CACHE_DIR to a folder with one")


def profile(rng: random.Random) -> list[Message]:
    """A candidate as a prompt: prose of the toy's words, names it must spell, years, and some JSON."""
    words = rng.choices(WORDS, k=rng.randint(80, 700))
    for _ in range(len(words) // 12):
        words[rng.randrange(len(words))] = rng.choice((*NAMES, "Kubernetes", "TensorFlow", "PostgreSQL,"))
    facts = {"name": rng.choice(NAMES), "years": rng.randint(1, 30), "since": rng.randint(1980, 2024)}
    text = f"{json.dumps(facts)}\n{' '.join(words)}."
    return [{"role": "system", "content": HEAD}, {"role": "user", "content": text}]


async def test_after_200_prompts_the_error_is_small(server: LlamaServer, base: TextCounter) -> None:
    rng = random.Random(3)
    counter = CalibratedCounter(base, model_digest="toy")
    for _ in range(LEARNED):
        messages = profile(rng)
        assert counter.observe(messages, await server.count_prompt("toy", messages)) is None
    errors, above = [], 0
    for _ in range(HELD_OUT):
        messages = profile(rng)
        true = await server.count_prompt("toy", messages)
        errors.append(abs(counter.estimate(messages).tokens / true - 1))
        above += true > counter.upper_bound(messages).tokens
        assert true <= byte_bound(messages)
        assert not counter.truncated(messages, true)
        assert counter.truncated(messages, true // 2)
    errors.sort()
    median, p99 = statistics.median(errors), errors[round(0.99 * len(errors)) - 1]
    print(f"{counter.base!r}: ratio {counter.line().ratio:.3f}, median {median:.2%}, p99 {p99:.2%}")
    assert median < 0.03
    assert p99 < 0.08
    assert above == 0


async def test_a_reply_reports_what_tokenize_counts(engine: EmbeddedEngine, server: LlamaServer) -> None:
    """What `observe` is fed in a run is the same figure as the oracle's."""
    messages = profile(random.Random(4))
    request = ChatRequest(custom_id="r", model="toy", messages=messages, params={}, max_tokens=1)
    # One token of a random model is an answer cut off; what was counted comes with the error.
    with pytest.raises(OutputTruncatedError) as caught:
        await engine.complete(request, deadline=time.monotonic() + 60)
    usage = caught.value.completion.usage
    assert usage is not None
    assert usage.prompt_tokens == await server.count_prompt("toy", messages)


async def test_an_exact_counter_counts_as_the_server_does(server: LlamaServer) -> None:
    messages = profile(random.Random(5))
    exact = ExactCounter(server, "toy")
    counts = await asyncio.gather(*(exact.count(messages) for _ in range(3)))
    assert {count.tokens for count in counts} == {await server.count_prompt("toy", messages)}
    assert {count.source for count in counts} == {"engine"}
