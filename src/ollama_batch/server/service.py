"""All parts of a server, opened and closed together."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path

from ollama_batch.engines.base import Engine
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import JournalLockedError
from ollama_batch.journal.lock import WriterLock
from ollama_batch.journal.place import check_place
from ollama_batch.server.engine import SharedEngine
from ollama_batch.server.keys import Keys, check_keys
from ollama_batch.server.scheduler import Scheduler
from ollama_batch.server.settings import ServerSettings
from ollama_batch.server.store import Store
from ollama_batch.server.vault import Vault

DATABASE = "server.db"

log = logging.getLogger("ollama_batch.server")


class Service:
    """What the routes work with: `store`, `vault`, `engine`, `scheduler`, `settings`, `keys`, `clock`.

    One process at a time has a data folder; `open` raises JournalLockedError in any other.
    """

    def __init__(
        self,
        data: str | PathLike[str],
        *,
        engine: Engine | None,
        base_url: str | None,
        keys: Collection[str],
        settings: ServerSettings | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = ServerSettings() if settings is None else settings
        self.clock = clock
        self.folder = Path(data).absolute()
        self._own_engine = engine is None
        self.engine = SharedEngine(OllamaEngine(base_url) if engine is None else engine)
        self.vault = Vault(self.folder)
        self.store = Store(self.folder / DATABASE)
        self._given_keys = check_keys(keys)
        self.keys = Keys((), b"")
        self.began_at = clock()
        self._lock = WriterLock(self.folder / DATABASE)
        self._open = False
        self.scheduler = self._new_scheduler()
        self._serving: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_keys(self) -> bool:
        """Whether a key is needed."""
        return bool(self._given_keys)

    def open(self) -> None:
        """Take the data folder. Raises JournalLockedError, JournalError, OSError; twice is once."""
        if self._open:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        check_place(self.store.path)
        try:
            self._lock.acquire()
        except JournalLockedError:
            raise JournalLockedError(
                f"the data folder {self.folder} is in use by another server: stop that one first, or give "
                "this one a folder of its own (--data)",
                str(self.folder),
            ) from None
        try:
            self.store.open()
            self.vault.open()
            files, parts, runs = self.store.known()
            strays = list(self.vault.strays(files=files, parts=parts, runs=runs))
            if strays:
                log.info("removed %d files of requests that were broken off", len(strays))
            self.keys = Keys(self._given_keys, self.store.secret("salt", secrets.token_bytes(32)))
        except BaseException:
            self.store.close()
            self._lock.release()
            raise
        self._open = True

    async def start(self) -> None:
        """Begin to work on batches."""
        self.open()
        self.loop = asyncio.get_running_loop()
        self.scheduler = self._new_scheduler()
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        looking = asyncio.create_task(self._look_for_engine())
        try:
            await self.scheduler.serve()
        finally:
            looking.cancel()

    async def _look_for_engine(self) -> None:
        if not await self.engine.healthy():
            log.warning("the engine at %s does not answer: batches wait for it", self.engine.engine.address)

    async def stop(self) -> None:
        """End all work, resumably, and let go of the data folder."""
        if self._serving is not None:
            await self.scheduler.stop()
            await asyncio.wait([self._serving], timeout=10)
            self._serving = None
        if self._own_engine:
            await self.engine.aclose()
        self.close()

    def close(self) -> None:
        """Let go of the data folder; may be repeated."""
        if self._open:
            self._open = False
            self.store.close()
            self._lock.release()

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(self.store, self.vault, self.engine, self.settings, self.clock)
