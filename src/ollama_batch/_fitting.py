"""What is sent for a row: its prompt, known to fit the context, trimmed where that was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from ollama_batch._gauge import PromptGauge, Size, Tools
from ollama_batch.errors import ContextTooLargeError, EngineError, PromptTruncatedError
from ollama_batch.trim import TrimStrategy
from ollama_batch.types import BatchRequest, BatchResult, ChatRequest, Completion, RowRecord

ToChat: TypeAlias = Callable[[str, BatchRequest], ChatRequest]
Decide: TypeAlias = Callable[..., Awaitable[None]]
"""Journals a decision and tells it: `await decide(kind, message, **data)`."""

TRIMS: Final = 2
"""So often a prompt that the engine refuses is made shorter before its row fails."""


@dataclass(slots=True)
class Prompt:
    """What is sent for a row. `trim` says what was left out of it, `shortened` how often it was refused."""

    row: RowRecord
    request: BatchRequest
    chat: ChatRequest
    size: Size
    trim: Mapping[str, Any] | None = None
    shortened: int = 0

    @property
    def tools(self) -> Tools:
        """The tool definitions that are sent along."""
        return self.chat.params.get("tools") or None


class Composer(Protocol):
    """Turns rows into prompts, and learns from what becomes of them."""

    async def compose(self, custom_id: str, row: RowRecord, request: BatchRequest) -> Prompt:
        """The prompt for a row. Raises ContextTooLargeError if there is none that fits."""
        ...

    async def shorten(self, prompt: Prompt, error: EngineError) -> Prompt | None:
        """A shorter prompt in place of one that the engine refused; None if there is none."""
        ...

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        """Raises PromptTruncatedError if the server answered a cut prompt."""
        ...

    def settled(self, prompt: Prompt, result: BatchResult[Any]) -> None:
        """The row's result is recorded."""
        ...

    async def close(self) -> None:
        """Keep what was learned."""
        ...


class Fitter:
    """The composer of independent rows: each prompt by itself, trimmed by `strategy` if it is too long."""

    def __init__(
        self, gauge: PromptGauge, *, strategy: TrimStrategy | None, to_chat: ToChat, decide: Decide
    ) -> None:
        self._gauge = gauge
        self._strategy = strategy
        self._to_chat = to_chat
        self._decide = decide

    async def compose(self, custom_id: str, row: RowRecord, request: BatchRequest) -> Prompt:
        """The row's own prompt, or a trimmed one. Raises ContextTooLargeError if it cannot fit."""
        chat = self._to_chat(custom_id, request)
        limit = room_for_prompt(self._gauge, chat)
        tools: Tools = chat.params.get("tools") or None
        size = await self._gauge.size(chat.messages, tools, limit)
        prompt = Prompt(row, request, chat, size)
        if limit is None or size.tokens <= limit:
            return prompt
        if self._strategy is None or limit < 1:
            raise too_large(self._gauge, chat, size, limit)
        return await self._trimmed(prompt, self._strategy, limit)

    async def shorten(self, prompt: Prompt, error: EngineError) -> Prompt | None:
        """Trim once more, to what the engine says it has room for, or to nine tenths."""
        if not isinstance(error, ContextTooLargeError):
            return None
        self._gauge.refused(prompt.chat.messages, prompt.tools)
        await self._decide(
            "bound_widened",
            f"the engine refused {prompt.chat.custom_id}, whose prompt fits by our count "
            f"({prompt.size.tokens} tokens at most, by {prompt.size.source}): counts are taken 10 % higher",
            custom_id=prompt.chat.custom_id,
            tokens=prompt.size.tokens,
            engine_tokens=error.tokens,
            engine_limit=error.limit,
        )
        limit = room_for_prompt(self._gauge, prompt.chat)
        if self._strategy is None or prompt.shortened >= TRIMS or limit is None:
            return None
        told = limit if error.limit is None else error.limit - prompt.chat.max_tokens
        smaller = min(limit, told, prompt.size.tokens * 9 // 10)
        if smaller < 1:
            return None
        try:
            trimmed = await self._trimmed(prompt, self._strategy, smaller)
        except ContextTooLargeError:
            return None
        trimmed.shortened = prompt.shortened + 1
        return trimmed

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        """Raises PromptTruncatedError if the engine's count says that it cannot have seen it all."""
        await refuse_cut(self._gauge, prompt, completion)

    def settled(self, prompt: Prompt, result: BatchResult[Any]) -> None:
        """Nothing: rows are independent."""

    async def close(self) -> None:
        """Keep what was learned of the engine's counts."""
        await self._gauge.save()

    async def _trimmed(self, prompt: Prompt, strategy: TrimStrategy, limit: int) -> Prompt:
        messages = prompt.request.messages
        counter = await self._gauge.bound(messages, prompt.tools)
        result = strategy.trim(messages, budget=limit, counter=counter)
        chat = dataclasses.replace(prompt.chat, messages=result.messages)
        size = Size(result.tokens_after, counter.source)
        return Prompt(prompt.row, prompt.request, chat, size, result.to_dict() if result.changed else None)


def room_for_prompt(gauge: PromptGauge, chat: ChatRequest) -> int | None:
    """The tokens a prompt may have: the context less the answer; None where the context is not known."""
    return None if gauge.context is None else gauge.context - chat.max_tokens


def too_large(gauge: PromptGauge, chat: ChatRequest, size: Size, limit: int) -> ContextTooLargeError:
    """The error of a prompt that does not fit, with what to do about it."""
    room = f"num_ctx {gauge.context} less max_tokens {chat.max_tokens}"
    if limit < 1:
        what = f"there is no room for a prompt: {room} is {limit}; raise num_ctx or lower max_tokens"
    else:
        told = "has" if size.source == "engine" else "may have"
        what = (
            f"the prompt {told} {size.tokens} tokens (by {size.source}), there is room for {limit} ({room}): "
            "raise num_ctx, lower max_tokens, or give trim="
        )
    return ContextTooLargeError(size.tokens, limit, what)


async def refuse_cut(gauge: PromptGauge, prompt: Prompt, completion: Completion) -> None:
    """Raise PromptTruncatedError if the server reports far fewer tokens than the prompt has."""
    usage = completion.usage
    if usage is not None and await gauge.was_cut(prompt.chat.messages, prompt.tools, prompt.size, usage):
        raise PromptTruncatedError(
            f"the server cut the prompt: it reports {usage.prompt_tokens} tokens of about "
            f"{prompt.size.tokens}; give it a larger context, or use an engine that takes num_ctx",
            completion,
        )
