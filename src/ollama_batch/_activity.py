"""Pauses and restarts, kept in the journal of their run, so that others can say them while it goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from ollama_batch.errors import JournalError
from ollama_batch.events import Decision, EngineRestarted, Event, RunFinished, RunPaused, RunResumed
from ollama_batch.journal import RunJournal

log = logging.getLogger("ollama_batch.run")

ACTIVITY = "activity"
"""The journal's key: while the run is paused an object with `reason`, `message`, `since` (Unix time) and
`stops_at` (the same, null: it waits as long as it takes), else null."""

RESTART = "restart"
"""The kind of the journal's notes about restarts of the engine: the fields of EngineRestarted."""

_ENDS = {
    "refused": "refused",
    "password": "refused, as it needs a password",
    "slow": "had not ended in time",
    "failed": "failed",
}
"""How the only restart ended, by its outcome."""


class Activity:
    """A hook that writes down pauses, their end, and restarts; the run does not wait for the disk."""

    def __init__(self) -> None:
        # Invariant: what was told last is what is written last, whichever thread writes it.
        self._writing = threading.Lock()
        self._journal: RunJournal | None = None
        self._now: dict[str, Any] | None = None
        self._noting: set[asyncio.Task[None]] = set()
        self._restarts: Counter[str] = Counter()
        self._restarts_s = 0.0
        self._lacks: list[int] = []  # the requests that were out when the engine's memory ran out
        self._vain = ("", "")  # outcome and message of the last restart that did not work

    def follow(self, journal: RunJournal) -> None:
        """Write to `journal` from now on; what an earlier session left there is no longer so. Blocks."""
        self._journal = journal
        if journal.get(ACTIVITY) != self._now:
            self._write()

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        if isinstance(event, RunPaused):
            self._now = self._paused(event)
        elif isinstance(event, RunResumed) or (isinstance(event, RunFinished) and self._now is not None):
            self._now = None
        else:
            if isinstance(event, EngineRestarted):
                self._restarted(event)
            elif isinstance(event, Decision) and event.kind == "recovery" and "in_flight" in event.data:
                self._lacks.append(event.data["in_flight"])
            return
        if self._journal is not None:
            asyncio.get_running_loop().run_in_executor(None, self._write)

    @property
    def restarts(self) -> str | None:
        """A sentence about the restarts so far, for the report; None if there was none."""
        if not self._restarts:
            return None
        tried, vain = self._restarts.total(), self._restarts.total() - self._restarts["ok"]
        times = "once" if tried == 1 else f"{tried} times"
        ends = ", ".join(f"{count} {outcome}" for outcome, count in self._restarts.most_common())
        if not vain:
            return f"the engine was restarted {times} ({ends}), which took {self._restarts_s:.1f} s in all"
        if vain < tried:
            ended = f"({ends}), which took {self._restarts_s:.1f} s in all; the last that did not work"
        else:
            ended = f"and {_ENDS[self._vain[0]]}" if tried == 1 else f"in vain ({ends}); the last"
        said = f": {self._vain[1].rstrip('.')}" if self._vain[1] else ""
        return f"a restart of the engine was tried {times}{',' if tried == 1 else ''} {ended}{said}"

    def lack_of_memory(self, concurrency: int) -> str | None:
        """A sentence for the report of a run that lets so many requests out now; None: memory held all."""
        if not self._lacks:
            return None
        least, many = min(self._lacks), len(self._lacks)
        times = "" if many == 1 else f" {many} times"
        out = "one request" if least == 1 else f"{least} requests"
        said = (
            f"the engine ran out of memory{times}, with {out} at a time{'' if many == 1 else ' at the least'}"
        )
        fewer = max(1, min(concurrency, least - 1))
        if least == 1:
            return f"{said}: a smaller context of the server, or a smaller model, takes less"
        return (
            f"{said}; at the end {concurrency} were let out. What spares a next run that: fewer slots of the "
            f"server, or concurrency={fewer}"
        )

    def _paused(self, event: RunPaused) -> dict[str, Any]:
        now = time.time()
        stops_at = None if event.stops_in_s is None else now + event.stops_in_s
        if self._now is not None:  # for another reason: nothing is sent since then
            now = self._now["since"]
        return {"reason": event.reason, "message": event.message, "since": now, "stops_at": stops_at}

    def _restarted(self, event: EngineRestarted) -> None:
        self._restarts[event.outcome] += 1
        self._restarts_s += event.duration_s
        if event.outcome != "ok":
            self._vain = event.outcome, event.message
        if self._journal is not None:
            task = asyncio.get_running_loop().create_task(self._note(self._journal, asdict(event)))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)

    async def _note(self, journal: RunJournal, data: dict[str, Any]) -> None:
        try:
            await journal.note(RESTART, data)
        except JournalError as error:  # as below
            log.debug("a restart could not be noted: %s", type(error).__name__)

    def _write(self) -> None:
        journal = self._journal
        assert journal is not None  # noqa: S101 - asked before
        with self._writing:
            try:
                journal.put(ACTIVITY, self._now)
            except JournalError as error:  # no room, or closed by now: the run has other ways to say that
                log.debug("a pause could not be noted: %s", type(error).__name__)
