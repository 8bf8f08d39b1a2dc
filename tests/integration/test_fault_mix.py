"""A thousand rows through resets, errors, refusals, cut bodies, hangs and garbage; 20 seeds of ten thousand
are `benchmarks/fault_mix.py`."""

from __future__ import annotations

from collections import Counter

import pytest

import mix_support as mix
from ollama_batch import BatchResult
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import FakeOllama, Ledger
from ollama_batch.types import RowError

ROWS = 1000
RETRY = RetryPolicy(wait_s=0.02, wait_max_s=0.2)


def test_every_row_ends_as_what_it_met_says_it_must() -> None:
    with FakeOllama(slots=32, seed=1, speed=mix.speed(0.02), faults=mix.faults()) as fake:
        verdict = mix.run(fake, ROWS, concurrency=32, timeout_s=2.0, retry=RETRY)
    assert verdict.problems == []
    assert verdict.ok >= ROWS - 5
    assert verdict.calls_per_row <= mix.MOST_CALLS_PER_ROW
    for kind, share in mix.SHARES.items():  # the mix is the one that was meant: within 6 standard deviations
        expected = share * verdict.calls
        assert abs(verdict.met[kind] - expected) < 6 * expected**0.5, (kind, verdict.met)


def told(*outcomes: str, code: str | None, attempts: int | None = None, times: int = 1) -> list[str]:
    """What the judge says of one row that met `outcomes` and ended with `code`."""
    ledger = Ledger()
    for outcome in outcomes:
        record = ledger.arrived(at=0.0, route="/api/chat", kind="completion", key=mix.name(0))
        ledger.finished(record, outcome, 200)
    result: BatchResult[None] = BatchResult(
        custom_id=mix.name(0),
        ok=code is None,
        output="fine" if code is None else None,
        error=None if code is None else RowError(code, "broke"),
        attempts=len(outcomes) if attempts is None else attempts,
    )
    return mix.judge(ledger, [result] * times, 1, RetryPolicy(timeout=1, reply=1)).problems


HANG, JUNK, BUSY = "fault:hang", "fault:garbage", "fault:too_many"


def test_the_judge_finds_nothing_wrong_with_rows_that_ended_as_they_must() -> None:
    assert told("answered", code=None) == []
    assert told(HANG, JUNK, BUSY, BUSY, BUSY, "answered", code=None) == []
    assert told(HANG, JUNK, HANG, code="request_timeout") == []
    assert told("aborted", HANG, code="request_timeout") == []


@pytest.mark.parametrize(
    ("problems", "wrong"),
    [
        (told(code="request_timeout"), "never sent"),
        (told("answered", code=None, times=2), "ended 2 times"),
        (told("answered", code=None, times=0), "ended 0 times"),
        (told("answered", "answered", code=None), "sent again"),
        (told("answered", code=None, attempts=2), "says it was sent 2 times"),
        (told(JUNK, code=None), "ok"),
        (told("answered", code="invalid_reply"), "failed"),
        (told(HANG, HANG, code="invalid_reply"), "instead of request_timeout"),
        (told(HANG, code="request_timeout"), "after 0 repeats"),
        (told(JUNK, JUNK, JUNK, code="invalid_reply"), "after 2 repeats"),
        (told(BUSY, code="engine_busy"), "costs a row nothing"),
    ],
)
def test_the_judge_finds_what_is_wrong(problems: list[str], wrong: str) -> None:
    assert len(Counter(problems)) == 1
    assert wrong in problems[0]
