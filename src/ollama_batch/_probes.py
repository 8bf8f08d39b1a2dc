"""Short questions of our own, by which an engine tells how it counts text like that of a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from ollama_batch.tokens._texts import texts_of
from ollama_batch.types import Message

Piece: TypeAlias = list[Message]

PROBES: Final = 32
"""Pieces of text the engine is asked about when too little is known of how it counts."""

PIECE_CHARS: Final = (500, 1900)
"""Length of the shortest and of the longest piece, in characters: short enough to fit everywhere."""


def pieces_of(messages: Sequence[Message], *, room: int | None = None) -> list[Piece]:
    """Prompts made of pieces of the text in `messages`, short and long, of one message and of two.

    The longest fit a context of `room` tokens unless a token is less than two characters; those that do not
    are refused, and say nothing.
    """
    text = "\n".join(part for message in messages for part in texts_of(message))
    longest = PIECE_CHARS[1] if room is None else max(16, min(PIECE_CHARS[1], 2 * room))
    shortest = min(PIECE_CHARS[0], max(1, longest // 3))  # of one length they would not tell the ratio
    pieces: list[Piece] = []
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


async def counted(
    pieces: Sequence[Piece], count: Callable[[Piece], Awaitable[int | None]]
) -> list[tuple[Piece, int]]:
    """Each piece with what `count` says of it, less those of which it says None or nothing.

    The first is counted alone: an engine that reports nothing, or is gone, is not asked about the rest. If
    one raises, or this is cancelled, the others are ended first.
    """
    first, *rest = pieces
    found = await count(first)
    if not found:
        return []
    tasks = [asyncio.ensure_future(count(piece)) for piece in rest]
    try:
        told = [found, *await asyncio.gather(*tasks)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [(piece, tokens) for piece, tokens in zip(pieces, told, strict=True) if tokens]
