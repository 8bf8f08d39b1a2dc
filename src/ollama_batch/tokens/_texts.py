"""What of an OpenAI message becomes prompt text, and an upper bound of its tokens without tokenizing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.types import Message

MESSAGE_OVERHEAD: Final = 4
"""Tokens a chat template adds to a message (role and separators), until an engine's reports say better."""

PROMPT_OVERHEAD: Final = 3
"""Tokens a chat template adds once: the beginning of the answer."""

IMAGE_TOKENS: Final = 768
"""Tokens reckoned for an image, as in ollama server/prompt.go; models differ from 256 to many thousand."""

BOUND_PER_MESSAGE: Final = 16
BOUND_PER_PROMPT: Final = 128
TOOL_BYTES: Final = 2  # some templates write tools as indented JSON: up to about twice the compact form

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})

# Every class of byte that a tokenizer treats in its own way; deleting one and comparing lengths counts it
# without a Python loop.
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \t\r\n"
_DIGITS = b"0123456789"
_HIGH = bytes(range(0x80, 0x100))
_LEAD_OF_WIDE = bytes(range(0xE3, 0xF0))  # U+3000 to U+FFFF: CJK, kana, Hangul, full-width forms
_LEAD_OF_ASTRAL = bytes(range(0xF0, 0xF8))


def texts_of(message: Message) -> Iterator[str]:
    """Every text of `message` that a template puts in the prompt; tool calls as compact JSON."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, Sequence):
        for part in content:
            if isinstance(part, Mapping):
                text = part.get("text", part.get("refusal"))
                if isinstance(text, str):
                    yield text
    calls = message.get("tool_calls")
    if calls:
        yield compact_json(calls)
    for field in ("name", "tool_call_id", "reasoning_content", "thinking"):
        text = message.get(field)
        if isinstance(text, str):
            yield text


def images_of(message: Message) -> int:
    """How many images `message` carries, as content parts or in Ollama's `images` list."""
    images = message.get("images")
    count = len(images) if isinstance(images, Sequence) and not isinstance(images, str) else 0
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        count += sum(isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS for part in content)
    return count


def compact_json(value: Any) -> str:
    """`value` as JSON without blanks, which is how most templates show tools and tool calls."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def byte_bound(
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    image_tokens: int = IMAGE_TOKENS,
) -> int:
    """An upper bound of a prompt's tokens, from its length alone: a prompt that fits by it needs no count.

    Every token of a byte-level BPE stands for one byte at least, and a SentencePiece vocabulary falls back
    to bytes, so that text never has more tokens than UTF-8 bytes. Added for the template: 16 tokens per
    message, 128 per prompt (which covers the dates and default system texts that some insert), tools
    twice (indented JSON), `image_tokens` per image. Not a bound for a vocabulary whose normalisation
    lengthens text (NFKC ligatures), nor for audio or file parts.
    """
    total = BOUND_PER_PROMPT
    for message in messages:
        total += BOUND_PER_MESSAGE + image_tokens * images_of(message)
        for text in texts_of(message):
            total += byte_length(text)
    if tools:
        total += BOUND_PER_PROMPT + TOOL_BYTES * byte_length(compact_json(tools))
    return total


def byte_length(text: str) -> int:
    """The UTF-8 length of `text`; a lone surrogate counts 3, as its replacement would."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Texture:
    """What a text is made of: `letters` and blanks, `digits` and `marks` of ASCII, in characters.

    `wide` are the characters from U+3000 to U+FFFF, `astral` those beyond, `other_bytes` the UTF-8
    bytes of the rest (Cyrillic, Greek, accented letters ...).
    """

    letters: int = 0
    digits: int = 0
    marks: int = 0
    wide: int = 0
    astral: int = 0
    other_bytes: int = 0

    @classmethod
    def of(cls, text: str) -> Texture:
        """The texture of `text`."""
        raw = text.encode("utf-8", "surrogatepass")
        size = len(raw)
        letters = size - len(raw.translate(None, _LETTERS))
        digits = size - len(raw.translate(None, _DIGITS))
        if text.isascii():
            return cls(letters, digits, size - letters - digits)
        high = size - len(raw.translate(None, _HIGH))
        wide = size - len(raw.translate(None, _LEAD_OF_WIDE))
        astral = size - len(raw.translate(None, _LEAD_OF_ASTRAL))
        marks = size - letters - digits - high
        return cls(letters, digits, marks, wide, astral, high - 3 * wide - 4 * astral)


def digits_and_wide(text: str) -> tuple[float, float, float]:
    """How many characters `text` has, how many are digits, and how many are not ASCII.

    Near enough to tell what kind of text it is, and quick for the ASCII that most is: characters from
    U+0080 to U+2FFF count as two bytes each.
    """
    if text.isascii():
        raw = text.encode("ascii")
        return len(raw), len(raw) - len(raw.translate(None, _DIGITS)), 0
    found = Texture.of(text)
    wide = found.wide + found.astral + found.other_bytes / 2
    return found.letters + found.digits + found.marks + wide, found.digits, wide
