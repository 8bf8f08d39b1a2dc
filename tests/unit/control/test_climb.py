"""The search by rate alone, against engines whose rate at each limit is a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from ollama_batch.control._climb import HOLD_ROUNDS, MORE_AFTER, MORE_AFTER_MOST, Climb


def climbed(
    rate: Callable[[int], float], *, start: int = 1, lowest: int = 1, highest: int = 256, rounds: int = 400
) -> list[int]:
    """The limit after each round."""
    climb = Climb()
    limit = start
    limits = []
    for _ in range(rounds):
        found = climb.judge(limit, rate(limit), lowest=lowest, highest=highest)
        limit = limit if found is None else found[0]
        limits.append(limit)
    return limits


@pytest.mark.parametrize("slots", [1, 2, 5, 8, 20, 64, 100])
@pytest.mark.parametrize("start", [1, 16, 256])
def test_it_settles_where_the_rate_is_best_and_spends_few_rounds_elsewhere(slots: int, start: int) -> None:
    limits = climbed(lambda limit: min(limit, slots), start=start)
    settled = limits[150:]
    usual = max(set(settled), key=settled.count)
    assert slots <= usual <= 1.5 * slots + 1
    assert settled.count(usual) >= 0.9 * len(settled)


def test_many_small_losses_do_not_add_up() -> None:
    # A third fewer lose two in a hundred each time.
    limits = climbed(lambda limit: 100 * 0.98 ** (math.log(256 / limit) / math.log(1.5)), start=256)
    assert min(limits) >= 256 / 1.5**3


def test_bounds_are_kept() -> None:
    assert max(climbed(float, highest=12)) == 12
    assert min(climbed(lambda _: 1.0, start=50, lowest=5)) == 5


def test_an_engine_that_becomes_slower_is_looked_at_anew_and_a_slow_round_is_not() -> None:
    climb = Climb()
    assert climb.judge(8, 100.0, lowest=8, highest=8) is None
    for rate in (50.0, 100.0, 50.0):
        assert climb.judge(8, rate, lowest=1, highest=8) != (2, "the rate fell")
        climb.restart(hold=True)
        climb.judge(8, 100.0, lowest=1, highest=8)
    assert climb.judge(8, 50.0, lowest=1, highest=8) is None
    assert climb.judge(8, 50.0, lowest=1, highest=8) == (2, "the rate fell")


def test_more_are_tried_soon_after_they_were_of_no_use_and_then_ever_more_rarely() -> None:
    limits = climbed(lambda limit: min(limit, 8), start=8, rounds=100)
    tries = [n for n, (before, after) in enumerate(pairwise(limits)) if before == 8 and after == 16]
    # Between two are the round of the trial, the first one after it, and those to wait.
    waits = [2 + wait for wait in (2 * MORE_AFTER, MORE_AFTER_MOST, MORE_AFTER_MOST)]
    assert [later - earlier for earlier, later in pairwise(tries)][:3] == waits


def test_a_lucky_round_is_not_believed_before_a_second_and_a_clear_one_at_once() -> None:
    climb = Climb()
    climb.judge(8, 100.0, lowest=1, highest=64)
    assert climb.judge(16, 112.0, lowest=1, highest=64) is None
    assert climb.judge(16, 94.0, lowest=1, highest=64) == (8, "more did not raise the rate")
    clear = Climb()
    clear.judge(8, 100.0, lowest=1, highest=64)
    assert clear.judge(16, 140.0, lowest=1, highest=64) == (32, "the rate may rise")


def test_after_a_change_that_was_not_its_own_it_tries_nothing_for_a_while() -> None:
    climb = Climb()
    climb.restart(hold=True)
    for _ in range(HOLD_ROUNDS):
        assert climb.judge(8, 100.0, lowest=1, highest=64) is None
    assert climb.judge(8, 100.0, lowest=1, highest=64) is not None
