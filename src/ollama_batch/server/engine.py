"""The engine of a server, asked on the loop that runs live on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from ollama_batch._portal import portal
from ollama_batch.engines.base import Engine, Listing, Loadable, MemoryReporting, Probed
from ollama_batch.errors import EngineError
from ollama_batch.types import ChatRequest, Completion, EngineInfo, LoadedModel

T = TypeVar("T")

LOOK_S = 5.0
NAMED = 10
"""So many models are named in an error."""


class SharedEngine:
    """An engine as the routes and the scheduler use it; every wait has an end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Invariant: at most one question about the engine's health or memory is out.
        self._looking = asyncio.Lock()
        self._health: tuple[float, bool] | None = None
        self._loaded: tuple[float, tuple[str, ...], Sequence[LoadedModel]] | None = None

    @property
    def loads(self) -> bool:
        """Whether it loads models with a context length of our choice."""
        return isinstance(self.engine, Loadable)

    async def describe(self, model: str) -> EngineInfo:
        """Who answers for `model`. Raises EngineErrors."""
        return await self._ask(self.engine.describe(model))

    async def models(self) -> Sequence[str]:
        """The names of the models there are. Raises EngineErrors."""
        if not isinstance(self.engine, Listing):
            return ()
        return await self._ask(self.engine.models())

    async def names(self) -> str:
        """The models there are, as a sentence to end an error with; empty if that is not known."""
        try:
            models = await self.models()
        except EngineError:
            return ""
        if not models:
            return ""
        more = f", and {len(models) - NAMED:,} more (GET /v1/models)" if len(models) > NAMED else ""
        return f" There {'is' if len(models) == 1 else 'are'}: {', '.join(map(repr, models[:NAMED]))}{more}."

    async def complete(self, request: ChatRequest, *, timeout: float) -> Completion:
        """Answer one request, in turn with those of the batches. Raises EngineErrors."""

        async def in_turn() -> Completion:
            limit = portal().limit(self.engine.address)
            if not limit.in_use:  # nobody to take turns with, and no width that anybody has found
                return await self.engine.complete(request, deadline=time.monotonic() + timeout)
            async with limit:
                return await self.engine.complete(request, deadline=time.monotonic() + timeout)

        return await self._ask(in_turn())

    async def loaded(self, models: Sequence[str]) -> Sequence[LoadedModel]:
        """What the engine says it holds in memory for `models`; asked at most every few seconds."""
        async with self._looking:
            return await self._recent_loaded(models)

    async def _recent_loaded(self, models: Sequence[str]) -> Sequence[LoadedModel]:
        now = time.monotonic()
        if self._loaded is None or now - self._loaded[0] > LOOK_S or self._loaded[1] != tuple(models):
            self._loaded = (now, tuple(models), await self._look_at(models))
        return self._loaded[2]

    async def _look_at(self, models: Sequence[str]) -> Sequence[LoadedModel]:
        if not isinstance(self.engine, MemoryReporting):
            return ()
        try:
            async with asyncio.timeout(LOOK_S):
                found = [await self._ask(self.engine.loaded(model)) for model in models]
        except (TimeoutError, EngineError):
            return ()
        return [each for each in found if each is not None]

    async def healthy(self) -> bool:
        """Whether it answers; asked at most every few seconds."""
        async with self._looking:
            now = time.monotonic()
            if self._health is None or now - self._health[0] > LOOK_S:
                self._health = (now, await self._look())
            return self._health[1]

    async def aclose(self) -> None:
        """Close it."""
        await self._ask(self.engine.aclose())

    async def _look(self) -> bool:
        if not isinstance(self.engine, Probed):
            return True
        try:
            async with asyncio.timeout(LOOK_S):
                return await self._ask(self.engine.healthy())
        except (TimeoutError, EngineError):
            return False

    @staticmethod
    async def _ask(work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(portal().submit(work))
