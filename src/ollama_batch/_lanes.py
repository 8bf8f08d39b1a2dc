"""The composer of conversations: each row is sent behind what its lane has said so far.

Everything that is decided for a lane follows from that lane alone (its messages and what the engine counted
for them), never from what another lane or the clock did: answers then depend on the input and the number of
lanes, not on which request was faster. A limit of the engine's that is met on the way is the exception: it
holds for all lanes, once it is proven (`_evidence`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ollama_batch._evidence import LEARNED, Evidence, told_tokens
from ollama_batch._fitting import TRIMS, Decide, Prompt, ToChat, longer, too_large
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
    begun_anew,
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
from ollama_batch.tokens import byte_bound
from ollama_batch.tokens._texts import compact_json
from ollama_batch.trim import AggressiveTrim, TrimResult, TrimStrategy
from ollama_batch.types import BatchRequest, BatchResult, ChatRequest, Completion, Message, RowRecord

KEPT_FEWER: Final = "kept_fewer"
"""The note that what `keep_messages` asks to keep did not fit."""

CUT_SHARE: Final = 0.6
"""A report below so much of the fewest tokens a prompt can have says that the server has cut it."""


@dataclass(slots=True, kw_only=True)
class TurnPrompt(Prompt):
    """A row behind its conversation: `said` of the lane, then the row's `own` messages.

    In tokens: for a prompt there is `room`, this one has no fewer than `least_tokens` and no more than
    `at_most`, whatever the row is made of. `left_out`: about so many more had the one before it, of which
    the engine's refusal has proven nothing as yet; None if there was none.
    """

    lane: Lane
    head: list[Message]
    said: list[Said]
    own: list[Message]
    decision: Decision
    least_tokens: float
    at_most: int
    room: int
    left_out: int | None = None


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
        self._noticed = noticed
        context = gauge.context
        assert context is not None  # noqa: S101 - conversations need a known one
        self._evidence = Evidence(learned, context=context, decide=decide, noticed=noticed)
        self._context = context
        self._lanes: dict[int, Lane] = {}
        self._begun: dict[int, Decision] = {}
        self._asked: set[int] = set()
        self._said_fewer = False

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
        # As it is most likely, not at most. Of a conversation that goes on, the engine has counted most.
        tokens = prompt.size.tokens if prompt.decision is None else round(prompt.size.tokens / MARGIN)
        tokens = min(tokens, told_tokens(error) or tokens)
        proven = await self._evidence.refused(error, at_most=prompt.at_most, room=prompt.room)
        if not proven and prompt.shortened == TRIMS - 1:
            tokens = 1  # the last try: without the conversation, which shows whether the row fits at all
        chat = self._to_chat(prompt.chat.custom_id, prompt.request)
        try:
            decision = await self._decision(prompt.lane, prompt.row, prompt.request, chat, refused=tokens)
        except ContextTooLargeError:
            return None
        shorter = await self._begin(prompt.lane, prompt.row, prompt.request, chat, decision)
        if len(shorter.said) >= len(prompt.said) and shorter.size.tokens >= prompt.size.tokens:
            return None
        shorter.shortened = prompt.shortened + 1
        counter = await self._counter(prompt.lane, prompt.head)
        if told_tokens(error) is None and counter.measured:
            before, after = map(counter.count_messages, (prompt.chat.messages, shorter.chat.messages))
            shorter.left_out = round((before - after) / MARGIN)
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
        if usage.source != "estimate":
            await self._evidence.answered(usage.prompt_tokens, left_out=prompt.left_out, room=prompt.room)

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
        await self._evidence.close()
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
        tools = _tools(counter, chat)
        bound = byte_bound(messages, tools=chat.params.get("tools") or None)
        if counter.measured:
            # The engine has counted all but what comes now.
            known = tokens - sum(map(counter.count_message, own)) + tools
            bound = min(bound, known + byte_bound(own))
        return TurnPrompt(
            row=row,
            request=request,
            chat=dataclasses.replace(chat, messages=messages),
            size=Size(tokens + tools, "conversation"),
            trim=None if decision is None else _figures(decision),
            lane=lane,
            head=head,
            said=said,
            own=own,
            decision=decision,
            least_tokens=least_tokens(messages, tokens, counter),
            at_most=bound,
            room=self._room_for(chat),
        )

    async def _decision(
        self,
        lane: Lane,
        row: RowRecord,
        request: BatchRequest,
        chat: ChatRequest,
        *,
        refused: int | None = None,
    ) -> Decision:
        """What of the lane's conversation the row is to be sent behind.

        `refused`: so many tokens were too many for the engine just now, so that it must be shorter.
        """
        head, own = split_head(request.messages)
        room = min(self._room_for(chat), self._policy.limit or self._room_for(chat))
        if lane.said and lane.head != head_of(row.order):
            await self._refuse_too_large(Lane(lane.number), head, own, chat, room)
            return anew("head")
        counter = await self._counter(lane, head)
        tools = _tools(counter, chat)
        ceiling = self._learned.ceiling if refused is None else self._learned.ceiling_below(refused)
        marks = self._policy.marks(room, ceiling=ceiling)
        tokens = expected_tokens(lane, head, own, counter) + tools
        why = "refused" if refused is not None else self._why(lane, tokens, marks)
        self._asked.discard(lane.number)
        if not lane.said or not why:
            await self._refuse_too_large(lane, head, own, chat, room)
            return None
        spare = tools + sum(map(counter.count_message, own[:-1]))
        # Asked to be short, a lane keeps a quarter of what it may have; see AggressiveTrim.
        budget, most = (marks.high // 4 if why == "asked" else marks.low) - spare, room - spare
        messages = [*head, *(each.message for each in lane.said)]
        cuts = self._cuts(messages, len(head), own[-1:], why, budget=budget, most=most, counter=counter)
        for result in cuts:
            if await self._fits(result.messages, own, chat, counter, marks, room):
                break
        else:
            await self._refuse_too_large(Lane(lane.number), head, own, chat, room)
            result = begun_anew(messages, counter)
        if result.changed:
            self._say_if_fewer(row, why, len(result.messages) - len(head), result.strategy)
        return to_decision(why, lane, len(head), result) if result.changed else None

    def _why(self, lane: Lane, tokens: int, marks: Marks) -> str:
        """Why the lane is to be cut before a prompt of so many tokens; empty if it is not."""
        if tokens > marks.high:
            return "high"
        if self._policy.every is not None and lane.since_cut >= self._policy.every:
            return "every"
        return "asked" if lane.number in self._asked else ""

    def _cuts(
        self,
        messages: Sequence[Message],
        head: int,
        upcoming: Sequence[Message],
        why: str,
        *,
        budget: int,
        most: int,
        counter: ScaledCounter,
    ) -> Iterator[TrimResult]:
        """The conversation cut, the way that is wanted most first: to the last messages, if the policy says
        so, else to `budget` or, where what must stay needs more than that, to that, up to `most`.
        """
        if self._policy.keep_messages is not None and why != "refused":
            result = last_messages(messages, head + self._policy.keep_messages, counter)
            if result.tokens_after + sum(map(counter.count_message, upcoming)) <= most:
                yield result
        strategy = AggressiveTrim(share=1.0) if why == "asked" else self._strategy
        trim = partial(strategy.trim, messages, counter=counter, upcoming=upcoming[0] if upcoming else None)
        try:
            yield trim(budget=budget)
        except ContextTooLargeError as error:
            if error.tokens is not None and error.tokens <= most:
                yield trim(budget=error.tokens)

    def _say_if_fewer(self, row: RowRecord, why: str, kept: int, strategy: str) -> None:
        """Say it, once, where the policy keeps the last messages and they do not fit."""
        wanted = self._policy.keep_messages
        if wanted is None or why == "refused" or strategy == "last_messages" or self._said_fewer:
            return
        self._said_fewer = True
        name = row.custom_id if row.custom_id is not None else str(row.index)
        self._noticed(
            KEPT_FEWER,
            f"the last messages of a conversation do not all fit together with the next row, as "
            f"keep_messages={wanted} asks: {kept} were kept before {name}, and so it goes wherever they do "
            "not fit; ask for fewer, or give more room (num_ctx=, and the limit of the ConversationPolicy)",
            custom_id=name,
            keep_messages=wanted,
            kept=kept,
        )

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

    def _room_for(self, chat: ChatRequest) -> int:
        """The tokens a prompt may have by num_ctx."""
        return self._context - chat.max_tokens


def _tools(counter: ScaledCounter, chat: ChatRequest) -> int:
    tools: Tools = chat.params.get("tools") or None
    return counter.count_text(compact_json(tools)) if tools else 0


def _figures(decision: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the cut that was made before it was sent."""
    return {"why": decision["why"], **decision.get("trim", {})}
