"""The composer of conversations: each row is sent behind what its lane has said so far.

Everything that is decided for a lane follows from that lane alone (its messages and what the engine counted
for them), never from what another lane or the clock did: answers then depend on the input and the number of
lanes, not on which request was faster.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ollama_batch._fitting import TRIMS, Decide, Prompt, ToChat, longer, room_for_prompt, too_large
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
from ollama_batch._lane_counts import (
    MARGIN,
    ScaledCounter,
    expected_tokens,
    lane_counter,
    last_messages,
    least_tokens,
)
from ollama_batch._limits import LearnedLimit
from ollama_batch._room import DiskRoom
from ollama_batch.conversation import ConversationPolicy, Marks
from ollama_batch.errors import (
    ContextTooLargeError,
    EngineError,
    EngineOutOfMemoryError,
    PromptTruncatedError,
)
from ollama_batch.journal import RunJournal
from ollama_batch.tokens._texts import compact_json
from ollama_batch.trim import AggressiveTrim, TrimResult, TrimStrategy
from ollama_batch.types import BatchRequest, BatchResult, ChatRequest, Completion, Message, RowRecord

LEARNED: Final = "limit_learned"
"""The note about a prompt that was too long for the engine although it fits num_ctx."""

CUT_SHARE: Final = 0.6
"""A report below so much of the fewest tokens a prompt can have says that the server has cut it."""


@dataclass(slots=True, kw_only=True)
class TurnPrompt(Prompt):
    """A row behind its conversation: `said` of the lane, then the row's `own` messages."""

    lane: Lane
    head: list[Message]
    said: list[Said]
    own: list[Message]
    decision: Decision
    least_tokens: float


class Lanes:
    """The composer of a run in conversation mode. `open` it before the first row."""

    def __init__(
        self,
        gauge: PromptGauge,
        *,
        journal: RunJournal,
        room: DiskRoom,
        policy: ConversationPolicy,
        strategy: TrimStrategy,
        learned: LearnedLimit,
        to_chat: ToChat,
        decide: Decide,
        noticed: Callable[..., None],
    ) -> None:
        self._gauge = gauge
        self._journal = journal
        self._room = room
        self._policy = policy
        self._strategy = strategy
        self._learned = learned
        self._to_chat = to_chat
        self._decide = decide
        self._noticed = noticed
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

    def __len__(self) -> int:
        """How many conversations there are."""
        return len(self._lanes)

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
            decision = await self._decision(lane, row, request, chat)
        return await self._begin(lane, row, request, chat, decision)

    async def shorten(self, prompt: Prompt, error: EngineError) -> TurnPrompt | None:
        """Cut the conversation below what the engine has just shown to be too long."""
        assert isinstance(prompt, TurnPrompt)  # noqa: S101 - `compose` makes no others
        known = isinstance(error, ContextTooLargeError | EngineOutOfMemoryError)
        if not known or not prompt.said or prompt.shortened >= TRIMS:
            return None
        await self._note_limit(prompt, error)
        chat = self._to_chat(prompt.chat.custom_id, prompt.request)
        try:
            decision = await self._decision(prompt.lane, prompt.row, prompt.request, chat, why="refused")
        except ContextTooLargeError:
            return None
        shorter = await self._begin(prompt.lane, prompt.row, prompt.request, chat, decision)
        if len(shorter.said) >= len(prompt.said) and shorter.size.tokens >= prompt.size.tokens:
            return None
        shorter.shortened = prompt.shortened + 1
        return shorter

    async def behind(self, prompt: Prompt, messages: Sequence[Message]) -> Prompt | None:
        """The row behind its conversation, and `messages` behind that, which never become part of it."""
        return await longer(self._gauge, prompt, messages)

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        """Raises PromptTruncatedError if the engine reports far less than the lane's prompt must have."""
        usage = completion.usage
        if usage is None or not usage.prompt_tokens:
            return
        assert isinstance(prompt, TurnPrompt)  # noqa: S101 - `compose` makes no others
        suspected = usage.prompt_tokens < CUT_SHARE * prompt.least_tokens
        # Text may have far fewer tokens than we count (a rule of dashes is one): the gauge asks the engine.
        if suspected and await self._gauge.was_cut(prompt.chat.messages, prompt.tools, prompt.size, usage):
            raise PromptTruncatedError(
                f"the server cut the conversation: it reports {usage.prompt_tokens:,} tokens for a prompt of "
                f"about {prompt.size.tokens:,}",
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
        usage = None if result.asked_again else result.usage  # else it is of a longer prompt than the lane's
        lane.prompt_tokens = None if usage is None else usage.prompt_tokens or None
        lane.answer_tokens = 0 if usage is None else usage.completion_tokens

    async def close(self) -> None:
        """Keep what was learned for the next run, and say it."""
        ceiling = self._learned.ceiling
        if ceiling is not None:
            self._noticed(
                LEARNED,
                f"prompts of more than {ceiling:,} tokens are not sent any more: longer ones were too long "
                f"for the engine, although num_ctx is {self._gauge.context:,}",
                ceiling=ceiling,
            )
        await asyncio.to_thread(self._learned.save)
        await self._gauge.save()

    # How it decides

    async def _begin(
        self, lane: Lane, row: RowRecord, request: BatchRequest, chat: ChatRequest, decision: Decision
    ) -> TurnPrompt:
        """Commit what the row is sent behind, and make its prompt."""
        head, own = split_head(request.messages)
        said = lane.after(decision)
        left, lane.left = lane.left, set()
        await self._room.keep(partial(self._journal.turns.begin, row.index, decision, own, forget=left))
        messages = [*head, *(each.message for each in said), *own]
        # A conversation that begins anew is another prompt than the one the engine has counted.
        counter = await self._counter(lane if said else Lane(lane.number), head)
        if decision is None:
            tokens = expected_tokens(lane, head, own, counter)
        else:
            tokens = counter.count_messages(messages)
        return TurnPrompt(
            row=row,
            request=request,
            chat=dataclasses.replace(chat, messages=messages),
            size=Size(tokens + _tools(counter, chat), "conversation"),
            trim=None if decision is None else _figures(decision),
            lane=lane,
            head=head,
            said=said,
            own=own,
            decision=decision,
            least_tokens=least_tokens(messages, tokens, counter),
        )

    async def _decision(
        self, lane: Lane, row: RowRecord, request: BatchRequest, chat: ChatRequest, why: str = ""
    ) -> Decision:
        """What of the lane's conversation the row is to be sent behind; `why` it must be cut, if it must."""
        head, own = split_head(request.messages)
        room = room_for_prompt(self._gauge, chat)
        assert room is not None  # noqa: S101 - conversations need a known context
        room = min(room, self._policy.limit or room)
        if lane.said and lane.head != head_of(row.order):
            await self._refuse_too_large(Lane(lane.number), head, own, chat, room)
            return anew("head")
        counter = await self._counter(lane, head)
        tools = _tools(counter, chat)
        marks = self._policy.marks(room, ceiling=self._learned.ceiling)
        why = why or self._why(lane, expected_tokens(lane, head, own, counter) + tools, marks)
        self._asked.discard(lane.number)
        if not lane.said or not why:
            await self._refuse_too_large(lane, head, own, chat, room)
            return None
        spare = tools + sum(map(counter.count_message, own[:-1]))
        # Asked to be short, a lane keeps a quarter of what it may have; see AggressiveTrim.
        budget, most = (marks.high // 4 if why == "asked" else marks.low) - spare, room - spare
        result = self._trimmed(lane, head, own[-1:], why, budget=budget, most=most, counter=counter)
        if result is None or not await self._fits(result.messages, own, chat, counter, marks, room):
            await self._refuse_too_large(Lane(lane.number), head, own, chat, room)
            return anew(why)
        return to_decision(why, lane, len(head), result) if result.changed else None

    def _why(self, lane: Lane, tokens: int, marks: Marks) -> str:
        """Why the lane is to be cut before a prompt of so many tokens; empty if it is not."""
        if tokens > marks.high:
            return "high"
        if self._policy.every is not None and lane.since_cut >= self._policy.every:
            return "every"
        return "asked" if lane.number in self._asked else ""

    def _trimmed(
        self,
        lane: Lane,
        head: list[Message],
        upcoming: list[Message],
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
        if self._policy.keep_messages is not None and why != "refused":
            result = last_messages(messages, len(head) + self._policy.keep_messages, counter)
            if result.tokens_after + sum(map(counter.count_message, upcoming)) <= most:
                return result
        strategy = AggressiveTrim(share=1.0) if why == "asked" else self._strategy
        trim = partial(strategy.trim, messages, counter=counter, upcoming=upcoming[0] if upcoming else None)
        try:
            return trim(budget=budget)
        except ContextTooLargeError as error:
            if error.tokens is None or error.tokens > most:
                return None
            needed = error.tokens
        return trim(budget=needed)

    async def _fits(
        self,
        kept: Sequence[Message],
        own: list[Message],
        chat: ChatRequest,
        counter: ScaledCounter,
        marks: Marks,
        room: int,
    ) -> bool:
        """Whether what a cut has left fits with `own` behind it; the gauge is asked beyond the high mark."""
        messages = [*kept, *own]
        if counter.count_messages(messages) + _tools(counter, chat) <= marks.high:
            return True
        return (await self._gauge.size(messages, chat.params.get("tools") or None, room)).tokens <= room

    async def _refuse_too_large(
        self, lane: Lane, head: list[Message], own: list[Message], chat: ChatRequest, room: int
    ) -> None:
        """Raise ContextTooLargeError if the row does not fit behind the conversation of `lane`.

        Of a lane of which the engine has said nothing our own count is no proof: there the gauge tells.
        """
        counter = await self._counter(lane, head)
        fits = expected_tokens(lane, head, own, counter) + _tools(counter, chat) <= room
        if fits and counter.measured:
            return
        messages = [*head, *(each.message for each in lane.said), *own]
        size = await self._gauge.size(messages, chat.params.get("tools") or None, room)
        if size.tokens > room:
            raise too_large(self._gauge, chat, size, room, conversation=True)

    async def _counter(self, lane: Lane, head: list[Message]) -> ScaledCounter:
        return lane_counter(lane, head, await self._gauge.base())

    async def _note_limit(self, prompt: TurnPrompt, error: EngineError) -> None:
        """Remember that a prompt of this length was too long here."""
        # As it is most likely, not at most. Of a conversation that goes on, the engine has counted most.
        tokens = prompt.size.tokens if prompt.decision is None else round(prompt.size.tokens / MARGIN)
        if isinstance(error, ContextTooLargeError):
            tokens = error.tokens or tokens
            if error.limit is not None:
                tokens = min(tokens, error.limit + 1)
        self._learned.failed(tokens)
        await self._decide(
            LEARNED,
            f"a prompt of {tokens:,} tokens was too long for the engine ({error.code}), although num_ctx is "
            f"{self._gauge.context:,}: conversations are now trimmed beyond {self._learned.ceiling:,} tokens",
            ceiling=self._learned.ceiling,
            **self._learned.to_dict(),
        )
        await asyncio.to_thread(self._learned.save)


def _tools(counter: ScaledCounter, chat: ChatRequest) -> int:
    tools: Tools = chat.params.get("tools") or None
    return counter.count_text(compact_json(tools)) if tools else 0


def _figures(decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the cut that was made before it was sent."""
    return {"why": decision["why"], **decision.get("trim", {})}
