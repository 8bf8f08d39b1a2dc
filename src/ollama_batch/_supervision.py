"""How one run uses its supervisor: asked while the engine is in trouble, told when it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ollama_batch.control.restart import Outcome
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.engines.base import Engine, Restartable
from ollama_batch.errors import EngineError, EngineExitedError
from ollama_batch.events import EngineRestarted, Event

T = TypeVar("T")


class Supervision:
    """A supervisor, the engine of a run, and whoever is told of restarts. Without a supervisor: none."""

    def __init__(
        self, supervisor: Supervisor | None, *, engine: Engine, emit: Callable[[Event], None]
    ) -> None:
        self._supervisor = supervisor
        self._own = engine.restart if isinstance(engine, Restartable) else None
        self._emit = emit
        self._failed: str | None = None  # what the last restart ended with, if that was no refusal
        self._worked = 0  # restarts that worked, since the last answer
        self.patience_s = float("inf")
        """How long the run waits for its engine."""

    def refuses(self) -> str | None:
        """Why the engine is not restarted; None if it may be."""
        if self._supervisor is None:
            return "nobody has allowed to restart it"
        return self._supervisor.refuses(self._own)

    def in_vain(self) -> str:
        """For the end of a message: why whoever may restart it does not; "" if nobody may, or it does."""
        if self._supervisor is None or not self._supervisor.allows(self._own):
            return ""
        refused = self._supervisor.refuses(self._own)
        why = "; the last time: ".join(dict.fromkeys(each for each in (refused, self._failed) if each))
        if why:
            return f".\nThe engine could not be restarted: {why.rstrip('.')}"
        if not self._worked:
            return ""
        times = "once" if self._worked == 1 else f"{self._worked} times"
        return f".\nThe engine was restarted {times}, and answered nothing after that"

    def last_words(self, error: EngineError) -> str:
        """What a run ends with when its engine is gone."""
        if isinstance(error, EngineExitedError):
            return f"{error}\nThe engine is not restarted: {self.refuses()}"
        return str(error)

    def revives(self, error: EngineError) -> bool:
        """Whether `error` is the end of an engine that may be restarted."""
        return isinstance(error, EngineExitedError) and self.refuses() is None

    async def restart_if_due(self, error: EngineError, *, exited: bool, since: float | None = None) -> bool:
        """Restart the engine, in trouble `since` (`time.monotonic()`; None: now), if it is time to, and tell
        it; returns whether that was tried.
        """
        if self._supervisor is None:
            return False
        restart = await self._supervisor.attempt(
            self._own,
            exited=exited,
            unwell_s=0.0 if since is None else time.monotonic() - since,
            reason=str(error).partition("\n")[0].removesuffix("; its last log lines:"),
            patience_s=self.patience_s,
        )
        if restart is None:
            return False
        tried = restart.outcome in (Outcome.FAILED, Outcome.SLOW)
        self._failed = restart.message if tried else None
        self._worked += restart.outcome is Outcome.OK
        self._emit(
            EngineRestarted(
                reason=restart.reason,
                outcome=restart.outcome.value,
                message=restart.message,
                duration_s=restart.duration_s,
            )
        )
        return True

    async def revived(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The result of `ask()`, asked once more if the engine had exited and was restarted."""
        try:
            return await ask()
        except EngineExitedError as error:
            if not await self.restart_if_due(error, exited=True):
                raise
        return await ask()

    def answered(self) -> None:
        """The engine has answered a request."""
        self._failed, self._worked = None, 0
        if self._supervisor is not None:
            self._supervisor.answered()
