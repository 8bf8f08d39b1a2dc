"""Whether prompts fit the context: by their length alone, else by counting, else by asking the engine.

A row that fits by its bytes is never tokenized. Where the bytes do not tell, the counter is corrected by what
the engine has reported of earlier prompts, and if that is not enough, by asking it about pieces of this one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from ollama_batch.errors import EngineError, OutcomeError
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
from ollama_batch.tokens._texts import texts_of
from ollama_batch.tokens.calibrated import Kind
from ollama_batch.types import Completion, EngineInfo, Message, Usage

log = logging.getLogger("ollama_batch.run")

StateDir: TypeAlias = str | os.PathLike[str] | Literal["auto"] | None
"""Where what is learned is kept between runs: the user's state folder ("auto"), a folder, or nowhere."""

Tools: TypeAlias = Sequence[Mapping[str, Any]] | None
Ask: TypeAlias = Callable[[Sequence[Message], Tools], Awaitable[Completion]]
"""Has the engine evaluate a prompt and answer one token."""

SURE_TOKENS: Final = 2048
"""No server has a smaller context unless it was told to: so long a prompt is never cut."""

PROBES: Final = 32
"""Pieces of text the engine is asked about when too little is known of how it counts."""

PIECE_CHARS: Final = (160, 2400)
"""Length of the shortest and of the longest piece, in characters: short enough to fit everywhere."""

LARGE_BYTES: Final = 200_000
"""Prompts beyond this are counted in a thread: it takes long enough to hold up the run's loop."""

VERIFIED: Final = 16
SUSPICIOUS: Final = 0.75


@dataclass(frozen=True, slots=True)
class Size:
    """The most tokens a prompt has, and who says so: "bytes", or a source as `Count.source` has them."""

    tokens: int
    source: str

    @property
    def by_length(self) -> bool:
        """Whether the length alone told, so that nothing was tokenized."""
        return self.source == "bytes"


class PromptGauge:
    """What one phase of a run knows of its prompts' tokens.

    `context` is the room of prompt and answer together, in tokens, None where the server does not tell.
    `base` is the counter to correct (None: the best one on this machine, found when first needed).
    """

    def __init__(
        self,
        *,
        info: EngineInfo,
        context: int | None,
        base: TokenCounter | None,
        state_dir: StateDir,
        tokenizer: object,
        ask: Ask,
    ) -> None:
        self.context = context
        self._info = info
        self._base = base
        self._state_dir = user_state_dir() if state_dir == "auto" else state_dir
        self._ask = ask
        exact = info.tokenizes and isinstance(tokenizer, Tokenizing)
        self._exact = ExactCounter(tokenizer, info.model) if exact else None  # type: ignore[arg-type]  # asked above
        self._counter: CalibratedCounter | None = None
        self._busy = asyncio.Lock()  # the counter is made once, and the engine asked once for each kind
        self._asked: set[Kind] = set()
        # Answered prompts that were not counted: known well enough to learn from, should that be needed.
        self._answered: deque[tuple[Sequence[Message], Tools, int]] = deque(maxlen=64)
        self._verified = 0
        self._tokens_per_byte = 0.0

    async def size(self, messages: Sequence[Message], tools: Tools, limit: int | None) -> Size:
        """The most tokens the prompt has; exact enough to say whether it fits `limit`."""
        bound = byte_bound(messages, tools=tools)
        if limit is None or bound <= limit:
            return Size(bound, "bytes")
        counter = await self._calibrated(messages, tools, bound)
        upper = counter.upper_bound(messages, tools=tools)
        if upper.tokens > limit >= counter.lower_bound(messages, tools=tools).tokens:
            exact = await self._counted_by_engine(messages, tools)
            if exact is not None:
                return Size(exact, "engine")
        return Size(upper.tokens, upper.source)

    async def bound(self, messages: Sequence[Message], tools: Tools) -> BoundCounter:
        """A counter of upper bounds to trim `messages` with."""
        counter = await self._calibrated(messages, tools, byte_bound(messages, tools=tools))
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
        if size.by_length and (self.context is not None or size.tokens <= SURE_TOKENS):
            self._answered.append((messages, tools, reported))
            return False
        if size.by_length and not self._is_suspicious(reported, size.tokens):
            return False
        counter = await self._calibrated(messages, tools, size.tokens)
        if counter.truncated(messages, reported, tools=tools):
            return True
        counter.observe(messages, reported, num_ctx=self.context, tools=tools)
        if size.by_length:
            self._verified += 1
            weight = 1 / min(self._verified, VERIFIED)
            self._tokens_per_byte += weight * (reported / size.tokens - self._tokens_per_byte)
        return False

    def refused(self, messages: Sequence[Message], tools: Tools) -> None:
        """The engine refused a prompt that fits by our bound: from now on the bound is wider."""
        if self._counter is not None:
            self._counter.overflowed(messages, tools=tools)

    async def save(self) -> None:
        """Keep what was learned for the next run."""
        if self._counter is not None:
            await asyncio.to_thread(self._counter.save)

    def _is_suspicious(self, reported: int, size: int) -> bool:
        """Whether so few tokens for so many bytes want a closer look, where the context is not known."""
        return self._verified < VERIFIED or reported / size < SUSPICIOUS * self._tokens_per_byte

    async def _loaded(self) -> CalibratedCounter:
        async with self._busy:
            if self._counter is None:
                info = self._info
                base = await asyncio.to_thread(default_counter) if self._base is None else self._base
                self._counter = await asyncio.to_thread(
                    CalibratedCounter,
                    base,
                    model_digest=info.digest or f"{info.engine} {info.model}",
                    state_dir=self._state_dir,
                )
            return self._counter

    async def _calibrated(self, messages: Sequence[Message], tools: Tools, size: int) -> CalibratedCounter:
        """The counter, knowing what it can about prompts of this kind."""
        counter = await self._loaded()
        if size > LARGE_BYTES:
            await asyncio.to_thread(counter.base.count_messages, messages)  # remembered, by text
        while self._answered:
            seen, its_tools, reported = self._answered.popleft()
            counter.observe(seen, reported, num_ctx=self.context, tools=its_tools)
        kind = counter.kind(messages, tools=tools)
        if not counter.trusted(kind) and kind != "images":
            async with self._busy:
                if kind not in self._asked:
                    self._asked.add(kind)
                    await self._learn(counter, messages, tools)
        return counter

    async def _learn(self, counter: CalibratedCounter, messages: Sequence[Message], tools: Tools) -> None:
        """Have the engine count pieces of these messages."""
        pieces = pieces_of(messages, room=self.context)
        log.info("asking the engine how it counts, with %d pieces of a prompt", len(pieces))
        counts = await asyncio.gather(*(self._reported(piece, tools) for piece in pieces))
        for piece, reported in zip(pieces, counts, strict=True):
            counter.observe(piece, reported, tools=tools)

    async def _reported(self, messages: Sequence[Message], tools: Tools) -> int | None:
        exact = await self._counted_by_engine(messages, tools)
        if exact is not None:
            return exact
        try:
            completion = await self._ask(messages, tools)
        except OutcomeError as useless:  # one token is an answer cut off: what was counted comes with it
            completion = useless.completion
        except EngineError as error:
            log.debug("the engine did not count a piece: %s", type(error).__name__)
            return None
        return None if completion.usage is None else completion.usage.prompt_tokens

    async def _counted_by_engine(self, messages: Sequence[Message], tools: Tools) -> int | None:
        if self._exact is None:
            return None
        try:
            return (await self._exact.count(messages, tools=tools)).tokens
        except EngineError as error:
            log.debug("the engine does not count prompts: %s", type(error).__name__)
            if not error.retryable:
                self._exact = None
            return None


def pieces_of(messages: Sequence[Message], *, room: int | None = None) -> list[list[Message]]:
    """Prompts made of pieces of the text in `messages`, short and long, of one message and of two.

    The longest takes half of a context of `room` tokens even where every character is one.
    """
    text = "\n".join(part for message in messages for part in texts_of(message))
    longest = PIECE_CHARS[1] if room is None else max(16, min(PIECE_CHARS[1], room // 2))
    shortest = min(PIECE_CHARS[0], longest)
    pieces: list[list[Message]] = []
    for number in range(PROBES):
        chars = round(shortest * (longest / shortest) ** (number / (PROBES - 1)))
        # Spread over the text, and the same in every session.
        start = 0 if len(text) <= chars else (number * 2654435761 >> 5) % (len(text) - chars)
        piece = text[start : start + chars]
        if number % 2:
            half = len(piece) // 2
            pieces.append(
                [{"role": "system", "content": piece[:half]}, {"role": "user", "content": piece[half:]}]
            )
        else:
            pieces.append([{"role": "user", "content": piece}])
    return pieces
