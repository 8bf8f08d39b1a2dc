"""Calibration against engines whose true count is known by construction."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_batch.tokens import CalibratedCounter, EstimateCounter, TokenCounter
from ollama_batch.tokens._regression import Line
from ollama_batch.tokens._texts import texts_of
from ollama_batch.types import Message
from tokens_support import WordCounter, prompt

RATIOS = st.floats(0.25, 9.5)
OVERHEADS = st.floats(1.0, 12.0)
FIXED = st.floats(0.0, 40.0)
SEEDS = st.integers(0, 2**32)
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]


class SizedCounter(WordCounter):
    """A text is its own number of tokens, so that a prompt of thousands of tokens costs nothing."""

    def _tokenize(self, text: str) -> int:
        return 40 if text.startswith("[") else int(text.rpartition(" ")[2], 36)


def sized(
    rng: random.Random, messages: int | None = None, most: int = 4000, letters: str = "x"
) -> list[Message]:
    """A prompt of 1 to 8 messages with 30 to `most` tokens."""
    count = rng.randint(1, 8) if messages is None else messages
    size = rng.randint(30, most) // count
    # The size as a number of base 36, after letters enough for the text to be no number.
    return [{"role": "user", "content": f"{letters * 20} {_base36(size + at)}"} for at in range(count)]


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, rest = divmod(number, 36)
        text = digits[rest] + text
    return text or "0"


def engine(ratio: float, per_message: float, fixed: float) -> Callable[[Sequence[Message]], int]:
    """How an engine with this tokenizer and template counts."""
    base = SizedCounter()

    def count(messages: Sequence[Message]) -> int:
        x = sum(base.count_text(text) for message in messages for text in texts_of(message))
        return max(1, round(ratio * x + per_message * len(messages) + fixed))

    return count


def taught(
    truth: Callable[[Sequence[Message]], int], rng: random.Random, rows: int = 200, noise: float = 0.0
) -> CalibratedCounter:
    """A counter after `rows` observations."""
    counter = CalibratedCounter(SizedCounter(), model_digest="d")
    for _ in range(rows):
        messages = sized(rng)
        counter.observe(messages, max(1, round(truth(messages) * rng.lognormvariate(0, noise))))
    return counter


@settings(max_examples=50, deadline=None)
@given(RATIOS, OVERHEADS, FIXED, SEEDS)
def test_it_converges_to_the_true_ratio_and_overhead_within_200_prompts(
    ratio: float, per_message: float, fixed: float, seed: int
) -> None:
    rng = random.Random(seed)
    truth = engine(ratio, per_message, fixed)
    counter = taught(truth, rng)
    assert counter.line().ratio == pytest.approx(ratio, rel=0.02)
    # Engines report whole tokens: that alone hides a few hundredths of a token per message.
    assert counter.line().per_message == pytest.approx(per_message, rel=0.02, abs=0.25)
    for _ in range(10):
        messages = sized(rng)
        assert counter.estimate(messages).tokens == pytest.approx(truth(messages), rel=0.02, abs=2)


@settings(max_examples=50, deadline=None)
@given(RATIOS, OVERHEADS, FIXED, SEEDS, st.integers(0, 120), st.floats(0, 0.1))
def test_the_bounds_enclose_the_estimate(
    ratio: float, per_message: float, fixed: float, seed: int, rows: int, noise: float
) -> None:
    rng = random.Random(seed)
    counter = taught(engine(ratio, per_message, fixed), rng, rows, noise)
    for letters in ("x", "7", "中", "ж"):
        messages = sized(rng, letters=letters)
        for tools in (None, TOOLS):
            lower = counter.lower_bound(messages, tools=tools).tokens
            estimate = counter.estimate(messages, tools=tools).tokens
            assert lower <= estimate <= counter.upper_bound(messages, tools=tools).tokens


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.001, 0.04))
def test_the_upper_bound_holds_for_prompts_to_come(seed: int, noise: float) -> None:
    """At most one of 200 later prompts is above it, where 99.5 % coverage would allow for one."""
    rng = random.Random(seed)
    truth = engine(1.2, 5, 3)
    counter = taught(truth, rng, 300, noise)
    above = 0
    for _ in range(200):
        messages = sized(rng)
        above += truth(messages) * rng.lognormvariate(0, noise) > counter.upper_bound(messages).tokens
    assert above <= 1


def test_no_prompt_that_fits_by_its_bound_overflows_in_5000_that_crowd_the_limit() -> None:
    rng = random.Random(12)
    truth = engine(1.2, 5, 3)
    counter = taught(truth, rng, 60, 0.01)
    limit, sent, overflows_by_estimate = 3000, 0, 0
    for _ in range(5000):
        share = rng.gauss(0.97, 0.03)
        messages = [{"role": "user", "content": f"x {_base36(round(limit * share / 1.2))}"}]
        tokens = round(truth(messages) * rng.lognormvariate(0, 0.01))
        overflows_by_estimate += counter.estimate(messages).tokens <= limit < tokens
        if counter.upper_bound(messages).tokens <= limit:
            assert tokens <= limit
            counter.observe(messages, tokens)
            sent += 1
    assert sent > 1000  # the bound lets pass what is 5 % below the limit
    assert overflows_by_estimate > 100  # what the bound is for


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(30, 300), st.floats(0.01, 100))
def test_one_outlier_moves_the_estimate_by_less_than_2_percent(seed: int, rows: int, factor: float) -> None:
    rng = random.Random(seed)
    truth = engine(1.3, 4, 3)
    counter = taught(truth, rng, rows, 0.01)
    messages = sized(rng, messages=2)
    before = counter.estimate(messages).tokens
    outlier = sized(rng)
    counter.observe(outlier, max(1, round(truth(outlier) * factor)))
    assert counter.estimate(messages).tokens == pytest.approx(before, rel=0.02, abs=1)


def test_a_lasting_change_is_followed() -> None:
    """A changed template or tokenizer is no outlier: after some hundred prompts it is what is believed."""
    rng = random.Random(7)
    counter = taught(engine(1.1, 4, 3), rng, 400, 0.01)
    changed = engine(1.6, 4, 3)
    for _ in range(600):
        messages = sized(rng)
        counter.observe(messages, changed(messages))
    assert counter.line().ratio == pytest.approx(1.6, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(RATIOS, SEEDS)
def test_truncated_prompts_do_not_lower_the_ratio(ratio: float, seed: int) -> None:
    rng = random.Random(seed)
    truth = engine(ratio, 4, 3)
    counter = taught(truth, rng, 100, 0.005)
    before = counter.line().ratio
    for _ in range(50):
        messages = sized(rng, messages=2)
        full = truth(messages)
        assert counter.observe(messages, full, num_ctx=full) == "at_limit"
        assert counter.observe(messages, round(0.99 * full), num_ctx=full) == "at_limit"
        assert counter.observe(messages, max(1, full // 2)) == "truncated"
    assert counter.line().ratio == before


@pytest.mark.parametrize("reported", [None, 0, -1])
def test_what_an_engine_does_not_report_teaches_nothing(reported: int | None) -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    assert counter.observe(prompt(100), reported) == "not_reported"
    assert counter.observed() == 0


def test_before_30_prompts_the_bound_is_a_quarter_above_and_room_for_a_template() -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    plain, digits, wide = prompt(1000), prompt(1000, word="12345"), prompt(1000, word="中文")
    estimate = 1.1 * 1000 + 4 + 3
    assert counter.estimate(plain).tokens == round(estimate)
    assert counter.upper_bound(plain).tokens == pytest.approx(1.25 * estimate + 64, abs=1)
    assert counter.upper_bound(digits).tokens == pytest.approx(2 * estimate + 64, abs=1)
    assert counter.upper_bound(wide).tokens == pytest.approx(2 * estimate + 64, abs=1)
    assert counter.lower_bound(plain).tokens == 550


def test_the_source_changes_at_the_30th_prompt() -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    sources = []
    for size in range(30):
        sources.append(counter.estimate(prompt(50)).source)
        counter.observe(prompt(100 + size), 120 + size)
    assert set(sources) == {"words"}
    assert counter.estimate(prompt(50)).source == counter.source == "calibrated"
    assert counter.upper_bound(prompt(50, word="123456")).source == "words"  # no digits seen yet


def test_kinds_of_prompts_are_learned_apart() -> None:
    rng = random.Random(1)
    counter = taught(engine(1.2, 4, 3), rng, 60, 0.01)
    before = counter.line()
    seven = engine(3.0, 4, 3)
    for _ in range(40):
        messages = sized(rng, letters="7")
        counter.observe(messages, seven(messages))
    assert counter.line() == before
    assert counter.line("digits").ratio == pytest.approx(3.0, rel=0.02)
    assert (counter.observed("text"), counter.observed("digits")) == (60, 40)


def test_an_unseen_kind_starts_from_what_plain_text_taught() -> None:
    counter = taught(engine(6.0, 2, 3), random.Random(2), 100)
    messages = sized(random.Random(3), letters="7")
    assert counter.estimate(messages).tokens == pytest.approx(engine(6.0, 2, 3)(messages), rel=0.02)
    assert counter.upper_bound(messages).tokens >= 2 * counter.estimate(messages).tokens - 1


def test_images_and_tools_have_kinds_of_their_own_and_images_a_learned_price() -> None:
    rng = random.Random(4)
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    for _ in range(200):
        words, pictures = rng.randint(50, 500), rng.randint(1, 4)
        text = {"type": "text", "text": " ".join(["word"] * words)}
        messages = [{"role": "user", "content": [text, *[PICTURE] * pictures]}]
        counter.observe(messages, round(1.2 * words + 7 + 256 * pictures))
        counter.observe(prompt(words), round(1.2 * words + 150), tools=TOOLS)
    assert counter.observed("images") == counter.observed("tools") == 200
    assert counter.observed("text") == 0
    assert counter.line("images").per_image == pytest.approx(256, rel=0.02)
    assert counter.estimate(prompt(300), tools=TOOLS).tokens == pytest.approx(1.2 * 300 + 150, rel=0.02)


def test_an_overflow_raises_the_bound_by_a_tenth_for_500_prompts() -> None:
    rng = random.Random(5)
    truth = engine(1.2, 4, 3)
    counter = taught(truth, rng, 100)
    messages = sized(rng, messages=3, most=4000)
    before = counter.upper_bound(messages).tokens
    counter.overflowed(messages)
    assert counter.upper_bound(messages).tokens == pytest.approx(1.1 * before, rel=0.001, abs=1)
    for _ in range(20):
        counter.overflowed(messages)
    assert counter.upper_bound(messages).tokens == pytest.approx(1.1**5 * before, rel=0.001, abs=1)
    for _ in range(5 * 500 + 20):
        row = sized(rng)
        counter.observe(row, truth(row))
    assert counter.upper_bound(messages).tokens == pytest.approx(before, rel=0.005, abs=1)


def test_a_count_under_60_percent_of_the_lower_bound_means_truncation() -> None:
    counter = taught(engine(1.2, 4, 3), random.Random(6), 100)
    messages = sized(random.Random(8), messages=2)
    least = counter.lower_bound(messages).tokens
    assert not counter.truncated(messages, round(0.61 * least))
    assert counter.truncated(messages, round(0.59 * least))


@settings(max_examples=50, deadline=None)
@given(RATIOS, SEEDS, st.integers(0, 60), st.booleans())
def test_a_prompt_that_fits_by_the_counter_for_trimming_fits_by_the_upper_bound(
    ratio: float, seed: int, rows: int, with_tools: bool
) -> None:
    rng = random.Random(seed)
    counter = taught(engine(ratio, 4, 3), rng, rows, 0.02)
    tools = TOOLS if with_tools else None
    messages = sized(rng)
    bound = counter.bound_for(messages, tools=tools)
    assert isinstance(bound, TokenCounter)
    for left in range(1, len(messages) + 1):
        assert (
            bound.count_messages(messages[:left]) >= counter.upper_bound(messages[:left], tools=tools).tokens
        )


def test_it_is_a_token_counter_by_its_estimates() -> None:
    counter = taught(engine(1.5, 6, 9), random.Random(9), 200)
    messages = sized(random.Random(10), messages=4)
    assert isinstance(counter, TokenCounter)
    assert counter.count_messages(messages) == pytest.approx(counter.estimate(messages).tokens, abs=4)
    assert counter.count_text("x " + _base36(1000)) == pytest.approx(1500, rel=0.01)


def test_a_ratio_beyond_its_range_is_held_at_the_end() -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    for size in range(100, 300):
        counter.observe(prompt(size), 15 * size)
    assert counter.line().ratio == 10.0
    low = CalibratedCounter(WordCounter(), model_digest="d")
    for size in range(1000, 1200):
        low.observe(prompt(size), size // 20)
    assert low.line().ratio == 0.2


def test_equal_prompts_for_a_long_time_leave_the_overheads_sane() -> None:
    """With one message each, only the sum of both overheads shows: neither may run away."""
    rng = random.Random(11)
    truth = engine(1.2, 6, 4)
    counter = CalibratedCounter(SizedCounter(), model_digest="d")
    for _ in range(5000):
        messages = sized(rng, messages=1)
        counter.observe(messages, truth(messages))
    line = counter.line()
    assert line.per_message + line.per_prompt == pytest.approx(10, abs=1)
    many = sized(rng, messages=8)
    assert counter.estimate(many).tokens == pytest.approx(truth(many), rel=0.05, abs=20)


def test_an_estimate_is_a_base_like_any_other() -> None:
    counter = CalibratedCounter(EstimateCounter(), model_digest="d")
    assert counter.estimate(prompt(10)).source == "estimate"


parts = st.floats(0, 1e4)


@given(
    st.builds(Line, st.floats(0.2, 10), parts, parts, parts),
    st.lists(st.tuples(st.tuples(parts, parts, st.just(1.0), parts), st.floats(1, 1e6)), max_size=5),
)
def test_shares_in_one_go_are_those_of_single_predictions(
    line: Line, observed: list[tuple[tuple[float, float, float, float], float]]
) -> None:
    assert line.shares(observed) == [count / line.at(features) for features, count in observed]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.01, 0.1), st.integers(30, 120))
def test_what_short_texts_are_off_by_counts_less_for_long_prompts_but_half_at_least(
    seed: int, noise: float, rows: int
) -> None:
    rng = random.Random(seed)
    truth = engine(1.2, 4, 3)
    counter = CalibratedCounter(SizedCounter(), model_digest="d")
    for _ in range(rows):
        messages = sized(rng, messages=1, most=200)
        counter.observe(messages, max(1, round(truth(messages) * rng.lognormvariate(0, noise))))

    def reach(most: int) -> float:
        messages = [{"role": "user", "content": f"{'x' * 20} {_base36(most)}"}]
        return counter.upper_bound(messages).tokens / counter.estimate(messages).tokens - 1

    short, long, longest = reach(60), reach(4000), reach(64_000)
    assert long <= short + 0.02
    assert longest >= 0.45 * short - 0.02
    assert longest >= 0.02


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.01, 0.1), st.integers(0, 100))
def test_what_fits_by_the_counter_for_trimming_fits_by_the_bound(seed: int, noise: float, rows: int) -> None:
    """Also what is left of a long prompt, whose own bound is relatively wider."""
    rng = random.Random(seed)
    counter = taught(engine(1.2, 4, 3), rng, rows, noise)
    messages = sized(rng, messages=8, most=20_000)
    bound = counter.bound_for(messages)
    for kept in range(1, 9):
        assert counter.upper_bound(messages[:kept]).tokens <= bound.count_messages(messages[:kept])


def test_a_piece_teaches_about_the_kind_of_the_prompt_it_is_from() -> None:
    counter = CalibratedCounter(WordCounter(), model_digest="d")
    for size in range(100, 140):
        counter.observe(prompt(size), 2 * size, kind="digits")
    assert (counter.observed("text"), counter.observed("digits")) == (0, 40)
    assert counter.line("digits").ratio == pytest.approx(2.0, abs=0.1)
