"""Strategies one by one: figures that can be added up by hand, options, odd conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ollama_batch.errors import ConfigError, ContextTooLargeError
from ollama_batch.trim import (
    AggressiveTrim,
    HybridTrim,
    ImportanceTrim,
    ImportanceWeights,
    SlidingWindowTrim,
    TrimStrategy,
    replay,
    trim_to_marks,
)
from ollama_batch.trim.scoring import Corpus, texts_of, words_of
from ollama_batch.types import Message
from trim_support import COUNTER, WordCounter, assistant, calling, system, tool, user

ALL: Sequence[TrimStrategy] = (SlidingWindowTrim(), ImportanceTrim(), HybridTrim(), AggressiveTrim())
every = pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: type(strategy).__name__)

# A head of 1 word (5 tokens), and exchanges of 4 words (12 tokens); 3 tokens for the prompt.
HEAD = system("judge")


def pairs(*names: str) -> list[Message]:
    return [message for name in names for message in (user(f"{name} {name}"), assistant(f"{name}1 {name}2"))]


LONG = [HEAD, *pairs("ant", "bee", "cat", "dog")]  # 8 + 4 * 12 = 56 tokens


@every
def test_a_strategy_is_what_the_protocol_asks_for(strategy: TrimStrategy) -> None:
    assert isinstance(strategy, TrimStrategy)


def test_the_figures_of_a_window() -> None:
    result = SlidingWindowTrim().trim(LONG, budget=32, counter=COUNTER)
    assert result.messages == [HEAD, *pairs("cat", "dog")]
    assert result.to_dict() == {
        "strategy": "sliding_window",
        "tokens_before": 56,
        "tokens_after": 32,
        "tokens_saved": 24,
        "kept": 2,
        "dropped": 2,
        "clipped": 0,
        "first_changed_index": 1,
        "reused_prefix_tokens": 5,
        "cache_loss_tokens": 27,
    }
    assert (result.kept_units, result.dropped_units) == ((2, 3), (0, 1))
    assert result.kept_ranges == ((0, 1), (5, 9))


def test_one_token_less_drops_a_whole_exchange_more() -> None:
    assert SlidingWindowTrim().trim(LONG, budget=31, counter=COUNTER).messages == [HEAD, *pairs("dog")]


@every
def test_the_budget_includes_the_upcoming_request(strategy: TrimStrategy) -> None:
    """8 for head and prompt, 7 for the request, so 27 leave room for one exchange of 12, and 26 for none."""
    upcoming = user("what now then")
    result = strategy.trim(LONG, budget=27, counter=COUNTER, upcoming=upcoming)
    assert result.messages == [HEAD, *pairs("dog")]
    assert result.upcoming_tokens == 7
    assert (result.tokens_before, result.tokens_after) == (56, 20)
    assert strategy.trim(LONG, budget=26, counter=COUNTER, upcoming=upcoming).messages == [HEAD]
    with pytest.raises(ContextTooLargeError) as caught:
        strategy.trim(LONG, budget=14, counter=COUNTER, upcoming=upcoming)
    assert (caught.value.tokens, caught.value.limit) == (15, 14)


@every
def test_an_upcoming_tool_result_keeps_the_exchange_of_its_call(strategy: TrimStrategy) -> None:
    messages = [HEAD, *pairs("ant"), user("look"), calling("a")]
    upcoming = tool("a", "found")
    needed = COUNTER.count_messages([HEAD, *messages[-2:], upcoming])
    result = strategy.trim(messages, budget=needed, counter=COUNTER, upcoming=upcoming)
    assert result.messages == [HEAD, *messages[-2:]]
    with pytest.raises(ContextTooLargeError):
        strategy.trim(messages, budget=needed - 1, counter=COUNTER, upcoming=upcoming)


@every
@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        pytest.param([HEAD], [HEAD], id="only a head"),
        pytest.param([], [], id="nothing"),
        pytest.param([assistant("a b c")], [assistant("a b c")], id="no user"),
        pytest.param(
            [HEAD, assistant("hello there you"), *pairs("ant")], [HEAD, *pairs("ant")], id="assistant first"
        ),
        pytest.param([tool("z", "x y z w"), *pairs("ant")], pairs("ant"), id="orphan first"),
        pytest.param(
            [HEAD, *pairs("ant"), system("in French"), *pairs("bee")],
            [HEAD, *pairs("bee")],
            id="system message in the middle",
        ),
    ],
)
def test_odd_conversations_go_down_to_head_and_last_exchange(
    strategy: TrimStrategy, messages: list[Message], kept: list[Message]
) -> None:
    budget = COUNTER.count_messages(kept)
    assert strategy.trim(messages, budget=budget, counter=COUNTER).messages == kept
    with pytest.raises(ContextTooLargeError):
        strategy.trim(messages, budget=budget - 1, counter=COUNTER)


@every
@pytest.mark.parametrize("budget", [True, 30.0, "30", None])
def test_a_budget_is_a_whole_number(strategy: TrimStrategy, budget: Any) -> None:
    with pytest.raises(ConfigError, match="budget="):
        strategy.trim(LONG, budget=budget, counter=COUNTER)


class StickyCounter(WordCounter):
    """A prompt costs one token per pair of messages more than its messages alone."""

    def count_messages(self, messages: Sequence[Message]) -> int:
        return super().count_messages(messages) + len(messages) ** 2 // 2


@every
def test_the_prompt_fits_even_if_counts_do_not_add_up(strategy: TrimStrategy) -> None:
    counter = StickyCounter()
    whole = counter.count_messages(LONG)
    smallest = counter.count_messages([HEAD, *LONG[-2:]])
    for budget in range(smallest, whole):
        result = strategy.trim(LONG, budget=budget, counter=counter)
        assert counter.count_messages(result.messages) == result.tokens_after <= budget
    with pytest.raises(ContextTooLargeError):
        strategy.trim(LONG, budget=smallest - 1, counter=counter)


def test_parts_and_pictures_are_told_apart() -> None:
    def picture(data: str) -> list[Message]:
        parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": data}}]
        return [{"role": "user", "content": parts}]

    one, other = texts_of(picture("data:1")), texts_of(picture("data:2"))
    assert one[0] == other[0] == "what is it"
    assert one != other
    likeness = Corpus([one, other, one]).likeness(0)
    assert likeness[2] == pytest.approx(1)
    assert likeness[1] < 0.95


def test_half_a_surrogate_pair_and_unspaced_scripts_have_words() -> None:
    def words(*texts: str) -> list[str]:
        return sorted(word.decode() for word in words_of(texts))

    assert words("x \ud800 y") == ["x", "y"]
    assert words("\ud800") == ["?"]
    assert words("\u6771\u4eac ok") == ["ok", "\u4eac", "\u6771"]
    assert words("Na\u00efve CAFE, it's", "\u201cQUOTED_42\u201d\u2014\u00c9t\u00e9") == [
        *("42", "cafe", "it", "na\u00efve", "quoted", "s", "\u00e9t\u00e9")
    ]
    assert words("...", "!") == ["... !"]


def test_words_are_those_of_python_in_any_script() -> None:
    """The oracle: a text is lower-cased as a whole, and a word is a run of what `isalnum` says yes to."""
    texts = [
        "Plain words, 3 of them; x_y.",
        "\u017dlu\u0165ou\u010dk\u00fd K\u016f\u0147 \u2014 \u00bb\u00c7a va\u00ab",
        "\u041f\u0440\u0438\u0432\u0435\u0442,\u043c\u0438\u0440!\u212a\u00df \u0661\u0662 \ufb01n",
    ]
    for text in texts:
        blanked = "".join(char if char.isalnum() else " " for char in text.lower())
        assert sorted(word.decode() for word in words_of([text])) == sorted(blanked.split())


def test_a_likeness_is_never_above_1_and_is_1_for_equal_texts() -> None:
    for size in range(1, 200):
        texts = [(" ".join(f"w{at * 7 % size}" for at in range(size)),)] * 2 + [(f"w{size // 2} other",)] * 3
        found = Corpus(texts).likeness(0)
        assert found[0] == found[1] == pytest.approx(1)
        assert max(found.values()) <= 1


def test_a_long_text_with_one_word_changed_is_like_itself() -> None:
    """By a sample of its words, as 600 are more than are looked at; and unlike one of other words."""
    words = [f"word{at}" for at in range(600)]
    others = [f"other{at}" for at in range(600)]
    changed = [*words[:300], "changed", *words[301:]]
    found = Corpus([(" ".join(each),) for each in (words, changed, others, others)]).likeness(0)
    assert found[1] > 0.9
    assert found.get(2, 0.0) == 0


def test_relevance_is_that_of_bm25() -> None:
    """Worked by hand: three texts of two words, "b" in two of them, "c" in one."""
    found = Corpus([("a b",), ("b c",), ("a a",)]).relevance(("b c",))
    # Equal lengths: the damping is k1, so each word met counts its idf times 2.2 / 2.2.
    b, c = 0.4700036, 0.9808293
    assert found == pytest.approx([b / (b + c), 1, 0])


def test_a_request_is_not_compared_with_itself() -> None:
    found = Corpus([("red fox",), ("red ox",), ("the red fox runs",)]).relevance(("the red fox runs",), own=2)
    assert found[0] == 1
    assert found[2] == 0


def test_labels_keep_the_classes_balanced() -> None:
    """Room for two of four old exchanges: without labels the two newest, with them one of each."""
    names = ["yes", "no", "no", "no"]
    messages = [HEAD]
    for at, name in enumerate(names):
        messages += [user(f"case{at} what"), assistant(f"{name} because{at}")]
    messages += pairs("last")
    weights = ImportanceWeights(recency=0.1, relevance=0, novelty=0, balance=0.9, size=0)

    def label(answer: str) -> str:
        return answer.split()[0]

    budget = 8 + 3 * 12
    plain = ImportanceTrim(weights=weights).trim(messages, budget=budget, counter=COUNTER)
    assert plain.kept_units == (2, 3, 4)
    balanced = ImportanceTrim(weights=weights, label=label).trim(messages, budget=budget, counter=COUNTER)
    assert balanced.kept_units == (0, 3, 4)


def test_keep_last_comes_before_any_score() -> None:
    messages = [HEAD, *pairs("ant", "bee", "cat", "dog"), user("ant bee")]
    budget = 8 + 2 * 12 + 6
    assert 3 not in ImportanceTrim().trim(messages, budget=budget, counter=COUNTER).kept_units
    assert 3 in ImportanceTrim(keep_last=2).trim(messages, budget=budget, counter=COUNTER).kept_units


def test_hybrid_keeps_recent_exchanges_and_an_old_one_that_is_asked_for() -> None:
    messages = [HEAD, *pairs("ant", "bee", "cat", "dog", "elk", "fox")]
    budget = 8 + 3 * 12 + 6
    upcoming = user("ant1 ant2")
    window = SlidingWindowTrim().trim(messages, budget=budget, counter=COUNTER, upcoming=upcoming)
    assert window.kept_units == (3, 4, 5)
    result = HybridTrim(recent_share=0.7).trim(messages, budget=budget, counter=COUNTER, upcoming=upcoming)
    assert result.kept_units == (0, 4, 5)


def long_body(words: int) -> str:
    return " ".join(f"w{at}" for at in range(words))


def test_aggressive_drops_twins_first_and_clips_nothing_then() -> None:
    messages = [HEAD, *pairs("ant", "ant", "ant", "ant", "bee"), user("now")]
    # 8 for head and prompt, 12 for each of two exchanges, 5 for the request: 37 of 0.52 * 72.
    result = AggressiveTrim(share=0.52).trim(messages, budget=72, counter=COUNTER)
    assert result.kept_units == (3, 4, 5)
    assert result.clipped == ()


def test_aggressive_clips_the_middle_of_long_bodies_but_neither_head_nor_request() -> None:
    head, request = system(long_body(100)), user(long_body(90))
    old = [user("short one"), assistant(long_body(200))]
    messages = [head, *old, request]
    whole = COUNTER.count_messages(messages)
    result = AggressiveTrim(share=0.9, clip_tokens=40).trim(messages, budget=whole - 1, counter=COUNTER)
    assert result.messages[0] is head
    assert result.messages[-1] is request
    assert result.dropped_units == ()
    [clip] = result.clipped
    assert (clip.index, result.first_changed_index) == (2, 2)
    text = result.messages[2]["content"]
    assert text.startswith("w0 w1 ")
    assert text.endswith(" w199")
    assert clip.marker in text
    assert f"[... {clip.stop - clip.start} characters left out ...]" in clip.marker
    assert COUNTER.count_text(text) <= 40
    assert len(text) == len(long_body(200)) - (clip.stop - clip.start) + len(clip.marker)
    assert old[1]["content"] == long_body(200)
    assert replay(messages, json.loads(json.dumps(result.to_decision()))) == result.messages


def test_aggressive_keeps_pinned_exchanges_while_they_fit_the_budget() -> None:
    messages = [HEAD, *pairs("ant", "bee", "cat"), user("now")]
    pinned = AggressiveTrim(share=0.1, pinned=lambda message: message["content"].startswith("ant"))
    result = pinned.trim(messages, budget=40, counter=COUNTER)
    assert result.kept_units == (0, 3)
    assert AggressiveTrim(share=0.1).trim(messages, budget=40, counter=COUNTER).kept_units == (3,)


def test_marks_fall_back_to_what_must_stay_and_refuse_beyond_the_limit() -> None:
    def at_marks(limit: int) -> Any:
        return trim_to_marks(
            SlidingWindowTrim(),
            LONG,
            high=12,
            low=10,
            limit=limit,
            counter=COUNTER,
            upcoming=user("a b c d e f"),
        )

    assert at_marks(18).messages == [HEAD]
    with pytest.raises(ContextTooLargeError) as caught:
        at_marks(17)
    assert (caught.value.tokens, caught.value.limit) == (18, 17)
    with pytest.raises(ConfigError, match="low <= high <= limit"):
        at_marks(11)


def test_marks_are_tokens_and_say_so_to_who_gives_a_share() -> None:
    marks: dict[str, Any] = {"high": 30, "low": 20, "limit": 40}
    for name, share in (("high", 0.8), ("low", 0.5), ("limit", True)):
        with pytest.raises(ConfigError, match=rf"^{name}={share}: must be a whole number of tokens; a share"):
            trim_to_marks(SlidingWindowTrim(), LONG, counter=COUNTER, **{**marks, name: share})


@every
@pytest.mark.parametrize("upcoming", ["text", ["text"], b"text"], ids=["str", "list", "bytes"])
def test_what_comes_next_is_a_message_and_not_its_text(strategy: TrimStrategy, upcoming: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"upcoming is a {type(upcoming).__name__}: wanted a message, as in"
    ):
        strategy.trim(LONG, budget=100, counter=COUNTER, upcoming=upcoming)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SlidingWindowTrim(pinned=3), "pinned=3"),
        (lambda: SlidingWindowTrim(pinned=""), "pinned=''"),
        (lambda: ImportanceWeights(recency=-0.1), r"weights\.recency=-0\.1"),
        (lambda: ImportanceWeights(novelty=float("nan")), r"weights\.novelty=nan"),
        (lambda: ImportanceWeights(size=True), r"weights\.size=True"),
        (
            lambda: ImportanceWeights(recency=0, relevance=0, novelty=0, balance=0, size=0),
            "at least one must be above 0",
        ),
        (lambda: ImportanceTrim(weights={"recency": 1}), "weights="),
        (lambda: ImportanceTrim(half_life=0), "half_life=0"),
        (lambda: ImportanceTrim(keep_last=0), "keep_last=0"),
        (lambda: ImportanceTrim(duplicate_above=1.5), r"duplicate_above=1\.5"),
        (lambda: ImportanceTrim(label="score"), "label='score'"),
        (lambda: HybridTrim(recent_share=1.01), r"recent_share=1\.01"),
        (lambda: HybridTrim(importance=SlidingWindowTrim()), "importance="),
        (lambda: HybridTrim(importance=ImportanceTrim(pinned="keep")), r"importance\.pinned"),
        (lambda: AggressiveTrim(share=0), "share=0"),
        (lambda: AggressiveTrim(limit=0), "limit=0"),
        (lambda: AggressiveTrim(clip_tokens=31), "clip_tokens=31"),
        (lambda: AggressiveTrim(importance=None), "importance=None"),
    ],
)
def test_a_wrong_option_is_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def test_options_are_given_by_name_and_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        HybridTrim(0.5)  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        HybridTrim().recent_share = 0.5  # type: ignore[misc]  # that is the point
