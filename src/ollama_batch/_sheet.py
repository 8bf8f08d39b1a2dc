"""Cells of a CSV file that a spreadsheet shows as they are and never runs."""

from __future__ import annotations

import re
from typing import Final

# What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection"), the full-width forms of it
# that some locales accept, and the apostrophe itself, so that the way back is unambiguous.
_FORMULA: Final = re.compile(
    r"[\t\r\n]|[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|'"
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARK: Final = "'"


def cell(text: str) -> str:
    r"""`text` as a cell to look at: never a formula, nothing in it that a terminal obeys.

    An apostrophe goes before what a spreadsheet could take for a formula: text that begins with one of
    `= + - @`, also in full width or behind white space, or with a tab or line end; and before an apostrophe,
    so that it can be told from these. Control characters other than tabs and line ends, and lone surrogates,
    are shown as `\x1b` and the like.
    """
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return _marked(text, shown.encode("utf-8", "backslashreplace").decode())


def to_cell(text: str | None) -> str:
    """`text` as a cell that `from_cell` reads back as it was: an apostrophe goes before the same texts as
    with `cell`, and before the empty one, to be told from None, which is an empty cell.
    """
    if text is None:
        return ""
    return _marked(text, text) if text else _MARK


def from_cell(cell: str) -> str | None:
    """The text that `to_cell` made `cell` of."""
    return cell.removeprefix(_MARK) if cell else None


def _marked(text: str, shown: str) -> str:
    return f"{_MARK}{shown}" if _FORMULA.match(text) else shown
