"""The key that sorts requests by what they begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from zlib import crc32

import orjson

from ollama_batch.types import Message

HEAD_BYTES = 8
LEAD_CHARS = (256, 1024, 4096)
"""Lengths, in characters, of the leading text after the head by which requests of one head are grouped."""

GROUP_BYTES = (HEAD_BYTES + 4, HEAD_BYTES)
"""Rows are grouped by head and first 256 characters where several share both, else by head."""

_RENDERED_FIRST = ("tools", "response_format")
"""Body fields that chat templates put before the messages, or that change how they are put."""


def order_key(messages: Sequence[Message], params: Mapping[str, Any]) -> bytes:
    """20 bytes: equal first 8 bytes, equal head; equal longer prefixes, longer equal beginnings.

    The head are the leading system and developer messages, with the tools and the response format. The
    rest are checksums of the first 256, 1,024 and 4,096 characters after the head, so that sorting by
    the key visits the tree of common prefixes depth first, which is the order with the best hit rate
    (SGLang, arXiv 2312.07104, theorem 3.1).
    """
    size = next((n for n, message in enumerate(messages) if not _in_head(message)), len(messages))
    head = [list(messages[:size]), *(params.get(name) for name in _RENDERED_FIRST)]
    digest = blake2b(orjson.dumps(head, default=_plain), digest_size=HEAD_BYTES).digest()
    lead = "".join(_texts(messages[size:])).encode("utf-8", "surrogatepass")
    return digest + b"".join(crc32(lead[:chars]).to_bytes(4, "big") for chars in LEAD_CHARS)


def head_key(order: bytes) -> bytes:
    """The part of a row's order key that stands for its head."""
    return order[:HEAD_BYTES]


def head_name(order: bytes) -> str | None:
    """What the head of a row is called, from its order key; None for a row without one."""
    return head_key(order).hex() or None


def _in_head(message: Message) -> bool:
    return message.get("role") in ("system", "developer")


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    """The beginning of the text of `messages`, as far as the longest lead reaches."""
    left = LEAD_CHARS[-1]
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else (content,):
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value)
