"""What trouble leaves of a fixed number of requests."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from ollama_batch._portal import AddressLimit
from ollama_batch._restraint import Restraint
from ollama_batch._width import RunWidth
from ollama_batch.control.memory_bound import PROBE_S


class Told:
    """A restraint by a clock of its own: answers come `every_s` seconds apart."""

    def __init__(self, every_s: float = 1.0) -> None:
        self.now = 0.0
        self._every_s = every_s
        self.restraint = Restraint(clock=lambda: self.now)

    def ran_out(self, in_flight: int) -> None:
        """As every such death: it is told of twice."""
        self.restraint.ran_out(in_flight)
        self.restraint.crashed()

    def limits(self, answers: int, most: int = 32, out: int | None = None) -> list[int | None]:
        """The limits that so many answers lead through, with `out` requests out (None: as many as may be)."""
        seen = []
        for _ in range(answers):
            self.now += self._every_s
            limit = self.restraint.limit or most
            if self.restraint.answered(most, limit if out is None else out):
                seen.append(self.restraint.limit)
        return seen


def test_without_trouble_nothing_is_restrained() -> None:
    told = Told()
    assert told.limits(200) == []
    assert told.restraint.limit is None


def test_after_a_crash_it_begins_with_one_and_doubles_back_to_what_is_wanted() -> None:
    told = Told()
    told.restraint.crashed()
    assert told.restraint.limit == 1
    assert told.limits(31) == [2, 4, 8, 16, None]


def test_what_memory_did_not_hold_is_tried_again_only_after_50_good_rounds_with_one_less() -> None:
    told = Told()
    told.ran_out(20)
    assert told.limits(1 + 2 + 4 + 8) == [2, 4, 8, 10]  # half is what the number is trusted to be worth
    most = told.limits(2 * (13 + 15 + 16 + 17 + 18) + 20)
    assert most == [13, 15, 16, 17, 18, 19]
    assert told.limits(49 * 38) == []
    assert told.limits(38) == [20]


def test_beyond_half_nothing_is_tried_for_15_seconds_and_for_twice_as_many_each_time_again() -> None:
    told, failed = Told(every_s=0.01), 80
    tried = []
    for wait_s in (PROBE_S, 2 * PROBE_S, 4 * PROBE_S):
        before = told.now
        told.ran_out(failed)
        while (told.restraint.limit or 0) <= 40:
            told.limits(1, most=80)
            assert told.now < before + wait_s + 10
        assert told.now - before >= wait_s
        failed = told.restraint.limit or 0
        tried.append(failed)
    assert tried == [50, 43, 41]


@pytest.mark.parametrize("fits", [1, 2, 3, 7, 20])
def test_a_number_that_memory_does_not_hold_comes_to_what_it_does_and_seldom_fails_again(fits: int) -> None:
    told = Told()
    told.ran_out(32)
    failures: list[tuple[float, int]] = [(told.now, 32)]
    for _ in range(4000):
        told.now += 1.0
        limit = told.restraint.limit or 32
        if limit > fits:
            failures.append((told.now, limit))
            told.ran_out(limit)
        else:
            told.restraint.answered(32, limit)
    assert told.restraint.limit is not None
    assert fits / 2 < told.restraint.limit <= fits
    # The second is found on the way to what is trusted; of the others each was waited for.
    waits = [later - before for (before, _), (later, _) in pairwise(failures)]
    assert all(wait >= PROBE_S for wait in waits[1:])
    assert len(failures) <= 8


def test_more_is_not_tried_while_fewer_than_fit_are_out() -> None:
    told = Told()
    told.restraint.ran_out(20)
    assert told.limits(1000, out=7) == []
    assert told.limits(20, out=8) == [13]


def test_where_two_did_not_fit_it_is_one_for_400_answers_at_least() -> None:
    told = Told()
    for in_flight in (32, 9, 2):
        told.ran_out(in_flight)
    assert told.limits(399) == []
    assert told.restraint.limit == 1


def test_the_fixed_runs_of_an_address_follow_and_a_later_run_begins_afresh() -> None:
    limit, width = AddressLimit(), RunWidth(8)
    limit.join(width)
    limit.ran_out(in_flight=8)
    assert (limit.width, width.now) == (4, 4)
    limit.crashed()
    assert (limit.width, width.now) == (1, 1)
    limit.answered(latency_s=0.1, queue_s=None, served_s=None, work=1.0)
    assert (limit.width, width.now) == (2, 2)
    limit.leave(width)
    after = RunWidth(8)
    limit.join(after)
    assert (limit.width, after.now) == (8, 8)


def test_runs_that_tell_of_the_same_lack_of_memory_count_once() -> None:
    """Each tells when its own requests have failed, and fewer are out by then."""
    limit, one, other = AddressLimit(), RunWidth(4, steered=True, highest=16), RunWidth(8)
    limit.join(one)
    limit.join(other)
    sent_at = time.monotonic()
    limit.ran_out(in_flight=8, sent_at=sent_at)
    limit.ran_out(in_flight=3, sent_at=sent_at)
    assert other.now == 4
    limit.crashed()
    assert limit.target is not None
    assert [change.why for change in limit.target.changes].count("the engine ran out of memory") <= 1
    limit.ran_out(in_flight=3, sent_at=time.monotonic() + 1)  # one that was sent since
    assert other.now == 1
    for _ in range(400):
        limit.answered(latency_s=0.1, queue_s=None, served_s=None, work=1.0)
    assert other.now <= 2
