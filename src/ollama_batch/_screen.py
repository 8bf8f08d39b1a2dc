"""Which counts of an engine look too low, told at hardly any cost: where its context is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ollama_batch._sizes import rough_tokens
from ollama_batch.types import Message

VERIFIED: Final = 16
"""So many prompts of each sort are looked at closely before their mean says what is usual."""

SUSPICIOUS: Final = 0.75
"""Below this share of what is usual for so much text, a count wants a closer look."""


class Screen:
    """Remembers how many tokens the engine reports for one of ours, roughly reckoned.

    Prompts with many digits or wide characters apart from the others: models differ most in those.
    """

    def __init__(self) -> None:
        self._usual = {False: (0, 0.0), True: (0, 0.0)}

    def suspects(self, messages: Sequence[Message], tools: Sequence[Any] | None, reported: int) -> bool:
        """Whether the engine may not have seen all of this prompt, or too little is known to say."""
        rough = rough_tokens(messages, tools)
        seen, usual = self._usual[rough.odd]
        return seen < VERIFIED or reported / rough.tokens < SUSPICIOUS * usual

    def verified(self, messages: Sequence[Message], tools: Sequence[Any] | None, reported: int) -> None:
        """Take note that this prompt was found to be whole."""
        rough = rough_tokens(messages, tools)
        seen, usual = self._usual[rough.odd]
        weight = 1 / min(seen + 1, VERIFIED)
        self._usual[rough.odd] = seen + 1, usual + weight * (reported / rough.tokens - usual)
