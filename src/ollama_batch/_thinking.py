"""Thinking that a server has left in the text of an answer."""

from __future__ import annotations

_MARGIN = "\ufeff"


def without_thinking(text: str) -> str:
    """`text` without the `<think>...</think>` that servers without a reasoning parser leave before it, and
    without white space and byte order marks around; "" if it is thinking only, ended or not.
    """
    said = _trimmed(text)
    return _trimmed(said.partition("</think>")[2]) if said.startswith("<think>") else said


def _trimmed(text: str) -> str:
    """`text` without white space, and without byte order marks before it."""
    said = text.strip()
    while said.startswith(_MARGIN):
        said = said.lstrip(_MARGIN).lstrip()
    return said
