"""What several runs on one address may have out, as answers come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ollama_batch import Concurrency
from ollama_batch._portal import AddressLimit
from ollama_batch._width import RunWidth
from ollama_batch.errors import ConfigError


def steered(start: int, **options: Any) -> RunWidth:
    return RunWidth(start, steered=True, **{"highest": 64, **options})


async def out(limit: AddressLimit, count: int) -> None:
    for _ in range(count):
        await limit.__aenter__()


async def back(limit: AddressLimit, count: int, *, waited: float) -> None:
    """So many come back, of requests that took a second and waited for a share of it, and others go."""
    for _ in range(count):
        limit.answered(latency_s=1e-9, queue_s=waited * 1e-9, served_s=None, work=1.0)
        await limit.__aexit__()
        await out(limit, max(0, limit.width - limit.out))


async def test_a_width_grows_while_nothing_waits_and_shrinks_again() -> None:
    limit, seen = AddressLimit(), []
    width = steered(2, changed=lambda before, after, change: seen.append((before, after, change.why)))
    limit.join(width)
    await out(limit, 2)
    await back(limit, 40, waited=0.0)
    assert width.now == limit.width == limit.out > 8
    grown = width.now
    await back(limit, 3 * grown, waited=0.9)
    assert width.now < grown
    assert limit.out >= limit.width
    assert [before for before, _, _ in seen][1:] == [after for _, after, _ in seen][:-1]
    assert {why for _, _, why in seen} == {"no slot should be without work", "more wait than need be"}


async def test_a_shrinking_width_lets_what_is_out_come_back_first() -> None:
    limit = AddressLimit()
    limit.join(RunWidth(4))
    await out(limit, 4)
    limit.cap(2, "memory")
    waiting = asyncio.create_task(limit.__aenter__())
    for left in (3, 2):
        await limit.__aexit__()
        await asyncio.sleep(0)
        assert limit.out == left
        assert not waiting.done()
    await limit.__aexit__()
    await waiting
    assert limit.out == 2


def test_a_cap_holds_for_every_run_and_is_taken_back() -> None:
    limit, fixed, free = AddressLimit(), RunWidth(8), steered(6)
    limit.join(fixed)
    limit.join(free)
    limit.cap(3, "memory")
    limit.cap(5, "heat")
    assert (limit.width, fixed.now, free.now) == (3, 3, 3)
    late = RunWidth(7)
    limit.join(late)
    assert late.now == 3
    limit.cap(None, "memory")
    assert (limit.width, fixed.now, late.now) == (5, 5, 5)
    limit.cap(None, "heat")
    assert (limit.width, fixed.now) == (8, 8)
    assert free.now == 3  # it has to find its way up by itself


def test_caps_for_one_reason_are_each_holders_own_and_the_lowest_counts() -> None:
    limit, fixed, free = AddressLimit(), RunWidth(8), steered(6)
    limit.join(fixed)
    limit.join(free)
    limit.cap(5, "memory", "a")
    limit.cap(2, "memory", "b")
    limit.cap(4, "memory", "a")
    assert (limit.width, fixed.now, free.now) == (2, 2, 2)
    limit.cap(None, "memory", "b")
    assert (limit.width, fixed.now) == (4, 4)
    limit.cap(None, "memory", "never had one")
    assert limit.width == 4
    late = steered(7)
    limit.join(late)
    assert late.now <= 4
    limit.cap(None, "memory", "a")
    assert (limit.width, fixed.now) == (8, 8)


def test_the_width_without_the_caps_for_a_reason_is_known_while_they_count() -> None:
    limit, free = AddressLimit(), steered(64)
    limit.join(free)
    assert limit.width_without("memory") == 64
    limit.cap(32, "memory", "a")
    assert (limit.width, limit.width_without("memory")) == (32, 64)
    limit.cap(16, "memory", "b")
    assert (limit.width, limit.width_without("memory")) == (16, 64)
    limit.cap(9, "heat")
    assert limit.width_without("memory") == 9, "it would not be more without them"
    limit.crashed()
    assert limit.width_without("memory") == limit.width == 1


def test_runs_that_find_their_width_share_one_target_within_bounds_of_their_own() -> None:
    limit, wide, narrow = AddressLimit(), steered(4), steered(3, highest=3)
    limit.join(wide)
    target = limit.target
    limit.join(narrow)
    assert limit.target is target
    assert (wide.now, narrow.now, limit.width) == (4, 3, 4)
    limit.leave(wide)
    assert (narrow.now, limit.width) == (3, 3)
    assert limit.target is target
    limit.leave(narrow)
    assert limit.target is None
    assert not limit.in_use


def test_a_later_run_begins_where_the_address_stands() -> None:
    limit, first, second = AddressLimit(), steered(2), steered(16)
    limit.join(first)
    limit.join(second)
    assert second.now == 2


def test_a_refusal_counts_for_all_and_a_fixed_run_keeps_its_number() -> None:
    limit, free, fixed = AddressLimit(), steered(10), RunWidth(10)
    limit.join(free)
    limit.join(fixed)
    limit.refused(None)
    assert (free.now, fixed.now, limit.width) == (7, 10, 10)


def test_two_timeouts_in_a_round_count_as_a_refusal() -> None:
    limit, free = AddressLimit(), steered(10)
    limit.join(free)
    limit.timed_out()
    assert free.now == 10
    limit.timed_out()
    assert free.now == 7


def test_a_run_whose_rows_want_a_slot_each_lets_none_wait() -> None:
    limit, spread = AddressLimit(), [True]
    limit.join(steered(2, spread=lambda: spread[0]))
    limit.answered(latency_s=1.0, queue_s=0.0, served_s=None, work=1.0)
    assert limit.target is not None
    assert limit.target.spare is False
    spread[0] = False
    limit.answered(latency_s=1.0, queue_s=0.0, served_s=None, work=1.0)
    assert limit.target.spare is True


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"min": 0}, r"Concurrency\(min=0\)"),
        ({"max": 5000}, "max=5000"),
        ({"max": True}, "max=True"),
        ({"min": 9, "max": 8}, "min is above max"),
    ],
)
def test_bounds_that_are_none_are_refused(bounds: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Concurrency(**bounds)
