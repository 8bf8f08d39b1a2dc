"""Levels are entered at once, left with care, and do not flap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.memory.levels import HOLD_S, Bounds, Level, LevelState

BOUNDS = Bounds(warn=880, high=920, critical=960, margin=20)
USED = st.integers(0, 1000)


def levels(used: Sequence[int], bounds: Bounds = BOUNDS, step_s: float = 1.0) -> list[Level]:
    state = LevelState()
    found = []
    for number, each in enumerate(used):
        state = state.step(each, bounds, number * step_s)
        found.append(state.level)
    return found


@pytest.mark.parametrize(
    ("used", "level"),
    [
        (879, "ok"),
        (880, "warn"),
        (919, "warn"),
        (920, "high"),
        (959, "high"),
        (960, "critical"),
        (1000, "critical"),
    ],
)
def test_a_level_is_entered_at_once_at_its_bound(used: int, level: str) -> None:
    assert [str(each) for each in levels([500, used])] == ["ok", level]


def test_a_level_is_left_only_when_memory_was_better_by_the_margin_for_10_s() -> None:
    assert levels([890, *[861] * 60])[-1] is Level.WARN  # 19 better, not 20
    found = levels([890, *[860 - 1] * 11])
    assert found[:11] == [Level.WARN] * 11
    assert found[11] is Level.OK


def test_one_worse_sample_begins_the_wait_anew() -> None:
    found = levels([890, *[850] * 9, 870, *[850] * 11])
    assert found.index(Level.OK) == 21


def test_the_level_that_follows_is_the_highest_that_the_wait_allowed() -> None:
    # From critical: 905 allows high no longer but warn, 100 would allow ok.
    assert levels([970, *[100] * 5, 890, *[100] * 5])[-1] is Level.WARN
    assert levels([970, *[100] * 11])[-1] is Level.OK


def test_what_is_spared_is_ok_and_what_comes_above_it_counts_until_it_is_gone_for_10_s() -> None:
    spared = replace(BOUNDS, spared=970)
    assert levels([970] * 3, spared) == [Level.OK] * 3
    assert levels([970, 971, *[970, 971] * 30], spared)[1:] == [Level.CRITICAL] * 61
    found = levels([971, *[970] * 11], spared)
    assert found[:11] == [Level.CRITICAL] * 11
    assert found[11] is Level.OK
    # Far below what is spared the bounds are what they are without it.
    for used in ([890, *[861] * 20], [970, *[930] * 11, *[100] * 11]):
        assert levels(used, replace(BOUNDS, spared=700)) == levels(used)


@given(st.integers(0, 1000), st.lists(st.integers(0, 19), max_size=200))
def test_noise_smaller_than_the_margin_does_not_make_it_flap(base: int, noise: list[int]) -> None:
    """The level only ever rises, once for each bound that the noise straddles."""
    found = levels([base + each for each in noise], step_s=5.0)
    assert found == sorted(found)
    assert len(set(found)) <= 2


@given(USED, USED, st.integers(1, 60))
def test_less_free_is_never_a_lower_level(first: int, second: int, times: int) -> None:
    less, more = sorted((first, second))
    assert levels([less] * times)[-1] <= levels([more] * times)[-1]


@given(st.lists(USED, min_size=1, max_size=100))
def test_the_level_is_never_below_what_memory_says_now(used: list[int]) -> None:
    for seen, level in zip(used, levels(used), strict=True):
        assert level >= BOUNDS.level(seen)


@given(st.lists(st.tuples(USED, st.floats(0.1, 30.0)), max_size=100))
def test_a_level_falls_only_after_every_sample_of_the_hold_allowed_it(steps: list[tuple[int, float]]) -> None:
    state, at, seen = LevelState(), 0.0, []
    for used, wait in steps:
        at += wait
        seen.append((at, used))
        after = state.step(used, BOUNDS, at)
        if after.level < state.level:
            recent = [u for t, u in seen if t >= at - HOLD_S]
            assert all(BOUNDS.level(u + BOUNDS.margin) <= after.level for u in recent)
        state = after
