"""What a lack of memory does to a limit that is found: what is tried again and when; the user's bound."""

from __future__ import annotations

from itertools import pairwise

from ollama_batch.control import MemoryBound, QueueTarget
from ollama_batch.control.memory_bound import (
    FIRST_ANSWERS,
    FULL_ROUNDS,
    FULL_S,
    PROBE_MOST_S,
    PROBE_S,
    SLOW_S,
)

RAN_OUT = "the engine ran out of memory"


class Engine:
    """Answers one after the other what a target lets out, `every_s` seconds apart; holds `fits` at a time."""

    def __init__(self, fits: int, *, every_s: float = 1.0, **options: int) -> None:
        self.now = 0.0
        self.fits = fits
        self.target = QueueTarget(clock=lambda: self.now, **options)
        self.failures: list[tuple[float, int, int]] = []
        self.answers = 0
        self._every_s = every_s

    def run(self, answers: int) -> None:
        for _ in range(answers):
            out = self.target.limit
            if out > self.fits:
                self.failures.append((self.now, out, self.answers))
                self.target.on_oom(in_flight=out)
                self.target.on_crash()
                continue
            self.now += self._every_s
            self.answers += 1
            self.target.on_complete(latency_s=0.0, in_flight=out, queue_s=0.0)


def test_after_the_first_answers_a_run_doubles_back_to_half_of_what_failed_without_waiting() -> None:
    engine = Engine(9, start=16, every_s=0.01)
    engine.run(FIRST_ANSWERS)
    assert engine.target.limit == 1
    engine.run(2 + 2 + 4)
    assert engine.target.limit == 8
    assert engine.now < 1


def test_answers_that_take_long_are_not_waited_for_beyond_a_minute() -> None:
    engine = Engine(9, start=16, every_s=20.0)
    engine.run(1 + int(SLOW_S / 20) + 1)
    assert engine.target.limit == 2


def test_what_may_not_fit_is_tried_after_15_seconds_and_after_twice_as_many_each_time_again() -> None:
    engine = Engine(20, start=256, every_s=0.05)
    engine.run(6000)
    waits = [later - before for (before, _, _), (later, _, _) in pairwise(engine.failures)]
    # 256 and 32 fail on the way to what is known to fit; then what lies between is searched.
    assert [out for _, out, _ in engine.failures][:2] == [256, 32]
    searched = [out for _, out, _ in engine.failures][2:]
    assert searched == sorted(searched, reverse=True)
    assert all(wait >= PROBE_S * 2**n for n, wait in enumerate(waits[1:], start=1))
    assert engine.target.limit == 20


def test_the_wait_has_a_bound_and_begins_anew_once_all_went_well_for_long() -> None:
    bound = MemoryBound()
    for n in range(20):
        bound.failed(64 - n, now=0.0)
    bound.went_well(43, limit=43, answers=100, now=1.0)
    assert bound.ceiling(PROBE_MOST_S - 1) == 43
    assert bound.ceiling(PROBE_MOST_S) == 44
    for _ in range(64 * FULL_ROUNDS):
        bound.went_well(44, limit=44, answers=100, now=FULL_S)
    assert bound.most == 45
    assert bound.ceiling(FULL_S) == 45


def test_a_users_least_number_is_kept_as_long_as_memory_holds_it() -> None:
    engine = Engine(7, start=12, lowest=6)
    engine.run(300)
    limits = [(change.before, change.after) for change in engine.target.changes]
    assert limits[0] == (12, 6)
    assert min(after for _, after in limits) == 6
    assert engine.target.limit == 7
    assert [change.given_up for change in engine.target.changes if change.given_up] == []


def test_where_memory_does_not_hold_the_users_least_number_that_is_said_once() -> None:
    engine = Engine(3, start=12, lowest=6)
    engine.run(2000)
    assert engine.target.limit == 3
    told = [change for change in engine.target.changes if change.given_up is not None]
    assert [(each.before, each.after, each.why, each.given_up) for each in told] == [(6, 1, RAN_OUT, 6)]


def test_a_crash_that_is_not_for_want_of_memory_begins_with_one_whatever_the_least_number_is() -> None:
    engine = Engine(7, every_s=0.5, start=12, lowest=6)
    engine.run(10)
    engine.target.on_crash()
    assert engine.target.limit == 1
    engine.run(1 + 2 + 4)  # the quicker as so many have been out before
    assert engine.target.limit == 6


def test_more_that_did_not_raise_the_pace_is_taken_back_and_never_up_to_the_users_least_number() -> None:
    """Memory holds 3, and failed at the 6 that the user wants out at least."""
    now = [0.0]
    target = QueueTarget(clock=lambda: now[0], start=6, lowest=6)
    target.on_oom(in_flight=6)
    target.on_crash()
    limits = []
    for _ in range(200):
        now[0] += 0.05 * target.limit  # the engine answers one after the other, and works for little of it
        target.on_complete(
            latency_s=0.05 * target.limit, in_flight=target.limit, queue_s=0.0, served_s=0.01 * target.limit
        )
        limits.append(target.limit)
        if now[0] >= PROBE_S:
            break
    assert 2 in limits
    assert max(limits) <= 3


def test_what_failed_before_is_believed_whatever_was_out_at_a_later_failure() -> None:
    """Requests of before, or of other runs, may still be out when the next one fails."""
    bound = MemoryBound()
    bound.failed(3, now=0.0, trusted=1)
    bound.failed(21, now=1.0, trusted=10)
    assert bound.most == 2
    assert bound.fits <= 2
