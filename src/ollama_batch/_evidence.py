"""What a refused prompt proves about how long prompts may be, beyond what is known of the context already.

A row may be longer than we count it, and then a refusal says no more than that: nothing about
conversations of other rows. So a row that was never answered counts with the most tokens it can have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from ollama_batch._gauge import Decide
from ollama_batch._limits import LearnedLimit
from ollama_batch.errors import ContextTooLargeError, EngineError

LEARNED: Final = "limit_learned"
"""The note about a prompt that was too long for the engine although it fits the context."""


def told_tokens(error: EngineError) -> int | None:
    """How many tokens are too many by what the engine says in `error`; None if it names no number."""
    if not isinstance(error, ContextTooLargeError):
        return None
    beyond = None if error.limit is None else error.limit + 1
    named = [tokens for tokens in (error.tokens, beyond) if tokens is not None]
    return min(named, default=None)


def too_many(error: EngineError, *, at_most: int, context: int, room: int) -> int | None:
    """So many tokens that `error` proves a prompt of them to be too long here; None if it proves nothing.

    A prompt for which there is `room`, `context` tokens less the answer, was refused: it has `at_most`
    tokens, whatever its row is made of. It proves nothing where the engine names a context of its own that
    is no smaller than `context`, or a length for which there is no room, or names nothing and the prompt
    may be longer than we think: the row may just be too long by itself.
    """
    tokens = told_tokens(error)
    if tokens is None:
        return at_most if at_most <= room else None
    assert isinstance(error, ContextTooLargeError)  # noqa: S101 - no other tells
    if error.limit is not None:
        return tokens if error.limit < context else None
    return tokens if tokens <= room else None


class Evidence:
    """Moves `learned`, which all conversations of a run share, by what is proven, and says so.

    `context` is what the engine is known to have, in tokens.
    """

    def __init__(
        self, learned: LearnedLimit, *, context: int, decide: Decide, noticed: Callable[..., None]
    ) -> None:
        self._learned = learned
        self._context = context
        self._decide = decide
        self._noticed = noticed

    async def refused(self, error: EngineError, *, at_most: int, room: int) -> bool:
        """The engine has refused a prompt; says whether that proves anything. See `too_many`."""
        tokens = too_many(error, at_most=at_most, context=self._context, room=room)
        if tokens is not None:
            told = told_tokens(error) is not None
            what = (
                f"prompts of {tokens:,} tokens are" if told else f"a prompt of at most {tokens:,} tokens was"
            )
            await self._learn(tokens, what, error.code)
        return tokens is not None

    async def answered(self, tokens: int, *, left_out: int | None, room: int) -> None:
        """A prompt of so many tokens, by the engine's count, was answered.

        Where one with about `left_out` more was refused before, and that has proven nothing as yet, it
        does now: its row fits, and its length is known.
        """
        self._learned.worked(tokens)
        if left_out is None or left_out <= 0:
            return
        refused, known = tokens + left_out, self._learned.too_long
        if refused <= room and (known is None or refused < known):
            await self._learn(
                refused, f"a prompt of about {refused:,} tokens was", "a shorter one was answered"
            )

    async def close(self) -> None:
        """Keep what was learned for the next run, and say it."""
        ceiling, too_long, longest = self._learned.ceiling, self._learned.too_long, self._learned.longest
        if ceiling is not None:
            worked = f"the longest prompt that worked had {longest:,}, and " if longest else ""
            self._noticed(
                LEARNED,
                f"conversations are cut beyond {ceiling:,} tokens: {worked}{too_long:,} are too many for the "
                f"engine, although it has {self._context:,}",
                ceiling=ceiling,
            )
        await asyncio.to_thread(self._learned.save)

    async def _learn(self, tokens: int, what: str, how: str) -> None:
        self._learned.failed(tokens)
        data: dict[str, Any] = {"ceiling": self._learned.ceiling, **self._learned.to_dict()}
        await self._decide(
            LEARNED,
            f"{what} too long for the engine ({how}), although it has {self._context:,}: conversations "
            f"are now trimmed beyond {self._learned.ceiling:,} tokens",
            **data,
        )
        await asyncio.to_thread(self._learned.save)
