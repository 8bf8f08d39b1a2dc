"""Says in the log that a run gets no answer: soon, and then ever more rarely."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from ollama_batch._text import duration, plain
from ollama_batch.errors import EngineError, EngineLoadingError

log = logging.getLogger("ollama_batch.run")

FIRST_S: Final = 5.0
"""What is over sooner is not worth a line."""

GROWTH: Final = 3.0
"""Each line comes after so many times the silence of the one before: five in a quarter of an hour."""


def due_s(told: int) -> float:
    """After how many seconds of silence the next line is due, when so many have been told."""
    return FIRST_S * GROWTH**told


def line(error: EngineError, *, silent_s: float, left_s: float, option: str) -> str:
    """What is told of a silence: what the engine says, since when, what will happen and what helps."""
    said = plain(str(error), 300).rstrip(".")
    return (
        f"no row has been answered for {duration(silent_s)}: {said}. The run asks again and goes on as soon "
        f"as the engine answers; if it does not, the run stops in {duration(left_s)} ({option}) and can be "
        "resumed. What is wrong is in the engine's log"
    )


class Outage:
    """The time for which a run gets no answer, told as it grows. Bound to the running loop.

    `met` begins it, or says that it goes on; `rest` while rows are sent and may be answered; `over` ends it.
    The run stops `patience_s` seconds after it was met, `load_patience_s` (None: the same) while the model is
    being loaded.
    """

    def __init__(self, patience_s: float, load_patience_s: float | None = None) -> None:
        self._patience_s = patience_s
        self._load_patience_s = load_patience_s
        self._since: float | None = None
        self._told = 0
        self._error = EngineError("")
        self._met_at = 0.0
        self._answered_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def met(self, error: EngineError, *, at: float) -> None:
        """The run waits because of `error`, and has since `at` (`time.monotonic()`)."""
        if self._since is None:
            self._since = max(at, self._answered_at)
        self._error, self._met_at = error, at
        if self._timer is None:
            self._plan(self._since)

    def rest(self) -> None:
        """Say nothing until it is met again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def over(self) -> None:
        """Something was answered."""
        self._answered_at = time.monotonic()
        if self._since is None:
            return
        if self._told:
            log.warning("the engine answers again, after %s", duration(self._answered_at - self._since))
        self._since, self._told = None, 0
        self.rest()

    def _plan(self, since: float) -> None:
        wait_s = max(0.0, since + due_s(self._told) - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tell, since)

    def _tell(self, since: float) -> None:
        option, patience_s = "recover_timeout", self._patience_s
        if isinstance(self._error, EngineLoadingError) and self._load_patience_s is not None:
            option, patience_s = "load_timeout", self._load_patience_s
        now = time.monotonic()
        left_s = self._met_at + patience_s - now
        while due_s(self._told) <= now - since + 0.001:  # one line for all that are due: it was met late
            self._told += 1
        if left_s > 0:
            log.warning("%s", line(self._error, silent_s=now - since, left_s=left_s, option=option))
        self._plan(since)
