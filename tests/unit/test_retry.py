"""When an attempt is repeated, how often and after how long; no test waits for real."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState

from ollama_batch import errors
from ollama_batch._stop import Abandoned
from ollama_batch.errors import (
    ConfigError,
    EngineBusyError,
    EngineConnectionError,
    EngineError,
    EngineServerError,
    EngineTimeoutError,
    EngineUnreachableError,
    InvalidReplyError,
    RequestRejectedError,
)
from ollama_batch.retry import RetryPolicy, RowRetry

LOST = EngineConnectionError("lost")
SERVER = EngineServerError("500")
REPLY = InvalidReplyError("cut")
LATE = EngineTimeoutError("late")
BUSY = EngineBusyError("full")
AWAY = EngineUnreachableError("away")


class Attempts:
    """Raises one error after the other, then answers; `waits` are the sleeps asked for."""

    def __init__(self, *script: BaseException, forever: EngineError | None = None) -> None:
        self.script = list(script)
        self.forever = forever
        self.made = 0
        self.waits: list[float] = []

    async def __call__(self, job: str) -> str:
        self.made += 1
        if self.script:
            raise self.script.pop(0)
        if self.forever is not None:
            raise self.forever
        return job

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def run(self, policy: RetryPolicy | None = None, patience_s: float = 900.0) -> str:
        told: list[float] = []

        def tell(state: RetryCallState) -> None:
            told.append(state.upcoming_sleep)

        retry = RowRetry(policy or RetryPolicy(), sleep=self.sleep, before_sleep=tell, patience_s=patience_s)
        try:
            return await retry.call(self, "answer")
        finally:
            assert told == self.waits


@pytest.mark.parametrize(("error", "allowed"), [(LOST, 5), (SERVER, 3), (REPLY, 2), (LATE, 1)])
async def test_a_row_is_sent_once_more_than_its_budget_allows(error: EngineError, allowed: int) -> None:
    attempts = Attempts(*[error] * allowed)
    assert await attempts.run() == "answer"
    attempts = Attempts(forever=error)
    with pytest.raises(type(error)):
        await attempts.run()
    assert attempts.made == allowed + 1
    assert len(attempts.waits) == allowed


@pytest.mark.parametrize(("error", "budget"), [(LOST, "transport"), (SERVER, "server"), (LATE, "timeout")])
@pytest.mark.parametrize("allowed", [0, 1, 7])
async def test_budgets_can_be_set(error: EngineError, budget: str, allowed: int) -> None:
    attempts = Attempts(forever=error)
    with pytest.raises(type(error)):
        await attempts.run(RetryPolicy(**{budget: allowed}))
    assert attempts.made == allowed + 1


async def test_budgets_are_spent_apart() -> None:
    script = [LOST] * 5 + [SERVER] * 3 + [REPLY] * 2 + [LATE] + [BUSY] * 9 + [AWAY] * 9
    attempts = Attempts(*script[::-1])
    assert await attempts.run() == "answer"
    assert attempts.made == len(script) + 1
    attempts = Attempts(*script, SERVER)
    with pytest.raises(EngineServerError):
        await attempts.run()


async def test_an_engine_that_is_away_costs_nothing_and_the_gate_does_the_waiting() -> None:
    attempts = Attempts(*[AWAY] * 500)
    assert await attempts.run() == "answer"
    assert attempts.waits == [0.0] * 500


async def test_a_busy_engine_costs_nothing_until_patience_is_spent() -> None:
    attempts = Attempts(forever=BUSY)
    with pytest.raises(EngineBusyError):
        await attempts.run(patience_s=60.0)
    assert 60 <= sum(attempts.waits) <= 60 + 30
    assert attempts.made == len(attempts.waits) + 1


async def test_a_policy_without_waits_comes_to_an_end_too() -> None:
    attempts = Attempts(forever=BUSY)
    with pytest.raises(EngineBusyError):
        await attempts.run(RetryPolicy(wait_s=0), patience_s=1.0)
    assert attempts.made <= 102


@pytest.mark.parametrize(
    "error",
    [
        RequestRejectedError("bad"),
        errors.ContextTooLargeError(5, 4),
        errors.UnsupportedParamError("no"),
        errors.EngineStoppedError("gone"),
        errors.EngineAuthError("401"),
        errors.ModelNotFoundError("pull it"),
        EngineError("odd"),
        Abandoned(),
        ValueError("a bug"),
    ],
)
async def test_what_cannot_succeed_is_not_repeated(error: BaseException) -> None:
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await attempts.run()
    assert (attempts.made, attempts.waits) == (1, [])


@pytest.mark.parametrize("error", [Abandoned(), RequestRejectedError("bad"), ValueError("a bug")])
async def test_what_cannot_succeed_ends_repeats_under_way(error: BaseException) -> None:
    attempts = Attempts(LOST, SERVER, error)
    with pytest.raises(type(error)):
        await attempts.run()
    assert attempts.made == 3


async def test_a_wait_cut_short_ends_the_repeats() -> None:
    attempts = Attempts(LOST)

    async def sleep(seconds: float) -> None:
        raise Abandoned

    with pytest.raises(Abandoned):
        await RowRetry(RetryPolicy(), sleep=sleep, patience_s=1.0).call(attempts, "job")
    assert attempts.made == 1


# Waits


@given(
    wait_s=st.floats(0, 100),
    wait_max_s=st.floats(0, 1000),
    repeat=st.integers(1, 31),
    error=st.sampled_from([LOST, SERVER, REPLY, LATE, BUSY]),
)
def test_waits_lie_in_the_upper_half_of_a_doubling_range(
    wait_s: float, wait_max_s: float, repeat: int, error: EngineError
) -> None:
    ceiling = wait_s
    for _ in range(repeat - 1):
        ceiling += ceiling
    ceiling = min(ceiling, wait_max_s)
    wait = RetryPolicy(wait_s=wait_s, wait_max_s=wait_max_s).wait(error, repeat)
    assert ceiling / 2 * (1 - 1e-9) <= wait <= ceiling * (1 + 1e-9)


@given(repeat=st.integers(32, 1_000_000))
def test_waits_stay_at_their_longest(repeat: int) -> None:
    assert 15 <= RetryPolicy().wait(LOST, repeat) <= 30


@given(asked=st.floats(0, 1e6), repeat=st.integers(1, 50), most=st.floats(0, 1e4))
def test_a_retry_after_is_a_least_wait_and_bounded(asked: float, repeat: int, most: float) -> None:
    policy = RetryPolicy(retry_after_max_s=most)
    wait = policy.wait(EngineBusyError("full", retry_after_s=asked), repeat)
    assert wait >= min(asked, most)
    if repeat == 1:
        assert wait == min(asked, most)
    else:
        assert wait <= max(min(asked, most), policy.wait_max_s)


def test_a_retry_after_of_nothing_does_not_become_a_storm() -> None:
    busy = EngineBusyError("full", retry_after_s=0.0)
    policy = RetryPolicy()
    assert policy.wait(busy, 1) == 0
    assert all(policy.wait(busy, repeat) >= 0.5 for repeat in range(2, 20))


def test_waits_differ() -> None:
    assert len({RetryPolicy().wait(LOST, 5) for _ in range(20)}) > 10


@pytest.mark.parametrize(
    "settings",
    [
        {"transport": -1},
        {"server": 1.5},
        {"reply": True},
        {"timeout": "2"},
        {"timeout": None},
        {"wait_s": -0.1},
        {"wait_s": float("nan")},
        {"wait_max_s": float("inf")},
        {"retry_after_max_s": "5"},
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, Any]) -> None:
    (option,) = settings
    with pytest.raises(ConfigError, match=rf"RetryPolicy\({option}="):
        RetryPolicy(**settings)
