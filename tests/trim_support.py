"""Conversations and a counter for the tests of trimming, and the lane that the marks are tested with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim import TrimResult, TrimStrategy, trim_to_marks
from ollama_batch.types import Message

PER_MESSAGE = 4
PER_PROMPT = 3


class WordCounter:
    """One token per word, 4 per message, 3 per prompt: figures that a reader can add up."""

    def count_text(self, text: str) -> int:
        return len(text.split())

    def count_message(self, message: Message) -> int:
        content = message.get("content")
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
        texts += [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
        return PER_MESSAGE + sum(self.count_text(text) for text in texts)

    def count_messages(self, messages: Sequence[Message]) -> int:
        return PER_PROMPT + sum(self.count_message(message) for message in messages)


COUNTER: TokenCounter = WordCounter()


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "system", "content": text, **more}


def calling(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    return assistant(None, tool_calls=[call])


def tool(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


@functools.lru_cache(maxsize=100_000)
def phrase(code: int, length: int) -> str:
    """`length` words, the same for the same `code`; a third of them are rare, the others common."""
    found = []
    for _ in range(length):
        code = (code * 1103515245 + 12345) % 2**31
        pick = code >> 8
        found.append(f"rare{pick % 997}" if pick % 3 == 0 else f"common{pick % 11}")
    return " ".join(found)


def exchange(code: int, *, name: str = "") -> list[Message]:
    """One exchange, plain or with calls, of a length and a wording that `code` decides."""
    kind, length, words = code % 4, 1 + code // 4 % 24, code // 96
    asked = user(phrase(words, length))
    answered = assistant(phrase(words + 1, 1 + length // 2))
    if kind == 2:
        return [asked, calling(f"call-{name}"), tool(f"call-{name}", phrase(words + 2, length)), answered]
    if kind == 3:
        # What it found comes after the next user message.
        return [asked, calling(f"call-{name}"), user("go on"), tool(f"call-{name}", "done"), answered]
    return [asked, answered]


def _conversation(codes: tuple[int, int, list[int], bool]) -> list[Message]:
    head, odd, units, answered = codes
    messages: list[Message] = [system(phrase(head, 1 + head % 7)) for _ in range(head % 3)]
    if odd == 1:
        messages.append(assistant("good day, what is it?"))
    if odd == 2:
        messages.append(tool("nobody", "an answer that nobody asked for"))
    for index, code in enumerate(units):
        messages += exchange(code, name=str(index))
        if odd == 3 and index == 0:
            messages.append(system("from now on in French"))
    if not answered and units:
        while messages[-1]["role"] != "user":
            messages.pop()
    return messages


# Few draws of integers, and the rest by arithmetic: thousands of examples stay cheap, and shrink well.
conversations = st.tuples(
    st.integers(0, 8),
    st.integers(0, 7),
    st.lists(st.integers(0, 959), min_size=1, max_size=10),
    st.booleans(),
).map(_conversation)
shares = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


@dataclass
class Lane:
    """One growing conversation, trimmed at the marks: what a runner does, without an engine."""

    strategy: TrimStrategy
    high: int
    low: int
    limit: int
    messages: list[Message] = field(default_factory=list)
    prompts: list[list[Message]] = field(default_factory=list)
    trims: list[TrimResult] = field(default_factory=list)

    def ask(self, request: Message, answer: Message) -> None:
        result = trim_to_marks(
            self.strategy,
            self.messages,
            high=self.high,
            low=self.low,
            limit=self.limit,
            counter=COUNTER,
            upcoming=request,
        )
        if result.changed:
            self.trims.append(result)
        self.prompts.append([*result.messages, request])
        self.messages = [*result.messages, request, answer]
