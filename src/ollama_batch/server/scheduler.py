"""What becomes of every batch: one loop that looks at what is recorded and does the next thing for each.

All it knows is in the store and in the journals of the runs, so that it goes on after any kill.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from ollama_batch.errors import (
    ConfigError,
    DiskFullError,
    EngineError,
    JournalCorruptError,
    JournalError,
    JournalMismatchError,
    JournalVersionError,
    OllamaBatchError,
    RunCancelledError,
    RunStoppedError,
)
from ollama_batch.journal import RunJournal
from ollama_batch.server.engine import SharedEngine
from ollama_batch.server.fairness import Going, Load, choose
from ollama_batch.server.objects import StoredBatch
from ollama_batch.server.settings import ServerSettings
from ollama_batch.server.steps import Steps, progress_of
from ollama_batch.server.store import Store
from ollama_batch.server.tally import Tally
from ollama_batch.server.vault import Vault

T = TypeVar("T")

TICK_S: Final = 1.0
CHECKS: Final = 2
"""So many inputs are checked at the same time."""

STOP_S: Final = 3.0
MOST_WAIT_S: Final = 30.0

log = logging.getLogger("ollama_batch.server")


class _Going:
    """A run under way."""

    def __init__(self, run: Any, tally: Tally, going: Going) -> None:
        self.run = run
        self.tally = tally
        self.going = going
        self.halted = False


class Scheduler:
    """Checks, runs and concludes batches until it is stopped.

    `clock` gives the time of day in seconds. Trouble with the engine or the disk makes a batch wait, 30
    seconds at most, and be tried again until its window is over.
    """

    def __init__(
        self,
        store: Store,
        vault: Vault,
        engine: SharedEngine,
        settings: ServerSettings,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._vault = vault
        self._settings = settings
        self._clock = clock
        self._pool = ThreadPoolExecutor(CHECKS, thread_name_prefix="ollama-batch-server")
        self._steps = Steps(store, vault, engine, settings, clock, self._heavy)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._going: dict[str, _Going] = {}
        self._halted: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._troubles: Counter[str] = Counter()
        self._waiting_since: dict[str, float] = {}
        self._served: dict[str, int] = {}
        self._serial = 0
        self._awake = asyncio.Event()
        self._stopping = False
        self._checking: set[str] = set()
        self.trouble: str | None = None

    def wake(self) -> None:
        """Have it look again at once."""
        self._awake.set()

    def progress(self, batch: StoredBatch) -> tuple[int, int]:
        """The lines of a batch that are done, and those that failed, at this moment."""
        going = self._going.get(batch.id)
        if batch.over or going is None or going.tally.completed is None:
            return batch.completed, batch.failed
        return going.tally.completed, going.tally.failed or 0

    def running(self) -> Sequence[str]:
        """The ids of batches that are being run."""
        return tuple(self._going)

    def waits(self) -> bool:
        """Whether a batch waits for better times: for the engine, say, or for room on the disk."""
        return self.trouble is not None or any(each.tally.paused for each in self._going.values())

    def models(self) -> Sequence[str]:
        """The models of batches that are being run."""
        return tuple(dict.fromkeys(name for each in self._going.values() for name in each.going.load.models))

    def num_ctx_of(self, model: str) -> int | None:
        """The context length that a model is used with at the moment; None if no batch uses it."""
        for each in self._going.values():
            if model in each.going.load.models:
                return each.going.load.num_ctx
        return None

    async def serve(self) -> None:
        """Look, act, wait; until `stop`."""
        await asyncio.to_thread(self._recount)
        while not self._stopping:
            self._awake.clear()
            try:
                await self._turn()
            except (OllamaBatchError, OSError) as error:
                self._say(f"{type(error).__name__}: {error}")
            except Exception as error:
                # All batches depend on this loop: it goes on after a fault of ours as well.
                self._say(f"{type(error).__name__}{_place(error)}")
            try:
                async with asyncio.timeout(TICK_S):
                    await self._awake.wait()
            except TimeoutError:
                pass

    async def stop(self) -> None:
        """End all runs, resumably: requests that are out have a moment to finish."""
        self._stopping = True
        self.wake()
        self._halted.update(self._tasks)
        for each in self._going.values():
            each.run.cancel()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        for each in self._going.values():
            each.run.cancel(now=True)
        if tasks:
            await asyncio.wait(tasks, timeout=10 * STOP_S)
        log.info("stopped; batches to go on with at the next start: %d", len(self._store.open_batches()))
        self._pool.shutdown(wait=False, cancel_futures=True)

    # One look

    async def _turn(self) -> None:
        now, moment = self._clock(), time.monotonic()
        await asyncio.to_thread(self._steps.sweep, now)
        ready: list[StoredBatch] = []
        batches = self._store.open_batches()
        known = {batch.id for batch in batches}
        for each in (self._waiting_since, self._retry_at, self._troubles):
            for gone in each.keys() - known:
                del each[gone]
        for batch in batches:
            late = now >= batch.expires_at and batch.status in ("validating", "in_progress")
            if batch.id in self._tasks:
                if batch.status == "cancelling" or late:
                    self._halt(batch.id)
                continue
            # A batch that is asked to end does not wait for better times.
            if not late and batch.status != "cancelling" and moment < self._retry_at.get(batch.id, 0.0):
                continue
            if late or batch.status in ("finalizing", "cancelling"):
                self._begin(batch, self._steps.conclude(batch))
            elif batch.status == "in_progress":
                ready.append(batch)
            elif len(self._checking) < CHECKS:
                self._checking.add(batch.id)
                self._begin(batch, self._steps.check(batch, partial(self._is_halted, batch.id)))
        await self._start(ready, moment)

    async def _start(self, ready: Sequence[StoredBatch], moment: float) -> None:
        for batch in ready:
            self._waiting_since.setdefault(batch.id, moment)
        choice = choose(
            ready,
            {batch_id: each.going for batch_id, each in self._going.items()},
            loads={batch.id: self._load(batch) for batch in ready},
            served=self._served,
            waiting_since=self._waiting_since,
            now=moment,
            runs_at_once=self._settings.runs_at_once,
            models_at_once=self._settings.models_at_once,
            turn_s=self._settings.turn_s,
        )
        for batch in choice.start:
            self._serial += 1
            self._served[batch.owner] = self._serial
            self._waiting_since.pop(batch.id, None)
            load = self._load(batch)
            tally = Tally(batch.id)
            how = "goes on" if self._vault.journal(batch.id).exists() else "begins"
            try:
                run = await self._steps.start(batch, load, tally)
            except OllamaBatchError as error:
                self._begin(batch, self._failed(batch, error))
                continue
            if batch.id not in self._troubles:  # else it would be said at every attempt
                log.info("%s %s: %s", batch.id, how, progress_of(batch))
            self._going[batch.id] = _Going(run, tally, Going(batch.owner, load, moment))
            self._begin(batch, self._follow(batch, run, tally))
        for batch_id in choice.halt:
            if not self._going[batch_id].halted:
                self._going[batch_id].halted = True
                log.info("%s makes room for another model", batch_id)
                self._going[batch_id].run.cancel()

    def _load(self, batch: StoredBatch) -> Load:
        """What `batch` needs loaded; one that has not begun takes the length that is there, if it will do."""
        if batch.num_ctx is not None or batch.needs is None:
            return Load(batch.models, batch.num_ctx)
        for each in self._going.values():
            there = each.going.load
            if set(batch.models) & set(there.models) and (there.num_ctx or 0) >= batch.needs:
                return Load(batch.models, there.num_ctx)
        return Load(batch.models, batch.needs)

    # Work on one batch

    def _begin(self, batch: StoredBatch, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guarded(batch, work))
        self._tasks[batch.id] = task

    async def _guarded(self, batch: StoredBatch, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; whatever goes wrong is tried again later."""
        try:
            await work
            self._troubles.pop(batch.id, None)
            self._retry_at.pop(batch.id, None)
            if self.trouble is not None:
                log.info("%s goes on: the trouble is over", batch.id)
            self.trouble = None
        except (JournalCorruptError, JournalVersionError, ConfigError) as error:
            await self._give_up(batch, error)
        except (EngineError, RunStoppedError, DiskFullError, OSError, JournalError) as error:
            self._later(batch, f"{type(error).__name__}: {error}")
        except Exception as error:
            # Its text may hold what is in a line.
            self._later(batch, type(error).__name__, error)
        finally:
            self._tasks.pop(batch.id, None)
            self._going.pop(batch.id, None)
            self._checking.discard(batch.id)
            self._halted.discard(batch.id)
            self.wake()

    async def _follow(self, batch: StoredBatch, run: Any, tally: Tally) -> None:
        """Wait for a run to end; what follows from that is for the next look."""
        try:
            await run
        except RunCancelledError:
            await self._steps.keep_counts(batch, tally)
            return
        except JournalMismatchError as error:
            log.warning("%s begins anew: %s", batch.id, error)
            await asyncio.to_thread(self._steps.forget_run, batch)
            return
        except (RunStoppedError, EngineError):
            await self._steps.keep_counts(batch, tally)
            raise
        await self._steps.ran(batch, tally)

    async def _failed(self, batch: StoredBatch, error: OllamaBatchError) -> None:
        raise error

    async def _give_up(self, batch: StoredBatch, error: OllamaBatchError) -> None:
        """A batch that no repetition can save."""
        log.error("%s fails: %s: %s", batch.id, type(error).__name__, error)
        try:
            await self._steps.fail(batch, error)
        except (JournalError, OSError) as also:
            self._later(batch, f"{type(also).__name__}: {also}")

    def _later(self, batch: StoredBatch, why: str, error: Exception | None = None) -> None:
        self._troubles[batch.id] += 1
        wait_s = min(MOST_WAIT_S, 0.5 * 2 ** min(self._troubles[batch.id], 10))
        self._retry_at[batch.id] = time.monotonic() + wait_s
        self._say(f"{batch.id} waits: {why}{'' if error is None else _place(error)}")

    def _halt(self, batch_id: str) -> None:
        """Have the work on a batch end soon: it was cancelled, or its window is over."""
        if batch_id in self._halted:
            return
        self._halted.add(batch_id)
        going = self._going.get(batch_id)
        if going is not None:
            going.run.cancel()
            asyncio.get_running_loop().call_later(
                self._settings.cancel_grace_s, lambda: going.run.done or going.run.cancel(now=True)
            )

    def _is_halted(self, batch_id: str) -> bool:
        return batch_id in self._halted

    async def _heavy(self, work: Callable[[], T]) -> T:
        """Do what takes long in a thread of the few that are for that."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _recount(self) -> None:
        """After a stop or a kill: what there is to go on with, and what the journals say of it."""
        for batch in self._store.open_batches():
            journal = self._vault.journal(batch.id)
            if batch.in_progress_at is None or not journal.exists():
                log.info("%s is taken up again: %s", batch.id, batch.status)
                continue
            try:
                with RunJournal.open_readonly(journal) as opened:
                    counts = opened.counts()
            except JournalError as error:
                self._say(f"{batch.id}: {error}")
                continue
            changed = self._store.change(
                batch, when=(batch.status,), completed=counts.ok, failed=counts.failed
            )
            if changed is not None:
                log.info("%s is taken up again: %s, %s", batch.id, batch.status, progress_of(changed))

    def _say(self, what: str) -> None:
        """Tell of trouble, each kind once until it is over."""
        if what != self.trouble:
            log.warning("%s", what)
        self.trouble = what


def _place(error: Exception) -> str:
    """Where `error` came from. Not what it says: that may be what is in a line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" at {last.filename}:{last.lineno}"
