"""Notices that requests would begin alike, were it not for a few characters: a date, an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, NamedTuple

from ollama_batch.types import Message

LOOKED_AT = 200
"""So many pairs of requests, the first, are compared."""

NAMED_AFTER = 20
"""So many pairs must differ in the same way, and they must be at least half of all."""

SPAN_CHARS = 64
"""What differs is at most so long, and begins at most so far from the same place."""

SAME_CHARS = 256
"""What is the same again behind it is at least so long."""

TEXT_CHARS = 65_536
USER_CHARS = 4096
"""How much of a request is compared: of all, and of what follows its leading system messages."""


@dataclass(frozen=True, slots=True)
class HeadDifference:
    """Where two requests differ for a few characters and are the same again for `same_chars` characters.

    `character` counts from 0 in the text of message `message_index`, whose role is `role`. As a string it is
    a sentence that says what to do, without any text of the requests.
    """

    message_index: int
    role: str
    character: int
    same_chars: int
    custom_ids: tuple[str, str]

    @property
    def data(self) -> dict[str, Any]:
        """The fields, for an event."""
        return {
            "message_index": self.message_index,
            "role": self.role,
            "character": self.character,
            "same_chars": self.same_chars,
            "custom_ids": self.custom_ids,
        }

    def __str__(self) -> str:
        one, other = self.custom_ids
        return (
            f"requests differ at character {self.character:,} of messages[{self.message_index}] "
            f"({self.role}), for example {one!r} and {other!r}, and are the same again for "
            f"{self.same_chars:,} characters: the prefix cache serves nothing behind the first difference, "
            "so move what changes (a date, an id) behind what stays the same"
        )


class _Piece(NamedTuple):
    """Where the text of a message begins in the text that is compared."""

    start: int
    message: int
    role: str


class _Lead(NamedTuple):
    custom_id: str
    text: str
    pieces: list[_Piece]


class HeadWatch:
    """Compares each request with the one before it, and tells once of a head that differs by little.

    Compared are the leading system messages and the beginning of what follows, or, with `head_only`, just
    those: in a conversation what follows is sent behind other rows. Looks at the first requests only (see
    the constants); later ones cost next to nothing.
    """

    KIND: ClassVar = "head_differs"

    def __init__(self, *, head_only: bool = False) -> None:
        self._user_chars = 0 if head_only else USER_CHARS
        self._before: _Lead | None = None
        self._pairs = 0
        self._places: list[int] = []
        self._over = False

    def see(self, custom_id: str, messages: Sequence[Message]) -> HeadDifference | None:
        """Look at the next request; the difference, if this is the one that makes it plain."""
        if self._over:
            return None
        now, before = _lead(custom_id, messages, self._user_chars), self._before
        self._before = now
        if before is None:
            return None
        self._pairs += 1
        found = _short_difference(before.text, now.text)
        if found is not None:
            self._places.append(found[0])
        told = None
        if found is not None and self._is_plain(found[0]):
            told = _named(before, now, *found)
        if told is not None or self._pairs == LOOKED_AT:
            self._over, self._before = True, None
        return told

    def _is_plain(self, place: int) -> bool:
        if len(self._places) < NAMED_AFTER:
            return False
        middle = median(self._places)
        near = sum(abs(one - middle) <= SPAN_CHARS for one in self._places)
        return abs(place - middle) <= SPAN_CHARS and near >= max(NAMED_AFTER, self._pairs / 2)


def _named(before: _Lead, now: _Lead, place: int, same_chars: int) -> HeadDifference:
    piece = next(piece for piece in reversed(now.pieces) if piece.start <= place)
    return HeadDifference(
        piece.message, piece.role, place - piece.start, same_chars, (before.custom_id, now.custom_id)
    )


def _lead(custom_id: str, messages: Sequence[Message], user_chars: int) -> _Lead:
    texts: list[str] = []
    pieces: list[_Piece] = []
    length, most, in_head = 0, TEXT_CHARS, True
    for number, message in enumerate(messages):
        role = str(message.get("role"))
        if in_head and role not in ("system", "developer"):
            in_head, most = False, min(TEXT_CHARS, length + user_chars)
        if length >= most:
            break
        pieces.append(_Piece(length, number, role))
        text = _text(message)[: most - length] + "\n"
        texts.append(text)
        length += len(text)
    return _Lead(custom_id, "".join(texts), pieces)


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _short_difference(one: str, other: str) -> tuple[int, int] | None:
    """Where the texts begin to differ for a short span, and how long they are the same behind it."""
    place = _common(one, 0, other, 0)
    for skipped in range(min(SPAN_CHARS, len(one) - place - SAME_CHARS) + 1):
        start = place + skipped
        again = other.find(one[start : start + SAME_CHARS], place, place + SPAN_CHARS + SAME_CHARS)
        if again >= 0:
            return place, _common(one, start, other, again)
    return None


def _common(one: str, at_one: int, other: str, at_other: int) -> int:
    """How many characters are equal from the two places on."""
    low, high = 0, min(len(one) - at_one, len(other) - at_other)
    while low < high:
        half = (low + high + 1) // 2
        if one[at_one + low : at_one + half] == other[at_other + low : at_other + half]:
            low = half
        else:
            high = half - 1
    return low
