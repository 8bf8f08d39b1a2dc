from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ollama_batch._reuse import ReuseEstimate
from ollama_batch.metrics import BatchMetrics
from ollama_batch.savings import HeadUsage
from visible_support import FakeClock, finished, hook, started

# Heads


def name(number: int) -> str:
    return f"{number:016x}"


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3000), st.none() | st.floats(0, 1)), max_size=60)


@given(ROWS)
def test_every_head_has_the_sums_of_its_rows(rows: list[tuple[int, int, float | None]]) -> None:
    metrics = hook(FakeClock())
    told = [(head, prompt, None if share is None else int(share * prompt)) for head, prompt, share in rows]
    for number, (head, prompt, cached) in enumerate(told):
        metrics.on_event(finished(custom_id=f"r{number}", prompt=prompt, cached=cached, head=name(head)))
    m = metrics.snapshot()
    assert m.heads_total == len({head for head, _, _ in told})
    assert len(m.heads) == min(m.heads_total, 10)
    for usage in m.heads:
        own = [
            (n, prompt, cached) for n, (head, prompt, cached) in enumerate(told) if name(head) == usage.head
        ]
        known = [(prompt, cached) for _, prompt, cached in own if cached is not None]
        assert usage == HeadUsage(
            head=usage.head,
            custom_id=f"r{own[0][0]}",
            rows=len(own),
            prompt_tokens=sum(prompt for _, prompt, _ in own),
            cached_tokens=sum(cached for _, cached in known) if known else None,
            cached_reported=len(known),
            cached_share=sum(cached for _, cached in known) / sum(prompt for prompt, _ in known)
            if known
            else None,
        )
    shown = [usage.prompt_tokens for usage in m.heads]
    assert shown == sorted(shown, reverse=True)
    hidden = {name(head) for head, _, _ in told} - {usage.head for usage in m.heads}
    for head in hidden:
        assert sum(prompt for own, prompt, _ in told if name(own) == head) <= shown[-1]


def test_rows_without_a_usage_or_without_a_head_belong_to_no_head() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(ok=False, usage=False, head=name(1)))
    metrics.on_event(finished(cached=50))
    m = metrics.snapshot()
    assert (m.heads, m.heads_total, m.cached_tokens) == ((), 0, 50)


def test_further_heads_than_a_thousand_are_counted_together_and_say_so() -> None:
    metrics = hook(FakeClock())
    for number in range(3000):
        metrics.on_event(finished(custom_id=f"r{number}", prompt=100, cached=10, head=name(number)))
    for number in range(0, 3000, 100):  # ten of the thousand that are kept, twenty of the others
        metrics.on_event(finished(prompt=100, head=name(number)))
    m = metrics.snapshot()
    assert m.heads_total == 1001
    assert len(m.heads) == 10
    assert [usage.head for usage in m.heads[:9]] == [name(number) for number in range(0, 900, 100)]
    assert m.heads[9] == HeadUsage(
        head=None,
        custom_id="r1000",
        rows=2020,
        prompt_tokens=202_000,
        cached_tokens=20_000,
        cached_reported=2000,
        cached_share=0.1,
    )


def test_heads_of_the_run_before_are_forgotten() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(head=name(1)))
    before = metrics.snapshot()
    metrics.on_event(started())
    assert metrics.snapshot().heads == ()
    assert len(before.heads) == 1


def test_metrics_with_heads_are_plain_json() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(prompt=100, cached=25, head=name(7)))
    plain = metrics.snapshot().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["heads"] == [
        {
            "head": name(7),
            "custom_id": "row",
            "rows": 1,
            "prompt_tokens": 100,
            "cached_tokens": 25,
            "cached_reported": 1,
            "cached_share": 0.25,
        }
    ]


def test_a_snapshot_of_a_thousand_heads_is_cheap() -> None:
    metrics = hook(FakeClock())
    for number in range(1500):
        metrics.on_event(finished(prompt=300 + number, prompt_s=0.1, head=name(number)))
    taken = []
    for number in range(50):
        metrics.on_event(finished(prompt=500, prompt_s=0.1, head=name(number)))
        begun = time.process_time()
        metrics.snapshot()
        taken.append(time.process_time() - begun)
    # Measured at 0.3 ms; a display takes four a second.
    assert min(taken) < 0.01


# The estimate


@dataclass(frozen=True)
class Row:
    prompt: int
    reused: int
    head: str | None = None


def run_on(speed: float, rows: Sequence[Row], noise: Sequence[float] | None = None) -> BatchMetrics:
    """The metrics of `rows` on an engine that evaluates `speed` tokens a second and tells only times."""
    metrics = hook(FakeClock())
    for number, row in enumerate(rows):
        factor = 1.0 if noise is None else noise[number]
        seconds = (row.prompt - row.reused) / (speed * factor)
        metrics.on_event(finished(prompt=row.prompt, prompt_s=seconds, head=row.head))
    return metrics.snapshot()


def evaluated(rows: Sequence[Row]) -> int:
    return sum(row.prompt - row.reused for row in rows)


SPEEDS = st.floats(20, 100_000)
HEADS = st.none() | st.integers(0, 40).map(name)


def row(prompts: st.SearchStrategy[int], shares: st.SearchStrategy[float]) -> st.SearchStrategy[Row]:
    # The last token is always evaluated.
    return st.builds(lambda p, share, head: Row(p, int((p - 1) * share), head), prompts, shares, HEADS)


@given(SPEEDS, st.lists(row(st.integers(1, 8000), st.floats(0, 1)), max_size=120))
def test_at_a_steady_speed_the_estimate_is_never_above_what_was_saved(speed: float, rows: list[Row]) -> None:
    m = run_on(speed, rows)
    assert m.cached_tokens is None
    if m.cached_estimate is not None:
        # The slow end is known to 1 %, twice.
        assert m.cached_estimate <= sum(row.reused for row in rows) + 0.03 * evaluated(rows) + 1


@given(
    SPEEDS,
    st.lists(st.integers(256, 8000), min_size=8, max_size=40),
    st.data(),
)
def test_with_a_fifth_of_the_rows_cold_the_estimate_is_close(
    speed: float, cold: list[int], data: st.DataObject
) -> None:
    warm_rows = st.builds(
        lambda p, share: Row(p, int(p * share)), st.integers(256, 8000), st.floats(0.2, 0.99)
    )
    warm = data.draw(st.lists(warm_rows, min_size=max(12, len(cold)), max_size=4 * len(cold)))
    rows = data.draw(st.permutations([*(Row(prompt, 0) for prompt in cold), *warm]))
    saved = sum(row.reused for row in rows)
    assume(saved > 0.2 * sum(row.prompt for row in rows))
    m = run_on(speed, rows)
    assert m.cached_estimate == pytest.approx(saved, abs=0.06 * evaluated(rows) + 1)
    assert m.cached_estimate_share == m.cached_estimate / m.prompt_tokens  # type: ignore[operator]


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_rows_that_all_look_alike_give_no_estimate(share: float) -> None:
    rows = [Row(1000, int(1000 * share), name(0)) for _ in range(200)]
    assert run_on(5000, rows).cached_estimate is None


def test_a_run_where_every_row_reuses_is_estimated_too_low() -> None:
    rows = [Row(2000 + tail, 2000) for tail in range(100, 1000, 5)]
    m = run_on(5000, rows)
    assert m.cached_estimate is not None
    assert m.cached_estimate < 0.8 * sum(row.reused for row in rows)


@pytest.mark.parametrize("spread", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("own_heads", [False, True])
def test_a_speed_that_wavers_is_not_taken_for_reuse(spread: float, own_heads: bool) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        noise = [chance.uniform(1 - spread, 1 + spread) for _ in range(400)]
        rows = [Row(1000, 0, name(n) if own_heads else None) for n in range(400)]
        assert run_on(5000, rows, noise).cached_estimate is None


def test_first_rows_of_heads_keep_a_speed_that_halves_from_being_taken_for_reuse() -> None:
    rows = [Row(1000, 0, name(n)) for n in range(400)]
    noise = [1.0 if n % 2 else 0.5 for n in range(400)]
    assert run_on(5000, rows, noise).cached_estimate is None
    # Nobody could tell without them.
    assert run_on(5000, [Row(1000, 0) for _ in rows], noise).cached_estimate is not None


@pytest.mark.parametrize(("rows", "known"), [(19, False), (20, True)])
def test_there_is_an_estimate_from_twenty_long_prompts_on(rows: int, known: bool) -> None:
    estimate = ReuseEstimate()
    for _ in range(100):
        estimate.add(255, 0.001)
    for number in range(rows):
        estimate.add(256, 0.1 if number % 2 else 0.01)
    assert (estimate.saved() is not None) == known


@pytest.mark.parametrize("prompt_s", [None, 0.0, -1.0, 1e-300, float("nan")])
def test_a_time_that_was_not_told_counts_for_nothing(prompt_s: float | None) -> None:
    estimate = ReuseEstimate()
    for number in range(100):
        estimate.add(1000, prompt_s)
        estimate.add(1000, 1.0 if number % 2 else 0.2)
    assert estimate.saved() == pytest.approx(100 * 1000 - 60 * 1000, abs=2000)


def test_an_estimate_ends_with_the_first_answer_that_tells() -> None:
    metrics = hook(FakeClock())
    for number in range(40):
        metrics.on_event(finished(prompt=1000, prompt_s=1.0 if number % 2 else 0.2))
    guessed = metrics.snapshot()
    metrics.on_event(finished(prompt=1000, cached=0))
    m = metrics.snapshot()
    assert guessed.cached_estimate == pytest.approx(16_000, abs=1000)
    assert (m.cached_estimate, m.cached_estimate_share, m.cached_tokens) == (None, None, 0)


def test_tokens_that_we_estimated_ourselves_are_no_ground_for_an_estimate() -> None:
    metrics = hook(FakeClock())
    for number in range(40):
        metrics.on_event(finished(prompt=1000, prompt_s=1.0 if number % 2 else 0.2, source="estimate"))
    assert metrics.snapshot().cached_estimate is None
