"""What every strategy guarantees, each property over 1,000 conversations."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ollama_batch.errors import ContextTooLargeError
from ollama_batch.trim import (
    AggressiveTrim,
    HybridTrim,
    ImportanceTrim,
    ImportanceWeights,
    SlidingWindowTrim,
    TrimResult,
    TrimStrategy,
    replay,
    trim_to_marks,
)
from ollama_batch.types import Message
from trim_support import (
    COUNTER,
    PER_MESSAGE,
    PER_PROMPT,
    Lane,
    assistant,
    conversations,
    exchange,
    phrase,
    shares,
    system,
    user,
)

SLIDING, IMPORTANCE, HYBRID = SlidingWindowTrim(), ImportanceTrim(), HybridTrim()
AGGRESSIVE = AggressiveTrim(clip_tokens=32)
WHOLE: Sequence[TrimStrategy] = (SLIDING, IMPORTANCE, HYBRID)
ALL: Sequence[TrimStrategy] = (*WHOLE, AGGRESSIVE)

thousand = settings(
    max_examples=1000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
upcomings = st.sampled_from([None, None, user(phrase(7, 5)), user(phrase(11, 12))])


def tokens(messages: Sequence[Message], upcoming: Message | None = None) -> int:
    return COUNTER.count_messages([*messages, *([] if upcoming is None else [upcoming])])


def head_of(messages: Sequence[Message]) -> list[Message]:
    head: list[Message] = []
    for message in messages:
        if message["role"] not in ("system", "developer"):
            break
        head.append(message)
    return head


def call_ids(messages: Sequence[Message]) -> set[str]:
    return {call["id"] for message in messages for call in message.get("tool_calls") or ()}


def result_ids(messages: Sequence[Message]) -> set[str]:
    return {message["tool_call_id"] for message in messages if message["role"] == "tool"}


def units_of(messages: Sequence[Message]) -> list[list[Message]]:
    """The exchanges by definition: cut before a user message, but never between a call and its result."""
    head = len(head_of(messages))
    cuts = [
        at
        for at in range(head + 1, len(messages))
        if messages[at]["role"] == "user" and not call_ids(messages[:at]) & result_ids(messages[at:])
    ]
    edges = [head, *cuts, len(messages)]
    return [list(messages[start:stop]) for start, stop in itertools.pairwise(edges) if start < stop]


def least(messages: Sequence[Message], upcoming: Message | None) -> list[Message]:
    """What must stay: the head, and the last exchange where the request is in it."""
    return head_of(messages) + (units_of(messages)[-1] if upcoming is None else [])


def trimmed(
    strategy: TrimStrategy, messages: Sequence[Message], budget: int, upcoming: Message | None = None
) -> TrimResult | None:
    """The result; None where it was rightly refused."""
    smallest = tokens(least(messages, upcoming), upcoming)
    if smallest <= budget:
        return strategy.trim(messages, budget=budget, counter=COUNTER, upcoming=upcoming)
    with pytest.raises(ContextTooLargeError) as caught:
        strategy.trim(messages, budget=budget, counter=COUNTER, upcoming=upcoming)
    assert (caught.value.tokens, caught.value.limit) == (smallest, budget)
    return None


def budget_of(messages: Sequence[Message], share: float, upcoming: Message | None = None) -> int:
    """From just what must stay up to the whole conversation."""
    smallest = tokens(least(messages, upcoming), upcoming)
    return smallest + int(share * (tokens(messages, upcoming) - smallest))


def is_subsequence(some: Sequence[Any], of: Sequence[Any]) -> bool:
    rest = iter(of)
    return all(any(one is other for other in rest) for one in some)


@thousand
@given(conversations, shares, upcomings)
def test_01_the_prompt_fits_the_budget_or_is_refused(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    budget = int(share * tokens(messages, upcoming))
    for strategy in ALL:
        result = trimmed(strategy, messages, budget, upcoming)
        if result is None:
            continue
        assert tokens(result.messages, upcoming) <= budget
        assert result.tokens_after == tokens(result.messages) <= budget
        assert result.tokens_before == tokens(messages)
        assert result.tokens_after + result.upcoming_tokens == tokens(result.messages, upcoming)


@thousand
@given(conversations, shares, upcomings)
def test_02_the_head_is_the_beginning_of_the_result(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    head = head_of(messages)
    for strategy in ALL:
        result = trimmed(strategy, messages, budget_of(messages, share, upcoming), upcoming)
        assert result is not None
        assert json.dumps(result.messages[: len(head)]) == json.dumps(head)


@thousand
@given(conversations, shares, upcomings)
def test_03_the_last_exchange_is_kept_as_it_is(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    last = units_of(messages)[-1]
    smallest = tokens(head_of(messages) + last, upcoming)
    budget = smallest + int(share * (tokens(messages, upcoming) - smallest))
    for strategy in ALL:
        result = trimmed(strategy, messages, budget, upcoming)
        assert result is not None
        assert result.messages[-len(last) :] == last


@thousand
@given(conversations, shares, upcomings)
def test_04_exchanges_are_whole_and_begin_with_a_user_message(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    head, units = head_of(messages), units_of(messages)
    for strategy in WHOLE:
        result = trimmed(strategy, messages, budget_of(messages, share, upcoming), upcoming)
        assert result is not None
        assert [*head, *(message for at in result.kept_units for message in units[at])] == result.messages
        assert sorted((*result.kept_units, *result.dropped_units)) == list(range(len(units)))
        assert result_ids(result.messages) - {"nobody"} <= call_ids(result.messages)
        rest = result.messages[len(head) :]
        if result.changed and len(units) > 1 and rest:
            assert rest[0]["role"] == "user"


@thousand
@given(conversations, shares, upcomings)
def test_05_the_result_is_a_part_of_the_input_in_its_order(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    budget = budget_of(messages, share, upcoming)
    for strategy in WHOLE:
        result = trimmed(strategy, messages, budget, upcoming)
        assert result is not None
        assert is_subsequence(result.messages, messages)
    result = trimmed(AGGRESSIVE, messages, budget, upcoming)
    assert result is not None
    clipped = {clip.index for clip in result.clipped}
    assert all(
        any(message is other for other in messages) or message["content"].count("characters left out") == 1
        for message in result.messages
    )
    assert sum(all(message is not other for other in messages) for message in result.messages) == len(clipped)


@thousand
@given(conversations, shares, upcomings)
def test_06_the_input_is_not_modified(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    before = copy.deepcopy(messages)
    for strategy in ALL:
        trimmed(strategy, messages, budget_of(messages, share, upcoming), upcoming)
        assert messages == before


@thousand
@given(conversations, shares, upcomings)
def test_07_trimming_twice_is_trimming_once(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    budget = budget_of(messages, share, upcoming)
    for strategy in ALL:
        once = trimmed(strategy, messages, budget, upcoming)
        assert once is not None
        twice = trimmed(strategy, once.messages, budget, upcoming)
        assert twice is not None
        assert twice.messages == once.messages
        assert not twice.changed


@thousand
@given(conversations, shares, upcomings)
def test_08_the_same_input_has_the_same_result(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    budget = budget_of(messages, share, upcoming)
    again = copy.deepcopy(messages)
    for strategy in ALL:
        assert trimmed(strategy, messages, budget, upcoming) == trimmed(strategy, again, budget, upcoming)


_IN_ANOTHER_PROCESS = """
import json, random
from trim_support import COUNTER, exchange, phrase, system, user
from ollama_batch.trim import *
from ollama_batch.trim.scoring import Corpus
random.seed(5)
found = []
for _ in range(60):
    messages = [system("judge")]
    for at in range(30):
        messages += exchange(random.randrange(960), name=str(at))
    for strategy in (SlidingWindowTrim(), ImportanceTrim(), HybridTrim(), AggressiveTrim(clip_tokens=32)):
        result = strategy.trim(
            messages, budget=400, counter=COUNTER, upcoming=user(phrase(9, 200))
        )
        found.append(result.to_decision())
# The sums themselves, to the last bit: more words in common than are looked at.
texts = [(" ".join(f"word{random.randrange(300)}" for _ in range(90)),) for _ in range(40)]
corpus = Corpus(texts)
found.append(corpus.relevance((" ".join(f"word{at}" for at in range(200)),)))
found.append([corpus.likeness(at) for at in range(40)])
print(json.dumps(found))
"""


def test_08_the_result_does_not_depend_on_the_hash_seed() -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())) == 242


@thousand
@given(conversations, st.integers(0, 50), upcomings)
def test_09_what_fits_is_left_alone(messages: list[Message], spare: int, upcoming: Message | None) -> None:
    whole = tokens(messages, upcoming)
    for strategy in ALL:
        results = [
            strategy.trim(messages, budget=whole + spare, counter=COUNTER, upcoming=upcoming),
            trim_to_marks(
                strategy,
                messages,
                high=whole + spare,
                low=whole // 2,
                limit=whole + spare,
                counter=COUNTER,
                upcoming=upcoming,
            ),
        ]
        for result in results:
            assert result.messages == messages
            assert not result.changed
            assert result.reused_prefix_tokens == result.tokens_before == result.tokens_after
            assert result.dropped_units == ()


@thousand
@given(conversations, shares, shares, upcomings)
def test_10_a_window_of_a_larger_budget_keeps_no_less(
    messages: list[Message], one: float, other: float, upcoming: Message | None
) -> None:
    for strategy in (SLIDING, SlidingWindowTrim(pinned=lambda message: "rare1" in str(message["content"]))):
        smaller = trimmed(strategy, messages, budget_of(messages, min(one, other), upcoming), upcoming)
        larger = trimmed(strategy, messages, budget_of(messages, max(one, other), upcoming), upcoming)
        assert smaller is not None
        assert larger is not None
        assert set(smaller.kept_units) <= set(larger.kept_units)


@thousand
@given(conversations, shares, upcomings, st.integers(0, 1023))
def test_11_pinned_exchanges_survive_unless_only_pinned_ones_are_left(
    messages: list[Message], share: float, upcoming: Message | None, bits: int
) -> None:
    units = units_of(messages)
    pinned = {at for at in range(len(units)) if bits >> at & 1}
    marked = list(head_of(messages))
    for at, unit in enumerate(units):
        marked += [{**message, "keep": True} if at in pinned else message for message in unit[:1]] + unit[1:]
    assert len(marked) == len(messages)
    held = pinned | (set() if upcoming is not None else {len(units) - 1})
    budget = budget_of(messages, share, upcoming)
    for strategy in (
        SlidingWindowTrim(pinned="keep"),
        ImportanceTrim(pinned=lambda message: "keep" in message),
        HybridTrim(pinned="keep"),
        AggressiveTrim(pinned="keep", clip_tokens=32),
    ):
        result = trimmed(strategy, marked, budget, upcoming)
        assert result is not None
        if pinned & set(result.dropped_units):
            assert set(result.kept_units) <= held


def same_size(codes: Sequence[int]) -> list[Message]:
    """Exchanges of 12 words each."""
    messages: list[Message] = [system("judge")]
    for code in codes:
        messages += [user(phrase(code, 8)), assistant(phrase(code + 1, 4))]
    return messages


@thousand
@given(conversations, shares, upcomings, st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_12_hybrid_and_importance_meet_the_window_and_each_other_at_their_ends(
    messages: list[Message], share: float, upcoming: Message | None, codes: list[int]
) -> None:
    budget = budget_of(messages, share, upcoming)
    expected = trimmed(SLIDING, messages, budget, upcoming)
    found = trimmed(HybridTrim(recent_share=1), messages, budget, upcoming)
    assert found is not None
    assert expected is not None
    assert found.messages == expected.messages
    expected = trimmed(IMPORTANCE, messages, budget, upcoming)
    found = trimmed(HybridTrim(recent_share=0), messages, budget, upcoming)
    assert found is not None
    assert expected is not None
    assert found.messages == expected.messages
    equal = same_size(codes)
    budget = budget_of(equal, share, upcoming)
    weights = ImportanceWeights(recency=1, relevance=0, novelty=0, balance=0, size=0)
    expected = trimmed(SLIDING, equal, budget, upcoming)
    found = trimmed(ImportanceTrim(weights=weights), equal, budget, upcoming)
    assert found is not None
    assert expected is not None
    assert found.messages == expected.messages


@thousand
@given(st.integers(0, 9), st.lists(st.integers(0, 400), min_size=11, max_size=11), st.booleans())
def test_13_an_old_exchange_with_the_rare_words_of_the_request_outlives_the_window(
    place: int, codes: list[int], ahead: bool
) -> None:
    messages = same_size(codes)
    messages[1 + 2 * place] = user("zirconium quokka " + phrase(codes[place], 6))
    request = user("once more about zirconium and quokka")
    upcoming = request if ahead else None
    if not ahead:
        messages.append(request)
    # Room for head, request and four exchanges of 12 words.
    budget = PER_PROMPT + (PER_MESSAGE + 1) + (PER_MESSAGE + 6) + 4 * (2 * PER_MESSAGE + 12)
    kept = {strategy: trimmed(strategy, messages, budget, upcoming) for strategy in WHOLE}
    sliding = kept[SLIDING]
    assert sliding is not None
    assert (place in sliding.kept_units) == (place >= 7)
    for strategy in (IMPORTANCE, HYBRID):
        result = kept[strategy]
        assert result is not None
        assert place in result.kept_units


@thousand
@given(st.integers(0, 500), st.integers(1, 30), shares, st.booleans())
def test_13_of_ten_identical_exchanges_one_is_kept(code: int, length: int, share: float, ahead: bool) -> None:
    twin = [user(phrase(code, length)), assistant(phrase(code + 1, 3))]
    messages = [system("judge"), *twin * 10, user("what now"), assistant("that")]
    budget = tokens(messages[:1] + messages[-4:]) + int(
        share * (tokens(messages) - 1 - tokens(messages[-5:]))
    )
    upcoming = None
    if ahead:
        upcoming = user("and then")
        budget += PER_MESSAGE + 2
    assume(budget < tokens(messages, upcoming))
    for strategy in (IMPORTANCE, AggressiveTrim(share=1)):
        result = trimmed(strategy, messages, budget, upcoming)
        assert result is not None
        assert result.kept_units == (9, 10)


@thousand
@given(conversations, shares, upcomings)
def test_14_aggressive_reaches_a_quarter_wherever_head_and_last_exchange_allow_it(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    whole = tokens(messages, upcoming)
    needed = tokens(head_of(messages) + units_of(messages)[-1], upcoming)
    for strategy, budget, limit in (
        (AGGRESSIVE, int(share * whole), int(share * whole)),
        (AggressiveTrim(clip_tokens=32, limit=whole), int(share * whole), whole),
    ):
        target = min(budget, math.floor(0.25 * limit))
        assume(whole > budget)
        result = trimmed(strategy, messages, budget, upcoming)
        if needed <= target:
            assert result is not None
            assert tokens(result.messages, upcoming) <= target


@thousand
@given(
    st.sampled_from(ALL),
    st.integers(2, 20),
    st.integers(150, 300),
    st.integers(20, 80),
    st.integers(10, 30),
)
def test_15_marks_far_apart_make_trims_rare(
    strategy: TrimStrategy, size: int, high: int, gap: int, turns: int
) -> None:
    lane = Lane(strategy, high=high, low=high - gap, limit=high, messages=[system("judge")])
    for turn in range(turns):
        lane.ask(user(phrase(turn, size)), assistant(phrase(turn + 1, size)))
    e = 2 * (PER_MESSAGE + size)
    assert len(lane.trims) <= math.ceil(turns * e / gap) + 1
    assert len(lane.prompts) == turns


@thousand
@given(st.sampled_from(ALL), st.lists(st.integers(0, 959), min_size=1, max_size=25), st.integers(200, 400))
def test_16_between_trims_a_conversation_only_grows(
    strategy: TrimStrategy, codes: list[int], high: int
) -> None:
    lane = Lane(strategy, high=high, low=high // 2, limit=high, messages=[system("judge")])
    trims = 0
    for code in codes:
        first, *_, last = exchange(code)
        lane.ask(first, last)
        previous, prompt = lane.prompts[-2:] if len(lane.prompts) > 1 else ([], lane.prompts[-1])
        assert tokens(prompt) <= high
        if len(lane.trims) == trims:
            assert prompt[: len(previous)] == previous
        else:
            trims += 1
            cut = lane.trims[-1]
            at = cut.first_changed_index
            assert at is not None
            assert prompt[:at] == previous[:at]
            assert cut.reused_prefix_tokens == sum(COUNTER.count_message(message) for message in prompt[:at])


@thousand
@given(conversations, shares, upcomings)
def test_a_decision_replayed_gives_the_same_messages(
    messages: list[Message], share: float, upcoming: Message | None
) -> None:
    for strategy in ALL:
        result = trimmed(strategy, messages, budget_of(messages, share, upcoming), upcoming)
        assert result is not None
        decision = json.loads(json.dumps(result.to_decision()))
        assert replay(messages, decision) == result.messages
        with pytest.raises(ValueError, match="does not go with"):
            replay(messages[1:], decision)
