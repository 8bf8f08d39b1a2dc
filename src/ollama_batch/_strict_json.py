"""Strict JSON: what two readers could understand differently is refused, and nothing can blow up.

Python's own scanner does the work, because it can be told of repeated keys; orjson is the gate for what
that scanner lets through (unpaired surrogates) or would recurse on (deep nesting).
"""

from __future__ import annotations

import json
import math
import re
from json import JSONDecodeError
from typing import Any

import orjson

MIN_INT = -(2**63)
MAX_INT = 2**64 - 1
_INT_DIGITS = 20
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class JsonFault(Exception):
    """Raised when bytes are not the strict JSON we accept; `key` is the offending key, if there is one."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.key = key


def shorten(text: str, limit: int = 64) -> str:
    """`text` as a quoted literal of about `limit` characters, safe to show in a message."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def printable(text: str) -> str:
    """`text` with unpaired surrogates, which nothing can print or store, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonFault(f"the key {shorten(key)} is there twice in one object", key)
            seen.add(key)
    return found


def _integer(digits: str) -> int:
    # Longer literals are not converted at all: that takes quadratic time.
    if len(digits) > _INT_DIGITS:
        raise JsonFault(f"an integer of {len(digits)} characters is beyond 64 bits")
    number = int(digits)
    if not MIN_INT <= number <= MAX_INT:
        raise JsonFault(f"the integer {number} is beyond 64 bits")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise JsonFault("a number is too large for a 64-bit float")
    return number


def _constant(name: str) -> Any:
    raise JsonFault(f"{name} is not JSON")


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
).decode


def loads(raw: bytes, *, max_depth: int) -> Any:
    """The value that `raw` holds.

    Raises JsonFault for what is not JSON in strict UTF-8, and for repeated keys at any level, NaN and
    Infinity, numbers beyond 64 bits, NUL and unpaired surrogates (even escaped), and nesting deeper
    than `max_depth`. Takes time linear in the length of `raw`.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise JsonFault(f"not UTF-8: byte {exc.start + 1} of the line cannot be decoded") from exc
    if raw.count(b"{") + raw.count(b"[") > max_depth:
        _refuse_deep(raw, max_depth)
    try:
        value = _decode(text)
    except JSONDecodeError as exc:
        if b"\x00" in raw:
            raise JsonFault("a NUL byte is not JSON") from exc
        raise JsonFault(f"not JSON: {exc.msg} (column {exc.pos + 1})") from exc
    except RecursionError as exc:
        raise JsonFault(f"nested deeper than {max_depth} levels") from exc
    if b"\\u" in raw and _SUSPECT.search(raw):
        if _ESCAPED_NUL.search(raw):
            raise JsonFault("a NUL character (\\u0000) is refused: engines cut text at it")
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise JsonFault("an unpaired surrogate escape (\\ud800 to \\udfff) is no character") from exc
    return value


def lenient_value(raw: bytes, key: str) -> Any:
    """What `key` of the top-level object in `raw` holds, as far as it can be told; else None."""
    try:
        value = json.loads(raw, parse_int=lambda _: 0, parse_float=lambda _: 0.0)
    except (ValueError, RecursionError):
        return None
    return value.get(key) if isinstance(value, dict) else None


def _refuse_deep(raw: bytes, max_depth: int) -> None:
    """Raise JsonFault if `raw` nests too deep, before a recursive parser sees it."""
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(raw):
        kind = raw[token.start()]
        if kind in b"[{":
            depth += 1
            if depth > max_depth:
                raise JsonFault(f"nested deeper than {max_depth} levels")
        elif kind in b"]}":
            depth -= 1
