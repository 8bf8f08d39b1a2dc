"""What an engine can give up when its memory does not hold one request: the rungs below concurrency."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ollama_batch._supervision import Supervision
from ollama_batch.control import Rung
from ollama_batch.engines.base import Engine, Unloading
from ollama_batch.errors import EngineError

log = logging.getLogger("ollama_batch.run")


class Relief:
    """Takes the rungs that help one engine."""

    def __init__(self, engine: Engine, *, model: str, supervision: Supervision) -> None:
        self._engine = engine
        self._model = model
        self._supervision = supervision

    @property
    def rungs(self) -> Sequence[Rung]:
        """Those there are at present, in the order to be taken."""
        unload = (Rung.UNLOAD_OTHERS,) if isinstance(self._engine, Unloading) else ()
        restart = (Rung.RESTART,) if self._supervision.refuses() is None else ()
        return (*unload, *restart)

    async def take(self, rung: Rung, error: EngineError) -> None:
        """Take `rung`, because of `error`; what does not work is only logged: the next request tells."""
        if rung is Rung.RESTART:
            await self._supervision.restart_if_due(error, exited=True, unwell_s=0.0)
        elif rung is Rung.UNLOAD_OTHERS and isinstance(self._engine, Unloading):
            try:
                gone = await self._engine.unload_others(self._model)
            except EngineError as failed:
                log.warning("other models could not be unloaded: %s", failed)
            else:
                log.warning(
                    "had the engine unload %s", ", ".join(gone) or "nothing: no other model was loaded"
                )
