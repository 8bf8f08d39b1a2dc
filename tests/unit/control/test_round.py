"""What a round of answers comes to, by arithmetic that can be done by hand."""

from __future__ import annotations

import pytest

from ollama_batch.control._round import Round


def filled(*answers: tuple[float, int, float | None], work: float = 1.0) -> Round:
    done = Round()
    for latency_s, in_flight, queue_s in answers:
        done.add(latency_s=latency_s, in_flight=in_flight, queue_s=queue_s, work=work)
    return done


def test_the_queue_is_the_share_of_waiting_times_what_is_in_flight() -> None:
    done = filled((10.0, 8, 2.0), (30.0, 8, 8.0))  # 10 of 40 seconds were waits
    assert done.queue == pytest.approx(8 * 10 / 40)
    assert done.in_flight == 8
    assert done.peak == 8


def test_the_rate_is_what_all_in_flight_get_done_together() -> None:
    done = filled((10.0, 4, None), (30.0, 4, None), work=100.0)  # 200 in 40 s each, four side by side
    assert done.rate == pytest.approx(4 * 200 / 40)


def test_a_queue_that_only_some_answers_tell_of_is_not_known() -> None:
    assert filled((1.0, 2, 0.5), (1.0, 2, None)).queue is None


def test_the_servers_own_count_serves_where_answers_tell_nothing() -> None:
    done = filled((1.0, 2, None))
    done.add_waiting(3)
    done.add_waiting(5)
    assert done.queue == 4.0
    done = filled((1.0, 2, 0.0))
    done.add_waiting(3)
    assert done.queue == 0.0


def test_an_impossible_wait_is_taken_for_the_nearest_possible_one() -> None:
    assert filled((1.0, 2, -5.0)).queue == 0.0
    assert filled((1.0, 2, 9.0)).queue == 2.0


def test_an_empty_round_says_nothing() -> None:
    done = Round()
    assert (done.queue, done.rate, done.in_flight) == (None, 0.0, 0.0)
