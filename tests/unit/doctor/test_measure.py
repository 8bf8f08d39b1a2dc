"""What short requests tell: how many a server works on at once, and how long so many rows take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.doctor.measure import overlap
from ollama_batch.doctor.night import Pace, error_of


@pytest.mark.parametrize(
    ("spans", "most"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (1, 2), (2, 3)], 1),  # one after another
        ([(0, 1.1), (0.8, 2.1), (1.8, 3)], 1),  # the same, by clocks that err
        ([(0, 1), (0, 1), (1, 2), (1, 2)], 2),
        ([(0, 2), (0.5, 1.5), (1, 3), (2.5, 4)], 2),  # three only from 1 to 1.5
        ([(0, 2), (0.2, 1.8), (0.9, 3), (2.5, 4)], 3),
        ([(0, 1)] * 5 + [(1, 2)] * 3, 5),  # five slots, eight requests
        ([(0, 1)] * 8, 8),
    ],
)
def test_how_many_went_on_at_once(spans: list[tuple[float, float]], most: int) -> None:
    assert overlap(spans) == most


@given(slots=st.integers(1, 8), late=st.lists(st.floats(0, 0.2), min_size=8, max_size=8))
def test_the_slots_of_a_server_are_found_though_answers_are_read_late(slots: int, late: list[float]) -> None:
    # Eight requests of 1 s, of which `slots` go on at a time; each answer is read up to 0.2 s late.
    ends = [1 + number // slots for number in range(8)]
    spans = [(end - 1 + delay, end + delay) for end, delay in zip(ends, late, strict=True)]
    assert overlap(spans) == slots


def test_the_night_is_reckoned_from_the_mean_time_and_from_the_wall_time() -> None:
    pace = Pace(tried=16, done=16, concurrency=4, wall_s=50.0, mean_s=10.0)
    # At best 4 are out at all times: 1,000 x 10 s / 4. At worst as the sample: 50 s for 16.
    assert pace.seconds_for(1000) == (2500.0, 3125.0)


def test_a_sample_of_few_rows_is_off_by_twice_the_error_of_its_mean() -> None:
    # Mean 10, standard deviation 4, of 16: 2 x 4 / 4 is 2, a fifth of the mean.
    times = [10 - 15**0.5 * 4 / 16**0.5, 10 + 15**0.5 * 4 / 16**0.5] * 8
    assert error_of(times) == pytest.approx(0.2)
    assert error_of([10.0] * 16) == 0
    assert error_of([10.0]) == 0.5
    pace = Pace(tried=16, done=16, concurrency=4, wall_s=50.0, mean_s=10.0, error=0.2)
    assert pace.seconds_for(1000) == pytest.approx((2000.0, 3750.0))


def test_rows_that_failed_are_not_reckoned_with() -> None:
    pace = Pace(tried=4, done=2, concurrency=2, wall_s=10.0, mean_s=5.0, failures=("timeout",) * 2)
    assert pace.seconds_for(100) == (250.0, 500.0)
    assert Pace(tried=4, done=0, concurrency=2, wall_s=10.0).seconds_for(100) is None
