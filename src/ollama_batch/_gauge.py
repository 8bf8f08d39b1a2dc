"""Whether prompts fit the context: by their length alone, else by counting, else by asking the engine.

A row that fits by its bytes is never tokenized. Where they do not tell, the engine counts the prompt if it
can; else our counter does, corrected by what the engine has reported of earlier prompts and, if that is not
enough, by asking it about pieces of this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from ollama_batch._context import Context
from ollama_batch._probes import Piece, counted, pieces_of
from ollama_batch._screen import Screen
from ollama_batch.errors import ContextTooLargeError, EngineError, OutcomeError
from ollama_batch.tokens import (
    BoundCounter,
    CalibratedCounter,
    ExactCounter,
    TokenCounter,
    Tokenizing,
    byte_bound,
    default_counter,
    user_state_dir,
)
from ollama_batch.tokens._regression import RANGES
from ollama_batch.tokens._texts import texts_of
from ollama_batch.tokens.calibrated import Kind
from ollama_batch.types import Completion, EngineInfo, Message, Usage

log = logging.getLogger("ollama_batch.run")

T = TypeVar("T")

StateDir: TypeAlias = str | os.PathLike[str] | Literal["auto"] | None
"""Where what is learned is kept between runs: the user's state folder ("auto"), a folder, or nowhere."""

Tools: TypeAlias = Sequence[Mapping[str, Any]] | None
Decide: TypeAlias = Callable[..., Awaitable[None]]
"""Journals a decision and tells it: `await decide(kind, message, **data)`."""

SURE_TOKENS: Final = 2048
"""No server has a smaller context unless it was told to: so long a prompt is never cut."""

LARGE_BYTES: Final = 200_000
"""Prompts beyond this are counted in a thread: it takes long enough to hold up the run's loop."""

ASK_AGAIN: Final = 500
"""After so many further prompts little is left of what the engine said of pieces."""

CUT_SHARE: Final = 0.6
"""A report under this share of what a prompt has at least means that the server cut it."""


_TOLD_BY: Final = {
    "bytes": "its length in bytes",
    "engine": "the engine's own count",
    "calibrated": "our count, corrected by what the engine reported before",
    "estimate": "an estimate from its letters",
    "conversation": "what the engine reported of this conversation before",
}


@dataclass(frozen=True, slots=True)
class Size:
    """The most tokens a prompt has, and who says so: "bytes", or a source as `Count.source` has them."""

    tokens: int
    source: str

    @property
    def by_length(self) -> bool:
        """Whether the length alone told, so that nothing was tokenized."""
        return self.source == "bytes"

    @property
    def exact(self) -> bool:
        """Whether the engine itself has counted."""
        return self.source == "engine"

    @property
    def told_by(self) -> str:
        """Who says so, in words for a message."""
        kind, _, name = self.source.partition(":")
        return _TOLD_BY.get(kind, f"our count with {name or kind}")


class Asking(Protocol):
    """Puts questions of ours to the engine, as patiently as a row is sent."""

    async def evaluate(self, messages: Sequence[Message], tools: Tools) -> Completion:
        """Have a prompt evaluated and one token answered. Raises EngineError."""
        ...

    async def patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        """The result of `question()`, asked while the engine works. Raises EngineError."""
        ...


class PromptGauge:
    """What one phase of a run knows of its prompts' tokens.

    `allowed` is the room of prompt and answer together; `sure` says that the server itself has it from us or
    told it, so that it cannot cut what fits. `base` is the counter to correct (None: the best one on this
    machine, found when first needed).
    """

    def __init__(
        self,
        *,
        info: EngineInfo,
        allowed: Context,
        sure: bool,
        base: TokenCounter | None,
        state_dir: StateDir,
        tokenizer: object,
        asking: Asking,
        decide: Decide,
    ) -> None:
        self.allowed = allowed
        self._sure = sure
        self._info = info
        self._base = base
        self._state_dir = user_state_dir() if state_dir == "auto" else state_dir
        self._asking = asking
        self._decide = decide
        exact = info.tokenizes and isinstance(tokenizer, Tokenizing)
        self._exact = ExactCounter(tokenizer, info.model) if exact else None  # type: ignore[arg-type]  # asked above
        self._counter: CalibratedCounter | None = None
        self._loading = asyncio.Lock()  # the counter is made once
        self._probing = asyncio.Lock()  # and the engine asked once for each kind
        self._asked: dict[Kind, int] = {}  # with how many it had seen of each then
        # Answered prompts that were not counted: known well enough to learn from, should that be needed.
        self._answered: deque[tuple[Sequence[Message], Tools, int]] = deque(maxlen=64)
        self._screen = Screen()
        self._bytes_tell = True
        self._says_tokens = True
        self._evaluates = False

    @property
    def context(self) -> int | None:
        """The tokens that prompt and answer may have together; None where nobody tells."""
        return self.allowed.tokens

    async def size(self, messages: Sequence[Message], tools: Tools, limit: int | None) -> Size:
        """The most tokens the prompt has; exact enough to say whether it fits `limit`.

        Raises EngineError, not caused by the row, if the engine had to be asked and is in trouble.
        """
        bound = byte_bound(messages, tools=tools)
        if limit is None or limit < 1 or (bound <= limit and self._bytes_tell):
            return Size(bound, "bytes")
        counter = await self._ready(bound, messages)
        kind = await self._learned(counter, messages, tools)
        if not counter.knows(messages, tools=tools) and not _hopeless(counter, messages, limit):
            exact = await self._counted_by_engine(messages, tools)
            if exact is not None:
                counter.observe(messages, exact, tools=tools)
                return Size(exact, "engine")
            await self._ask_about(counter, kind, messages, tools)
        upper = counter.upper_bound(messages, tools=tools)
        if upper.tokens > limit and not _hopeless(counter, messages, limit):
            exact = await self._counted_by_engine(messages, tools)
            if exact is None and counter.lower_bound(messages, tools=tools).tokens <= limit:
                exact = await self._evaluated(counter, messages, tools)
            if exact is not None:
                return Size(exact, "engine")
        return Size(upper.tokens, upper.source)

    async def bound(self, messages: Sequence[Message], tools: Tools) -> BoundCounter:
        """A counter of upper bounds to trim `messages` with."""
        counter = await self._calibrated(byte_bound(messages, tools=tools), messages, tools)
        return counter.bound_for(messages, tools=tools)

    async def base(self) -> TokenCounter:
        """The counter beneath the corrections."""
        return (await self._loaded()).base

    async def was_cut(
        self, messages: Sequence[Message], tools: Tools, size: Size, usage: Usage | None
    ) -> bool:
        """Whether the server must have cut the prompt before answering; learns from it if not.

        True if it reports less than 60 % of the fewest tokens the prompt can have.
        """
        reported = 0 if usage is None or usage.source == "estimate" else usage.prompt_tokens
        if not reported:
            return False
        if size.exact:
            return reported < CUT_SHARE * size.tokens
        if size.by_length:
            if self._sure or size.tokens <= SURE_TOKENS:
                self._answered.append((messages, tools, reported))
                return False
            if not self._screen.suspects(messages, tools, reported):
                return False
        counter = await self._calibrated(size.tokens, messages, tools)
        if counter.truncated(messages, reported, tools=tools):
            return True
        counter.observe(messages, reported, num_ctx=self.context, tools=tools)
        if size.by_length:
            self._screen.verified(messages, tools, reported)
        return False

    async def refused(
        self,
        custom_id: str,
        messages: Sequence[Message],
        tools: Tools,
        size: Size,
        error: ContextTooLargeError,
    ) -> None:
        """Learn from a prompt that the engine refused although it fits by what we know, and say what."""
        limit, told = error.limit, {"engine_tokens": error.tokens, "engine_limit": error.limit}
        if limit is not None and limit > 0 and (self.context is None or limit < self.context):
            before, self.allowed = self.context, Context(limit, "server")
            known = "was not known" if before is None else f"was taken to be {before:,}"
            await self._decide(
                "context_learned",
                f"the engine refused {custom_id}: its context has {limit:,} tokens ({known}); rows are "
                "measured by that from now on",
                custom_id=custom_id,
                context=limit,
                **told,
            )
        if self.context is not None and size.tokens > self.context:
            return  # that is why
        if size.by_length:
            news, self._bytes_tell = self._bytes_tell, False
            if news:
                await self._decide(
                    "lengths_distrusted",
                    f"the engine refused {custom_id}, which has {size.tokens:,} tokens at most by its "
                    "length: every prompt is counted from now on",
                    custom_id=custom_id,
                    tokens=size.tokens,
                    **told,
                )
            return
        (await self._loaded()).overflowed(messages, tools=tools)
        await self._decide(
            "bound_widened",
            f"the engine refused {custom_id}, whose prompt fits by our count ({size.tokens:,} tokens at "
            f"most, by {size.told_by}): counts of its kind are taken 10 % higher",
            custom_id=custom_id,
            tokens=size.tokens,
            **told,
        )

    async def save(self) -> None:
        """Keep what was learned for the next run."""
        if self._counter is not None:
            await asyncio.to_thread(self._counter.save)

    async def _loaded(self) -> CalibratedCounter:
        if self._counter is not None:
            return self._counter
        async with self._loading:
            if self._counter is None:
                info = self._info
                base = await asyncio.to_thread(default_counter) if self._base is None else self._base
                self._counter = await asyncio.to_thread(
                    CalibratedCounter,
                    base,
                    model_digest=info.digest or f"{info.engine} {info.address} {info.model}",
                    state_dir=self._state_dir,
                )
            return self._counter

    async def _ready(self, size: int, messages: Sequence[Message]) -> CalibratedCounter:
        """The counter, with these messages counted beside the loop if they are long."""
        counter = await self._loaded()
        if size > LARGE_BYTES:
            await asyncio.to_thread(counter.base.count_messages, messages)  # remembered, by text
        return counter

    async def _learned(self, counter: CalibratedCounter, messages: Sequence[Message], tools: Tools) -> Kind:
        """The kind of a prompt, of which the counter now knows what answers have told."""
        kind = counter.kind(messages, tools=tools)
        if self._answered and not counter.knows(messages, tools=tools):
            await self._learn_from_answers(counter)
        return kind

    async def _calibrated(self, size: int, messages: Sequence[Message], tools: Tools) -> CalibratedCounter:
        """The counter, knowing what it can about prompts of this kind."""
        counter = await self._ready(size, messages)
        kind = await self._learned(counter, messages, tools)
        await self._ask_about(counter, kind, messages, tools)
        return counter

    async def _learn_from_answers(self, counter: CalibratedCounter) -> None:
        answered = list(self._answered)
        self._answered.clear()
        if sum(byte_bound(seen) for seen, _, _ in answered) > LARGE_BYTES:
            await asyncio.to_thread(lambda: [counter.base.count_messages(seen) for seen, _, _ in answered])
        for seen, tools, reported in answered:
            counter.observe(seen, reported, num_ctx=self.context, tools=tools)

    async def _ask_about(
        self, counter: CalibratedCounter, kind: Kind, messages: Sequence[Message], tools: Tools
    ) -> None:
        """Have the engine count pieces of these messages, if too little is known of their kind.

        Of images nothing can be learned from pieces of text. Raises EngineError, not caused by the row, if
        the engine is in trouble: then nobody knows, and the next one asks again.
        """
        if counter.knows(messages, tools=tools) or self._has_asked(counter, kind) or kind == "images":
            return
        async with self._probing:
            if counter.knows(messages, tools=tools) or self._has_asked(counter, kind):
                return  # somebody else has asked meanwhile
            pieces = pieces_of(messages, room=self.context)
            if not tools and all(piece in pieces[:2] for piece in pieces):
                return  # all the same, from so short a text: a longer one will tell more
            if self._exact is None:
                await self._decide(
                    "asked_engine",
                    f"too little is known of how the engine counts prompts of the kind {kind!r}: asking it "
                    f"up to {len(pieces)} short questions of our own, for one token each",
                    questions=len(pieces),
                    prompts=kind,
                )
            for piece, reported in await counted(pieces, partial(self._reported, tools)):
                counter.observe(piece, reported, tools=tools, kind=kind)
            self._asked[kind] = counter.observed(kind)

    def _has_asked(self, counter: CalibratedCounter, kind: Kind) -> bool:
        """Whether it was asked about a kind, and not so long ago that others have covered what it said."""
        asked = self._asked.get(kind)
        return asked is not None and counter.observed(kind) < asked + ASK_AGAIN

    async def _evaluated(
        self, counter: CalibratedCounter, messages: Sequence[Message], tools: Tools
    ) -> int | None:
        """What the engine counts when it evaluates a prompt of which nobody can say whether it fits.

        That is hardly work done twice: the prompt is then in the engine's cache. Only an engine that refuses
        what is too long can be asked; None where it does not say, or says what cannot be.
        """
        if not self._sure or not self._says_tokens:
            return None
        if not self._evaluates:
            self._evaluates = True
            await self._decide(
                "asked_in_doubt",
                "rows of which our count cannot say whether they fit are first evaluated by the engine, for "
                "one token of answer; their prompts are in its cache then",
            )
        try:
            reported = await self._told(messages, tools)
        except ContextTooLargeError as error:
            return error.tokens or self.context
        if reported is None:
            self._says_tokens = False
            return None
        if counter.truncated(messages, reported, tools=tools):
            return None  # a report that leaves out what was cached, as older servers make
        counter.observe(messages, reported, num_ctx=self.context, tools=tools)
        return reported

    async def _reported(self, tools: Tools, piece: Piece) -> int | None:
        exact = await self._counted_by_engine(piece, tools)
        return await self._told(piece, tools, refused_is_none=True) if exact is None else exact

    async def _told(
        self, messages: Sequence[Message], tools: Tools, *, refused_is_none: bool = False
    ) -> int | None:
        """What the engine reports of a prompt that it evaluates; None if it does not say, or refuses it."""
        try:
            completion = await self._asking.evaluate(messages, tools)
        except OutcomeError as useless:  # one token is an answer cut off: what was counted comes with it
            completion = useless.completion
        except EngineError as error:
            too_long = isinstance(error, ContextTooLargeError) and not refused_is_none
            if not error.row_caused or too_long:
                raise
            log.debug("the engine did not take a question: %s", type(error).__name__)
            return None
        usage = completion.usage
        return None if usage is None or usage.source == "estimate" else usage.prompt_tokens

    async def _counted_by_engine(self, messages: Sequence[Message], tools: Tools) -> int | None:
        exact = self._exact
        if exact is None:
            return None
        try:
            return (await self._asking.patiently(partial(exact.count, messages, tools=tools))).tokens
        except EngineError as error:
            log.debug("the engine did not count a prompt: %s", type(error).__name__)
            if not error.row_caused:
                self._exact = None  # it was asked with patience
            return None


def _hopeless(counter: CalibratedCounter, messages: Sequence[Message], limit: int) -> bool:
    """Whether a prompt is too long whatever could still be learned of the engine's tokenizer."""
    texts = (text for message in messages for text in texts_of(message))
    return RANGES[0][0] * sum(map(counter.base.count_text, texts)) > limit
