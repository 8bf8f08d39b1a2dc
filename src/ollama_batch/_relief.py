"""What an engine can give up when its memory does not hold one request: the rungs below concurrency."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Final

from ollama_batch._small_batch import SmallBatch
from ollama_batch._summary import NEW_RUN
from ollama_batch._supervision import Supervision
from ollama_batch.control import Kind, Rung, kind_of, smaller_num_batch
from ollama_batch.engines.base import BatchSized, Engine, Loadable, Unloading
from ollama_batch.errors import EngineError

log = logging.getLogger("ollama_batch.run")

DONE_ONCE: Final = frozenset({Rung.UNLOAD_OTHERS, Rung.RESTART})
"""Rungs that leave nothing to be taken back: what they do may be done again."""


class Relief:
    """Takes the rungs that help the engine of one run, and takes them back.

    `batch` is what all runs at the address share, where it is known as `run`. `num_ctx` is what the model is
    loaded with; a load may take `load_patience_s` seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        num_ctx: int | None,
        batch: SmallBatch,
        run: object,
        supervision: Supervision,
        load_patience_s: float,
    ) -> None:
        self._engine = engine
        self._model = model
        self._num_ctx = num_ctx
        self._batch = batch
        self._run = run
        self._supervision = supervision
        self._load_patience_s = load_patience_s

    @property
    def rungs(self) -> Sequence[Rung]:
        """Those there are at present, in the order to be taken."""
        batch = (Rung.NUM_BATCH,) if self._smaller_batch() is not None else ()
        unload = (Rung.UNLOAD_OTHERS,) if isinstance(self._engine, Unloading) else ()
        restart = (Rung.RESTART,) if self._supervision.refuses() is None else ()
        return (*batch, *unload, *restart)

    def last_resort(self, error: EngineError) -> str:
        """What is left to the user if `error` is that memory does not hold a request: rows that fitted may
        not then, so no run does it by itself.
        """
        if kind_of(error) is not Kind.OUT_OF_MEMORY:
            return ""
        if self._num_ctx is None:
            return ", or give the server a smaller context, which takes less memory"
        return f", or begin {NEW_RUN} with a smaller num_ctx= than {self._num_ctx:,}, which takes less memory"

    async def take(self, rung: Rung, error: EngineError) -> None:
        """Take `rung`, because of `error`; what does not work is only logged: the next request tells."""
        if rung is Rung.RESTART:
            await self._supervision.restart_if_due(error, exited=True)
        elif rung is Rung.NUM_BATCH:
            self._limit_batch()
        elif rung is Rung.UNLOAD_OTHERS and isinstance(self._engine, Unloading):
            try:
                gone = await self._engine.unload_others(self._model)
            except EngineError as failed:
                log.warning("other models could not be unloaded: %s", failed)
            except Exception:  # an engine of somebody's own
                log.exception("other models could not be unloaded")
            else:
                log.warning(
                    "had the engine unload %s", ", ".join(gone) or "nothing: no other model was loaded"
                )

    def take_back(self, rung: Rung) -> None:
        """Undo `rung`; nothing is left of those that are `DONE_ONCE`."""
        if rung is Rung.NUM_BATCH and self._batch.give_back(self._run):
            log.warning("num_batch is as it was: the model is loaded anew")

    def reload_smaller(self) -> Awaitable[None] | None:
        """Have the model unloaded and loaded with smaller buffers: to be awaited; None: there are none.

        It is unloaded once nothing uses it; what does not work is only logged.
        """
        if not isinstance(self._engine, Loadable) or self._smaller_batch() is None:
            return None
        return self._reloaded(self._engine)

    async def _reloaded(self, engine: Loadable) -> None:
        deadline = time.monotonic() + self._load_patience_s
        try:
            await engine.release(self._model, num_ctx=self._num_ctx, unload=True)
            self._limit_batch()
            await engine.load(self._model, num_ctx=self._num_ctx, deadline=deadline)
        except EngineError as failed:
            log.warning("the model could not be loaded anew: %s", failed)

    def _smaller_batch(self) -> int | None:
        return smaller_num_batch(self._engine.num_batch) if isinstance(self._engine, BatchSized) else None

    def _limit_batch(self) -> None:
        smaller = self._smaller_batch()
        self._batch.take(self._run)
        if smaller is not None:
            log.warning("num_batch %d from now on: the model is loaded anew", smaller)
