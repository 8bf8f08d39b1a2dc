from __future__ import annotations

import asyncio
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.testing._slots import SlotPool, common_prefix

short = st.lists(st.sampled_from("ab"), max_size=40)


@given(short, short)
def test_the_common_prefix_is_what_comparing_one_by_one_finds(left: list[str], right: list[str]) -> None:
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    assert common_prefix(left, right) == len(list(equal))


async def test_the_slot_that_holds_the_longest_prefix_is_chosen() -> None:
    pool = SlotPool(2)
    one, two = await pool.acquire("aaaa"), await pool.acquire("bbbb")
    pool.release(one)
    pool.release(two)
    again = await pool.acquire("bbbc")
    assert again is two
    assert again.shared == 3


async def test_without_a_tenth_in_common_the_least_recently_used_slot_is_taken() -> None:
    pool = SlotPool(2)
    one, two = await pool.acquire("a" * 20), await pool.acquire("b" * 20)
    pool.release(two)
    pool.release(one)
    taken = await pool.acquire("bb" + "c" * 18)  # 2 of 20 are a tenth, not more
    assert taken is one
    assert taken.shared == 0


async def test_who_waits_longest_gets_the_next_slot_and_who_left_gets_none() -> None:
    pool = SlotPool(1)
    slot = await pool.acquire("a")
    waiting = [asyncio.create_task(pool.acquire(name)) for name in "bcd"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    pool.release(slot)
    assert await waiting[1] is slot
    assert not waiting[2].done()
    pool.release(slot)
    assert await waiting[2] is slot


async def test_a_waiter_that_leaves_with_a_slot_in_hand_passes_it_on() -> None:
    pool = SlotPool(1)
    slot = await pool.acquire("a")
    first, second = (asyncio.create_task(pool.acquire(name)) for name in "bc")
    await asyncio.sleep(0)
    pool.release(slot)  # first has been given the slot, but has not run yet
    first.cancel()
    assert await second is slot
    assert first.cancelled()


async def test_without_a_prefix_cache_nothing_is_shared() -> None:
    pool = SlotPool(1, prefix_cache=False)
    pool.release(await pool.acquire("aaaa"))
    assert (await pool.acquire("aaaa")).shared == 0
