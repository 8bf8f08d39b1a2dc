"""Why a run is not sending, kept in its journal, so that others can say it while it goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from ollama_batch.errors import JournalError
from ollama_batch.events import Event, RunPaused, RunResumed
from ollama_batch.journal import RunJournal

log = logging.getLogger("ollama_batch.run")

ACTIVITY = "activity"
"""The journal's key: an object with `reason` and `message` while the run is paused, else null."""


class Activity:
    """A hook that writes down pauses and their end; the run does not wait for the disk."""

    def __init__(self) -> None:
        # Invariant: what was told last is what is written last, whichever thread writes it.
        self._writing = threading.Lock()
        self._journal: RunJournal | None = None
        self._now: dict[str, Any] | None = None

    def follow(self, journal: RunJournal) -> None:
        """Write to `journal` from now on; what an earlier session left there is no longer so. Blocks."""
        self._journal = journal
        if journal.get(ACTIVITY) != self._now:
            self._write()

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        if isinstance(event, RunPaused):
            self._now = {"reason": event.reason, "message": event.message}
        elif isinstance(event, RunResumed):
            self._now = None
        else:
            return
        if self._journal is not None:
            asyncio.get_running_loop().run_in_executor(None, self._write)

    def _write(self) -> None:
        journal = self._journal
        assert journal is not None  # noqa: S101 - asked before
        with self._writing:
            try:
                journal.put(ACTIVITY, self._now)
            except JournalError as error:  # no room, or closed by now: the run has other ways to say that
                log.debug("a pause could not be noted: %s", type(error).__name__)
