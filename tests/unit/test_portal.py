"""The loop all runs live on, and the limit they share."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ollama_batch._portal import AddressLimit, Portal, portal


async def held(limit: AddressLimit, log: list[str], name: str, leave: asyncio.Event) -> None:
    async with limit:
        log.append(name)
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_widest_run_asks_for_are_out_and_first_come_is_first_served() -> None:
    limit, log, leave = AddressLimit(), [], asyncio.Event()
    limit.join(2)
    limit.join(1)
    tasks = [asyncio.create_task(held(limit, log, name, leave)) for name in "abcd"]
    await settle()
    assert log == ["a", "b"]
    limit.join(3)
    await settle()
    assert log == ["a", "b", "c"]
    limit.leave(3)
    assert limit.width == 2
    leave.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c", "d"]
    limit.leave(1)
    limit.leave(2)
    assert not limit.in_use


async def test_one_who_stops_waiting_leaves_the_others_in_line() -> None:
    limit, log, leave = AddressLimit(), [], asyncio.Event()
    limit.join(1)
    tasks = [asyncio.create_task(held(limit, log, name, leave)) for name in "abc"]
    await settle()
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    leave.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert log == ["a", "c"]


async def test_a_place_that_comes_with_the_cancellation_is_passed_on() -> None:
    limit, log, leave = AddressLimit(), [], asyncio.Event()
    limit.join(1)
    tasks = [asyncio.create_task(held(limit, log, name, leave)) for name in "abc"]
    await settle()
    await limit.__aexit__()  # a's place goes to b, who is cancelled before it runs
    tasks[1].cancel()
    await settle()
    assert tasks[1].cancelled()
    assert log == ["a", "c"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_may_be_cancelled_at_once() -> None:
    """Those inside leave, and wake those who wait: none of them may trip over being cancelled already."""
    limit, log, leave = AddressLimit(), [], asyncio.Event()
    limit.join(2)
    tasks = [asyncio.create_task(held(limit, log, str(n), leave)) for n in range(8)]
    await settle()
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 8
    leave.set()
    await held(limit, log, "later", leave)
    await held(limit, log, "last", leave)
    assert log[-2:] == ["later", "last"]


async def held_alone(limit: AddressLimit, log: list[str], name: str, leave: asyncio.Event) -> None:
    async with limit.alone():
        log.append(name)
        await leave.wait()


async def test_one_that_is_to_be_alone_waits_until_nothing_is_out_and_holds_up_those_behind() -> None:
    limit, log = AddressLimit(), list[str]()
    first, alone, last = asyncio.Event(), asyncio.Event(), asyncio.Event()
    limit.join(4)
    tasks = [asyncio.create_task(held(limit, log, name, first)) for name in "ab"]
    tasks.append(asyncio.create_task(held_alone(limit, log, "alone", alone)))
    tasks += [asyncio.create_task(held(limit, log, name, last)) for name in "cd"]
    await settle()
    assert log == ["a", "b"]
    first.set()
    await settle()
    assert log == ["a", "b", "alone"]
    assert limit.out == 1
    alone.set()
    await settle()
    assert log == ["a", "b", "alone", "c", "d"]
    last.set()
    await asyncio.gather(*tasks)
    assert limit.out == 0


async def test_two_that_are_to_be_alone_go_one_after_the_other() -> None:
    limit, log, leave = AddressLimit(), list[str](), [asyncio.Event(), asyncio.Event()]
    limit.join(4)
    tasks = [asyncio.create_task(held_alone(limit, log, str(n), leave[n])) for n in range(2)]
    await settle()
    assert log == ["0"]
    leave[0].set()
    await settle()
    assert log == ["0", "1"]
    leave[1].set()
    await asyncio.gather(*tasks)


async def test_one_that_was_to_be_alone_and_waits_no_more_lets_those_behind_go() -> None:
    limit, log, leave = AddressLimit(), list[str](), asyncio.Event()
    limit.join(4)
    tasks = [asyncio.create_task(held(limit, log, "a", leave))]
    await settle()
    tasks.append(asyncio.create_task(held_alone(limit, log, "alone", leave)))
    await settle()
    tasks.append(asyncio.create_task(held(limit, log, "b", leave)))
    await settle()
    tasks[1].cancel()
    await settle()
    assert log == ["a", "b"]
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_place_alone_that_comes_with_the_cancellation_is_passed_on() -> None:
    limit, log, leave = AddressLimit(), list[str](), asyncio.Event()
    limit.join(4)
    tasks = [asyncio.create_task(held(limit, log, "a", leave))]
    await settle()
    tasks.append(asyncio.create_task(held_alone(limit, log, "alone", leave)))
    await settle()
    tasks.append(asyncio.create_task(held(limit, log, "b", asyncio.Event())))
    await settle()
    await limit.__aexit__()  # a's place goes to the second, who is cancelled before it runs
    tasks[1].cancel()
    await settle()
    assert tasks[1].cancelled()
    assert log == ["a", "b"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_what_other_runs_have_lost_is_counted_apart() -> None:
    limit, mine, other = AddressLimit(), object(), object()
    for at, run in ((1.0, other), (2.0, mine), (3.0, other), (3.5, other)):
        limit.lost(at, run)
    assert limit.others_lost(2.0, mine) == 2
    assert limit.others_lost(2.0, other) == 1
    assert limit.others_lost(4.0, mine) == 0


def test_there_is_one_portal_and_it_knows_its_own_thread() -> None:
    assert portal() is portal()
    assert not portal().is_here

    async def here() -> tuple[bool, str]:
        return portal().is_here, threading.current_thread().name

    assert portal().call(here()) == (True, "ollama-batch")


def test_one_limit_for_each_address() -> None:
    assert portal().limit("http://a:1") is portal().limit("http://a:1")
    assert portal().limit("http://a:1") is not portal().limit("http://b:1")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_work_that_wants_to_end_the_process_ends_itself_alone(error: type[BaseException]) -> None:
    door = Portal()

    async def leaves() -> None:
        raise error

    async def stays() -> str:
        await asyncio.sleep(0)
        return "here"

    with pytest.raises(error):
        door.submit(leaves()).result(timeout=10)
    assert door.submit(stays()).result(timeout=10) == "here"
    door.loop.call_soon_threadsafe(door.loop.stop)
    door._thread.join(10)
    assert not door._thread.is_alive()
    door.loop.close()
