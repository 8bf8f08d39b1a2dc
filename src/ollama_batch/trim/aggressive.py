"""As short as can be: for when memory or the limit leaves no choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim._checks import check_number, check_whole
from ollama_batch.trim.base import Clip, TrimResult
from ollama_batch.trim.cutting import Conversation, Selection, cut
from ollama_batch.trim.hybrid import check_importance
from ollama_batch.trim.importance import ImportanceTrim, corpus_of
from ollama_batch.trim.scoring import Corpus
from ollama_batch.trim.units import Pinned, check_pinned
from ollama_batch.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class AggressiveTrim:
    """Goes down to `share` of `limit`, by stages, and stops as soon as it is there.

    1. Exchanges that are more than `duplicate_above` like a newer one go.
    2. Message bodies of more than `clip_tokens` are shortened in the middle to about that, with a marker
       that says so. The head, the last and pinned exchanges are never clipped, nor are lists of parts.
    3. Only the most important exchanges stay, chosen by `importance`.
    4. Nothing but the head, the last exchange and the pinned ones stays.

    The target is `min(budget, share * limit)`; without a `limit`, the budget is taken for it. Where what
    must stay needs more than the target, that stays, up to the budget. A conversation within the budget is
    left alone, even if it is above the target. For guarantees and errors see `TrimStrategy` and docs/trim.md.
    """

    share: float = 0.25
    limit: int | None = None
    clip_tokens: int = 256
    duplicate_above: float = 0.95
    importance: ImportanceTrim = field(default_factory=ImportanceTrim)
    pinned: Pinned = None

    def __post_init__(self) -> None:
        check_number("share", self.share, above=0, high=1)
        if self.limit is not None:
            check_whole("limit", self.limit, 1)
        check_whole("clip_tokens", self.clip_tokens, 32)
        check_number("duplicate_above", self.duplicate_above, low=0, high=1)
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
            "aggressive",
            messages,
            budget=budget,
            counter=counter,
            upcoming=upcoming,
            pinned=self.pinned,
            choose=lambda conversation, room: self._choose(conversation, room, budget),
        )

    def _choose(self, conversation: Conversation, room: int, budget: int) -> Selection:
        chosen = conversation.protected(room)
        if chosen.full:
            return chosen
        target = min(budget, math.floor(self.share * (budget if self.limit is None else self.limit)))
        chosen.room -= budget - target
        if chosen.room <= 0:
            return chosen
        corpus = corpus_of(conversation)
        rest = self._without_duplicates(conversation, chosen.kept, corpus)
        sizes = list(conversation.sizes)
        if sum(sizes[index] for index in rest) > chosen.room:
            for index in rest:
                sizes[index] -= self._clip(conversation, index, chosen.clips)
        if sum(sizes[index] for index in rest) > chosen.room:
            self.importance.fill(conversation, chosen, among=rest, sizes=sizes, corpus=corpus)
        else:
            for index in rest:
                chosen.add(index, sizes[index])
        return chosen

    def _without_duplicates(
        self, conversation: Conversation, kept: Sequence[int], corpus: Corpus
    ) -> list[int]:
        """The units that are neither kept already nor nearly the same as a kept or a newer one."""
        taken = set(kept)
        alike = {other for index in kept for other in self._duplicates(index, corpus)}
        rest = []
        for index in range(len(conversation.units) - 1, -1, -1):
            if index not in taken and index not in alike and not conversation.units[index].lead_in:
                rest.append(index)
                alike.update(self._duplicates(index, corpus))
        return rest

    def _duplicates(self, index: int, corpus: Corpus) -> list[int]:
        found = corpus.likeness(index).items()
        return [other for other, likeness in found if likeness > self.duplicate_above]

    def _clip(self, conversation: Conversation, index: int, clips: dict[int, Clip]) -> int:
        """Clip the long bodies of a unit; the tokens that saves."""
        unit = conversation.units[index]
        saved = 0
        for at in range(unit.start, unit.stop):
            message = conversation.messages[at]
            content = message.get("content")
            if not isinstance(content, str):
                continue
            tokens = conversation.counter.count_text(content)
            if tokens <= self.clip_tokens:
                continue
            clip = self._shorten(conversation, at, content, tokens)
            gain = conversation.counter.count_message(message) - conversation.counter.count_message(
                clip.apply(message)
            )
            if gain > 0:
                clips[at] = clip
                saved += gain
        return saved

    def _shorten(self, conversation: Conversation, at: int, content: str, tokens: int) -> Clip:
        """Cut out the middle so that about `clip_tokens` are left, half of them from either end."""
        keep = len(content)
        while True:
            keep = keep * self.clip_tokens // (tokens + 1)  # always smaller: the loop ends
            start = (keep + 1) // 2
            stop = len(content) - keep // 2
            clip = Clip(at, start, stop, f"\n[... {stop - start} characters left out ...]\n")
            tokens = conversation.counter.count_text(content[:start] + clip.marker + content[stop:])
            if tokens <= self.clip_tokens or keep == 0:
                return clip
