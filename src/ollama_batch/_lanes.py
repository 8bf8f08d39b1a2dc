"""The composer of conversations: each row is sent behind what its lane has said so far.

Everything that is decided for a lane follows from that lane alone (its messages and what the engine counted
for them), never from what another lane or the clock did: answers then depend on the input and the number of
lanes, not on which request was faster.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch._fitting import TRIMS, Decide, Prompt, ToChat, room_for_prompt, too_large
from ollama_batch._gauge import PromptGauge, Size, Tools
from ollama_batch._lane import (
    Decision,
    Lane,
    Said,
    anew,
    answer_of,
    head_of,
    restored,
    split_head,
    to_decision,
)
from ollama_batch._limits import LearnedLimit
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.errors import (
    ContextTooLargeError,
    EngineError,
    EngineOutOfMemoryError,
    PromptTruncatedError,
)
from ollama_batch.journal import RunJournal
from ollama_batch.tokens import CalibratedCounter, TokenCounter
from ollama_batch.tokens._texts import compact_json
from ollama_batch.trim import AggressiveTrim, SlidingWindowTrim, TrimResult, TrimStrategy
from ollama_batch.types import BatchRequest, BatchResult, ChatRequest, Completion, Message, RowRecord

log = logging.getLogger("ollama_batch.run")

LEARNED: Final = "limit_learned"
"""The note about a prompt that was too long for the engine although it fits num_ctx."""

MARGIN: Final = 1.03
"""On counts scaled by what the engine said of the same lane."""

BELIEVABLE: Final = (0.2, 10.0)
"""Engine's tokens per one of ours: beyond that a report is no count of the whole prompt."""

CUT_SHARE: Final = 0.6


@dataclass(frozen=True, slots=True)
class ScaledCounter:
    """A TokenCounter whose figures are those of `base`, times `scale`, rounded up."""

    base: TokenCounter
    scale: float

    def count_text(self, text: str) -> int:
        """Tokens of plain text."""
        return math.ceil(self.scale * self.base.count_text(text))

    def count_message(self, message: Message) -> int:
        """Tokens of one message."""
        return math.ceil(self.scale * self.base.count_message(message))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt: those of its messages, and what a prompt costs beside them."""
        return sum(map(self.count_message, messages)) + math.ceil(self.scale * self.base.count_messages([]))


class MessageCount:
    """A TokenCounter that counts messages instead."""

    def count_text(self, text: str) -> int:
        """Nothing."""
        return 0

    def count_message(self, message: Message) -> int:
        """One."""
        return 1

    def count_messages(self, messages: Sequence[Message]) -> int:
        """How many there are."""
        return len(messages)


@dataclass(slots=True, kw_only=True)
class TurnPrompt(Prompt):
    """A row behind its conversation: `said` of the lane, then the row's `own` messages."""

    lane: Lane
    head: list[Message]
    said: list[Said]
    own: list[Message]
    decision: Decision


class Lanes:
    """The composer of a run in conversation mode. `open` it before the first row."""

    def __init__(
        self,
        gauge: PromptGauge,
        *,
        journal: RunJournal,
        policy: ConversationPolicy,
        strategy: TrimStrategy,
        learned: LearnedLimit,
        to_chat: ToChat,
        decide: Decide,
    ) -> None:
        self._gauge = gauge
        self._journal = journal
        self._policy = policy
        self._strategy = strategy
        self._learned = learned
        self._to_chat = to_chat
        self._decide = decide
        self._lanes: dict[int, Lane] = {}
        self._begun: dict[int, Decision] = {}
        self._asked: set[int] = set()

    async def open(self) -> None:
        """Take the conversations up where earlier sessions of the run have left them."""
        turns = self._journal.turns
        self._begun = await turns.begun()
        for number in range(self._policy.lanes):
            self._lanes[number] = restored(number, await turns.history(number))
        for note in await asyncio.to_thread(self._journal.notes, LEARNED):
            self._learned.restore(note.data)

    def trim_all(self) -> None:
        """Have every lane cut deep before its next row: memory is short."""
        self._asked = set(self._lanes)

    # What a composer does

    async def compose(self, custom_id: str, row: RowRecord, request: BatchRequest) -> TurnPrompt:
        """The row behind its lane's conversation. Raises ContextTooLargeError if it does not fit alone."""
        assert row.lane is not None  # noqa: S101 - rows of a conversation have one
        lane = self._lanes[row.lane]
        chat = self._to_chat(custom_id, request)
        if row.index in self._begun:
            decision = self._begun.pop(row.index)
        else:
            decision = await self._decision(lane, row, chat)
        return await self._begin(lane, row, request, chat, decision)

    async def shorten(self, prompt: Prompt, error: EngineError) -> TurnPrompt | None:
        """Cut the conversation below what the engine has just shown to be too long."""
        assert isinstance(prompt, TurnPrompt)  # noqa: S101 - `compose` makes no others
        known = isinstance(error, ContextTooLargeError | EngineOutOfMemoryError)
        if not known or not prompt.said or prompt.shortened >= TRIMS:
            return None
        await self._note_limit(prompt, error)
        try:
            decision = await self._decision(prompt.lane, prompt.row, prompt.chat, why="refused")
        except ContextTooLargeError:
            return None
        chat = self._to_chat(prompt.chat.custom_id, prompt.request)
        shorter = await self._begin(prompt.lane, prompt.row, prompt.request, chat, decision)
        if len(shorter.said) >= len(prompt.said) and shorter.size.tokens >= prompt.size.tokens:
            return None
        shorter.shortened = prompt.shortened + 1
        return shorter

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        """Raises PromptTruncatedError if the engine reports far less than the lane's prompt must have."""
        usage = completion.usage
        if usage is None or not usage.prompt_tokens:
            return
        if usage.prompt_tokens < CUT_SHARE * self._least(prompt):
            raise PromptTruncatedError(
                f"the server cut the conversation: it reports {usage.prompt_tokens} tokens for a prompt of "
                f"about {prompt.size.tokens}",
                completion,
            )
        self._learned.worked(usage.prompt_tokens)

    def settled(self, prompt: Prompt, result: BatchResult[Any]) -> None:
        """An answered row becomes part of its lane; a failed one leaves it as it was."""
        assert isinstance(prompt, TurnPrompt)  # noqa: S101 - `compose` makes no others
        if not result.ok:
            return
        lane = prompt.lane
        lane.accept(
            prompt.row.index,
            head=head_of(prompt.row.order),
            said=prompt.said,
            own=prompt.own,
            answer=answer_of(result.body),
            decision=prompt.decision,
        )
        usage = result.usage
        lane.prompt_tokens = None if usage is None else usage.prompt_tokens or None
        lane.answer_tokens = 0 if usage is None else usage.completion_tokens
        self._asked.discard(lane.number)

    async def close(self) -> None:
        """Keep what was learned for the next run."""
        await asyncio.to_thread(self._learned.save)
        await self._gauge.save()

    # How it decides

    async def _begin(
        self, lane: Lane, row: RowRecord, request: BatchRequest, chat: ChatRequest, decision: Decision
    ) -> TurnPrompt:
        """Commit what row `row` is sent behind, and make its prompt."""
        head, own = split_head(request.messages)
        said = lane.after(decision)
        left, lane.left = lane.left, set()
        await self._journal.turns.begin(row.index, decision, own, forget=left)
        messages = [*head, *(each.message for each in said), *own]
        counter = await self._counter(lane, head)
        tokens = counter.count_messages(messages) + _tools(counter, chat)
        if decision is None:
            tokens = self._expected(lane, head, own, counter, chat)
        return TurnPrompt(
            row=row,
            request=request,
            chat=dataclasses.replace(chat, messages=messages),
            size=Size(tokens, "conversation"),
            trim=None if decision is None else _figures(decision),
            lane=lane,
            head=head,
            said=said,
            own=own,
            decision=decision,
        )

    async def _decision(self, lane: Lane, row: RowRecord, chat: ChatRequest, why: str = "") -> Decision:
        """What of the lane's conversation the row is to be sent behind."""
        room = room_for_prompt(self._gauge, chat)
        assert room is not None  # noqa: S101 - conversations need a known context
        head, own = split_head(self._messages(chat))
        counter = await self._counter(lane, head)
        if lane.said and lane.head != head_of(row.order):
            await self._refuse_too_large(head, own, chat, room, Lane(lane.number), counter)
            return anew("head")
        tokens = self._expected(lane, head, own, counter, chat)
        marks = self._policy.marks(room, ceiling=self._learned.ceiling)
        if not why:
            if tokens > marks.high:
                why = "high"
            elif self._policy.every is not None and lane.since_cut >= self._policy.every:
                why = "every"
            elif lane.number in self._asked:
                why = "asked"
        if not lane.said or not why:
            await self._refuse_too_large(head, own, chat, room, lane, counter)
            return None
        spare = _tools(counter, chat) + sum(map(counter.count_message, own[:-1]))
        result = self._trimmed(
            lane, head, own, why, budget=marks.low - spare, most=room - spare, counter=counter
        )
        if result is None:
            await self._refuse_too_large(head, own, chat, room, Lane(lane.number), counter)
            return anew(why)
        return to_decision(why, lane, len(head), result) if result.changed else None

    def _trimmed(
        self,
        lane: Lane,
        head: list[Message],
        own: list[Message],
        why: str,
        *,
        budget: int,
        most: int,
        counter: ScaledCounter,
    ) -> TrimResult | None:
        """The conversation cut to `budget` or, where what must stay needs more, to that, up to `most`.

        None where not even that fits.
        """
        messages = [*head, *(each.message for each in lane.said)]
        upcoming = own[-1] if own else None
        if self._policy.keep_messages is not None and why != "refused":
            result = _last_messages(messages, len(head) + self._policy.keep_messages, counter)
            if result.tokens_after + sum(map(counter.count_message, own[-1:])) <= most:
                return result
        strategy = AggressiveTrim(limit=max(1, budget)) if why == "asked" else self._strategy
        try:
            return strategy.trim(messages, budget=budget, counter=counter, upcoming=upcoming)
        except ContextTooLargeError as error:
            if error.tokens is None or error.tokens > most:
                return None
            needed = error.tokens
        return strategy.trim(messages, budget=needed, counter=counter, upcoming=upcoming)

    async def _refuse_too_large(
        self,
        head: list[Message],
        own: list[Message],
        chat: ChatRequest,
        room: int,
        lane: Lane,
        counter: ScaledCounter,
    ) -> None:
        """Raise ContextTooLargeError if the row does not fit behind what is left of the conversation."""
        if room > 0 and self._expected(lane, head, own, counter, chat) <= room:
            return
        messages = [*head, *(each.message for each in lane.said), *own]
        size = await self._gauge.size(messages, chat.params.get("tools") or None, room)
        if room < 1 or size.tokens > room:
            raise too_large(self._gauge, chat, size, room)

    def _messages(self, chat: ChatRequest) -> Sequence[Message]:
        return chat.messages

    async def _counter(self, lane: Lane, head: list[Message]) -> ScaledCounter:
        """The counter for this lane: scaled by what the engine said of its last prompt."""
        base = await self._gauge.base()
        scale = _scale(lane, head, base)
        return ScaledCounter(base, _prior(base, head) if scale is None else MARGIN * scale)

    def _expected(
        self, lane: Lane, head: list[Message], own: list[Message], counter: ScaledCounter, chat: ChatRequest
    ) -> int:
        """The tokens of the lane's conversation with `own` behind it."""
        if _scale(lane, head, counter.base) is None or lane.prompt_tokens is None:
            messages = [*head, *(each.message for each in lane.said), *own]
            return counter.count_messages(messages) + _tools(counter, chat)
        # The engine has counted all but what comes now, and the marks around its last answer.
        around = counter.count_message({"role": "assistant", "content": ""})
        return lane.prompt_tokens + lane.answer_tokens + around + sum(map(counter.count_message, own))

    def _least(self, prompt: Prompt) -> float:
        """The fewest tokens the prompt can have."""
        assert isinstance(prompt, TurnPrompt)  # noqa: S101 - `compose` makes no others
        measured = prompt.lane.prompt_tokens is not None and prompt.said
        return prompt.size.tokens / MARGIN if measured else 0.5 * prompt.size.tokens / 1.375

    async def _note_limit(self, prompt: TurnPrompt, error: EngineError) -> None:
        """Remember that a prompt of this length was too long here."""
        tokens = prompt.size.tokens
        if isinstance(error, ContextTooLargeError):
            tokens = error.tokens or tokens
            if error.limit is not None:
                tokens = min(tokens, error.limit + 1)
        self._learned.failed(tokens)
        await self._decide(
            LEARNED,
            f"a prompt of {tokens} tokens was too long for the engine ({error.code}), although num_ctx is "
            f"{self._gauge.context}: conversations are now trimmed beyond {self._learned.ceiling} tokens",
            ceiling=self._learned.ceiling,
            **self._learned.to_dict(),
        )
        await asyncio.to_thread(self._learned.save)


def _scale(lane: Lane, head: Sequence[Message], base: TokenCounter) -> float | None:
    """The engine's tokens per one of ours in the lane's last prompt; None if it did not say, or not all."""
    if lane.prompt_tokens is None or not lane.said:
        return None
    counted = base.count_messages([*head, *(each.message for each in lane.said[:-1])])
    scale = lane.prompt_tokens / max(1, counted)
    return scale if BELIEVABLE[0] <= scale <= BELIEVABLE[1] else None


def _prior(base: TokenCounter, messages: Sequence[Message]) -> float:
    """The scale before the engine has said anything: that of bounds without observations."""
    bound = CalibratedCounter(base, model_digest="").bound_for(messages)
    return bound.factor * bound.line.ratio


def _tools(counter: ScaledCounter, chat: ChatRequest) -> int:
    tools: Tools = chat.params.get("tools") or None
    return counter.count_text(compact_json(tools)) if tools else 0


def _figures(decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the cut that was made before it was sent."""
    return {"why": decision["why"], **decision.get("trim", {})}


def _last_messages(messages: Sequence[Message], most: int, counter: TokenCounter) -> TrimResult:
    """The head and as many whole exchanges at the end as have `most` messages together with it."""
    counted = MessageCount()
    try:
        result = SlidingWindowTrim().trim(messages, budget=most, counter=counted)
    except ContextTooLargeError as error:  # the last exchange alone has more
        result = SlidingWindowTrim().trim(messages, budget=error.tokens or most, counter=counted)
    changed = result.first_changed_index
    return dataclasses.replace(
        result,
        strategy="last_messages",
        tokens_before=counter.count_messages(messages),
        tokens_after=counter.count_messages(result.messages),
        reused_prefix_tokens=counter.count_messages(
            messages[: len(messages) if changed is None else changed]
        ),
    )
