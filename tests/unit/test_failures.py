"""When failed rows stop a run."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_batch._failures import FailureWatch
from ollama_batch.errors import TooManyFailuresError
from ollama_batch.types import BatchResult, RowError


def ok() -> BatchResult[Any]:
    return BatchResult(custom_id="r", ok=True)


def bad(code: str = "output_truncated", *, row_caused: bool = True) -> BatchResult[Any]:
    return BatchResult(custom_id="r", ok=False, error=RowError(code, "why", row_caused=row_caused))


def first_stop(watch: FailureWatch, results: list[BatchResult[Any]], total: int | None = None) -> int | None:
    """After how many results the run is stopped."""
    for count, result in enumerate(results, start=1):
        if watch.add(result, total=total) is not None:
            return count
    return None


@pytest.mark.parametrize(
    ("results", "stops_at"),
    [
        ([bad()] * 60, 50),
        ([bad()] * 49, None),
        ([ok()] + [bad()] * 500, None),
        ([bad()] * 49 + [ok()] + [bad()] * 500, None),
        ([bad()] * 49 + [bad("output_empty")] * 500, None),
        ([bad(row_caused=False)] * 500, None),
        ([bad(row_caused=False)] + [bad()] * 500, None),
    ],
)
def test_a_run_whose_first_fifty_rows_fail_for_one_reason_of_their_own_is_hopeless(
    results: list[BatchResult[Any]], stops_at: int | None
) -> None:
    assert first_stop(FailureWatch(None), results) == stops_at


def test_good_rows_of_earlier_sessions_are_hope() -> None:
    assert first_stop(FailureWatch(None, ok_before=1), [bad()] * 500) is None


@pytest.mark.parametrize(
    ("most", "total", "stops_at"),
    [
        (0, 1000, 1),
        (1, 1000, 2),
        (10, 1000, 11),
        (10, None, 11),
        (60, 1000, 61),
        (0.05, 1000, 51),
        (0.0001, 1000, 1),
        (0.5, 10, 6),
        (0.5, None, 50),
    ],
)
def test_max_failures_is_a_number_or_a_share(most: float, total: int | None, stops_at: int) -> None:
    assert first_stop(FailureWatch(most), [bad(row_caused=False)] * 500, total) == stops_at


def test_good_rows_do_not_count_as_failures() -> None:
    assert first_stop(FailureWatch(2), [ok(), bad(), ok(), bad(), ok(), ok(), bad()]) == 7


def test_a_share_of_an_unknown_number_is_one_of_the_rows_so_far() -> None:
    mixed = [ok(), ok(), ok(), bad()] * 100
    assert first_stop(FailureWatch(0.3), mixed) is None
    assert first_stop(FailureWatch(0.2), mixed) == 52


def test_the_message_says_how_many_and_why() -> None:
    error = FailureWatch(0).add(bad(), total=5)
    assert isinstance(error, TooManyFailuresError)
    assert str(error) == (
        "1 rows failed, max_failures=0 allows 0; the last with output_truncated: why; the same call again "
        "goes on with the rows left, a larger max_failures= bears more"
    )
    assert not error.hopeless
