"""Counting in a conversation: by what the engine said of the same lane, and by messages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ollama_batch._lane import Lane
from ollama_batch.errors import ContextTooLargeError
from ollama_batch.tokens import CalibratedCounter, TokenCounter
from ollama_batch.trim import SlidingWindowTrim, TrimResult
from ollama_batch.trim.units import split_units
from ollama_batch.types import Message

MARGIN: Final = 1.03
"""On counts scaled by what the engine said of the same lane."""

BELIEVABLE: Final = (0.2, 10.0)
"""Engine's tokens per one of ours: beyond that a report is no count of the whole prompt."""


@dataclass(frozen=True, slots=True)
class ScaledCounter:
    """A TokenCounter whose figures are those of `base`, times `scale`, rounded up.

    `measured`: the scale comes from the engine's count of the lane's last prompt.
    """

    base: TokenCounter
    scale: float
    measured: bool = False

    def count_text(self, text: str) -> int:
        """Tokens of plain text."""
        return math.ceil(self.scale * self.base.count_text(text))

    def count_message(self, message: Message) -> int:
        """Tokens of one message."""
        return math.ceil(self.scale * self.base.count_message(message))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt: those of its messages, and what a prompt costs beside them."""
        return sum(map(self.count_message, messages)) + math.ceil(self.scale * self.base.count_messages([]))


class MessageCounter:
    """A TokenCounter that counts messages instead of tokens."""

    def count_text(self, text: str) -> int:
        """Nothing."""
        return 0

    def count_message(self, message: Message) -> int:
        """One."""
        return 1

    def count_messages(self, messages: Sequence[Message]) -> int:
        """How many there are."""
        return len(messages)


def lane_counter(lane: Lane, head: Sequence[Message], base: TokenCounter) -> ScaledCounter:
    """The counter for `lane`, whose rows begin with `head`.

    Before the engine has said anything of it, the bound of a counter that has observed nothing.
    """
    scale = _scale(lane, head, base)
    if scale is not None:
        return ScaledCounter(base, MARGIN * scale, measured=True)
    bound = CalibratedCounter(base, model_digest="").bound_for(head)
    return ScaledCounter(base, bound.factor * bound.line.ratio)


def expected_tokens(
    lane: Lane, head: Sequence[Message], own: Sequence[Message], counter: ScaledCounter
) -> int:
    """The most tokens that the conversation of `lane` has with `own` behind it."""
    if not counter.measured or lane.prompt_tokens is None:
        return counter.count_messages([*head, *(each.message for each in lane.said), *own])
    # The engine has counted all but what comes now, and the marks around its last answer.
    around = counter.count_message({"role": "assistant", "content": ""})
    return lane.prompt_tokens + lane.answer_tokens + around + sum(map(counter.count_message, own))


def least_tokens(messages: Sequence[Message], expected: int, counter: ScaledCounter) -> float:
    """The fewest tokens a prompt can have of which so many are expected."""
    if counter.measured:
        return expected / MARGIN
    return CalibratedCounter(counter.base, model_digest="").lower_bound(messages).tokens


def last_messages(messages: Sequence[Message], most: int, counter: TokenCounter) -> TrimResult:
    """The head and as many whole exchanges at the end as have `most` messages together with it."""
    counted = MessageCounter()
    try:
        result = SlidingWindowTrim().trim(messages, budget=most, counter=counted)
    except ContextTooLargeError as error:  # the last exchange alone has more
        result = SlidingWindowTrim().trim(messages, budget=error.tokens or most, counter=counted)
    after = counter.count_messages(result.messages)
    return dataclasses.replace(
        result,
        strategy="last_messages",
        tokens_before=counter.count_messages(messages),
        tokens_after=after,
        reused_prefix_tokens=_reused(messages, result.first_changed_index, after, counter),
    )


def begun_anew(messages: Sequence[Message], counter: TokenCounter) -> TrimResult:
    """The head alone: all that was said behind it is left out."""
    head, units = split_units(messages)
    kept = list(messages[:head])
    changed = None if head == len(messages) else head
    after = counter.count_messages(kept)
    return TrimResult(
        strategy="anew",
        messages=kept,
        messages_before=len(messages),
        kept_units=(),
        dropped_units=tuple(range(len(units))),
        kept_ranges=((0, head),) if head else (),
        tokens_before=counter.count_messages(messages),
        tokens_after=after,
        reused_prefix_tokens=_reused(messages, changed, after, counter),
        first_changed_index=changed,
    )


def _reused(messages: Sequence[Message], changed: int | None, after: int, counter: TokenCounter) -> int:
    """Tokens of the messages before the first changed one; what a prompt costs beside them is not theirs."""
    return after if changed is None else min(after, sum(map(counter.count_message, messages[:changed])))


def _scale(lane: Lane, head: Sequence[Message], base: TokenCounter) -> float | None:
    """The engine's tokens per one of ours in the lane's last prompt; None if it did not say, or not all."""
    if lane.prompt_tokens is None or not lane.said:
        return None
    counted = base.count_messages([*head, *(each.message for each in lane.said[:-1])])
    scale = lane.prompt_tokens / max(1, counted)
    return scale if BELIEVABLE[0] <= scale <= BELIEVABLE[1] else None
