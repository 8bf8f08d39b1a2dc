"""Text in the cells of a CSV file, safe to open in a spreadsheet and read back as it was."""

from __future__ import annotations

from typing import Final

# What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection"), the full-width forms of it
# that some locales accept, and the apostrophe itself, so that the way back is unambiguous.
_TRIGGERS: Final = frozenset("=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20")
_MARK: Final = "'"


def to_cell(text: str | None) -> str:
    """`text` as a cell; None is an empty one. What could be taken for a formula begins with an apostrophe.

    So does the empty text, to be told from None. White space before a trigger does not hide it.
    """
    if text is None:
        return ""
    first = text.lstrip()[:1] or text[:1]
    if not text or first in _TRIGGERS or text[0] in _TRIGGERS:
        return f"{_MARK}{text}"
    return text


def from_cell(cell: str) -> str | None:
    """The text that `to_cell` made `cell` of."""
    if not cell:
        return None
    return cell[1:] if cell.startswith(_MARK) else cell
