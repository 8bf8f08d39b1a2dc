"""Vocabularies small enough for tests, and counters that keep a ledger."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import tiktoken

from ollama_batch.tokens import TextCounter
from ollama_batch.types import Message

WORDS = ("the", " the", " of", "er", "in", " a", "th", "he", " t", "on", "00", "12")


def small_ranks() -> dict[bytes, int]:
    """All bytes and a few merges."""
    ranks = {bytes([value]): value for value in range(256)}
    for word in WORDS:
        ranks.setdefault(word.encode(), len(ranks))
    return ranks


def small_encoding(name: str = "small") -> tiktoken.Encoding:
    """A byte-level BPE with a dozen merges."""
    ranks = small_ranks()
    return tiktoken.Encoding(name, pat_str=r"\s?\S+|\s+", mergeable_ranks=ranks, special_tokens={})


def ranks_file() -> bytes:
    """A vocabulary file as tiktoken reads it."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in small_ranks().items()]
    return "".join(lines).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class WordCounter(TextCounter):
    """Counts words; `seen` is every text it had to count."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[str] = []

    @property
    def source(self) -> str:
        return "words"

    def _tokenize(self, text: str) -> int:
        self.seen.append(text)
        return len(text.split())


def prompt(words: int, messages: int = 1, word: str = "word") -> list[Message]:
    """`messages` messages with `words` words between them."""
    share, rest = divmod(words, messages)
    sizes = [share + (place < rest) for place in range(messages)]
    return [{"role": "user", "content": " ".join([word] * size)} for size in sizes]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
