"""Counting messages, and counting a repeated text once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.errors import ConfigError
from ollama_batch.tokens import CalibratedCounter, Count, CountLedger, EstimateCounter, TokenCounter
from tokens_support import WordCounter

HEAD = {"role": "system", "content": "judge every profile by the same five criteria"}


def test_a_head_of_a_thousand_requests_is_tokenized_once() -> None:
    counter = WordCounter()
    for row in range(1000):
        counter.count_messages([HEAD, {"role": "user", "content": f"profile {row}"}])
    assert counter.seen.count(HEAD["content"]) == 1
    assert counter.ledger == CountLedger(
        texts=2000,
        tokenized=1001,
        tokenized_chars=len(HEAD["content"]) + sum(len(f"profile {n}") for n in range(1000)),
    )


def test_bounding_and_learning_from_a_thousand_requests_tokenizes_each_text_once() -> None:
    counter = WordCounter()
    calibrated = CalibratedCounter(counter, model_digest="none")
    for row in range(1000):
        prompt = [HEAD, {"role": "user", "content": f"profile {row}"}]
        reported = calibrated.upper_bound(prompt).tokens
        calibrated.bound_for(prompt).count_messages(prompt)
        calibrated.observe(prompt, reported)
    assert counter.seen == [HEAD["content"], *(f"profile {row}" for row in range(1000))]


def test_many_tails_do_not_push_a_head_out() -> None:
    counter = WordCounter(cache_entries=4)
    for row in range(100):
        counter.count_messages([HEAD, {"role": "user", "content": f"profile {row}"}])
    assert counter.seen.count(HEAD["content"]) == 1


def test_what_is_remembered_is_bounded() -> None:
    counter = WordCounter(cache_entries=2)
    for text in ("a", "b", "c", "a"):
        counter.count_text(text)
    assert counter.seen == ["a", "b", "c", "a"]


def test_nothing_is_remembered_with_no_entries() -> None:
    counter = WordCounter(cache_entries=0)
    assert [counter.count_text("a b"), counter.count_text("a b")] == [2, 2]
    assert counter.seen == ["a b", "a b"]


def test_an_empty_text_has_no_tokens_and_is_not_tokenized() -> None:
    counter = WordCounter()
    assert counter.count_text("") == 0
    assert counter.seen == []


def test_a_prompt_is_the_sum_of_its_messages_and_the_fixed_overhead() -> None:
    counter = WordCounter(per_message=10, per_prompt=100)
    user = {"role": "user", "content": "one two three"}
    assert counter.count_message(user) == 13
    assert counter.count_messages([user, user]) == 126
    assert counter.count_messages([]) == 100


def test_an_image_costs_its_parameter() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    message = {"role": "user", "content": [{"type": "text", "text": "look here"}, picture]}
    assert WordCounter(image_tokens=256, per_message=0).count_message(message) == 258


def test_tools_are_part_of_an_estimate() -> None:
    counter = WordCounter(per_message=0, per_prompt=0)
    tools = [{"type": "function", "function": {"name": "f", "description": "three more words"}}]
    user = [{"role": "user", "content": "one"}]
    assert counter.estimate(user) == Count(1, "words")
    assert counter.estimate(user, tools=tools) == Count(1 + 3, "words")
    assert counter.count_tools([]) == 0


def test_counters_are_token_counters() -> None:
    assert isinstance(WordCounter(), TokenCounter)
    assert isinstance(EstimateCounter(), TokenCounter)


@pytest.mark.parametrize("option", ["per_message", "per_prompt", "image_tokens", "cache_entries"])
def test_a_negative_option_is_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option} is -1"):
        WordCounter(**{option: -1})


def test_threads_share_a_counter() -> None:
    counter = WordCounter(cache_entries=3)
    texts = ["a", "b b", "c c c", "d d d d", "e e e e e"] * 200
    wrong: list[str] = []

    def count() -> None:
        wrong.extend(text for text in texts if counter.count_text(text) != len(text.split()))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert counter.ledger.texts == 4 * len(texts)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("abcd efgh", 2),  # 9 letters and blanks: 9 / 4.5
        ("12345678", 4),
        ("{}[]", 2),
        ("中文字", 3),
        ("Привет", 3),  # 12 bytes / 4
        ("😀", 2),
        ("a", 1),
    ],
)
def test_the_estimate_follows_its_stated_rule(text: str, tokens: int) -> None:
    assert EstimateCounter().count_text(text) == tokens


@given(st.text(), st.text())
def test_a_longer_text_is_not_estimated_shorter(text: str, more: str) -> None:
    counter = EstimateCounter()
    assert counter.count_text(text + more) >= counter.count_text(text)


def test_an_estimate_says_that_it_is_one() -> None:
    assert EstimateCounter().estimate([HEAD]).source == "estimate"
