"""One head to a slot while others wait; spread only at the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.ordering import HeadSchedule

HEADS = st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(1, 6), max_size=9)


@given(rows=HEADS, workers=st.integers(1, 6), slots=st.none() | st.integers(1, 6), order=st.randoms())
def test_every_row_is_handed_out_once_and_heads_keep_to_their_slots(rows, workers, slots, order) -> None:
    schedule = HeadSchedule(rows, slots=slots)
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
    schedule = HeadSchedule({b"small": 1, b"large": 9, b"middle": 3}, slots=2)
    assert [schedule.next(0), schedule.next(1)] == [b"large", b"middle"]
    assert schedule.next(2) is None
