"""The newest exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim.base import TrimResult
from ollama_batch.trim.cutting import Conversation, Selection, cut
from ollama_batch.trim.units import Pinned, check_pinned
from ollama_batch.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindowTrim:
    """Keeps the head and the longest run of newest exchanges that fits.

    A larger budget never keeps less. Pinned exchanges stay where they are, before the run. Linear in the
    number of messages. For guarantees and errors see `TrimStrategy` and docs/trim.md.
    """

    pinned: Pinned = None

    def __post_init__(self) -> None:
        check_pinned(self.pinned)

    def trim(
        self,
        messages: Sequence[Message],
        *,
        budget: int,
        counter: TokenCounter,
        upcoming: Message | None = None,
    ) -> TrimResult:
        """See `TrimStrategy.trim`."""
        return cut(
            "sliding_window",
            messages,
            budget=budget,
            counter=counter,
            upcoming=upcoming,
            pinned=self.pinned,
            choose=_newest,
        )


def _newest(conversation: Conversation, room: int) -> Selection:
    chosen = conversation.protected(room)
    if not chosen.full:
        conversation.keep_newest(chosen, chosen.room)
    return chosen
