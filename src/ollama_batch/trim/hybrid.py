"""The newest exchanges, and the most important of the older ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ollama_batch.errors import ConfigError
from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim._checks import check_number
from ollama_batch.trim.base import TrimResult
from ollama_batch.trim.cutting import Conversation, Selection, cut
from ollama_batch.trim.importance import ImportanceTrim
from ollama_batch.trim.units import Pinned, check_pinned
from ollama_batch.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridTrim:
    """Keeps the head, a run of the newest exchanges, and the most important of the older ones.

    `recent_share` of the room that head and pinned exchanges leave goes to the newest, and what they do
    not use to the others, chosen by `importance`. 1 is SlidingWindowTrim, 0 is ImportanceTrim, exactly.
    For guarantees and errors see `TrimStrategy` and docs/trim.md.
    """

    recent_share: float = 0.6
    importance: ImportanceTrim = field(default_factory=ImportanceTrim)
    pinned: Pinned = None

    def __post_init__(self) -> None:
        check_number("recent_share", self.recent_share, low=0, high=1)
        check_importance(self.importance)
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
            "hybrid",
            messages,
            budget=budget,
            counter=counter,
            upcoming=upcoming,
            pinned=self.pinned,
            choose=self._choose,
        )

    def _choose(self, conversation: Conversation, room: int) -> Selection:
        chosen = conversation.protected(room)
        if chosen.full:
            return chosen
        last = len(conversation.units) - 1
        # The last exchange is the first of the newest, and has had its tokens already.
        spent = conversation.sizes[last] if last in chosen.kept and not conversation.units[last].pinned else 0
        conversation.keep_newest(chosen, math.floor(self.recent_share * (chosen.room + spent)) - spent)
        if self.recent_share < 1:
            self.importance.fill(conversation, chosen)
        return chosen


def check_importance(importance: ImportanceTrim) -> None:
    """Raises ConfigError unless `importance` can be a part of another strategy."""
    if not isinstance(importance, ImportanceTrim):
        raise ConfigError(f"importance={importance!r}: wanted an ImportanceTrim")
    if importance.pinned is not None:
        raise ConfigError("importance.pinned is not looked at here: give `pinned` to the strategy itself")
