"""What all strategies share: what must stay, how much room is left, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ollama_batch.errors import ConfigError, ContextTooLargeError
from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim.base import Clip, TrimResult, TrimStrategy
from ollama_batch.trim.units import Pinned, Unit, split_units
from ollama_batch.types import Message


@dataclass(slots=True)
class Selection:
    """The units to keep, in the order they were chosen, and the tokens still free.

    `full`: something that had to be kept before all else found no room, so nothing else may be added.
    """

    kept: list[int]
    room: int
    full: bool = False
    clips: dict[int, Clip] = field(default_factory=dict)

    def add(self, unit: int, tokens: int) -> bool:
        """Keep `unit` if it is kept already or there is room; says whether it is kept."""
        if unit in self.kept:
            return True
        if tokens > self.room:
            return False
        self.kept.append(unit)
        self.room -= tokens
        return True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that is too long, measured. `sizes` are tokens of each unit.

    `required`: the last unit must stay, as it holds the request. It need not where `upcoming` is the
    request; then it is only the first of the exchanges to be kept.
    """

    messages: Sequence[Message]
    units: tuple[Unit, ...]
    sizes: list[int]
    counter: TokenCounter
    upcoming: Message | None
    required: bool

    def protected(self, room: int) -> Selection:
        """What comes before any choice: the last unit, the pinned ones, newest first, as far as they fit."""
        last = len(self.units) - 1
        chosen = Selection([], room)
        if self.required:
            chosen.kept.append(last)
            chosen.room -= self.sizes[last]
            chosen.full = chosen.room < 0
        for index in range(last, -1, -1):
            if self.units[index].pinned and not chosen.full:
                chosen.full = not chosen.add(index, self.sizes[index])
        if not self.required and self.units and not chosen.full:
            chosen.add(last, self.sizes[last])
        return chosen

    def keep_newest(self, chosen: Selection, room: int) -> None:
        """Add units from the newest back, up to the first that `room` tokens do not hold."""
        room = min(room, chosen.room)
        for index in range(len(self.units) - 1, -1, -1):
            if index in chosen.kept:
                continue
            if self.sizes[index] > room or self.units[index].lead_in:
                return
            chosen.add(index, self.sizes[index])
            room -= self.sizes[index]


Choose: TypeAlias = Callable[[Conversation, int], Selection]
"""Which units to keep within so many tokens for all units together; must use fewer when given fewer."""


def cut(
    strategy: str,
    messages: Sequence[Message],
    *,
    budget: int,
    counter: TokenCounter,
    upcoming: Message | None,
    pinned: Pinned,
    choose: Choose,
) -> TrimResult:
    """Carry out `TrimStrategy.trim` with `choose` as the part in which strategies differ."""
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise ConfigError(f"budget={budget!r}: wanted a whole number of tokens")
    if upcoming is not None and not isinstance(upcoming, Mapping):
        raise ConfigError(
            f"upcoming is a {type(upcoming).__name__}: wanted a message, as in "
            '{"role": "user", "content": "..."}'
        )
    head, units = split_units(messages, pinned)
    before = counter.count_messages(messages)
    tail = () if upcoming is None else (upcoming,)
    total = before if upcoming is None else counter.count_messages([*messages, *tail])
    upcoming_tokens = total - before

    def result(chosen: Selection, kept: list[Message], after: int, each: Sequence[int]) -> TrimResult:
        ranges = _ranges(head, units, chosen)
        stayed = {index for start, stop in ranges for index in range(start, stop)} if chosen.clips else ()
        clips = tuple(clip for index, clip in sorted(chosen.clips.items()) if index in stayed)
        changed = _first_changed(ranges, clips, len(messages))
        return TrimResult(
            strategy=strategy,
            messages=kept,
            messages_before=len(messages),
            kept_units=tuple(sorted(chosen.kept)),
            dropped_units=tuple(index for index in range(len(units)) if index not in chosen.kept),
            kept_ranges=ranges,
            tokens_before=before,
            tokens_after=after,
            reused_prefix_tokens=before if changed is None else min(after, sum(each[:changed])),
            first_changed_index=changed,
            upcoming_tokens=upcoming_tokens,
            clipped=clips,
        )

    if total <= budget:
        return result(Selection(list(range(len(units))), 0), list(messages), before, ())
    each = [counter.count_message(message) for message in messages]
    sizes = [sum(each[unit.start : unit.stop]) for unit in units]
    required = bool(units) and (upcoming is None or upcoming.get("role") != "user")
    conversation = Conversation(messages, units, sizes, counter, upcoming, required)
    # What is not an exchange takes its part first: the head, `upcoming`, the fixed cost of a prompt.
    room = budget - (total - sum(sizes))
    while True:
        chosen = choose(conversation, room)
        kept = [
            chosen.clips[index].apply(messages[index]) if index in chosen.clips else messages[index]
            for start, stop in _ranges(head, units, chosen)
            for index in range(start, stop)
        ]
        after = counter.count_messages(kept)
        total = after if upcoming is None else counter.count_messages([*kept, *tail])
        if total <= budget:
            return result(chosen, kept, after, each)
        if len(chosen.kept) <= required:
            raise ContextTooLargeError(total, budget)
        # Only with a counter whose figures for single messages do not add up to that of the prompt.
        room -= max(0, chosen.room) + total - budget


def trim_to_marks(
    strategy: TrimStrategy,
    messages: Sequence[Message],
    *,
    high: int,
    low: int,
    limit: int,
    counter: TokenCounter,
    upcoming: Message | None = None,
) -> TrimResult:
    """Nothing up to `high` tokens; beyond, trim to `low`: rarely and deep.

    The tokens are those of the whole prompt, `upcoming` included. Where what must stay needs more than
    `low`, just that stays, up to `limit`. Raises ContextTooLargeError(tokens, limit) beyond, and
    ConfigError unless low <= high <= limit.
    """
    for name, value in (("low", low), ("high", high), ("limit", limit)):
        if type(value) is not int:
            raise ConfigError(
                f"{name}={value!r}: must be a whole number of tokens; a share of the limit is what "
                "ConversationPolicy takes"
            )
    if not low <= high <= limit:
        raise ConfigError(f"low={low}, high={high}, limit={limit}: wanted low <= high <= limit")
    try:
        fits = strategy.trim(messages, budget=high, counter=counter, upcoming=upcoming)
        return (
            fits
            if not fits.changed
            else strategy.trim(messages, budget=low, counter=counter, upcoming=upcoming)
        )
    except ContextTooLargeError as error:
        if error.tokens is None or error.tokens > limit:
            raise ContextTooLargeError(error.tokens, limit) from error
        return strategy.trim(messages, budget=error.tokens, counter=counter, upcoming=upcoming)


def _ranges(head: int, units: Sequence[Unit], chosen: Selection) -> tuple[tuple[int, int], ...]:
    """The messages that stay, as few `[start, stop)` ranges as can be."""
    ranges = [(0, head)] if head else []
    for index in sorted(chosen.kept):
        unit = units[index]
        if ranges and ranges[-1][1] == unit.start:
            ranges[-1] = (ranges[-1][0], unit.stop)
        else:
            ranges.append((unit.start, unit.stop))
    return tuple(ranges)


def _first_changed(ranges: Sequence[tuple[int, int]], clips: Sequence[Clip], messages: int) -> int | None:
    """The first message that is dropped or clipped."""
    dropped = ranges[0][1] if ranges and ranges[0][0] == 0 else 0
    first = min([dropped, *(clip.index for clip in clips)])
    return None if first == messages else first
