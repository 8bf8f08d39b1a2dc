"""Whether a run's rows are still answered by the model that it began with."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from ollama_batch._stop import Abandoned, Stop
from ollama_batch._summary import NEW_RUN
from ollama_batch.engines.base import Engine, Identifying
from ollama_batch.errors import EngineError, JournalError, ModelChangedError
from ollama_batch.types import Completion, EngineInfo

log = logging.getLogger("ollama_batch.run")

EVERY_S: Final = 5.0
"""How often is looked, if nothing else is a reason to."""

ROWS: Final = 50
"""After so many answers it is looked sooner."""

LEAST_S: Final = 0.5
"""Not again within so many seconds for that."""

LOADED_S: Final = 0.1
"""An answer that waited longer for a load may be the first of another model: looked before it counts."""

LOOK_S: Final = 10.0
"""Longest wait for the engine's word."""

KEPT: Final = 1000
NAMED: Final = 3

KIND: Final = "model_changed"
"""The kind of the decision."""


class Weights:
    """Looks, while rows are sent, whether a model's name still stands for the weights that were met.

    Other weights end the run at once, resumably (ModelChangedError), as they keep it from being resumed: its
    answers are to be of one model. Answers that came since the last look may be of either, and are named.
    Where the engine does not tell its weights, nothing is looked at.
    """

    def __init__(
        self, engine: Engine, *, info: EngineInfo, stop: Stop, decide: Callable[..., Awaitable[None]]
    ) -> None:
        self._engine = engine if isinstance(engine, Identifying) and info.digest is not None else None
        self._info = info
        self._stop = stop
        self._decide = decide
        self._changed = False
        self._answered = 0
        self._sure = 0
        self._recent: deque[str] = deque(maxlen=KEPT)
        self._due = asyncio.Event()
        self._looking = asyncio.Lock()
        self._looks = 0

    async def confirm(self, custom_id: str, completion: Completion) -> None:
        """Return if this answer may count as one of the model that was met; raises Abandoned once it is
        known that it may not.
        """
        if (completion.timings.load_s or 0.0) >= LOADED_S:
            await self.look()
        if self._changed:
            raise Abandoned
        self._answered += 1
        self._recent.append(custom_id)
        if self._answered - self._sure >= ROWS:
            self._due.set()

    async def look(self) -> None:
        """Ask the engine, and end the run if the weights are others. An engine that does not answer says
        nothing. Those who come while it is asked have the answer to the next question together.
        """
        before = self._looks
        async with self._looking:
            if self._engine is None or self._changed or self._looks > before:
                return
            self._looks += 1
            answered, digest = self._answered, await self._digest(self._engine)
            if digest is None:
                return
            if digest == self._info.digest:
                self._sure = answered
                return
            self._changed = True
            await self._end(digest)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look now and again during the block, first before it begins."""
        await self.look()
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while self._engine is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._due.wait()
            await self.look()
            self._due.clear()
            await asyncio.sleep(LEAST_S)

    async def _digest(self, engine: Identifying) -> str | None:
        try:
            async with asyncio.timeout(LOOK_S):
                return await engine.digest(self._info.model)
        except (EngineError, TimeoutError):
            return None
        except Exception:  # an engine of somebody's own: the run goes on without it
            log.exception("the engine could not be asked for the digest of %s any more", self._info.model)
            self._engine = None
            return None

    async def _end(self, digest: str) -> None:
        count = self._answered - self._sure
        unsure = list(self._recent)[-count:] if count else []
        model, before = self._info.model, self._info.digest or ""
        named = ", ".join(unsure[-NAMED:]) + (f" and {count - NAMED:,} before" if count > NAMED else "")
        message = (
            f"{model} is another model now: the name stood for {_short(before)} and stands for "
            f"{_short(digest)} (somebody has pulled, created or copied it). The run stops, so that its "
            "answers are of one model"
        )
        if count:
            message += f" ({count:,} since the last look may be of either: {named})"
        message += (
            f". Put {_short(before)} back under this name and run again to go on, or begin {NEW_RUN} with "
            "the new one"
        )
        try:
            with suppress(JournalError):  # no room: the run ends all the same
                await self._decide(
                    KIND, message, model=model, before=before, after=digest, unsure=unsure, unsure_count=count
                )
        finally:
            self._stop.now(ModelChangedError(message))


def _short(digest: str) -> str:
    """As `ollama list` shows it."""
    return digest.removeprefix("sha256:")[:12]
