"""One head to a slot while others wait; spread only at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering import HeadSchedule, largest_first


def filled(rows: Mapping[bytes, int], slots: int | None) -> HeadSchedule:
    schedule = HeadSchedule(slots=slots)
    for head in largest_first(rows):
        schedule.add(head, rows[head])
    return schedule


HEADS = st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(1, 6), max_size=9)


@given(rows=HEADS, workers=st.integers(1, 6), slots=st.none() | st.integers(1, 6), order=st.randoms())
def test_every_row_is_handed_out_once_and_heads_keep_to_their_slots(rows, workers, slots, order) -> None:
    schedule = filled(rows, slots)
    left = Counter(rows)
    serving: dict[int, bytes] = {}
    for _ in range(10_000):
        if schedule.done and not left.total():
            break
        worker = order.randrange(workers)
        head = schedule.next(worker)
        if head is None:
            serving.pop(worker, None)
            continue
        serving[worker] = head
        begun = {one for one in rows if left[one] < rows[one]} | set(serving.values())
        waiting = set(rows) - begun
        in_work = [one for one in serving.values() if left[one]]
        assert len(set(in_work)) <= (slots or workers)
        if waiting:
            assert max(Counter(in_work).values()) == 1
        if left[head]:
            left[head] -= 1
            schedule.took(head)
        if not left[head]:
            schedule.exhausted(head)
            serving = {one: served for one, served in serving.items() if served != head}
    assert schedule.done
    assert not left.total()


def test_the_largest_head_is_begun_first() -> None:
    schedule = filled({b"small": 1, b"large": 9, b"middle": 3}, 2)
    assert [schedule.next(0), schedule.next(1)] == [b"large", b"middle"]
    assert schedule.next(2) is None


def test_a_worker_goes_through_all_groups_of_a_head_before_it_begins_another() -> None:
    a, b = b"a" * 8, b"b" * 8
    schedule = filled({a + b"1": 9, b + b"1": 8, a + b"2": 7, b + b"2": 6, a: 1}, None)
    served = []
    for worker in [0, 1, 0, 1, 0]:
        group = schedule.next(worker)
        if (worker, group) in served:
            schedule.exhausted(group)
            group = schedule.next(worker)
        served.append((worker, group))
    assert served == [(0, a + b"1"), (1, b + b"1"), (0, a + b"2"), (1, b + b"2"), (0, a)]


def test_a_worker_that_shares_a_head_leaves_it_for_one_that_comes() -> None:
    schedule = filled({b"a" * 8: 9}, None)
    assert [schedule.next(worker) for worker in range(3)] == [b"a" * 8] * 3
    schedule.add(b"b" * 8)
    schedule.add(b"c" * 8)
    assert [schedule.next(worker) for worker in range(3)] == [b"b" * 8, b"c" * 8, b"a" * 8]


def test_more_workers_than_slots_wait_while_heads_wait_and_share_when_none_does() -> None:
    schedule = filled({b"a" * 8: 9, b"b" * 8: 8, b"c" * 8: 1}, 2)
    assert [schedule.next(worker) for worker in range(3)] == [b"a" * 8, b"b" * 8, None]
    schedule.exhausted(b"b" * 8)
    assert schedule.next(2) == b"c" * 8
    assert schedule.next(1) == b"a" * 8


def test_the_group_of_a_worker_that_stands_aside_waits_again_for_the_others() -> None:
    schedule = filled({b"a" * 8: 9, b"b" * 8: 8}, 2)
    assert [schedule.next(worker) for worker in range(2)] == [b"a" * 8, b"b" * 8]
    schedule.leave(1)
    assert schedule.next(0) == b"a" * 8  # served by one alone, it is kept
    assert not schedule.done
    schedule.exhausted(b"a" * 8)
    assert schedule.next(0) == b"b" * 8
    schedule.exhausted(b"b" * 8)
    assert schedule.done


def test_a_group_that_another_serves_as_well_does_not_wait_when_one_stands_aside() -> None:
    schedule = filled({b"a" * 8: 9}, None)
    assert [schedule.next(worker) for worker in range(2)] == [b"a" * 8] * 2
    schedule.leave(1)
    schedule.leave(5)  # one that serves nothing
    schedule.exhausted(b"a" * 8)
    assert schedule.done


def test_groups_are_spread_while_several_want_a_slot() -> None:
    schedule = filled({b"a" * 8: 9, b"b" * 8: 8}, None)
    assert schedule.spread
    assert [schedule.next(worker) for worker in range(3)] == [b"a" * 8, b"b" * 8, b"a" * 8]
    assert schedule.spread
    schedule.exhausted(b"b" * 8)
    assert not schedule.spread


@given(rows=HEADS, order=st.randoms())
def test_every_row_is_handed_out_once_however_workers_come_and_go(rows, order) -> None:
    schedule = filled(rows, None)
    left = Counter(rows)
    for _ in range(10_000):
        if schedule.done and not left.total():
            break
        worker = order.randrange(4)
        if order.random() < 0.2:
            schedule.leave(worker)
            continue
        group = schedule.next(worker)
        if group is None:
            continue
        if left[group]:
            left[group] -= 1
            schedule.took(group)
        else:
            schedule.exhausted(group)
    assert schedule.done
    assert not left.total()
