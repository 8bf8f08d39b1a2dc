"""The first row of a head goes alone; the others wait for it, or for nothing."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering import WarmSchedule, Window
from ollama_batch.ordering.warm import REMEMBERED, Warmth

A, B, C = (bytes([letter]) * 8 for letter in b"abc")


def schedule(**rows: int) -> WarmSchedule:
    made = WarmSchedule()
    for name, count in rows.items():
        made.add(name.encode() * 8, count)
    return made


def test_one_head_after_another_is_served_by_all_workers_once_it_is_warm() -> None:
    heads = schedule(a=9, b=9)
    assert heads.next(0) == A
    assert heads.warms_up(0)
    assert heads.next(1) == B  # no warm row waits: the next is warmed up meanwhile
    assert heads.next(2) is None
    heads.finished(0)
    assert not heads.warms_up(0)
    assert [heads.next(worker) for worker in (0, 2, 3)] == [A, A, A]
    assert not heads.warms_up(2)
    heads.finished(1)
    assert heads.next(1) == A
    heads.exhausted(A)
    assert [heads.next(worker) for worker in range(4)] == [B, B, B, B]
    heads.exhausted(B)
    assert heads.done


def test_the_groups_of_a_head_wait_until_the_head_is_warm_and_then_for_their_own_first_row() -> None:
    groups = WarmSchedule()
    for group in (A + b"1", A + b"2", B):
        groups.add(group)
    assert [groups.next(worker) for worker in range(3)] == [A + b"1", B, None]
    groups.finished(0)
    assert groups.next(2) == A + b"1"
    groups.exhausted(A + b"1")
    assert groups.next(0) == A + b"2"
    assert groups.warms_up(0)
    assert groups.next(2) is None
    groups.finished(0)
    assert groups.next(2) == A + b"2"


def test_rows_with_nothing_in_common_wait_for_nobody() -> None:
    rows = WarmSchedule()
    rows.add(b"", 5)
    assert [rows.next(worker) for worker in range(3)] == [b"", b"", b""]
    assert not any(rows.warms_up(worker) for worker in range(3))


def test_a_head_that_had_no_row_left_is_not_taken_for_warm() -> None:
    heads = schedule(a=1)
    assert heads.next(0) == A
    heads.exhausted(A)
    heads.add(A)
    assert heads.next(0) == A
    assert heads.warms_up(0)
    assert heads.next(1) is None


def test_warmth_forgets_what_is_long_ago() -> None:
    warmth = Warmth()
    for number in range(REMEMBERED + 1):
        assert warmth.begin(1, (b"%d" % number,))
        warmth.end(1)
    assert not warmth.begin(1, (b"%d" % REMEMBERED,))
    assert warmth.begin(1, (b"0",))


@given(
    rows=st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 2)), max_size=40),
    workers=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_a_cold_beginning_is_in_flight_once_at_most(
    rows: list[tuple[bytes, int]], workers: int, order: random.Random
) -> None:
    warm = WarmSchedule()
    window: Window[int] = Window(warm, patience=1000)
    coming = iter(enumerate(rows))
    in_flight: dict[int, int] = {}
    begun: set[bytes] = set()
    finished: set[bytes] = set()
    gone: Counter[int] = Counter()
    while gone.total() < len(rows) or in_flight:
        step = order.randrange(3)
        worker = order.randrange(workers)
        if step == 0 and (found := next(coming, None)) is not None:
            number, (head, lead) = found
            window.add(number, head + bytes([lead]) * 4 + bytes(8))
        elif worker in in_flight:
            finished.add(rows[in_flight.pop(worker)][0])
            warm.finished(worker)
        elif (taken := window.take(worker)) is not None:
            head = rows[taken][0]
            assert head not in begun or head in finished, "the head is still being warmed up"
            begun.add(head)
            in_flight[worker] = taken
            gone[taken] += 1
    assert gone == Counter(range(len(rows)))
