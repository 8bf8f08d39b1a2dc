"""Lines of a report: labelled texts, wrapped where there is room, else shortened in their middle."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

from ollama_batch._text import both_ends

WIDTH: Final = 200
"""Longest line of a text that is wrapped."""

MOST: Final = 6
"""So many lines has one text at the most: an engine's words may be megabytes long."""

URGENT: Final = ("next", "reason", "trouble", "note", "failed")
"""Whose text is shown whole first, where not all can be."""


class Line(NamedTuple):
    """What the report says under a label; one that is not `wrapped` is as short as it is to be."""

    label: str
    text: str
    wrapped: bool = False


def laid_out(lines: Sequence[Line], *, most: int) -> list[tuple[str, str]]:
    """Labels and texts, `most` at the most unless there are more `lines`. A text that finds no room for all
    of its lines loses words in its middle, since its last ones often say what to do.
    """
    spare = max(0, most - len(lines))
    room = dict.fromkeys(range(len(lines)), 1)
    for place in sorted(range(len(lines)), key=lambda place: _urgency(lines[place].label)):
        more = min(spare, MOST - 1, len(_wrap(lines[place].text)) - 1) if lines[place].wrapped else 0
        room[place] += max(0, more)
        spare -= max(0, more)
    return [
        (each.label, text)
        for place, each in enumerate(lines)
        for text in (_fitted(each.text, room[place]) if each.wrapped else [each.text])
    ]


def _urgency(label: str) -> int:
    return URGENT.index(label) if label in URGENT else len(URGENT)


def _fitted(text: str, lines: int) -> list[str]:
    """`text` in so many lines; words that do not fill a line take room as well, so that it may take tries."""
    limit = lines * WIDTH
    wrapped = _wrap(both_ends(text, limit))
    while len(wrapped) > lines:
        limit -= WIDTH // 4
        wrapped = _wrap(both_ends(text, limit))
    return wrapped


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False) or [""]
