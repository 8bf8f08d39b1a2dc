"""One conversation: what has been said in it, by which rows, and what was cut from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, TypeAlias

import orjson

from ollama_batch.journal.turns import PastTurn
from ollama_batch.ordering.keys import HEAD_BYTES
from ollama_batch.records import EXTENSION
from ollama_batch.trim import Clip, TrimResult
from ollama_batch.trim.units import HEAD_ROLES
from ollama_batch.types import Message

Decision: TypeAlias = Mapping[str, Any] | None
"""What of a conversation a row is sent behind, as the journal keeps it; None: all of it.

`why` is a word, `kept` lists `[row, first, stop]` for the messages that rows have contributed, `clipped`
lists `[row, message, [[start, stop, marker], ...]]`, `trim` has the figures for the result.
"""

_ANSWER: Final = ("content", "tool_calls", "refusal")
"""What of an answer goes on in the conversation; reasoning does not, as templates leave it out."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a conversation: the `number`-th that the row `index` contributed, and its clips."""

    index: int
    number: int
    original: Message
    clips: tuple[Clip, ...] = ()

    @property
    def message(self) -> Message:
        """The message as it is sent."""
        return reduce(lambda message, clip: clip.apply(message), self.clips, self.original)


@dataclass(slots=True)
class Lane:
    """A conversation as it is now.

    `head` stands for the head that its rows share. `since_cut` counts the answers since the last decision.
    `prompt_tokens` and `answer_tokens` are what the engine counted for the last answered row (None: it
    did not say). `left` are rows whose messages are no longer part of it, and not yet forgotten.
    """

    number: int
    head: bytes = b""
    said: list[Said] = field(default_factory=list)
    since_cut: int = 0
    prompt_tokens: int | None = None
    answer_tokens: int = 0
    left: set[int] = field(default_factory=set)

    def after(self, decision: Decision) -> list[Said]:
        """What is left of the conversation when `decision` is carried out; the lane stays as it is."""
        return list(self.said) if decision is None else _cut(self.said, decision)

    def accept(
        self,
        index: int,
        *,
        head: bytes,
        said: Sequence[Said],
        own: Sequence[Message],
        answer: Message,
        decision: Decision,
    ) -> None:
        """Go on from `said`, behind which row `index` has asked `own` and got `answer`."""
        before = {each.index for each in self.said}
        self.said = [*said, *(Said(index, n, message) for n, message in enumerate([*own, answer]))]
        self.left |= before - {each.index for each in self.said}
        self.head = head
        self.since_cut = self.since_cut + 1 if decision is None else 1


def split_head(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The leading system and developer messages, and the rest."""
    size = next((n for n, each in enumerate(messages) if each.get("role") not in HEAD_ROLES), len(messages))
    return list(messages[:size]), list(messages[size:])


def head_of(order: bytes) -> bytes:
    """What stands for a row's head, from its order key."""
    return order[:HEAD_BYTES]


def answer_of(body: Mapping[str, Any] | None) -> Message:
    """The first answer of a completion as a message of a conversation."""
    choices = (body or {}).get("choices") or [{}]
    message = choices[0].get("message") or {}
    kept = {name: message[name] for name in _ANSWER if message.get(name)}
    return {"role": "assistant", "content": "", **kept}


def restored(number: int, turns: Sequence[PastTurn]) -> Lane:
    """The lane that these turns make, as it was when the last of them was answered."""
    lane = Lane(number)
    known = [said for turn in turns for said in _contributed(turn)]
    for turn in turns:
        if turn.decision is not None:
            # What it has kept comes first in `turns`; what it has not is not there.
            lane.said = _cut(known, turn.decision)
            lane.since_cut = 0
        lane.said += _contributed(turn)
        lane.head = turn.head
        lane.since_cut += 1
    if turns:
        asked_again = (orjson.loads(turns[-1].line).get(EXTENSION) or {}).get("asked_again")
        usage = {} if asked_again else _body(turns[-1]).get("usage") or {}
        lane.prompt_tokens = usage.get("prompt_tokens") or None
        lane.answer_tokens = usage.get("completion_tokens") or 0
    return lane


def to_decision(why: str, lane: Lane, head: int, result: TrimResult) -> dict[str, Any]:
    """A trim of `head` head messages and the lane's own as a decision of this lane."""
    clips: dict[int, Clip] = {clip.index: clip for clip in result.clipped}
    kept: list[Said] = []
    for start, stop in result.kept_ranges:
        for at in range(max(start, head), stop):
            said = lane.said[at - head]
            clip = clips.get(at)
            kept.append(
                said if clip is None else Said(said.index, said.number, said.original, (*said.clips, clip))
            )
    return {
        "why": why,
        "kept": _ranges(kept),
        "clipped": [
            [each.index, each.number, [[clip.start, clip.stop, clip.marker] for clip in each.clips]]
            for each in kept
            if each.clips
        ],
        "trim": result.to_dict(),
    }


def anew(why: str) -> dict[str, Any]:
    """The decision to begin another conversation, which leaves nothing out of the one before."""
    return {"why": why, "kept": [], "clipped": []}


def _cut(said: Iterable[Said], decision: Mapping[str, Any]) -> list[Said]:
    known = {(each.index, each.number): each for each in said}
    clips = {(index, number): chain for index, number, chain in decision["clipped"]}
    kept = []
    for index, first, stop in decision["kept"]:
        for number in range(first, stop):
            each = known[index, number]
            chain = tuple(Clip(number, *clip) for clip in clips.get((index, number), ()))
            kept.append(Said(index, number, each.original, chain))
    return kept


def _ranges(kept: Sequence[Said]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for each in kept:
        if ranges and ranges[-1][0] == each.index and ranges[-1][2] == each.number:
            ranges[-1][2] += 1
        else:
            ranges.append([each.index, each.number, each.number + 1])
    return ranges


def _contributed(turn: PastTurn) -> list[Said]:
    messages = [*turn.said, answer_of(_body(turn))]
    return [Said(turn.index, number, message) for number, message in enumerate(messages)]


def _body(turn: PastTurn) -> Mapping[str, Any]:
    body: Mapping[str, Any] = (orjson.loads(turn.line).get("response") or {}).get("body") or {}
    return body
