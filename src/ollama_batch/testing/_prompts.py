"""Prompts: their tokens, and what becomes of those that are longer than the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from ollama_batch.testing._asks import Ask, Refusal
from ollama_batch.testing._slots import Tokens
from ollama_batch.testing.faults import KINDS

IMAGE_TOKENS = 768


def measure(messages: Sequence[Mapping[str, Any]], unit: Literal["chars", "words"]) -> tuple[Tokens, int]:
    """The prompt as a sequence, and its tokens: words, or four characters each, rounded up."""
    prompt: Tokens = "".join([f"<{m['role']}>{m['content']}\n" for m in messages])
    if unit == "words":
        prompt = str(prompt).split()
        count = len(prompt)
    else:
        count = (len(prompt) + 3) // 4
    return prompt, count + IMAGE_TOKENS * sum(len(m["images"]) for m in messages if m.get("images"))


def fit(ask: Ask, num_ctx: int, *, rendered: bool, unit: Literal["chars", "words"]) -> tuple[Tokens, int]:
    """The prompt as it is evaluated, and its tokens.

    Too long a prompt loses whole messages from the front, except system messages and the last one, and
    then tokens, down to half the context, or is refused: ollama server/prompt.go and
    llm/llama_server.go. Raises Refusal.
    """
    prompt, count = measure(ask.messages, unit)
    first = 0
    while count > num_ctx and ask.truncate and first < len(ask.messages) - 1:
        first += 1
        kept = [m for m in ask.messages[:first] if m["role"] == "system"]
        prompt, count = measure([*kept, *ask.messages[first:]], unit)
    if count <= num_ctx:
        return prompt, count
    images = any(message.get("images") for message in ask.messages)
    if not ask.truncate or images or not (rendered or ask.api == "generate"):
        raise Refusal(400, exceeded(count, num_ctx))
    if not ask.shift:
        raise Refusal(400, KINDS["context"].text)
    keep = min(int(ask.options.get("num_keep") or 4), num_ctx - 1)
    half = num_ctx - (num_ctx - keep) // 2
    size = 1 if unit == "words" else 4
    head, tail = prompt[: keep * size], prompt[len(prompt) - (half - keep) * size :]
    return "".join([*head, *tail]) if unit == "chars" else [*head, *tail], half


def exceeded(tokens: int, num_ctx: int) -> str:
    """The error of llama-server for a prompt that is too long: JSON, which Ollama passes on as a string."""
    said = f"request ({tokens} tokens) exceeds the available context size ({num_ctx} tokens)"
    error = {
        "code": 400,
        "message": f"{said}, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": tokens,
        "n_ctx": num_ctx,
    }
    return orjson.dumps({"error": error}).decode()
