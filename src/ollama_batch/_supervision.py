"""How one run uses its supervisor: asked while the engine is in trouble, told when it answers."""

from __future__ import annotations

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
        return f"\nThe engine could not be restarted: {why.rstrip('.')}" if why else ""

    def last_words(self, error: EngineError) -> str:
        """What a run ends with when its engine is gone."""
        if isinstance(error, EngineExitedError):
            return f"{error}\nThe engine is not restarted: {self.refuses()}"
        return str(error)

    def revives(self, error: EngineError) -> bool:
        """Whether `error` is the end of an engine that may be restarted."""
        return isinstance(error, EngineExitedError) and self.refuses() is None

    async def restart_if_due(self, error: EngineError, *, exited: bool, unwell_s: float) -> bool:
        """Restart the engine if it is time to, and tell it; returns whether that was tried."""
        if self._supervisor is None:
            return False
        reason = str(error).partition("\n")[0].removesuffix("; its last log lines:")
        restart = await self._supervisor.attempt(self._own, exited=exited, unwell_s=unwell_s, reason=reason)
        if restart is None:
            return False
        tried = restart.outcome in (Outcome.FAILED, Outcome.SLOW)
        self._failed = restart.message if tried else None
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
            if not await self.restart_if_due(error, exited=True, unwell_s=0.0):
                raise
        return await ask()

    def answered(self) -> None:
        """The engine has answered a request."""
        self._failed = None
        if self._supervisor is not None:
            self._supervisor.answered()
