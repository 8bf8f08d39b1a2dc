"""Where things stand in JSON text, found without making anything of it.

The text is UTF-8 taken as Latin-1: a character is a byte, and JSON's own marks are what they are. Values are
passed over by Python's JSON scanner, so what is no JSON is refused.

The text may end anywhere. Each function takes a position and gives what it found and the position behind it.
EOFError says that the text ends before that can be told, JSONDecodeError that it is no JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any, Final, NamedTuple

ID: Final = "aristotleId"
FILLED: Final = "praxisData"

_LITERALS: Final = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_BEGUN: Final = frozenset(
    {word[:end] for word in _LITERALS for end in range(len(word))} | {".", *"eE", "e+", "e-", "E+", "E-"}
)
"""With what the text may end in the middle of a literal, or behind the digits of a number that goes on."""

_LONGEST: Final = max(map(len, _BEGUN))
_ESCAPE_CHARS: Final = len(r"\ud83d\ude00")

_space = re.compile(r"[ \t\r\n]*+").match
# Numbers are not converted: nobody looks at them.
_scan = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len).raw_decode


class Candidate(NamedTuple):
    """A candidate of an export: its id as UTF-8 (None: it has none), and whether it was evaluated before."""

    custom_id: bytes | None
    evaluated: bool


class Found(NamedTuple):
    """Where in the text the parts of a candidate are."""

    candidate: Candidate
    filled: list[tuple[int, int]]
    last: int
    layout: tuple[str, str]

    def edits(self, new: str) -> Iterator[tuple[int, int, str]]:
        """Start and end of each part to be replaced, and by what."""
        if self.filled:
            yield from ((start, end, new) for start, end in self.filled)
        else:
            gap, colon = self.layout  # as the last member has them: an indented file stays one
            yield self.last, self.last, f',{gap}"{FILLED}"{colon}{new}'


def after_space(text: str, at: int) -> int:
    """Where the white space at `at` ends."""
    found = _space(text, at)
    return at if found is None else found.end()


def next_mark(text: str, at: int) -> tuple[str, int]:
    """The next character that is not white space, and where it is."""
    mark = text[at : at + 1]
    if mark > " ":  # nearly always
        return mark, at
    at = after_space(text, at)
    if at == len(text):
        raise EOFError
    return text[at], at


def pass_value(text: str, at: int) -> tuple[Any, int]:
    """A value; only of use to tell what kind it is."""
    try:
        value, end = _scan(text, at)
    except JSONDecodeError as exc:
        cut_escape = "escape" in exc.msg and exc.pos > len(text) - _ESCAPE_CHARS
        if cut_escape or exc.msg.startswith("Unterminated string") or _goes_on(text, exc.pos):
            raise EOFError from exc
        raise
    if _goes_on(text, end):
        raise EOFError
    return value, end


def _goes_on(text: str, at: int) -> bool:
    """Whether what is at `at` may be what it seems or the beginning of something longer."""
    return len(text) - at <= _LONGEST and text[at:] in _BEGUN


def pass_key(text: str, at: int) -> tuple[tuple[str, int], int]:
    """A key and where it ends; then where its value begins."""
    mark, at = next_mark(text, at)
    if mark != '"':
        raise JSONDecodeError("Expecting a key in double quotes", text, at)
    key, end = pass_value(text, at)
    mark, at = next_mark(text, end)
    if mark != ":":
        raise JSONDecodeError("Expecting ':'", text, at)
    return (key, end), next_mark(text, at + 1)[1]


def one_of(marks: str) -> Callable[[str, int], tuple[str, int]]:
    """A function that takes the next character, which must be one of `marks`."""

    def read(text: str, at: int) -> tuple[str, int]:
        mark, at = next_mark(text, at)
        if mark not in marks:
            raise JSONDecodeError(f"Expecting {' or '.join(map(repr, marks))}", text, at)
        return mark, at + 1

    return read


COMMA_OR_BRACE = one_of(",}")


def find_candidate(text: str, at: int) -> tuple[Found, int]:
    """The candidate whose object begins at `at`."""
    custom_id: bytes | None = None
    evaluated = False
    filled: list[tuple[int, int]] = []
    gap, end, layout = at + 1, at + 1, ("", "")
    mark, at = next_mark(text, gap)
    if mark == "}":
        return Found(Candidate(None, False), [], end, layout), at + 1
    while True:
        (key, colon), start = pass_key(text, at)
        value, end = pass_value(text, start)
        if key == FILLED:
            filled.append((start, end))
            evaluated = bool(value)
        elif key == ID:
            custom_id = _id_of(text[start:end])
        layout = text[gap:at], text[colon:start]
        mark, gap = COMMA_OR_BRACE(text, end)
        if mark == "}":
            return Found(Candidate(custom_id, evaluated), filled, end, layout), gap
        at = next_mark(text, gap)[1]


def _id_of(literal: str) -> bytes | None:
    """The id in a JSON literal: text, or a number as it is written; None for all else, and for no text."""
    if literal[0] == '"':
        try:
            text: str = json.loads(literal.encode("latin-1"))
        except UnicodeDecodeError:
            return None
        return text.encode("utf-8", "surrogatepass") or None
    return literal.encode() if literal[0] in "-0123456789" else None
