"""Whether the engine is well: what it says itself, and whether it answers a question of one token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar, runtime_checkable

from ollama_batch._portal import AddressLimit
from ollama_batch._settings import SendSettings
from ollama_batch._stuck import stuck
from ollama_batch.engines.base import Engine, Loadable, MemoryReporting, Probed
from ollama_batch.errors import (
    EngineAuthError,
    EngineError,
    EngineOutOfMemoryError,
    EngineStoppedError,
    EngineTimeoutError,
    ModelNotFoundError,
)

log = logging.getLogger("ollama_batch.run")

T = TypeVar("T")

HEALTH_S = 30.0
"""Seconds a health check may take before it counts as failed."""

SOON_S = 5.0
"""Where several requests had no answer in time, and none has had one since: as long as a row may take, this
at least; twice as long after each check that was not answered, up to `HEALTH_S`."""

SEVERAL = 2


@runtime_checkable
class _SaysWhy(Protocol):
    """An engine that remembers why its latest check of health was in vain."""

    unwell: EngineError | None


class Reply(Enum):
    """What came of the question."""

    NONE = "none"
    REFUSED = "refused"
    YES = "yes"


class EngineCheck:
    """Asks the engine on behalf of all rows: who wants to know while it is asked has the same answer.

    All questions raise EngineStoppedError if the engine is gone. The one that is to be answered has as much
    time as a row; after each that was not answered in that, twice as much, until a row is answered. Once it
    is answered, for which the model may have been loaded anew, `loaded` is called.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        settings: SendSettings,
        limit: AddressLimit,
        loaded: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._loaded = loaded
        self._settings = settings
        self._limit = limit
        self._health = _Question(self._ask_health)
        self._soon_s = max(SOON_S, settings.timeout_s)
        self._timeouts = 0  # since the last answer
        self._asked_health: tuple[float, asyncio.Timeout] | None = None
        self.failed: EngineError | None = None
        """What the latest check of its health met; None if it was answered, not in time, or nobody tells."""
        self._reply = _Question(self._ask)
        self._ask_s = settings.timeout_s
        self._answered = asyncio.Event()
        self._lists: bool | None = None  # whether the engine lists a model that works; None: not seen yet
        self._accused: int | None = None
        self._gone_tells = True  # whether a model that is gone means that the engine died

    def answered(self, row: int) -> None:
        """`row` was answered: whoever waits for a question's answer needs none any more."""
        if row == self._accused:
            self._gone_tells = False
        self._ask_s = self._settings.timeout_s
        self._soon_s, self._timeouts = max(SOON_S, self._ask_s), 0
        self._answered.set()
        self._answered = asyncio.Event()

    def timed_out(self) -> None:
        """A row had no answer in time."""
        self._timeouts += 1
        if self._timeouts == SEVERAL and self._asked_health is not None:
            asked_at, limit = self._asked_health
            if not limit.expired():  # its end may be under way
                limit.reschedule(asked_at + min(self._soon_s, HEALTH_S))

    async def healthy(self) -> bool:
        """What the engine says of its health, within `HEALTH_S`, or sooner where it answers nothing else;
        True if it cannot be asked.
        """
        return await self._health.asked()

    async def replies(self, within_s: float, *, of_use: bool = False) -> bool:
        """Whether a question of our own, or a row meanwhile, is answered within so many seconds.

        That memory does not hold the question, or that it is refused as rows are, is an answer, unless it is
        to be `of_use`.
        """
        asking = asyncio.ensure_future(self._reply.asked())
        answered = asyncio.ensure_future(self._answered.wait())
        try:
            await asyncio.wait((asking, answered), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            reply = asking.result() if asking.done() else None
            return answered.done() or reply is Reply.YES or (reply is Reply.REFUSED and not of_use)
        finally:
            asking.cancel()
            answered.cancel()
            await asyncio.gather(asking, answered, return_exceptions=True)

    async def kept(self, row: int, *, suspected: bool, within_s: float) -> bool | None:
        """Whether the engine is well and still has the model, now that the connection of `row`, which was
        alone, has broken; None if it is well, and that is all that can be told. A row that is `suspected` of
        deaths may be cleared by this.

        An engine that died may be back before it is asked, but it has lost what the run had it load. That
        counts if the engine is known to list the model (it is asked a question first, of `within_s` seconds
        at most), until a connection breaks for another reason: with the model still there, or that of a row
        which is answered after all. Else a bad cable, where others have the model displaced, would look like
        deaths.
        """
        if not await self.healthy():
            return False
        if not self._gone_tells and not suspected:
            return None
        listed = await self._listed()
        if listed is not False:
            self._gone_tells = False
            return listed
        if not self._gone_tells:
            return None
        if self._lists is None and await self.replies(within_s, of_use=True):
            self._lists = await self._listed()
        self._accused = row
        return False if self._lists else None

    async def _listed(self) -> bool | None:
        """Whether the engine says that it has the model that the run had it load; None if it does not say."""
        if not isinstance(self._engine, Loadable) or not isinstance(self._engine, MemoryReporting):
            return None
        try:
            async with asyncio.timeout(HEALTH_S):
                return await self._engine.loaded(self._settings.model) is not None
        except EngineStoppedError:
            raise
        except (EngineError, TimeoutError) as error:
            log.debug("the engine does not say what it has loaded: %s", type(error).__name__)
            return None

    async def explained(self, error: EngineError) -> EngineError:
        """`error`; where nothing was answered in time, with what the engine says of the reason."""
        why = None
        if isinstance(error, EngineTimeoutError):
            why = await stuck(self._engine, self._settings.model)
        return error if why is None else EngineTimeoutError(f"{error.message}: {why}")

    async def _ask_health(self) -> bool:
        if not isinstance(self._engine, Probed):
            return True
        self.failed = None
        now, patience_s = asyncio.get_running_loop().time(), HEALTH_S
        if self._timeouts >= SEVERAL:
            patience_s = min(HEALTH_S, self._soon_s)
        try:
            async with asyncio.timeout_at(now + patience_s) as limit:
                self._asked_health = now, limit
                healthy = await self._engine.healthy()
        except EngineStoppedError:
            raise
        except (EngineError, TimeoutError) as error:
            if limit.expired() and self._timeouts >= SEVERAL:
                self._soon_s = min(2 * self._soon_s, HEALTH_S)
            self.failed = error if isinstance(error, EngineError) else None
            log.debug("the engine is not healthy yet: %s", type(error).__name__)
            return False
        finally:
            self._asked_health = None
        if not healthy and isinstance(self._engine, _SaysWhy):
            self.failed = self._engine.unwell
        return healthy

    async def _ask(self) -> Reply:
        reply = await self._asked()
        if reply is Reply.YES and self._loaded is not None:
            await self._loaded()
        return reply

    async def _asked(self) -> Reply:
        try:
            async with self._limit:
                deadline = time.monotonic() + self._ask_s
                await self._engine.complete(self._settings.test_chat(), deadline=deadline)
        except EngineStoppedError:
            raise
        except (EngineAuthError, ModelNotFoundError, EngineOutOfMemoryError):
            return Reply.REFUSED  # it is there; rows are told the same, and more can be done about those
        except EngineTimeoutError:
            # A model that is loaded anew may need more, and Ollama gives a load up that nobody waits for.
            self._ask_s = max(self._ask_s, min(2 * self._ask_s, self._settings.patience_s))
            log.debug("the test question was not answered in time: the next may take %g s", self._ask_s)
            return Reply.NONE
        except EngineError as error:
            log.debug("the test question was not answered: %s", type(error).__name__)
            return Reply.YES if error.row_caused else Reply.NONE
        return Reply.YES


class _Question(Generic[T]):
    """What many may want to know at once: one asks, and whoever came meanwhile has the same answer."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._lock = asyncio.Lock()
        self._told = 0
        self._answer: T

    async def asked(self) -> T:
        told = self._told
        async with self._lock:
            if self._told == told:
                self._answer = await self._ask()
                self._told += 1
            return self._answer
