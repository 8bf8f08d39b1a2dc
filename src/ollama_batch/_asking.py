"""What a run asks its engine about trouble, and what the run comes to if there is none to ask any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ollama_batch._check import EngineCheck
from ollama_batch._gate import Gate
from ollama_batch._stop import Abandoned, Stop
from ollama_batch._supervision import Supervision
from ollama_batch.control import Kind, Trouble
from ollama_batch.errors import EngineDownError, EngineError, EngineExitedError, EngineStoppedError

log = logging.getLogger("ollama_batch.run")

TOLD_S = 0.25
"""A pause, or a look at the engine while nothing is out, is told of if it takes longer."""


class Asking:
    """Asks on behalf of rows. Where the engine is gone, or the check broken, the run ends, with Abandoned."""

    def __init__(
        self, check: EngineCheck, *, gate: Gate, stop: Stop, supervision: Supervision, patience_s: float
    ) -> None:
        self._check = check
        self._gate = gate
        self._stop = stop
        self._supervision = supervision
        self._patience_s = patience_s

    async def kept(self, trouble: Trouble, *, suspected: bool, unsure: Callable[[], None]) -> bool | None:
        """False if the engine is not well, or has lost its model; True if it has it; None: no more is known.

        `unsure` is called if its health is asked for and it takes a while to say.
        """
        try:
            if trouble.kind is Kind.LOST and trouble.alone and self._gate.open:
                kept = self._check.kept(trouble.row, suspected=suspected, within_s=self._patience_s)
                return await self._stop.unless_draining(kept)
            telling = asyncio.get_running_loop().call_later(TOLD_S, unsure)
            try:
                return None if await self._stop.unless_draining(self._check.healthy()) else False
            finally:
                telling.cancel()
        except EngineExitedError as gone:
            if self._supervision.revives(gone):
                return False
            self._stop.drain(EngineDownError(self._supervision.last_words(gone)))
        except EngineStoppedError as gone:
            self._stop.drain(EngineDownError(str(gone)))
        except EngineError:
            return False
        except Abandoned:
            raise
        except Exception as bug:  # the row would fail for it, or the pause never end
            self.broken(bug)
        raise Abandoned

    async def replies(self, *, of_use: bool = False) -> bool:
        """Whether the engine answers a question, or a row meanwhile (`of_use`: not with a refusal)."""
        try:
            return await self._stop.unless_draining(self._check.replies(self._patience_s, of_use=of_use))
        except EngineStoppedError:
            return False
        except Abandoned:
            raise
        except Exception as bug:
            self.broken(bug)
        raise Abandoned

    def broken(self, bug: Exception) -> None:
        """End the run: the check raised what it should not."""
        log.error("the engine's health check failed", exc_info=bug)
        self._stop.drain(EngineDownError(f"the engine's health check failed: {bug!r}"))
