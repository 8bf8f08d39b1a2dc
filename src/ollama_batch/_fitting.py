"""What is sent for a row: its prompt, known to fit the context, trimmed where that was asked for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from ollama_batch._context import either
from ollama_batch._gauge import LARGE_BYTES, PromptGauge, Size, Tools
from ollama_batch._gauge import Decide as Decide
from ollama_batch.errors import ContextTooLargeError, EngineError, PromptTruncatedError
from ollama_batch.tokens import BoundCounter, byte_bound
from ollama_batch.trim import TrimResult, TrimStrategy
from ollama_batch.types import BatchRequest, BatchResult, ChatRequest, Completion, Message, RowRecord

ToChat: TypeAlias = Callable[[str, BatchRequest], ChatRequest]

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

    async def behind(self, prompt: Prompt, messages: Sequence[Message]) -> Prompt | None:
        """What is sent for the row with `messages` behind it, which are no part of it; None if too long."""
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

    def __init__(self, gauge: PromptGauge, *, strategy: TrimStrategy | None, to_chat: ToChat) -> None:
        self._gauge = gauge
        self._strategy = strategy
        self._to_chat = to_chat

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
        counter = await self._gauge.bound(request.messages, tools)
        return await self._trimmed(prompt, self._strategy, limit, counter)

    async def shorten(self, prompt: Prompt, error: EngineError) -> Prompt | None:
        """Trim once more: to what the engine says it has room for, and a tenth below what it refused."""
        if not isinstance(error, ContextTooLargeError):
            return None
        chat, tools = prompt.chat, prompt.tools
        await self._gauge.refused(chat.custom_id, chat.messages, tools, prompt.size, error)
        if self._strategy is None or prompt.shortened >= TRIMS:
            return None
        counter = await self._gauge.bound(prompt.request.messages, tools)
        smaller = counter.count_messages(chat.messages) * 9 // 10
        limit = room_for_prompt(self._gauge, chat)
        if limit is not None:
            smaller = min(limit, smaller)
        if smaller < 1:
            return None
        try:
            trimmed = await self._trimmed(prompt, self._strategy, smaller, counter, refused=True)
        except ContextTooLargeError:
            return None
        trimmed.shortened = prompt.shortened + 1
        return trimmed

    async def behind(self, prompt: Prompt, messages: Sequence[Message]) -> Prompt | None:
        """The prompt with `messages` behind it; None if that does not fit."""
        return await longer(self._gauge, prompt, messages)

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        """Raises PromptTruncatedError if the engine's count says that it cannot have seen it all."""
        await refuse_cut(self._gauge, prompt, completion)

    def settled(self, prompt: Prompt, result: BatchResult[Any]) -> None:
        """Nothing: rows are independent."""

    async def close(self) -> None:
        """Keep what was learned of the engine's counts."""
        await self._gauge.save()

    async def _trimmed(
        self,
        prompt: Prompt,
        strategy: TrimStrategy,
        limit: int,
        counter: BoundCounter,
        *,
        refused: bool = False,
    ) -> Prompt:
        large = byte_bound(prompt.request.messages) > LARGE_BYTES
        trim = partial(strategy.trim, prompt.request.messages, counter=counter)

        async def to(budget: int) -> TrimResult:
            return await asyncio.to_thread(trim, budget=budget) if large else trim(budget=budget)

        size: Size | None = None
        try:
            try:
                result = await to(limit)
            except ContextTooLargeError as error:
                if refused or error.tokens is None or error.tokens <= limit:
                    raise
                # What has to stay is too long by our count, which errs on the safe side: ask the engine.
                result = await to(error.tokens)
                size = await self._gauge.size(result.messages, prompt.tools, limit)
        except ContextTooLargeError as error:
            least = prompt.size.tokens if error.tokens is None else error.tokens
            size = Size(least, counter.source)
            raise too_large(self._gauge, prompt.chat, size, limit, trimmed=True) from error
        if size is None:
            size = Size(result.tokens_after, counter.source)
        elif size.tokens > limit:
            raise too_large(self._gauge, prompt.chat, size, limit, trimmed=True)
        chat = dataclasses.replace(prompt.chat, messages=result.messages)
        return Prompt(prompt.row, prompt.request, chat, size, result.to_dict() if result.changed else None)


def room_for_prompt(gauge: PromptGauge, chat: ChatRequest) -> int | None:
    """The tokens a prompt may have: the context less the answer; None where the context is not known."""
    return None if gauge.context is None else gauge.context - chat.max_tokens


async def longer(gauge: PromptGauge, prompt: Prompt, messages: Sequence[Message]) -> Prompt | None:
    """`prompt` with `messages` behind it, of the same kind; None if that does not fit."""
    chat = dataclasses.replace(prompt.chat, messages=[*prompt.chat.messages, *messages])
    limit = room_for_prompt(gauge, chat)
    size = await gauge.size(chat.messages, prompt.tools, limit)
    if limit is not None and size.tokens > limit:
        return None
    return dataclasses.replace(prompt, chat=chat, size=size)


def too_large(
    gauge: PromptGauge,
    chat: ChatRequest,
    size: Size,
    limit: int,
    *,
    trimmed: bool = False,
    conversation: bool = False,
) -> ContextTooLargeError:
    """The error of a prompt that does not fit, with what to do about it.

    `trimmed`: it was made as short as it can be. `conversation`: nothing can be left out of the row itself.
    """
    # Settings by their bare names: error files are read beside programs and beside command lines.
    answer = "the row's own max_tokens" if chat.own_limit else "max_tokens"
    room = f"{gauge.allowed} less {answer} {chat.max_tokens:,}"
    ways = [gauge.allowed.more(size.tokens + chat.max_tokens, exact=size.exact), f"lower {answer}"]
    if limit != room_for_prompt(gauge, chat):
        room, ways = "the conversation limit", ["raise the conversation limit"]
    if limit < 1:
        what = f"there is no room for a prompt: {room} is {limit:,}; {either(ways)}"
        return ContextTooLargeError(size.tokens, limit, what)
    told = "has" if size.exact else "may have"
    which = "what has to stay of the prompt" if trimmed else "the prompt"
    if conversation or trimmed:
        ways.append("make the row shorter")
    else:
        ways.append("set trim")
    what = (
        f"{which} {told} {size.tokens:,} tokens (by {size.told_by}), there is room for {limit:,} ({room}): "
        f"{either(ways)}"
    )
    return ContextTooLargeError(size.tokens, limit, what)


async def refuse_cut(gauge: PromptGauge, prompt: Prompt, completion: Completion) -> None:
    """Raise PromptTruncatedError if the server reports far fewer tokens than the prompt has."""
    usage = completion.usage
    if usage is not None and await gauge.was_cut(prompt.chat.messages, prompt.tools, prompt.size, usage):
        raise PromptTruncatedError(
            f"the server cut the prompt: it reports {usage.prompt_tokens:,} tokens of {prompt.size.tokens:,} "
            f"at most (by {prompt.size.told_by}); give it a larger context; in a new run, say its length as "
            "num_ctx, so that rows too long for it are not sent, or use Ollama's own API where it is one "
            "(OllamaEngine, --api ollama)",
            completion,
        )
