"""The smaller `num_batch` that the runs on one server have in common."""

from __future__ import annotations

import logging

from ollama_batch.control import smaller_num_batch
from ollama_batch.engines.base import BatchSized, Engine

log = logging.getLogger("ollama_batch.run")


class SmallBatch:
    """What one run has the server evaluate in smaller pieces, all runs there do: two sizes would have it load
    the model anew for each request. Once taken it lasts until those who took it have given it back, or until
    the last run there has left, which leaves every engine as it was.
    """

    def __init__(self) -> None:
        self._engines: dict[object, Engine] = {}
        self._taken_by: set[object] = set()
        self._taken = False

    def join(self, run: object, engine: Engine) -> None:
        """`run` begins to use `engine`."""
        self._engines[run] = engine
        if self._taken:
            _limit(engine)

    def leave(self, run: object) -> None:
        """`run` is over; what it took stays with the others."""
        engine = self._engines.pop(run, None)
        self._taken_by.discard(run)
        if not self._engines:
            self._taken = False
        if engine is not None and not any(each is engine for each in self._engines.values()):
            _limit(engine, large=True)

    def take(self, run: object) -> None:
        """Have prompts evaluated in smaller pieces from now on."""
        self._taken_by.add(run)
        self._taken = True
        for engine in self._engines.values():
            _limit(engine)

    def give_back(self, run: object) -> bool:
        """`run` needs it no more; returns whether the pieces are as large as at first again."""
        self._taken_by.discard(run)
        if self._taken_by:
            return False
        self._taken = False
        for engine in self._engines.values():
            _limit(engine, large=True)
        return True


def _limit(engine: Engine, *, large: bool = False) -> None:
    if not isinstance(engine, BatchSized):
        return
    try:
        smaller = None if large else smaller_num_batch(engine.num_batch)
        if large or smaller is not None:
            engine.limit_batch(smaller)
    except Exception:  # an engine of somebody's own: no reason to end a run
        log.exception("num_batch could not be changed")
