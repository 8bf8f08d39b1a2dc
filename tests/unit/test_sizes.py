"""How long rows are, without a tokenizer: an upper estimate, and the context that holds them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch import BatchRequest
from ollama_batch._sizes import (
    LISTED,
    NUM_CTX_BUCKETS,
    PromptSizes,
    needed_tokens,
    next_bucket,
    rough_tokens,
)
from ollama_batch.errors import VocabularyMissingError
from ollama_batch.tokens import TiktokenCounter, byte_bound
from ollama_batch.tokens._texts import IMAGE_TOKENS

PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Finds things. " * 20}}]

PROSE = "The committee weighed education, employers and hands-on engineering before it decided. "
KINDS = {
    "prose": PROSE,
    "json": '{"name": "Aanya", "years": 12, "skills": ["Kubernetes", "PostgreSQL"], "open": true}\n',
    "code": "def total(rows):\n    return sum(row.price * row.count for row in rows if row.count > 0)\n",
    "digits": "2024-03-17 08:15:42 1728394 0.00391 77 ",
    "chinese": "委员会在做出决定之前权衡了教育、雇主和实际的工程工作。",
    "cyrillic": "Комитет взвесил образование и опыт, прежде чем принять решение. ",
    "emoji": "ok 👍🏽 nice 🎉🚀 ",
}


def needed(content: Any, answer: int = 100, **params: Any) -> int:
    return needed_tokens(BatchRequest(messages=[{"role": "user", "content": content}], params=params), answer)


def test_all_that_becomes_tokens_is_in_the_estimate() -> None:
    empty = needed("")
    assert empty >= 100
    assert needed("x" * 1000) >= empty + 250
    assert needed("\u4e16" * 1000) >= empty + 1500  # a token and more for such a character
    assert needed([{"type": "text", "text": "x" * 1000}]) == needed("x" * 1000)
    assert needed([PICTURE]) >= empty + IMAGE_TOKENS
    assert needed("", tools=[{"description": "x" * 1000}]) >= empty + 250
    called = [{"function": {"name": "f", "arguments": "x" * 1000}}]
    message = {"role": "assistant", "content": None, "tool_calls": called}
    assert needed_tokens(BatchRequest(messages=[message]), 100) >= empty + 250


def test_the_rows_own_limit_of_the_answer_counts_and_the_newer_field_first() -> None:
    empty = needed("") - 100
    assert needed("", max_tokens=5000) == empty + 5000
    assert needed("", max_completion_tokens=5000) == empty + 5000
    assert needed("", max_tokens=7, max_completion_tokens=5000) == empty + 5000


def test_tools_of_all_rows_count_where_a_row_has_none_of_its_own() -> None:
    request = BatchRequest(messages=[{"role": "user", "content": "x"}])
    own = BatchRequest(messages=request.messages, params={"tools": [{"name": "f"}]})
    assert needed_tokens(request, 10, TOOLS) > needed_tokens(request, 10) + 50
    assert needed_tokens(own, 10, TOOLS) == needed_tokens(own, 10)


texts = st.text(max_size=3000) | st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: st.integers(1, 300).map(lambda times: KINDS[kind] * times)
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": texts}),
    min_size=1,
    max_size=4,
)


@given(messages, st.integers(1, 5000))
def test_no_row_needs_more_than_a_token_for_each_byte(chat: list[dict[str, Any]], answer: int) -> None:
    assert needed_tokens(BatchRequest(messages=chat), answer) <= byte_bound(chat) + answer


@given(messages)
def test_the_most_that_it_tells_in_passing_is_the_bound_by_bytes(chat: list[dict[str, Any]]) -> None:
    for tools in (None, TOOLS):
        assert rough_tokens(chat, tools).most == byte_bound(chat, tools=tools)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("times", [1, 7, 400])
def test_no_text_has_more_tokens_than_the_estimate(kind: str, times: int) -> None:
    """Judged by a vocabulary with a tenth on top, which most models' vocabularies stay below."""
    try:
        counter = TiktokenCounter()
    except VocabularyMissingError:
        pytest.skip("no vocabulary on this machine: set TIKTOKEN_CACHE_DIR to a folder with one")
    text = KINDS[kind] * times
    assert needed(text, answer=1) - 1 >= 1.1 * counter.count_text(text)


def test_a_long_text_is_judged_by_its_beginning_middle_and_end() -> None:
    """A plain beginning does not hide what follows."""
    wide = PROSE * 30 + "\u4e16" * 30_000
    assert needed(wide, answer=1) >= 30_000
    digits = PROSE * 30 + "7" * 30_000
    assert needed(digits, answer=1) >= 15_000


def test_of_a_long_text_only_a_part_is_looked_at() -> None:
    """A row of a megabyte is estimated from no more of it than one of 10 KB."""
    once, often = needed(PROSE * 100, answer=1), needed(PROSE * 10_000, answer=1)
    assert often == pytest.approx(100 * once, rel=0.05)


rows = st.lists(st.integers(1, 300_000), max_size=3000)


def sizes_of(tokens: list[int]) -> PromptSizes:
    found = PromptSizes()
    for number, size in enumerate(tokens):
        found.add(f"r{number}", size)
    return found


@given(rows)
def test_counts_and_the_longest_are_those_of_sorting_all_rows(tokens: list[int]) -> None:
    found = sizes_of(tokens)
    assert (found.rows, found.tokens) == (len(tokens), sum(tokens))
    assert found.over == [sum(size > bucket for size in tokens) for bucket in NUM_CTX_BUCKETS]
    assert [size for size, _ in found.longest] == sorted(tokens, reverse=True)[:LISTED]
    assert all(tokens[int(name[1:])] == size for size, name in found.longest)
    assert len({name for _, name in found.longest}) == len(found.longest)


@given(rows | st.lists(st.integers(1, 9000), min_size=900, max_size=2500))
def test_the_bucket_is_the_smallest_that_holds_all_but_one_in_a_thousand(tokens: list[int]) -> None:
    held = [
        bucket for bucket in NUM_CTX_BUCKETS if sum(size > bucket for size in tokens) <= len(tokens) / 1000
    ]
    assert sizes_of(tokens).bucket() == min(held, default=NUM_CTX_BUCKETS[-1])


def test_one_long_row_in_a_thousand_is_left_out_and_one_in_999_is_not() -> None:
    assert sizes_of([10] * 999 + [5000]).bucket() == 4096
    assert sizes_of([10] * 998 + [5000]).bucket() == 8192


@given(rows, st.integers(1, 300_000))
def test_as_many_rows_are_told_to_be_too_long_as_are_at_least(tokens: list[int], num_ctx: int) -> None:
    found, true = sizes_of(tokens), sum(size > num_ctx for size in tokens)
    assert found.beyond(num_ctx) <= true
    assert (found.beyond(num_ctx) > 0) == (true > 0)
    assert found.beyond(num_ctx) >= min(true, LISTED)
    for bucket in NUM_CTX_BUCKETS:
        assert found.beyond(bucket) == sum(size > bucket for size in tokens)


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=200))
def test_a_conversation_has_room_for_eight_average_rows_up_to_16384(tokens: list[int]) -> None:
    found = sizes_of(tokens)
    chosen, mean = found.bucket(conversation=True), sum(tokens) / len(tokens)
    assert chosen >= found.bucket()
    assert chosen >= min(16384, math.floor(8 * mean))
    smaller = [bucket for bucket in NUM_CTX_BUCKETS if bucket < chosen]
    assert not smaller or smaller[-1] < max(found.bucket(), min(16384, 8 * mean))


def test_a_conversation_without_rows_gets_the_smallest() -> None:
    assert PromptSizes().bucket(conversation=True) == NUM_CTX_BUCKETS[0]


@given(rows)
def test_it_can_be_kept_as_json(tokens: list[int]) -> None:
    found = sizes_of(tokens)
    assert PromptSizes.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_bucket_above() -> None:
    assert [next_bucket(size) for size in (1, 4095, 4096, 5000)] == [4096, 4096, 8192, 8192]
    assert next_bucket(NUM_CTX_BUCKETS[-1]) == NUM_CTX_BUCKETS[-1]
