"""What trouble leaves of a fixed number of requests."""

from __future__ import annotations

from ollama_batch._portal import AddressLimit
from ollama_batch._restraint import ANSWERS_THERE, Restraint
from ollama_batch._width import RunWidth


def limits(restraint: Restraint, answers: int, most: int = 32, out: int | None = None) -> list[int | None]:
    """The limits that so many answers lead through, with `out` requests out (None: as many as may be)."""
    return [
        restraint.limit
        for _ in range(answers)
        if restraint.answered(most, restraint.limit or most if out is None else out)
    ]


def test_without_trouble_nothing_is_restrained() -> None:
    restraint = Restraint()
    assert limits(restraint, 200) == []
    assert restraint.limit is None


def test_after_a_crash_it_begins_with_one_and_doubles_back_to_what_is_wanted() -> None:
    restraint = Restraint()
    restraint.crashed()
    assert restraint.limit == 1
    assert limits(restraint, 31) == [2, 4, 8, 16, None]


def test_what_memory_did_not_hold_is_not_tried_again() -> None:
    restraint = Restraint()
    restraint.ran_out(20)
    restraint.crashed()  # as after every such death
    seen = limits(restraint, 100 * ANSWERS_THERE)
    assert seen[:4] == [2, 4, 8, 10]
    assert seen[4:] == list(range(11, 20))


def test_more_is_not_tried_while_fewer_than_fit_are_out() -> None:
    restraint = Restraint()
    restraint.ran_out(20)
    assert limits(restraint, 100 * ANSWERS_THERE, out=7) == []
    assert limits(restraint, ANSWERS_THERE, out=8) == [11]


def test_where_two_did_not_fit_it_stays_with_one() -> None:
    restraint = Restraint()
    for in_flight in (32, 9, 2):
        restraint.ran_out(in_flight)
        restraint.crashed()
    assert limits(restraint, 10_000) == []
    assert restraint.limit == 1


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
