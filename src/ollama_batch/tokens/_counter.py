"""Counting messages by counting texts, each distinct text once."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.errors import ConfigError
from ollama_batch.tokens._texts import (
    IMAGE_TOKENS,
    MESSAGE_OVERHEAD,
    PROMPT_OVERHEAD,
    compact_json,
    images_of,
    texts_of,
)
from ollama_batch.tokens.base import Count
from ollama_batch.types import Message

CACHE_ENTRIES: Final = 4096
"""Texts whose counts are remembered: about 0.7 MB. Heads and the messages of a conversation stay in it."""


@dataclass(frozen=True, slots=True)
class CountLedger:
    """What a counter has done: texts asked for, how many of them it tokenized, and their characters."""

    texts: int = 0
    tokenized: int = 0
    tokenized_chars: int = 0


class TextCounter(ABC):
    """A TokenCounter whose only own part is how a text is counted.

    Keyword arguments: `per_message` and `per_prompt` are the tokens a chat template adds,
    `image_tokens` what an image is reckoned with, `cache_entries` how many texts are remembered
    (0: none), by hash, so that a repeated head is tokenized once. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        per_message: int = MESSAGE_OVERHEAD,
        per_prompt: int = PROMPT_OVERHEAD,
        image_tokens: int = IMAGE_TOKENS,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        options = {"per_message": per_message, "per_prompt": per_prompt}
        for name, value in {**options, "image_tokens": image_tokens, "cache_entries": cache_entries}.items():
            if value < 0:
                raise ConfigError(f"{name} is {value}; it must not be negative")
        self.per_message = per_message
        self.per_prompt = per_prompt
        self.image_tokens = image_tokens
        self._entries = cache_entries
        self._counts: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._lock = threading.Lock()  # the remembered counts and the ledger change together
        self._texts = self._tokenized = self._chars = 0

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the figures come from, as in `Count.source`."""

    @abstractmethod
    def _tokenize(self, text: str) -> int:
        """The tokens of `text`, computed afresh."""

    @property
    def ledger(self) -> CountLedger:
        """What was asked of this counter so far, and what of it had to be computed."""
        with self._lock:
            return CountLedger(self._texts, self._tokenized, self._chars)

    def count_text(self, text: str) -> int:
        """Tokens of plain text."""
        if not text:
            return 0
        key = (hash(text), len(text))
        with self._lock:
            self._texts += 1
            known = self._counts.get(key)
            if known is not None:
                self._counts.move_to_end(key)
                return known
            self._tokenized += 1
            self._chars += len(text)
        count = self._tokenize(text)
        self._remember(key, count)
        return count

    def count_message(self, message: Message) -> int:
        """Tokens of one message: its texts, images and tool calls, and `per_message`."""
        texts = sum(map(self.count_text, texts_of(message)))
        return texts + self.per_message + self.image_tokens * images_of(message)

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt: the sum of `count_message`, and `per_prompt`."""
        return sum(map(self.count_message, messages)) + self.per_prompt

    def count_tools(self, tools: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of tool definitions as compact JSON; templates differ, so that this is rough."""
        return self.count_text(compact_json(tools)) if tools else 0

    def estimate(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Count:
        """The tokens of a prompt with their source."""
        return Count(self.count_messages(messages) + self.count_tools(tools or ()), self.source)

    def _remember(self, key: tuple[int, int], count: int) -> None:
        if not self._entries:
            return
        with self._lock:
            self._counts[key] = count
            self._counts.move_to_end(key)
            if len(self._counts) > self._entries:
                self._counts.popitem(last=False)
