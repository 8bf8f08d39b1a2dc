"""How much context rows need, as far as can be told without a tokenizer: what num_ctx="auto" goes by."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ollama_batch.tokens._texts import (
    BOUND_PER_MESSAGE,
    BOUND_PER_PROMPT,
    IMAGE_TOKENS,
    TOOL_BYTES,
    Texture,
    byte_length,
    compact_json,
    images_of,
    texts_of,
)
from ollama_batch.types import BatchRequest, Message

NUM_CTX_BUCKETS: Final = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
"""Context lengths, in tokens, that num_ctx="auto" chooses from."""

LEFT_OUT: Final = 1000
"""One row in so many may be longer than the context: p99.9 of the rows are to fit."""

LISTED: Final = 20

_SAMPLE_CHARS: Final = 667
_PER_MESSAGE, _PER_PROMPT = 6, 68  # a template's tokens, as the bound of an uncalibrated counter has them
_FACTOR, _FACTOR_OTHER = 1.375, 2.2  # ratio 1.1, times 1.25 for letters and 2 for digits and wide text
_SHARE: Final = 0.2
_EXCHANGES: Final = 8
_CONVERSATION_MOST: Final = 16384


@dataclass(slots=True)
class PromptSizes:
    """Rows and the tokens they need, prompt and answer together, by an upper estimate.

    `over` counts, for each of NUM_CTX_BUCKETS, the rows that need more; `longest` has the tokens and ids of
    the longest rows, longest first. Plain data, so that it can be kept in the journal.
    """

    rows: int = 0
    tokens: int = 0
    over: list[int] = field(default_factory=lambda: [0] * len(NUM_CTX_BUCKETS))
    longest: list[tuple[int, str]] = field(default_factory=list)

    def add(self, custom_id: str, tokens: int) -> None:
        """Take note of a row that needs so many tokens."""
        self.rows += 1
        self.tokens += tokens
        for n, bucket in enumerate(NUM_CTX_BUCKETS):
            if tokens <= bucket:
                break
            self.over[n] += 1
        if len(self.longest) < LISTED or tokens > self.longest[-1][0]:
            self.longest = heapq.nlargest(LISTED, [*self.longest, (tokens, custom_id)])

    def bucket(self, *, conversation: bool = False) -> int:
        """The smallest bucket that holds all rows but one in a thousand.

        A conversation gets room for eight rows of average length as well, up to 16,384 tokens.
        """
        held = next(
            (
                size
                for size, over in zip(NUM_CTX_BUCKETS, self.over, strict=True)
                if over * LEFT_OUT <= self.rows
            ),
            NUM_CTX_BUCKETS[-1],
        )
        if not conversation or not self.rows:
            return held
        wanted = min(_CONVERSATION_MOST, _EXCHANGES * self.tokens // self.rows)
        return max(held, next(size for size in NUM_CTX_BUCKETS if size >= wanted))

    def beyond(self, num_ctx: int) -> int:
        """How many rows may need more than `num_ctx`; at least so many, where that is none of the buckets."""
        for bucket, over in zip(NUM_CTX_BUCKETS, self.over, strict=True):
            if bucket >= num_ctx:
                longest = sum(tokens > num_ctx for tokens, _ in self.longest)
                return over if bucket == num_ctx else max(over, longest)
        return sum(tokens > num_ctx for tokens, _ in self.longest)

    def to_dict(self) -> dict[str, Any]:
        """This as JSON data."""
        return {"rows": self.rows, "tokens": self.tokens, "over": self.over, "longest": self.longest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptSizes:
        """What `to_dict` gave."""
        longest = [(int(tokens), str(name)) for tokens, name in data["longest"]]
        return cls(int(data["rows"]), int(data["tokens"]), [int(n) for n in data["over"]], longest)


def next_bucket(size: int) -> int:
    """The bucket above `size`."""
    return next((bucket for bucket in NUM_CTX_BUCKETS if bucket > size), NUM_CTX_BUCKETS[-1])


def own_limit(params: Mapping[str, Any]) -> int | None:
    """The most tokens that a row says its answer may have; None if it says nothing."""
    limits = params.get("max_completion_tokens"), params.get("max_tokens")
    return next((limit for limit in limits if limit is not None), None)


def needed_tokens(request: BatchRequest, max_tokens: int, tools: Sequence[Any] | None = None) -> int:
    """An upper estimate of the tokens of a row, prompt and answer; `tools` are those it does not set itself.

    4.5 letters or 2 digits a token, as EstimateCounter has it, times 1.1 for the model's tokenizer and 1.25
    for what that leaves open (2 where a fifth is digits or wide characters); never more than `byte_bound`.
    """
    params = request.params
    rough = rough_tokens(request.messages, params.get("tools") or tools)
    factor = _FACTOR_OTHER if rough.odd else _FACTOR
    prompt = factor * rough.tokens + _PER_MESSAGE * len(request.messages) + _PER_PROMPT
    answer = own_limit(params) or max_tokens
    return math.ceil(min(prompt, rough.most)) + int(answer)


@dataclass(frozen=True, slots=True)
class Rough:
    """What a prompt is about: tokens of its texts and images, whether a fifth of it is digits or wide
    characters, and the `most` tokens that it can have by its length (of images no length tells).
    """

    tokens: float
    odd: bool
    most: float


def rough_tokens(messages: Sequence[Message], tools: Sequence[Any] | None) -> Rough:
    """The tokens of a prompt by its texture, at a few microseconds a message.

    Of a text of more than 2,000 characters, its beginning, middle and end stand for all of it.
    """
    tokens = special = 0.0
    characters = images = 0
    most = BOUND_PER_PROMPT
    for message in messages:
        images += images_of(message)
        most += BOUND_PER_MESSAGE
        for text in texts_of(message):
            plain, odd = _estimated(text)
            tokens += plain
            special += odd
            characters += len(text)
            most += byte_length(text)
    odd_one = special > _SHARE * characters
    if tools:
        defined = compact_json(tools)
        tokens += _estimated(defined)[0]
        most += BOUND_PER_PROMPT + TOOL_BYTES * byte_length(defined)
    return Rough(max(1.0, tokens + IMAGE_TOKENS * images), odd_one, math.inf if images else most)


def _estimated(text: str) -> tuple[float, float]:
    """About how many tokens `text` has, and how many of its characters are digits or wide."""
    size = len(text)
    if not size:
        return 0.0, 0.0
    sample = text
    if size > 3 * _SAMPLE_CHARS:
        middle = (size - _SAMPLE_CHARS) // 2
        sample = text[:_SAMPLE_CHARS] + text[middle : middle + _SAMPLE_CHARS] + text[-_SAMPLE_CHARS:]
    found = Texture.of(sample)
    scale = size / len(sample)
    tokens = found.letters / 4.5 + (found.digits + found.marks) / 2
    tokens += found.wide + 2 * found.astral + found.other_bytes / 4
    return scale * tokens, scale * (found.digits + found.wide + found.astral + found.other_bytes / 2)
