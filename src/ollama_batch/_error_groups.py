"""Failed rows grouped by error code, and within a code by message, numbers and ids in it aside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from ollama_batch._text import plain

CODES: Final = 200
KINDS: Final = 20
IDS: Final = 3
SHOWN: Final = 300

_WORD: Final = re.compile(r"[\w-]+")
_SHORTEST_NAME: Final = 3
"""A shorter name than this may stand in a message by chance."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Failed rows whose messages differ in nothing but numbers and ids: the first of the messages, how many
    rows, and the ids of the first three.
    """

    message: str
    count: int
    custom_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """The failed rows of one error code, and the messages among them, the most frequent first.

    `others` rows have further messages than the 20 that are told apart.
    """

    code: str
    count: int
    kinds: tuple[ErrorKind, ...]
    others: int = 0


def shape_of(message: str, *own: str) -> str:
    """`message` without what makes it that of one row: words with a digit in them, and names of its `own`."""
    for name in own:
        if len(name) >= _SHORTEST_NAME:
            message = message.replace(name, "#")
    return _WORD.sub(lambda word: "#" if any(map(str.isdecimal, word[0])) else word[0], message)


class ErrorTally:
    """Counts failed rows, in a bounded amount of memory."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._kinds: dict[str, dict[str, tuple[str, list[int], list[str]]]] = {}

    def add(self, code: str | None, message: str | None, custom_id: str, *, source: str = "") -> None:
        """Count a failed row; `source` is what its input is called, where that is known."""
        code = plain(code or "unknown", 80)
        if code not in self._counts and len(self._counts) >= CODES:
            code = "(other codes)"
        self._counts[code] += 1
        kinds = self._kinds.setdefault(code, {})
        message = (message or "")[: 4 * SHOWN]
        shape, message = plain(shape_of(message, source, custom_id), SHOWN), plain(message, SHOWN)
        if shape not in kinds:
            if len(kinds) >= KINDS:
                return
            kinds[shape] = message, [0], []
        _, count, ids = kinds[shape]
        count[0] += 1
        if len(ids) < IDS:
            ids.append(custom_id)

    def groups(self) -> tuple[ErrorGroup, ...]:
        """Every code, the most frequent first."""
        groups = []
        for code, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            kinds = [
                ErrorKind(message, number[0], tuple(ids))
                for message, number, ids in self._kinds[code].values()
            ]
            kinds.sort(key=lambda kind: (-kind.count, kind.message))
            groups.append(ErrorGroup(code, count, tuple(kinds), count - sum(kind.count for kind in kinds)))
        return tuple(groups)


def more_kinds(group: ErrorGroup, shown: int) -> str:
    """What is said of the messages of a code beyond those `shown`; nothing if there are none."""
    left = group.kinds[shown:]
    rows = group.others + sum(kind.count for kind in left)
    if not rows:
        return ""
    other = "1 other message" if len(left) == 1 else f"{len(left):,} other messages"
    of = "1 row" if rows == 1 else f"{rows:,} rows"
    return f"and {other}{' or more' * bool(group.others)}, in {of}"
