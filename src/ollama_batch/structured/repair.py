"""Repairs JSON that is slightly broken, and tells a repair from an invention."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final

REPAIRED_CHARS: Final = 32_768
"""Longer text is not repaired: the time it takes grows with its square."""

_EMPTY: Final = re.compile(r"""(?<!\\)(["'])\1""")
_NOTHING: Final = " \N{EMPTY SET} "
"""Stands for text that is empty, which a repair must not make where nothing was."""

_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_PART: Final = re.compile(
    r"""-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[^\W\d]\w*|[^\s"'`\u201c\u201d\u2018\u2019\\]"""
)
_CLOSERS: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_MARK: Final = re.compile(r"""\\.|["'{}\u201c\u201d\u2018\u2019]""", re.DOTALL)
_LITERALS: Final = {"True": "true", "False": "false", "None": "null"}
_WHITE: Final = frozenset("nrtbf")


def repaired(text: str) -> dict[str, Any] | None:
    """The object that `text`, from its first brace to its last, was meant to be; None if that is not clear.

    A repair may change quotes, escapes, white space, commas before a closing bracket and how a number or
    True, False, None is written. It may not add, drop or move a word, a number, a bracket, a colon or any
    other sign, and the last brace must be the end of the object: what a model did not say is never put into
    its mouth. Text of more than 32,768 characters is not repaired.
    """
    import json_repair

    if len(text) > REPAIRED_CHARS or not _ends(text):
        return None
    try:
        found = json_repair.loads(text, skip_json_loads=True)
        same = isinstance(found, dict) and parts(text) == parts(json.dumps(found, ensure_ascii=False))
    except (ValueError, RecursionError):  # too deep, or not to be made sense of
        return None
    return found if same and isinstance(found, dict) else None


def parts(text: str) -> list[str]:
    """The words, numbers and signs of JSON text in their order, without what a repair may change."""
    found: list[str] = []
    for part in _PART.findall(_ESCAPE.sub(_meant, _EMPTY.sub(_NOTHING, text))):
        if part in ("}", "]") and found and found[-1] == ",":
            found.pop()
        found.append(_normal(part))
    return found


def _ends(text: str) -> bool:
    """Whether the last brace of `text` closes its first one: it may be one of a text that breaks off."""
    depth, closer = 0, ""
    for mark in _MARK.findall(text):
        if closer:
            closer = "" if mark == closer else closer
        elif mark in _CLOSERS:
            closer = _CLOSERS[mark]
        elif mark in "{}":
            depth += 1 if mark == "{" else -1
    return depth == 0 and not closer


def _meant(escape: re.Match[str]) -> str:
    if escape[1]:
        return chr(int(escape[1], 16))
    return " " if escape[2] in _WHITE else escape[2]


def _normal(part: str) -> str:
    if not part[-1].isdecimal():
        return _LITERALS.get(part, part)
    try:
        return str(Decimal(part).normalize())
    except ArithmeticError:  # a word that ends in a figure
        return part
