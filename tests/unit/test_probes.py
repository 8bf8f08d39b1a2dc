"""The pieces of a prompt that an engine is asked about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fit_support import answer, words
from ollama_batch._probes import PIECE_CHARS, PROBES, counted, pieces_of
from ollama_batch.types import Message, Usage


@given(st.text(max_size=20_000), st.none() | st.integers(16, 100_000))
def test_pieces_are_made_of_the_text_and_of_two_characters_for_each_token_of_room(
    text: str, room: int | None
) -> None:
    pieces = pieces_of([{"role": "user", "content": text}], room=room)
    assert len(pieces) == PROBES
    for piece in pieces:
        whole = "".join(message["content"] for message in piece)
        assert whole in text
        assert len(whole) <= PIECE_CHARS[1] if room is None else max(16, min(PIECE_CHARS[1], 2 * room))
    assert {len(piece) for piece in pieces} == {1, 2}


def test_pieces_of_a_long_text_are_of_many_lengths_and_places() -> None:
    text = "".join(f"{number:06d}" for number in range(5000))
    wholes = ["".join(message["content"] for message in piece) for piece in pieces_of(words_of(text))]
    assert len(wholes[0]) == PIECE_CHARS[0]
    assert len(wholes[-1]) == PIECE_CHARS[1]
    assert len({len(whole) for whole in wholes}) > 25
    assert len({text.index(whole[:12]) for whole in wholes}) > 25
    assert pieces_of(words_of(text)) == pieces_of(words_of(text))


def words_of(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


async def test_pieces_of_which_nothing_is_said_are_left_out() -> None:
    pieces = pieces_of(words(1000))
    said = iter([5, None, 0, *[7] * (PROBES - 3)])

    async def count(piece: list[Message]) -> int | None:
        return next(said)

    found = await counted(pieces, count)
    assert [tokens for _, tokens in found] == [5, *[7] * (PROBES - 3)]
    assert found[0][0] == pieces[0]


def test_the_answer_of_the_support_is_what_an_engine_gives() -> None:
    assert answer(5).usage == Usage(prompt_tokens=5, completion_tokens=1)
    assert answer(None).usage is None
