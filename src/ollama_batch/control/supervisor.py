"""The supervisor: restarts what the user allows, so often and no oftener."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeAlias

from ollama_batch.control.restart import Outcome, Restart
from ollama_batch.errors import ConfigError, OllamaBatchError, RestartError

Restarter: TypeAlias = Callable[[], object]
"""Restarts an engine: a callable, or an async one. Raises RestartError, or anything else, if it cannot."""

OWN_MOST: Final = 30
OTHERS_MOST: Final = 5
"""Restarts in `within_s`, unless said: of the run's own engine, and of one that others may use as well."""

_log = logging.getLogger("ollama_batch.control.supervisor")


class Supervisor:
    """Says whether and when an engine in trouble is restarted, and does it.

    Without an argument it restarts only engines whose server is the run's own child (EmbeddedEngine,
    `OllamaEngine.managed`). `restart` is your way to restart any other: a SystemdUnit, or a callable without
    arguments, async or not (it then runs in a thread). It wins over the engine's own way.

    An engine whose process has ended is restarted at once. One that is there and not well, or on a machine
    that does not tell, gets `after_s` seconds to come back by itself, half of the run's `recover_timeout` at
    the most, again after each restart. Restarts without an answer between them are
    `wait_s`, twice, four times ... `wait_most_s` seconds apart. There are `most` at the most in `within_s`
    seconds (None: 30 of an engine of the run's own, 5 of others; 0: none at all). After a refusal none is
    tried until the engine has answered. One that takes longer than `timeout_s` seconds is "slow": an async
    one is cancelled, a thread goes on, and nothing is tried until it has ended.

    The run awaits what an async callable returns, so give the callable itself: `Supervisor(restart)`, not
    `Supervisor(restart())`. `clock` gives seconds that never go back. May serve several runs, whose restarts
    count together. Raises ConfigError.
    """

    def __init__(
        self,
        restart: Restarter | None = None,
        *,
        most: int | None = None,
        within_s: float = 600.0,
        after_s: float = 30.0,
        wait_s: float = 1.0,
        wait_most_s: float = 60.0,
        timeout_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given: object = restart
        if inspect.iscoroutine(given):
            given.close()  # never awaited: the message is enough
            raise ConfigError(
                f"restart={restart!r}: is what calling an async callable returns; give the callable itself, "
                'without (), as in Supervisor(SystemdUnit("ollama"))'
            )
        if restart is not None and (isinstance(restart, type) or not callable(restart)):
            raise ConfigError(f'restart={restart!r}: must be a callable, as in SystemdUnit("ollama")')
        if most is not None and (type(most) is not int or most < 0):
            raise ConfigError(f"most={most!r}: must be a whole number, 0 or more, or None")
        _seconds("within_s", within_s)
        _seconds("after_s", after_s, zero=True)
        _seconds("wait_s", wait_s)
        _seconds("wait_most_s", wait_most_s)
        _seconds("timeout_s", timeout_s)
        self._restart = restart
        self._most = most
        self._within_s = within_s
        self._after_s = after_s
        self._wait_s = wait_s
        self._wait_most_s = wait_most_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=OWN_MOST if most is None else most)
        self._in_a_row = 0
        self._refusal: str | None = None
        self._under_way = False
        self._thread: Future[Any] | None = None

    def allows(self, own: Restarter | None) -> bool:
        """Whether there is a way to restart an engine whose own way is `own`, and any restart is allowed."""
        return (self._restart is not None or own is not None) and self._most != 0

    def refuses(self, own: Restarter | None) -> str | None:
        """Why an engine is not restarted, whatever its state; None if it may be.

        `own` is the engine's own way, None for an engine that somebody else runs.
        """
        if self._restart is None and own is None:
            return "nobody has allowed to restart it"
        if self._refusal is not None:
            return self._refusal
        most = self._most
        if most is None:
            most = OTHERS_MOST if self._restart is not None else OWN_MOST
        if most == 0:
            return "no restart is allowed"
        since = self._clock() - self._within_s
        recent = sum(1 for ended in self._ended if ended > since)
        if recent < most:
            return None
        return f"that was tried {recent} times within {self._within_s:g} s, and no more is allowed"

    def due_in(self, *, exited: bool, unwell_s: float, patience_s: float = float("inf")) -> float:
        """Seconds until an engine that has been in trouble for `unwell_s` may be restarted; 0 is now.

        `exited` says that its process has ended. Whoever gives up after `patience_s` seconds has it
        restarted after half of them at the latest.
        """
        if self._under_way or (self._thread is not None and not self._thread.done()):
            return self._wait_most_s
        now = self._clock()
        last = self._ended[-1] if self._ended else float("-inf")
        due = now if exited else max(now - unwell_s, last) + min(self._after_s, patience_s / 2)
        if self._in_a_row:
            wait = self._wait_s * 2.0 ** min(self._in_a_row - 1, 30)
            due = max(due, last + min(wait, self._wait_most_s))
        return max(0.0, due - now)

    async def attempt(
        self,
        own: Restarter | None,
        *,
        exited: bool,
        unwell_s: float,
        reason: str,
        patience_s: float = float("inf"),
    ) -> Restart | None:
        """Restart the engine if it is time to; None if it is not, or if it is refused. Never raises for
        what a restart meets.
        """
        action = own if self._restart is None else self._restart
        if action is None or self.refuses(own) is not None:
            return None
        if self.due_in(exited=exited, unwell_s=unwell_s, patience_s=patience_s) > 0:
            return None
        self._under_way = True  # without an await since the question: two runs cannot both get here
        began = self._clock()
        try:
            outcome, message = await self._carried_out(action)
        finally:
            self._under_way = False
            self._in_a_row += 1
            self._ended.append(self._clock())
        if outcome in (Outcome.REFUSED, Outcome.PASSWORD):
            self._refusal = message
        restart = Restart(reason=reason, outcome=outcome, message=message, duration_s=self._clock() - began)
        _log.warning("%s", restart)
        return restart

    def answered(self) -> None:
        """The engine has answered a request: the next trouble is a new one."""
        self._in_a_row = 0
        self._refusal = None

    async def _carried_out(self, action: Restarter) -> tuple[Outcome, str]:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._call(action)
        except RestartError as error:
            return Outcome(error.outcome), error.message
        except TimeoutError as error:
            if not limit.expired():
                return Outcome.FAILED, f"{type(error).__name__}: {error}"
            return Outcome.SLOW, f"the restart had not ended after {self._timeout_s:g} s"
        except OllamaBatchError as error:
            return Outcome.FAILED, str(error)
        except Exception as error:  # somebody else's code: whatever it is, the run goes on probing
            _log.exception("the restart failed")
            return Outcome.FAILED, f"{type(error).__name__}: {error}"
        return Outcome.OK, ""

    async def _call(self, action: Restarter) -> None:
        if inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(type(action).__call__):
            result = action()
        else:
            self._thread = _in_thread(action)
            result = await asyncio.wrap_future(self._thread)
        if inspect.isawaitable(result):
            await result


def _seconds(name: str, value: object, *, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf") or (value == 0 and not zero):  # type: ignore[operator]
        rule = "a number of seconds, 0 or more" if zero else "a number of seconds above 0"
        raise ConfigError(f"{name}={value!r}: must be {rule}")


def _in_thread(action: Restarter) -> Future[Any]:
    """What `action` returns, from a thread that does not keep the process from ending."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # a waiter that gives up does not end the thread

    def work() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="ollama-batch restart", daemon=True).start()
    return future
