"""How far the run of a batch is, and whether it waits."""

from __future__ import annotations

import logging

from ollama_batch.events import Event, RowFinished, RunPaused, RunResumed, RunStarted

log = logging.getLogger("ollama_batch.server")


class Tally:
    """Counts the lines of one run of `batch_id`; a hook. None until the run has begun to send.

    `paused` says why the run waits, in a word, None while it goes on; the log is told of both.
    """

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self.completed: int | None = None
        self.failed: int | None = None
        self.paused: str | None = None

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        if isinstance(event, RowFinished):
            if event.result.ok:
                self.completed = (self.completed or 0) + 1
            else:
                self.failed = (self.failed or 0) + 1
        elif isinstance(event, RunStarted):
            self.completed = event.resumed - event.resumed_failed
            self.failed = event.resumed_failed
        elif isinstance(event, RunPaused):
            # Not its message, which may quote what an engine said of a line.
            self.paused = event.reason
            if not event.again:
                log.warning("%s waits: %s", self._batch_id, event.reason)
        elif isinstance(event, RunResumed):
            self.paused = None
            log.info("%s goes on after %.0f s", self._batch_id, event.paused_s)
