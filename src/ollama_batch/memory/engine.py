"""What the engine itself says that a model takes, asked on the event loop and kept for the sampler."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from ollama_batch.errors import EngineError
from ollama_batch.memory.sample import EngineMemory, Reading

if TYPE_CHECKING:
    from ollama_batch.types import LoadedModel

_log = logging.getLogger("ollama_batch.memory")

SOURCE: Final = "engine"
ASK_AGAIN_S: Final = 5.0
"""How often the engine is asked: what it reports is fixed when a model is loaded."""

STALE_S: Final = 60.0
"""An answer older than this is no longer told, and a question that takes so long is given up."""


class ReportsMemory(Protocol):
    """What is needed of an engine here: an address, and `loaded` of `MemoryReporting`."""

    @property
    def address(self) -> str:
        """Where it is."""
        ...

    async def loaded(self, model: str) -> LoadedModel | None:
        """What it holds in memory for `model`."""
        ...


class EngineView:
    """The engine's own view of the memory of `model`: `refresh` asks, `latest` is what it last said.

    `remote` says whether the engine is another machine's (None: told from its address; an address that is
    not this machine's by name or loopback counts as remote).
    """

    def __init__(
        self,
        engine: ReportsMemory,
        model: str,
        *,
        remote: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._model = model
        self._remote = not is_local(engine.address) if remote is None else remote
        self._now = now
        self._asking = False
        self._asked: float | None = None
        self._heard: float | None = None
        self._latest = self._unknown("not asked yet")

    @property
    def latest(self) -> EngineMemory:
        """What the engine last said; unknown if that was a minute ago or more."""
        if self._heard is not None and self._now() - self._heard > STALE_S:
            return self._unknown(f"no answer for {self._now() - self._heard:.0f} s")
        return self._latest

    async def refresh(self) -> EngineMemory:
        """Ask, if the last time was 5 s ago or more and is answered. An engine that does not answer changes
        nothing at once: it may be busy. Any other exception makes its view unknown, and is the reason.
        """
        if self._asking or (self._asked is not None and self._now() - self._asked < ASK_AGAIN_S):
            return self.latest
        if self._asked is None:
            self._latest = self._unknown("no answer yet")
        self._asking, self._asked = True, self._now()
        try:
            async with asyncio.timeout(STALE_S):
                loaded = await self._engine.loaded(self._model)
            self._latest = self._unknown("the model is not loaded") if loaded is None else self._told(loaded)
            self._heard = self._now()
        except (EngineError, TimeoutError) as exc:
            if self._heard is None:
                self._latest = self._unknown(str(exc) or f"no answer in {STALE_S:.0f} s")
        except Exception as exc:  # an engine of somebody's own: the run goes on without its view
            before = self._latest
            self._latest, self._heard = self._unknown(f"{type(exc).__name__}: {exc}"), None
            if self._latest != before:
                _log.exception("the engine's view of its memory failed; it is unknown")
        finally:
            self._asking = False
        return self.latest

    def _told(self, loaded: LoadedModel) -> EngineMemory:
        size, vram = (
            Reading.unknown("the engine does not say", SOURCE) if value is None else Reading(SOURCE, value)
            for value in (loaded.size_bytes, loaded.vram_bytes)
        )
        return EngineMemory(self._model, size, vram, self._remote, loaded.context_length, loaded.digest)

    def _unknown(self, reason: str) -> EngineMemory:
        lost = Reading.unknown(reason, SOURCE)
        return EngineMemory(self._model, lost, lost, self._remote)


def is_local(address: str) -> bool:
    """Whether an engine's address is this machine: loopback, its host name, a socket file, or no network
    address at all.
    """
    host = urlsplit(address).hostname
    if not host:
        return True
    return host in ("localhost", "::1", "0.0.0.0", "::", socket.gethostname().lower()) or host.startswith(  # noqa: S104 - compared, not bound
        "127."
    )
