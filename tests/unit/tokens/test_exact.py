"""Counts asked of an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ollama_batch.errors import ConfigError, EngineBusyError, EngineTimeoutError
from ollama_batch.tokens import Count, ExactCounter, Tokenizing
from ollama_batch.types import Message

HELLO = [{"role": "user", "content": "hello"}]


class Engine:
    """Counts characters; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.stuck = False
        self.error: Exception | None = None

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        deadline: float,
    ) -> int:
        self.asked.append((model, messages))
        if self.error is not None:
            raise self.error
        if self.stuck:
            await asyncio.Event().wait()
        return sum(len(message["content"]) for message in messages) + len(tools or ())


async def test_the_engine_is_the_source() -> None:
    engine = Engine()
    assert isinstance(engine, Tokenizing)
    assert await ExactCounter(engine, "m").count(HELLO) == Count(5, "engine")
    assert engine.asked == [("m", HELLO)]


async def test_the_same_prompt_is_asked_once_and_other_tools_make_another() -> None:
    engine = Engine()
    counter = ExactCounter(engine, "m")
    counts = [await counter.count(HELLO), await counter.count([dict(HELLO[0])])]
    counts.append(await counter.count(HELLO, tools=[{"type": "function"}]))
    assert [int(count) for count in counts] == [5, 5, 6]
    assert len(engine.asked) == 2


async def test_an_engine_that_does_not_answer_is_given_up() -> None:
    engine = Engine()
    engine.stuck = True
    with pytest.raises(EngineTimeoutError, match=r"0\.01 s"):
        await ExactCounter(engine, "m", timeout=0.01).count(HELLO)


async def test_an_engines_error_passes_through_and_is_not_remembered() -> None:
    engine = Engine()
    engine.error = EngineBusyError("full")
    counter = ExactCounter(engine, "m")
    with pytest.raises(EngineBusyError):
        await counter.count(HELLO)
    engine.error = None
    assert int(await counter.count(HELLO)) == 5


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="timeout is 0"):
        ExactCounter(Engine(), "m", timeout=0)
