"""What is sent for a row: its own prompt, a trimmed one, or nothing and an error that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fit_support import Bench, Scripted, answer, true_tokens, words
from ollama_batch import BatchRequest
from ollama_batch._fitting import TRIMS, Fitter, Prompt
from ollama_batch._gauge import LARGE_BYTES
from ollama_batch.errors import (
    ContextTooLargeError,
    EngineConnectionError,
    EngineOutOfMemoryError,
    OutputTruncatedError,
    PromptTruncatedError,
)
from ollama_batch.tokens import TokenCounter
from ollama_batch.trim import SlidingWindowTrim, TrimResult, TrimStrategy
from ollama_batch.types import ChatRequest, Message, RowRecord

ROW = RowRecord(0, 0, 1, "r", b"")
ANSWER = 500
CONTEXT = 3500


def to_chat(custom_id: str, request: BatchRequest) -> ChatRequest:
    params = dict(request.params)
    most = params.pop("max_tokens", ANSWER)
    return ChatRequest(
        custom_id=custom_id, model="m", messages=request.messages, params=params, max_tokens=most
    )


class Desk:
    """A Fitter on a scripted engine."""

    def __init__(
        self, engine: Scripted | None = None, strategy: TrimStrategy | None = None, **options: Any
    ) -> None:
        self.bench = Bench(engine, **{"context": CONTEXT, **options})
        self.fitter = Fitter(self.bench.gauge, strategy=strategy, to_chat=to_chat)

    async def compose(self, messages: Sequence[Message], **params: Any) -> Prompt:
        return await self.fitter.compose("r", ROW, BatchRequest(messages=messages, params=params))


def talk(turns: int, each: int = 100) -> list[Message]:
    """A conversation of so many exchanges; the last message is the request."""
    said: list[Message] = [{"role": "system", "content": "Judge."}]
    for turn in range(turns):
        said.append({"role": "user", "content": f"u{turn} " + "committee " * each})
        said.append({"role": "assistant", "content": f"a{turn} " + "committee " * each})
    return [*said, {"role": "user", "content": "And now?"}]


class Spoiled:
    """A strategy that does what it is told to."""

    def __init__(self, trim: Any) -> None:
        self.trimming = trim

    def trim(
        self,
        messages: Sequence[Message],
        *,
        budget: int,
        counter: TokenCounter,
        upcoming: Message | None = None,
    ) -> TrimResult:
        result: TrimResult = self.trimming(messages, budget, counter)
        return result


async def test_what_fits_is_sent_as_it_is() -> None:
    desk = Desk(strategy=SlidingWindowTrim())
    for count in (10, 1000, 2000):
        messages = words(count)
        prompt = await desk.compose(messages)
        assert prompt.chat.messages is messages
        assert prompt.trim is None
        assert true_tokens(messages) <= prompt.size.tokens <= CONTEXT - ANSWER


async def test_a_row_that_may_be_too_long_fails_by_its_figures_and_the_ways_out() -> None:
    with pytest.raises(ContextTooLargeError) as caught:
        await Desk().compose(words(3000))
    error = caught.value
    assert error.tokens is not None
    assert error.tokens >= true_tokens(words(3000))
    assert error.limit == CONTEXT - ANSWER
    counted = "by our count, corrected by what the engine reported before"
    assert f"the prompt may have {error.tokens:,} tokens ({counted}), there is room for 3,000" in str(error)
    assert "(num_ctx 3,500 less max_tokens 500): raise num_ctx, lower max_tokens, or set trim" in str(error)
    assert error.row_caused
    assert not error.retryable


async def test_a_count_of_the_engine_is_no_may_be() -> None:
    with pytest.raises(
        ContextTooLargeError, match=r"the prompt has 3,912 tokens \(by the engine's own count\)"
    ):
        await Desk(Scripted(counts_exactly=True)).compose(words(3000))


async def test_where_num_ctx_only_tells_the_server_is_to_be_given_more() -> None:
    with pytest.raises(ContextTooLargeError, match="give the server a larger context"):
        await Desk(kind="openai", sure=False).compose(words(3000))


@pytest.mark.parametrize("strategy", [None, SlidingWindowTrim()])
@pytest.mark.parametrize("most", [CONTEXT, CONTEXT + 1000])
async def test_an_answer_as_long_as_the_context_leaves_no_room(most: int, strategy: Any) -> None:
    desk = Desk(strategy=strategy)
    with pytest.raises(ContextTooLargeError, match="no room for a prompt") as caught:
        await desk.compose(words(10), max_tokens=most)
    assert f"num_ctx 3,500 less max_tokens {most:,} is {CONTEXT - most:,}" in str(caught.value)
    assert "raise num_ctx or lower max_tokens" in str(caught.value)
    assert desk.bench.counter.ledger.texts == 0


async def test_a_conversation_that_is_too_long_is_trimmed_to_what_fits() -> None:
    desk, messages = Desk(strategy=SlidingWindowTrim()), talk(20)
    prompt = await desk.compose(messages)
    assert true_tokens(messages) > CONTEXT - ANSWER
    assert true_tokens(prompt.chat.messages) <= prompt.size.tokens <= CONTEXT - ANSWER
    assert prompt.chat.messages[0] == messages[0]
    assert prompt.chat.messages[-1] == messages[-1]
    assert prompt.trim is not None
    assert prompt.trim["strategy"] == "sliding_window"
    assert prompt.trim["tokens_after"] == prompt.size.tokens
    assert prompt.request.messages is messages  # what was asked stays known


async def test_what_cannot_be_trimmed_enough_fails_and_says_what_had_to_stay() -> None:
    with pytest.raises(ContextTooLargeError) as caught:
        await Desk(strategy=SlidingWindowTrim()).compose(words(9000))
    assert "what has to stay of the prompt may have" in str(caught.value)
    assert str(caught.value).endswith("raise num_ctx, lower max_tokens, or make the row shorter")
    assert caught.value.limit == CONTEXT - ANSWER


async def test_a_large_conversation_is_trimmed_beside_the_loop() -> None:
    import threading

    threads: list[str] = []

    def trim(messages: Sequence[Message], budget: int, counter: TokenCounter) -> TrimResult:
        threads.append(threading.current_thread().name)
        return SlidingWindowTrim().trim(messages, budget=budget, counter=counter)

    desk = Desk(strategy=Spoiled(trim))
    await desk.compose(talk(20))
    await desk.compose(talk(LARGE_BYTES // 1000))
    here = threading.current_thread().name
    assert [thread == here for thread in threads] == [True, False]


async def test_tools_take_room_too() -> None:
    tools = [{"type": "function", "function": {"name": "find", "description": "committee " * 3000}}]
    with pytest.raises(ContextTooLargeError, match=r"may have 4,[01][0-9]{2} tokens"):
        await Desk().compose(words(10), tools=tools)
    fewer = [{"type": "function", "function": {"name": "find", "description": "committee " * 2000}}]
    assert (await Desk().compose(words(10), tools=fewer)).size.tokens > 2000


async def test_where_nobody_knows_the_context_everything_is_sent() -> None:
    desk = Desk(context=None, sure=False)
    prompt = await desk.compose(words(50_000))
    assert prompt.size.by_length
    assert desk.bench.counter.ledger.texts == 0


async def test_trouble_while_finding_out_is_no_fault_of_the_row() -> None:
    desk = Desk(Scripted(trouble=[EngineConnectionError("gone")]))
    with pytest.raises(EngineConnectionError):
        await desk.compose(words(2000))


async def test_an_answer_to_a_cut_prompt_is_an_error_that_says_what_to_do() -> None:
    desk = Desk(context=None, sure=False, kind="openai")
    prompt = await desk.compose(words(6000))
    with pytest.raises(PromptTruncatedError) as caught:
        await desk.fitter.check(prompt, answer(2050, "half"))
    assert "it reports 2,050 tokens of" in str(caught.value)
    assert "in a new run, say its length as num_ctx" in str(caught.value)
    assert "OllamaEngine" in str(caught.value)
    assert caught.value.completion.output == "half"
    await desk.fitter.check(prompt, answer(true_tokens(words(6000))))
    await desk.fitter.check(prompt, answer(None))


# Refused by the engine, although it fits by what is known


async def test_a_refused_prompt_without_a_strategy_fails() -> None:
    desk = Desk()
    prompt = await desk.compose(words(2000))
    assert await desk.fitter.shorten(prompt, ContextTooLargeError(None, None)) is None
    assert desk.bench.decisions.kinds[-1] == "bound_widened"


async def test_a_refused_prompt_is_made_shorter_twice_at_the_most() -> None:
    desk = Desk(strategy=SlidingWindowTrim())
    prompt = await desk.compose(talk(20))
    lengths = [true_tokens(prompt.chat.messages)]
    for _ in range(TRIMS):
        shorter = await desk.fitter.shorten(prompt, ContextTooLargeError(None, None))
        assert shorter is not None
        assert shorter.trim is not None
        prompt = shorter
        lengths.append(true_tokens(prompt.chat.messages))
    assert lengths[0] > lengths[1] > lengths[2]
    assert await desk.fitter.shorten(prompt, ContextTooLargeError(None, None)) is None
    assert TRIMS == 2


async def test_it_is_made_as_short_as_the_engine_says() -> None:
    desk = Desk(strategy=SlidingWindowTrim())
    prompt = await desk.compose(talk(20))
    shorter = await desk.fitter.shorten(prompt, ContextTooLargeError(2900, 1500))
    assert shorter is not None
    assert true_tokens(shorter.chat.messages) <= shorter.size.tokens <= 1500 - ANSWER
    # And so is whatever comes later.
    later = await desk.compose(talk(20))
    assert later.size.tokens <= 1500 - ANSWER


@pytest.mark.parametrize("context", [CONTEXT * 10, None])
async def test_a_prompt_that_fits_by_its_length_is_shortened_as_well(context: int | None) -> None:
    """Its bytes say nothing of how much is to go: what is sent again is never what was refused."""
    desk = Desk(strategy=SlidingWindowTrim(), context=context, sure=False)
    prompt = await desk.compose(talk(10))
    assert prompt.size.by_length
    shorter = await desk.fitter.shorten(prompt, ContextTooLargeError(None, None))
    assert shorter is not None
    assert true_tokens(shorter.chat.messages) < 0.95 * true_tokens(prompt.chat.messages)


async def test_what_the_engine_has_no_room_for_at_all_fails() -> None:
    desk = Desk(strategy=SlidingWindowTrim())
    prompt = await desk.compose(talk(3))
    assert await desk.fitter.shorten(prompt, ContextTooLargeError(900, ANSWER)) is None
    desk = Desk(strategy=SlidingWindowTrim())
    single = await desk.compose(words(2000))
    assert await desk.fitter.shorten(single, ContextTooLargeError(None, None)) is None


async def test_other_errors_shorten_nothing() -> None:
    desk = Desk(strategy=SlidingWindowTrim())
    prompt = await desk.compose(talk(20))
    cut_off = OutputTruncatedError("cut off", answer(5))
    for error in (EngineOutOfMemoryError("no memory"), cut_off):
        assert await desk.fitter.shorten(prompt, error) is None
    assert desk.bench.decisions.kinds == ["asked_engine"]
