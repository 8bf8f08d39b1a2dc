"""Rows that crowd the limit of a real llama.cpp, whose `/tokenize` is the oracle."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import pytest

from ollama_batch.conversation import ConversationPolicy
from ollama_batch.testing._toy_words import WORDS
from ollama_batch.tokens import EstimateCounter
from ollama_batch.trim import HybridTrim
from ollama_batch.types import EngineInfo
from runner_support import line, runner_on


class Silent:
    """Mixed into an engine: it does not say that it can count."""

    async def describe(self, model: str) -> EngineInfo:
        told: EngineInfo = await super().describe(model)  # type: ignore[misc]  # of the engine it is mixed into
        return dataclasses.replace(told, tokenizes=False)


OLDER = [{"role": "user", "content": "and before " * 300}, {"role": "assistant", "content": "yes " * 90}]


@functools.cache
def crowding() -> list[tuple[str, list[dict[str, Any]], int]]:
    """Prompts whose true lengths lie around 508 tokens, as `/tokenize` counts them."""
    from ollama_batch.engines.embedded import EmbeddedEngine

    engine = EmbeddedEngine.toy(slots=2, num_ctx=512)
    rng, room = random.Random(19), 512 - 4

    async def sized() -> list[tuple[str, list[dict[str, Any]], int]]:
        prompts = []
        for n in range(120):
            words, messages, length = rng.choices(WORDS, k=40), [], 0
            goal = rng.randint(round(0.7 * room), round(1.03 * room))
            while True:
                words.extend(rng.choices((*WORDS, "Björn", "2024"), k=max(4, (goal - length) // 8)))
                messages = [{"role": "user", "content": f"r{n} {' '.join(words)}"}]
                length = await engine.count_prompt("toy", messages, deadline=float("inf"))
                if length >= goal:
                    break
            prompts.append((f"r{n}", messages, length))
        return prompts

    try:
        return asyncio.run(sized())
    finally:
        asyncio.run(engine.aclose())


@pytest.mark.parametrize("trim", [None, HybridTrim()], ids=["whole", "trimmed"])
@pytest.mark.parametrize("counts", [False, True], ids=["silent", "counting"])
def test_rows_that_crowd_the_limit_of_llama_cpp_never_overflow(
    tmp_path: Path, counts: bool, trim: HybridTrim | None
) -> None:
    """Of a row that is to be trimmed only the last message can stay: that is what crowds the limit."""
    pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")
    from ollama_batch.engines.embedded import EmbeddedEngine

    class Engine(Silent, EmbeddedEngine):
        pass

    kind = EmbeddedEngine if counts else Engine
    engine = kind.toy(slots=2, num_ctx=512)
    prompts, room = crowding(), 512 - 4
    lengths = {name: length for name, _, length in prompts}
    older = [] if trim is None else OLDER
    rows = [
        {**line(name), "body": {"messages": [*older, *messages], "max_tokens": 4}}
        for name, messages, _ in prompts
    ]
    try:
        runner = runner_on(
            None,  # type: ignore[arg-type]  # an engine of its own
            engine=engine,
            model="toy",
            on_length="keep",
            counter=EstimateCounter(),
            state_dir=tmp_path / "state",
            trim=trim,
        )
        report = runner.run(rows, output=tmp_path / "out.jsonl")
    finally:
        asyncio.run(engine.aclose())
    fitting = {name for name, length in lengths.items() if length <= room}
    assert 60 < len(fitting) < 110
    answered = {result.custom_id for result in report.results() if result.ok}
    refused = [result for result in report.results() if not result.ok]
    assert {result.error.code for result in refused if result.error is not None} == {
        "context_length_exceeded"
    }
    assert sum(result.attempts for result in refused) == 0  # nobody but us has refused anything
    assert answered <= fitting
    # Those in doubt were counted by the engine, by /tokenize or by evaluating them.
    assert {result.custom_id for result in refused} & fitting == set()
    assert all((result.trim is not None) == (trim is not None) for result in report.results() if result.ok)


@pytest.mark.parametrize("lanes", [1, 4, 24])
def test_conversations_on_llama_cpp_send_no_prompt_above_its_room(tmp_path: Path, lanes: int) -> None:
    pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")
    from ollama_batch.engines.embedded import EmbeddedEngine

    # Text of which our counters believe too little, in rows that alone come near the room and beyond.
    rng, room = random.Random(23), 512 - 40
    rows = []
    for n in range(24):
        text = " ".join("".join(rng.choices("bdfgklmnprstvz", k=6)) for _ in range(20 + 3 * n))
        messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
        rows.append({**line(f"r{n}"), "body": {"messages": messages, "max_tokens": 40}})
    engine = EmbeddedEngine.toy(slots=2, num_ctx=512)

    async def lengths() -> dict[str, int]:
        return {
            row["custom_id"]: await engine.count_prompt("toy", row["body"]["messages"], deadline=float("inf"))
            for row in rows
        }

    try:
        alone = asyncio.run(lengths())
        runner = runner_on(
            None,  # type: ignore[arg-type]  # an engine of its own
            engine=engine,
            model="toy",
            mode="conversation",
            conversation=ConversationPolicy(lanes=lanes),
            on_length="keep",
            counter=EstimateCounter(),
            state_dir=None,
        )
        report = runner.run(rows, output=tmp_path / "out.jsonl")
    finally:
        asyncio.run(engine.aclose())
    results = list(report.results())
    fitting = {name for name, length in alone.items() if length <= room}
    assert 0 < len(fitting) < len(rows)
    assert {result.custom_id for result in results if result.ok} == fitting
    assert max(result.usage.prompt_tokens for result in results if result.usage is not None) <= room
    assert {result.error.code for result in results if result.error is not None} == {
        "context_length_exceeded"
    }
    assert sum(result.attempts for result in results if not result.ok) == 0  # refused by us alone
