"""Whether a text that was cut off had come to say the same over and over."""

from __future__ import annotations

from typing import Final

LEAST_REPEATS: Final = 8
LEAST_CHARS: Final = 40
"""So often, and over so many characters, is no accident: "......" and lists of equal numbers are shorter."""

LONGEST_UNIT: Final = 200
"""Characters of the longest piece whose repetition is looked for."""


def runs_away(text: str) -> bool:
    """Whether `text` ends in white space, or in repetitions of one piece of up to 200 characters.

    Meant for answers that a token limit has cut off: a finished answer may well end in a long line of dashes.
    """
    if len(text) - len(text.rstrip()) >= LEAST_CHARS:
        return True
    for unit in range(1, LONGEST_UNIT + 1):
        chars = unit * max(LEAST_REPEATS, -(-LEAST_CHARS // unit))
        if len(text) < chars:
            return False
        # Equal to itself moved by one unit: each piece equals the one before.
        if text[-chars:-unit] == text[len(text) - chars + unit :]:
            return True
    return False
