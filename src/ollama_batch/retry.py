"""When a failed attempt is repeated: separate budgets by kind of trouble, waits with jitter.

`RetryPolicy` is the setting. To rows it is applied by the recovery ladder (`_recovery.py`), to questions of
the run's own by `RowRetry`, through tenacity.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState

from ollama_batch.errors import Budget, ConfigError, EngineError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one row is sent again, for each kind of trouble, and how long to wait.

    `transport`: connections lost in mid-answer. `server`: 5xx. `reply`: replies that are no complete
    answer. `timeout`: no answer in time. Rejections and useless answers are never repeated unchanged;
    an engine that is down, busy, loading, dead or out of memory costs a row nothing, as long as it does not
    last for `BatchRunner(recover_timeout=)` and is not the row's doing. After a timeout it gets
    twice the time.
    Waits double from `wait_s` to `wait_max_s` seconds; each is drawn from the upper half of its range
    ("equal jitter": "Exponential Backoff And Jitter", AWS architecture blog, 2015). A Retry-After is
    honoured up to `retry_after_max_s`; when it has not helped, the longer of the two waits counts.
    """

    transport: int = 5
    server: int = 3
    reply: int = 2
    timeout: int = 1
    wait_s: float = 0.5
    wait_max_s: float = 30.0
    retry_after_max_s: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            seconds = field.name.endswith("_s")
            number = isinstance(value, int | float) if seconds else isinstance(value, int)
            if not number or isinstance(value, bool) or not 0 <= value < float("inf"):
                rule = "a number of seconds" if seconds else "a whole number"
                raise ConfigError(f"RetryPolicy({field.name}={value!r}): must be {rule}, 0 or more")

    def allowed(self, budget: Budget) -> int | None:
        """How many repeats `budget` allows; None = as long as the run goes on."""
        if budget in ("busy", "none"):
            return None
        allowed: int = getattr(self, budget)
        return allowed

    def wait(self, error: EngineError, repeat: int) -> float:
        """Seconds to wait before the `repeat`-th (from 1) repeat after `error`."""
        if error.budget == "none":
            return 0.0  # the gate holds the row until the engine is back
        asked = error.retry_after_s
        if asked is not None and repeat == 1:
            return min(asked, self.retry_after_max_s)
        ceiling = min(self.wait_max_s, self.wait_s * 2 ** min(repeat - 1, 30))
        wait = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreading retries, not a secret
        return wait if asked is None else max(wait, min(asked, self.retry_after_max_s))


class RowRetry:
    """The retries of one question: counts what each budget has spent and tells tenacity what to do.

    It is given up as well once it has waited `patience_s` seconds in all for a busy engine: others are
    answered meanwhile, or the run would have been stopped.
    """

    __slots__ = ("_before_sleep", "_busy_s", "_patience_s", "_policy", "_sleep", "_spent")

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        sleep: Callable[[float], Awaitable[None]],
        before_sleep: Callable[[RetryCallState], None] | None = None,
        patience_s: float,
    ) -> None:
        self._policy = policy
        self._patience_s = patience_s
        self._busy_s = 0.0
        self._spent: Counter[Budget] = Counter()
        self._sleep = sleep
        self._before_sleep = before_sleep

    async def call(self, attempt: Callable[[T], Awaitable[R]], job: T) -> R:
        """The result of `attempt(job)`, repeated as the policy allows; raises the last error.

        Most rows succeed at once, so tenacity is called in only after a failure, which it is shown first.
        """
        try:
            return await attempt(job)
        except EngineError as error:
            failed: EngineError | None = error

        async def again() -> R:
            nonlocal failed
            if failed is not None:
                first, failed = failed, None
                raise first
            return await attempt(job)

        result: R = await self._retrying()(again)
        return result

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=self._worth_repeating,
            wait=self._wait,
            sleep=self._sleep,
            before_sleep=self._before_sleep,
            reraise=True,
        )

    def _worth_repeating(self, state: RetryCallState) -> bool:
        error = _error(state)
        if error is None or not error.retryable:
            return False
        if error.budget == "busy" and self._busy_s >= self._patience_s:
            return False
        self._spent[error.budget] += 1
        allowed = self._policy.allowed(error.budget)
        return allowed is None or self._spent[error.budget] <= allowed

    def _wait(self, state: RetryCallState) -> float:
        error = _error(state)
        if error is None:
            return 0.0
        wait = self._policy.wait(error, self._spent[error.budget])
        if error.budget == "busy":
            self._busy_s += max(wait, 0.01)  # also a policy without waits comes to an end
        return wait


def _error(state: RetryCallState) -> EngineError | None:
    raised = state.outcome.exception() if state.outcome is not None else None
    return raised if isinstance(raised, EngineError) else None
