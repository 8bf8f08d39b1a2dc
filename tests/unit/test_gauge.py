"""Which prompts are known to fit, and what finding that out costs: counted texts, questions to the engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_support import Bench, Scripted, true_tokens, words
from ollama_batch._gauge import SURE_TOKENS, Size
from ollama_batch._probes import PIECE_CHARS, PROBES
from ollama_batch._screen import VERIFIED
from ollama_batch.errors import (
    ContextTooLargeError,
    EngineConnectionError,
    InvalidReplyError,
    RequestRejectedError,
)
from ollama_batch.tokens import byte_bound
from ollama_batch.tokens._texts import texts_of
from ollama_batch.types import Message, Usage

LIMIT = 3000
TOOLS = [{"type": "function", "function": {"name": "find"}}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}


def usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=tokens, completion_tokens=1)


async def answered(bench: Bench, messages: Sequence[Message], tokens: int | None = None) -> bool:
    """Measure, and let the engine have answered: whether it says that it cut the prompt."""
    size = await bench.gauge.size(messages, None, LIMIT)
    reported = true_tokens(messages) if tokens is None else tokens
    return await bench.gauge.was_cut(messages, None, size, usage(reported))


async def test_what_fits_by_its_bytes_is_neither_counted_nor_asked_about() -> None:
    bench = Bench()
    for number in range(100):
        messages = words(200, seed=number)
        assert byte_bound(messages) <= LIMIT
        assert await bench.gauge.size(messages, None, LIMIT) == Size(byte_bound(messages), "bytes")
        assert not await bench.gauge.was_cut(messages, None, Size(1, "bytes"), usage(250))
    assert bench.counter.ledger.texts == 0
    assert bench.engine.evaluated == bench.decisions.seen == []


async def test_without_a_limit_nothing_is_counted() -> None:
    bench = Bench(context=None, sure=False)
    assert (await bench.gauge.size(words(5000), None, None)).by_length
    assert bench.counter.ledger.texts == 0


async def test_no_room_at_all_is_told_without_counting() -> None:
    bench = Bench()
    for limit in (0, -500):
        assert (await bench.gauge.size(words(5000), None, limit)).by_length
    assert bench.counter.ledger.texts == 0


async def test_answered_prompts_are_learned_from_when_that_is_first_needed() -> None:
    bench = Bench()
    for number in range(40):
        assert not await answered(bench, words(100 + 4 * number, seed=number))
    assert bench.counter.ledger.texts == 0
    near = words(2000)
    size = await bench.gauge.size(near, None, LIMIT)
    assert size.source == "calibrated"
    assert true_tokens(near) <= size.tokens <= 1.08 * true_tokens(near)
    assert bench.engine.evaluated == []


async def test_the_engine_is_asked_32_short_questions_where_too_little_is_known() -> None:
    bench = Bench()
    near = words(2000)
    size = await bench.gauge.size(near, None, LIMIT)
    assert size.source == "calibrated"
    assert true_tokens(near) <= size.tokens <= 1.1 * true_tokens(near)
    assert len(bench.engine.evaluated) == PROBES == 32
    assert all(sum(map(len, texts_of_all(piece))) <= PIECE_CHARS[1] for piece in bench.engine.evaluated)
    ((kind, message, data),) = bench.decisions.seen
    assert kind == "asked_engine"
    assert "up to 32 short questions of our own" in message
    assert data == {"questions": 32, "prompts": "text"}


def texts_of_all(messages: Sequence[Message]) -> list[str]:
    return [text for message in messages for text in texts_of(message)]


async def test_each_kind_of_prompt_is_asked_about_once() -> None:
    bench = Bench()
    for seed in range(5):
        await bench.gauge.size(words(2000, seed=seed), None, LIMIT)
        await bench.gauge.size(words(2000, "123456", seed=seed), None, LIMIT)
        await bench.gauge.size(words(2000, seed=seed), TOOLS, LIMIT)
    assert len(bench.engine.evaluated) == 3 * PROBES
    assert [data["prompts"] for _, _, data in bench.decisions.seen] == ["text", "digits", "tools"]


async def test_digits_in_one_place_make_the_whole_prompt_known() -> None:
    """Its pieces are of two kinds, and all of them tell of the one it is of."""
    bench = Bench()
    mixed: list[Message] = [{"role": "user", "content": "committee " * 900 + "8150123 " * 600}]
    size = await bench.gauge.size(mixed, None, LIMIT)
    assert size.source == "calibrated"
    await bench.gauge.size([{"role": "user", "content": "1 " + mixed[0]["content"]}], None, LIMIT)
    assert len(bench.engine.evaluated) == PROBES


async def test_32_workers_that_come_at_once_ask_once_and_wait_for_it() -> None:
    bench = Bench()
    bench.engine.opened.clear()
    waiting = [
        asyncio.create_task(bench.gauge.size(words(2000, seed=seed), None, LIMIT)) for seed in range(32)
    ]
    plain = asyncio.create_task(bench.gauge.size(words(10), None, LIMIT))
    while not bench.engine.evaluated:
        await asyncio.sleep(0)
    assert (await plain).by_length  # what fits by its length waits for nobody
    # Nor does an answer that has come meanwhile, of a kind that is known.
    assert not await bench.gauge.was_cut(words(10), None, await plain, usage(30))
    assert not any(task.done() for task in waiting)
    bench.engine.opened.set()
    sizes = await asyncio.gather(*waiting)
    assert len(bench.engine.evaluated) == PROBES
    assert {size.source for size in sizes} == {"calibrated"}


async def test_an_engine_that_reports_nothing_is_asked_one_question() -> None:
    for nothing in (None, 0):
        bench = Bench(Scripted(lambda messages, nothing=nothing: nothing))
        for seed in range(3):
            size = await bench.gauge.size(words(2000, seed=seed), None, LIMIT)
            assert size == Size(math.ceil(1.25 * (1.1 * 2000 + 4 + 3) + 64), "words")
        assert len(bench.engine.evaluated) == 1


async def test_an_engine_that_does_not_take_the_questions_is_asked_one() -> None:
    bench = Bench(Scripted(trouble=[RequestRejectedError("no"), RequestRejectedError("no")]))
    assert (await bench.gauge.size(words(2000), None, LIMIT)).source == "words"
    assert len(bench.engine.evaluated) == 1


async def test_trouble_with_the_engine_decides_nothing_about_a_row() -> None:
    """Whoever asks gets the trouble as its error, and the next one asks again."""
    bench = Bench(Scripted(trouble=[EngineConnectionError("gone"), EngineConnectionError("gone")]))
    for _ in range(2):
        with pytest.raises(EngineConnectionError):
            await bench.gauge.size(words(2000), None, LIMIT)
    assert len(bench.engine.evaluated) == 2
    assert (await bench.gauge.size(words(2000), None, LIMIT)).source == "calibrated"


async def test_trouble_in_the_middle_of_the_questions_ends_them_all() -> None:
    bench = Bench()
    bench.engine.count = _FailsAt(bench.engine, 5)
    with pytest.raises(EngineConnectionError):
        await bench.gauge.size(words(2000), None, LIMIT)
    assert len(asyncio.all_tasks()) == 1


class _FailsAt:
    """Raises once, at the so-manieth question."""

    def __init__(self, engine: Scripted, number: int) -> None:
        self.left = number

    def __call__(self, messages: Sequence[Message]) -> int:
        self.left -= 1
        if self.left == 0:
            raise EngineConnectionError("gone")
        return true_tokens(messages)


async def test_cancelling_leaves_no_question_behind_and_nothing_locked() -> None:
    bench = Bench()
    bench.engine.opened.clear()
    asking = [asyncio.create_task(bench.gauge.size(words(2000), None, LIMIT)) for _ in range(3)]
    while not bench.engine.evaluated:
        await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(asyncio.all_tasks()) == 1
    bench.engine.opened.set()
    async with asyncio.timeout(10):
        assert (await bench.gauge.size(words(2000), None, LIMIT)).source == "calibrated"


async def test_an_engine_that_counts_is_not_asked_for_answers() -> None:
    bench = Bench(Scripted(counts_exactly=True))
    near = words(2000)
    assert await bench.gauge.size(near, None, LIMIT) == Size(true_tokens(near), "engine")
    over = words(2400)
    assert await bench.gauge.size(over, None, LIMIT) == Size(true_tokens(over), "engine")
    assert bench.engine.counted == [near, over]
    assert bench.engine.evaluated == bench.decisions.seen == []
    await bench.gauge.bound(over, None)
    assert bench.engine.evaluated == []


async def test_what_an_engine_has_counted_spares_it_from_counting_what_clearly_fits() -> None:
    bench = Bench(Scripted(counts_exactly=True))
    for number in range(30):
        await bench.gauge.size(words(1500 + number, seed=number), None, LIMIT)
    asked = len(bench.engine.counted)
    assert (await bench.gauge.size(words(1500, seed=99), None, LIMIT)).source == "calibrated"
    assert len(bench.engine.counted) == asked
    near = words(2280)
    assert await bench.gauge.size(near, None, LIMIT) == Size(true_tokens(near), "engine")


async def test_an_engine_that_fails_to_count_is_asked_for_answers_instead() -> None:
    bench = Bench(Scripted(counts_exactly=True, trouble=[InvalidReplyError("404")]))
    near = words(2000)
    assert (await bench.gauge.size(near, None, LIMIT)).source == "calibrated"
    assert (len(bench.engine.counted), len(bench.engine.evaluated)) == (1, PROBES)


async def test_one_prompt_that_the_engine_refuses_to_count_does_not_end_counting() -> None:
    bench = Bench(Scripted(counts_exactly=True))
    bench.engine.refuses = words(2250)
    assert await bench.gauge.size(words(2250), None, LIMIT) == Size(true_tokens(words(2250)), "engine")
    assert bench.engine.evaluated[-1] == words(2250)
    bench.engine.evaluated.clear()
    assert await bench.gauge.size(words(2251), None, LIMIT) == Size(true_tokens(words(2251)), "engine")
    assert bench.engine.evaluated == []


async def test_a_row_that_is_far_too_long_costs_no_question() -> None:
    for exactly in (False, True):
        bench = Bench(Scripted(counts_exactly=exactly))
        size = await bench.gauge.size(words(20_000), None, LIMIT)
        assert size.tokens > LIMIT
        assert bench.engine.evaluated == bench.engine.counted == []


async def test_a_repeated_head_is_tokenized_once() -> None:
    bench = Bench()
    head = {"role": "system", "content": "judge " * 1500}
    rows = [[head, {"role": "user", "content": f"row{n} " + "committee " * 300}] for n in range(50)]
    for row in rows:
        await bench.gauge.size(row, None, LIMIT)
    assert bench.counter.seen.count(head["content"]) == 1
    assert all(bench.counter.seen.count(row[1]["content"]) == 1 for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 4.0), st.integers(0, 10**6), st.integers(500, 6000))
def test_what_is_said_to_fit_does(ratio: float, seed: int, limit: int) -> None:
    """Whatever the engine's tokenizer: of prompts around the limit none that passes has more tokens."""

    async def measure() -> None:
        def count(messages: Sequence[Message]) -> int:
            return true_tokens(messages, ratio)

        bench = Bench(Scripted(count), context=limit + 100)
        for number in range(40):
            share = 0.7 + (seed + 7 * number) % 40 / 100
            messages = words(max(1, round(share * limit / ratio)), seed=number)
            size = await bench.gauge.size(messages, None, limit)
            assert size.tokens >= count(messages)
            if size.tokens <= limit:
                assert not await bench.gauge.was_cut(messages, None, size, usage(count(messages)))

    asyncio.run(measure())


async def test_what_was_learned_is_found_again(tmp_path: Path) -> None:
    first = Bench(state_dir=tmp_path)
    await first.gauge.size(words(2000), None, LIMIT)
    await first.gauge.save()
    again = Bench(state_dir=tmp_path)
    assert (await again.gauge.size(words(2000), None, LIMIT)).source == "calibrated"
    assert (len(first.engine.evaluated), len(again.engine.evaluated)) == (PROBES, 0)
    other = Bench(state_dir=tmp_path, digest="sha256:other")
    await other.gauge.size(words(2000), None, LIMIT)
    assert len(other.engine.evaluated) == PROBES


async def test_once_enough_is_known_short_rows_are_not_counted_any_more() -> None:
    bench = Bench()
    for number in range(30):
        await answered(bench, words(100, seed=number))
    await bench.gauge.size(words(2000), None, LIMIT)
    before = len(bench.counter.seen)
    for number in range(30):
        await answered(bench, words(100, seed=1000 + number))
    await bench.gauge.size(words(2000, seed=1), None, LIMIT)
    await bench.gauge.save()
    assert len(bench.counter.seen) == before + 1


async def test_nothing_is_kept_without_a_folder_or_without_need(tmp_path: Path) -> None:
    bench = Bench(state_dir=None)
    await bench.gauge.size(words(2000), None, LIMIT)
    await bench.gauge.save()
    plain = Bench(state_dir=tmp_path)
    await answered(plain, words(100))
    await plain.gauge.save()
    assert list(tmp_path.rglob("*")) == []


async def test_a_model_without_a_digest_is_known_by_its_address(tmp_path: Path) -> None:
    bench = Bench(state_dir=tmp_path, digest=None, kind="openai")
    await bench.gauge.size(words(2000), None, LIMIT)
    await bench.gauge.save()
    (kept,) = tmp_path.rglob("*.json")
    assert "openai http://127.0.0.1:1 m" in kept.read_text()


# Cut in silence

LONG = 6000


@pytest.mark.parametrize("first", [0, 1, 40])
async def test_a_cut_prompt_is_noticed_where_the_context_is_not_known(first: int) -> None:
    """Also as the very first one; and its neighbours are believed."""
    bench = Bench(context=None, sure=False)
    for number in range(first):
        assert not await unlimited(bench, words(500, seed=number))
    assert await unlimited(bench, words(LONG), 2050)
    for number in range(40):
        assert not await unlimited(bench, words(500, seed=number))
    assert await unlimited(bench, words(LONG, seed=1), 2050)


async def unlimited(bench: Bench, messages: Sequence[Message], tokens: int | None = None) -> bool:
    size = await bench.gauge.size(messages, None, None)
    reported = true_tokens(messages) if tokens is None else tokens
    return await bench.gauge.was_cut(messages, None, size, usage(reported))


async def test_a_cut_prompt_is_noticed_where_somebodys_word_for_the_context_was_wrong() -> None:
    """Told 80,000, though the server has 4,096: rows that fit by their length are looked at all the same."""
    bench = Bench(context=80_000, sure=False, kind="openai")
    messages = words(LONG - 1)
    size = await bench.gauge.size(messages, None, 79_000)
    assert size.by_length
    assert await bench.gauge.was_cut(messages, None, size, usage(2050))


async def test_a_cut_prompt_of_another_sort_than_the_rest_is_noticed() -> None:
    """Digits have more tokens for their length than prose: half of them is as much as a prose row has."""

    def count(messages: Sequence[Message]) -> int:
        digits = sum(char.isdigit() for text in texts_of_all(messages) for char in text)
        return true_tokens(messages) + digits

    bench = Bench(Scripted(count), context=None, sure=False)
    for number in range(2 * VERIFIED):
        assert not await unlimited(bench, words(500, seed=number))
    numbers = words(1000, "12345678")
    assert not await unlimited(bench, numbers, count(numbers))
    assert await unlimited(bench, numbers, count(numbers) // 2)


async def test_once_16_were_looked_at_usual_counts_cost_no_counting() -> None:
    bench = Bench(context=None, sure=False)
    for number in range(VERIFIED):
        await unlimited(bench, words(500, seed=number))
    before = bench.counter.ledger.texts
    for number in range(100):
        assert not await unlimited(bench, words(500, seed=1000 + number))
    assert bench.counter.ledger.texts == before


async def test_what_is_shorter_than_any_context_is_not_looked_at() -> None:
    bench = Bench(context=None, sure=False)
    short = words(150)
    assert byte_bound(short) <= SURE_TOKENS
    for _ in range(50):
        assert not await unlimited(bench, short, 20)
    assert bench.counter.ledger.texts == 0


@pytest.mark.parametrize("said", [None, Usage(0, 1), Usage(5, 1, source="estimate")])
async def test_no_report_is_no_cut(said: Usage | None) -> None:
    bench = Bench(context=None, sure=False)
    messages = words(LONG)
    size = await bench.gauge.size(messages, None, None)
    assert not await bench.gauge.was_cut(messages, None, size, said)


async def test_a_cut_of_a_prompt_that_the_engine_has_counted_is_told_by_its_own_count() -> None:
    bench = Bench(Scripted(counts_exactly=True))
    messages = words(2000)
    size = await bench.gauge.size(messages, None, LIMIT)
    assert await bench.gauge.was_cut(messages, None, size, usage(int(0.59 * size.tokens)))
    assert not await bench.gauge.was_cut(messages, None, size, usage(int(0.61 * size.tokens)))


# Refused by the engine


async def refuse(bench: Bench, messages: Sequence[Message], limit: int | None, error: Any) -> Size:
    size = await bench.gauge.size(messages, None, limit)
    await bench.gauge.refused("r", messages, None, size, error)
    return size


async def test_a_smaller_context_than_was_known_is_believed_from_then_on() -> None:
    for known in (None, 8000):
        bench = Bench(context=known, sure=False)
        limit = None if known is None else known - 100
        await refuse(bench, words(3000), limit, ContextTooLargeError(3900, 2048))
        assert bench.gauge.context == 2048
        await refuse(bench, words(3000), limit, ContextTooLargeError(3900, 2048))
        assert bench.decisions.kinds.count("context_learned") == 1
        assert "bound_widened" not in bench.decisions.kinds


async def test_a_larger_context_than_is_known_is_not_believed() -> None:
    bench = Bench(context=4000)
    await refuse(bench, words(2000), LIMIT, ContextTooLargeError(4200, 8192))
    assert bench.gauge.context == 4000


async def test_after_a_refusal_the_bound_of_that_kind_is_a_tenth_wider() -> None:
    bench = Bench()
    messages = words(2000)
    size = await refuse(bench, messages, LIMIT, ContextTooLargeError(None, None))
    wider = (await bench.gauge.bound(messages, None)).count_messages(messages)
    assert wider == pytest.approx(1.1 * size.tokens, abs=2)
    kind, message, data = bench.decisions.seen[-1]
    assert kind == "bound_widened"
    assert "counts of its kind are taken 10 % higher" in message
    assert data["tokens"] == size.tokens


async def test_after_a_refusal_of_what_fits_by_its_length_every_prompt_is_counted() -> None:
    bench = Bench()
    picture = [{"role": "user", "content": [PICTURE]}]
    size = await refuse(bench, picture, LIMIT, ContextTooLargeError(5000, 4000))
    assert size.by_length
    assert not (await bench.gauge.size(words(50), None, LIMIT)).by_length
    await bench.gauge.refused("r", picture, None, size, ContextTooLargeError(5000, 4000))
    assert bench.decisions.kinds.count("lengths_distrusted") == 1


async def test_a_row_in_doubt_is_evaluated_once_and_judged_by_what_the_engine_counts() -> None:
    bench = Bench()
    prompt = words(2000)
    await bench.gauge.size(prompt, None, 1500)  # asks its questions
    questions = len(bench.engine.evaluated)
    true = true_tokens(prompt)
    counter = bench.gauge._counter
    assert counter is not None
    upper = counter.upper_bound(prompt).tokens
    assert true < upper
    for limit, evaluated in ((upper, 0), (true, 1), (true - 1, 1), (true * 3 // 4, 0)):
        bench.engine.evaluated.clear()
        size = await bench.gauge.size(prompt, None, limit)
        assert len(bench.engine.evaluated) == evaluated, limit
        assert (size.tokens <= limit) == (true <= limit)
        assert size.exact == bool(evaluated)
    assert questions == PROBES
    assert bench.decisions.kinds.count("asked_in_doubt") == 1


async def test_a_refusal_of_a_row_in_doubt_says_that_it_does_not_fit() -> None:
    bench = Bench()
    prompt = words(2000)
    await bench.gauge.size(prompt, None, 1500)
    limit = true_tokens(prompt)
    for tokens in (limit + 9, None):
        bench.engine.trouble = [ContextTooLargeError(tokens, 4000)]
        size = await bench.gauge.size(prompt, None, limit)
        assert size.tokens > limit
        assert size.exact


async def test_a_server_that_may_cut_is_not_asked_about_a_row_in_doubt() -> None:
    bench = Bench(sure=False)
    prompt = words(2000)
    await bench.gauge.size(prompt, None, 1500)
    bench.engine.evaluated.clear()
    assert not (await bench.gauge.size(prompt, None, true_tokens(prompt))).exact
    assert bench.engine.evaluated == []


async def test_a_report_that_cannot_be_of_the_whole_prompt_decides_nothing() -> None:
    bench = Bench()
    prompt = words(2000)
    await bench.gauge.size(prompt, None, 1500)
    bench.engine.count = lambda messages: 40  # what was not cached
    size = await bench.gauge.size(prompt, None, true_tokens(prompt))
    assert not size.exact
    assert size.tokens > true_tokens(prompt)
