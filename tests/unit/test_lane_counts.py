"""Cuts that count by messages, and beginning anew: the figures are those of any other trim."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch._lane_counts import ScaledCounter, begun_anew, last_messages
from ollama_batch.tokens import EstimateCounter
from ollama_batch.trim import AggressiveTrim, HybridTrim, ImportanceTrim, SlidingWindowTrim, TrimResult
from ollama_batch.types import Message
from trim_support import phrase

COUNTER = ScaledCounter(EstimateCounter(), 1.2)
HEADS = st.sampled_from([[], [{"role": "system", "content": "judge"}]])
TURNS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def talk(head: list[Message], sizes: list[int]) -> list[Message]:
    messages = list(head)
    for number, size in enumerate(sizes):
        messages.append({"role": "user", "content": phrase(number, size)})
        messages.append({"role": "assistant", "content": phrase(number + 1, size)})
    return messages


def check(result: TrimResult, messages: list[Message]) -> None:
    """What the docstring of TrimResult says of its figures."""
    same = [
        at for at, (one, other) in enumerate(zip(messages, result.messages, strict=False)) if one != other
    ]
    first = min([*same, len(result.messages)])
    if result.first_changed_index is None:
        assert result.messages == messages
        assert result.reused_prefix_tokens == result.tokens_before == result.tokens_after
        return
    assert first >= result.first_changed_index
    before = sum(COUNTER.count_message(message) for message in messages[: result.first_changed_index])
    assert result.reused_prefix_tokens == min(before, result.tokens_after)
    assert result.tokens_before == COUNTER.count_messages(messages)
    assert result.tokens_after == COUNTER.count_messages(result.messages)


@given(HEADS, TURNS, st.integers(1, 40))
def test_what_is_reused_of_the_last_messages_lies_before_the_first_that_changed(
    head: list[Message], sizes: list[int], keep: int
) -> None:
    messages = talk(head, sizes)
    check(last_messages(messages, len(head) + keep, COUNTER), messages)


@given(HEADS, TURNS)
def test_what_is_reused_of_a_conversation_begun_anew_is_its_head(
    head: list[Message], sizes: list[int]
) -> None:
    messages = talk(head, sizes)
    result = begun_anew(messages, COUNTER)
    check(result, messages)
    assert result.messages == head
    assert result.to_dict() == {
        "strategy": "anew",
        "tokens_before": COUNTER.count_messages(messages),
        "tokens_after": COUNTER.count_messages(head),
        "tokens_saved": COUNTER.count_messages(messages) - COUNTER.count_messages(head),
        "kept": 0,
        "dropped": len(sizes),
        "clipped": 0,
        "first_changed_index": len(head),
        "reused_prefix_tokens": sum(map(COUNTER.count_message, head)),
        "cache_loss_tokens": COUNTER.count_messages([]),
    }


@pytest.mark.parametrize("strategy", [SlidingWindowTrim(), ImportanceTrim(), HybridTrim(), AggressiveTrim()])
@given(HEADS, TURNS, st.floats(0.3, 1))
def test_what_a_strategy_reuses_lies_before_the_first_that_changed(
    strategy: Any, head: list[Message], sizes: list[int], share: float
) -> None:
    messages = talk(head, sizes)
    least = COUNTER.count_messages([*head, *messages[-2:]])
    budget = max(least, round(share * COUNTER.count_messages(messages)))
    check(strategy.trim(messages, budget=budget, counter=COUNTER), messages)


def test_nothing_is_reused_where_the_very_first_message_goes() -> None:
    result = last_messages(talk([], [5, 5, 5]), 2, COUNTER)
    assert (result.first_changed_index, result.reused_prefix_tokens) == (0, 0)
