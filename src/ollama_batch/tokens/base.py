"""What counts tokens: the protocol that trimming and fitting rely on, and a figure with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ollama_batch.types import Message


@runtime_checkable
class TokenCounter(Protocol):
    """Counts the tokens of plain text and of OpenAI messages; pure, and 0 or more."""

    def count_text(self, text: str) -> int:
        """Tokens of plain text, without anything that a chat template adds."""
        ...

    def count_message(self, message: Message) -> int:
        """Tokens of one message: its content and what each message costs beside it (role, separators)."""
        ...

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt: the sum of `count_message` plus the fixed overhead of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Count:
    """A number of tokens and where it comes from.

    `source` is "engine" (the engine counted), "tiktoken:NAME" (a vocabulary that may not be the
    model's), "calibrated" (corrected by what the engine reported for earlier prompts) or "estimate".
    """

    tokens: int
    source: str

    def __int__(self) -> int:
        return self.tokens
