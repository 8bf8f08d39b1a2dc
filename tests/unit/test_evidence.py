"""Only what a refusal proves moves the marks of conversations."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch._evidence import Evidence, told_tokens, too_many
from ollama_batch._limits import LearnedLimit
from ollama_batch.errors import ContextTooLargeError, EngineError, EngineOutOfMemoryError

CONTEXT, ROOM = 16_384, 15_360
MEMORY = EngineOutOfMemoryError("CUDA error: out of memory")


@pytest.mark.parametrize(
    ("error", "at_most", "proven"),
    [
        (ContextTooLargeError(21_828, CONTEXT), 9_000, None),
        (ContextTooLargeError(None, CONTEXT), 9_000, None),
        (ContextTooLargeError(21_828, CONTEXT + 256), 9_000, None),
        (ContextTooLargeError(21_828, None), 9_000, None),
        (ContextTooLargeError(ROOM + 1, None), 9_000, None),
        (ContextTooLargeError(ROOM, None), 30_000, ROOM),
        (ContextTooLargeError(21_828, 8_192), 30_000, 8_193),
        (ContextTooLargeError(8_000, 8_192), 30_000, 8_000),
        (ContextTooLargeError(None, 8_192), 30_000, 8_193),
        (ContextTooLargeError(None, None), ROOM, ROOM),
        (ContextTooLargeError(None, None), ROOM + 1, None),
        (MEMORY, 9_000, 9_000),
        (MEMORY, ROOM + 1, None),
    ],
)
def test_the_table(error: EngineError, at_most: int, proven: int | None) -> None:
    assert too_many(error, at_most=at_most, context=CONTEXT, room=ROOM) == proven


class Server(NamedTuple):
    """Takes prompts that leave room for the answer in `context`, of at most `memory` tokens; tells or not."""

    context: int
    memory: int
    answer: int
    tells_tokens: bool
    tells_limit: bool

    def refusal(self, tokens: int) -> EngineError | None:
        if tokens + self.answer > self.context:
            return ContextTooLargeError(
                tokens if self.tells_tokens else None, self.context if self.tells_limit else None
            )
        return MEMORY if tokens > self.memory else None


servers = st.builds(
    Server,
    context=st.sampled_from([4096, 8192, CONTEXT]),
    memory=st.integers(500, 2 * CONTEXT),
    answer=st.just(CONTEXT - ROOM),
    tells_tokens=st.booleans(),
    tells_limit=st.booleans(),
)


@given(servers, st.integers(1, 3 * CONTEXT), st.floats(1, 4))
def test_what_is_proven_is_refused_whatever_row_it_is(server: Server, tokens: int, above: float) -> None:
    """The oracle is the server itself: what it would say to a prompt of just so many tokens."""
    refusal = server.refusal(tokens)
    if refusal is None:
        return
    proven = too_many(refusal, at_most=int(tokens * above), context=CONTEXT, room=ROOM)
    if proven is not None:
        assert server.refusal(proven) is not None
    if server.context == CONTEXT and server.memory >= ROOM:
        assert proven is None, "there is no other limit than num_ctx"


class Told:
    """An Evidence, and what it says."""

    def __init__(self) -> None:
        self.limit = LearnedLimit({}, folder=None)
        self.decided: list[str] = []
        self.noticed: list[str] = []
        self.evidence = Evidence(
            self.limit,
            context=CONTEXT,
            decide=self._decide,
            noticed=lambda kind, message, **data: self.noticed.append(message),
        )

    async def _decide(self, kind: str, message: str, **data: Any) -> None:
        self.decided.append(message)


def test_a_refusal_that_proves_nothing_changes_and_says_nothing() -> None:
    told = Told()

    async def run() -> None:
        await told.evidence.answered(9_247, left_out=None, room=ROOM)
        too_long = ContextTooLargeError(21_828, CONTEXT)
        assert not await told.evidence.refused(too_long, at_most=9_999, room=ROOM)
        assert not await told.evidence.refused(MEMORY, at_most=ROOM + 1, room=ROOM)
        await told.evidence.close()

    asyncio.run(run())
    assert told.limit.ceiling is None
    assert told.limit.to_dict()["worked"] == 9_247
    assert (told.decided, told.noticed) == ([], [])


def test_a_shorter_prompt_that_is_answered_proves_how_long_the_refused_one_was() -> None:
    told = Told()

    async def run() -> None:
        assert not await told.evidence.refused(MEMORY, at_most=ROOM + 1, room=ROOM)
        await told.evidence.answered(6_000, left_out=4_000, room=ROOM)
        await told.evidence.close()

    asyncio.run(run())
    assert told.limit.too_long == 10_000
    assert told.limit.ceiling == 8_000
    (decided,), (noticed,) = told.decided, told.noticed
    assert "a prompt of about 10,000 tokens was too long" in decided
    assert noticed == (
        "conversations are cut beyond 8,000 tokens: the longest prompt that worked had 6,000, and 10,000 are "
        "too many for the engine, although it has 16,384"
    )


@pytest.mark.parametrize("left_out", [None, 0, ROOM - 6_000 + 1])
def test_a_row_that_was_longer_than_thought_proves_nothing(left_out: int | None) -> None:
    told = Told()
    asyncio.run(told.evidence.answered(6_000, left_out=left_out, room=ROOM))
    assert told.limit.ceiling is None
    assert told.decided == []


@given(st.lists(st.integers(1, 10_000)), st.lists(st.integers(1, 10_000)), st.integers(1, 10_000))
def test_the_ceiling_for_one_row_is_that_of_a_proof_and_changes_nothing(
    worked: list[int], failed: list[int], tokens: int
) -> None:
    one, other = LearnedLimit({}, folder=None), LearnedLimit({}, folder=None)
    for limit in (one, other):
        for each in worked:
            limit.worked(each)
        for each in failed:
            limit.failed(each)
    before = one.to_dict()
    ceiling = one.ceiling_below(tokens)
    assert one.to_dict() == before
    other.failed(tokens)
    assert ceiling == other.ceiling


def test_no_number_is_none() -> None:
    assert told_tokens(ContextTooLargeError(None, None)) is None
    assert told_tokens(MEMORY) is None
