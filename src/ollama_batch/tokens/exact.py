"""Exact counts from an engine that can tokenize."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from ollama_batch.errors import ConfigError, EngineTimeoutError
from ollama_batch.tokens._texts import compact_json
from ollama_batch.tokens.base import Count
from ollama_batch.types import Message

_ENTRIES: Final = 1024


@runtime_checkable
class Tokenizing(Protocol):
    """An engine that counts a prompt without answering it (`/apply-template` and `/tokenize`, say)."""

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        deadline: float,
    ) -> int:
        """The tokens of the prompt that these messages become, before `deadline` (`time.monotonic()`)."""
        ...


class ExactCounter:
    """Counts whole prompts by asking the engine; every figure's source is "engine".

    Not a TokenCounter: asking takes a round trip, and a template is applied to all messages together.
    `timeout` is in seconds per prompt. The last 1,024 counts are remembered, by hash.
    """

    def __init__(self, engine: Tokenizing, model: str, *, timeout: float = 10.0) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be a positive number of seconds")
        self._engine = engine
        self._model = model
        self._timeout = timeout
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    async def count(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Count:
        """The tokens of a prompt. Raises the engine's EngineError, EngineTimeoutError after `timeout`."""
        key = hashlib.blake2b(
            compact_json([list(messages), tools]).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        known = self._counts.get(key)
        if known is None:
            known = await self._ask(messages, tools)
            self._counts[key] = known
            if len(self._counts) > _ENTRIES:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(key)
        return Count(known, "engine")

    async def _ask(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> int:
        deadline = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout) as limit:
                return await self._engine.count_prompt(self._model, messages, tools=tools, deadline=deadline)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineTimeoutError(
                f"the engine did not count a prompt within {self._timeout:g} s"
            ) from error
