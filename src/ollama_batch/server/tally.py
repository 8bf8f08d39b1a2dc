"""How far the run of a batch is."""

from __future__ import annotations

from ollama_batch.events import Event, RowFinished, RunStarted


class Tally:
    """Counts the lines of one run; a hook. None until the run has begun to send."""

    def __init__(self) -> None:
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
