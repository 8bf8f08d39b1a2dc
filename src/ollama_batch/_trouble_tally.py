"""What pauses and trouble with the engine add up to in the metrics of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ollama_batch.events import Decision, EngineRestarted, Event, RunFinished, RunPaused, RunResumed


class TroubleTally:
    """Recoveries, restarts, and the time in which nothing was sent, for any reason or because of the engine.

    A recovery that is over soon is told as a decision alone, without a pause: its time ends as the next
    request is sent. `pause` is the one that was told and goes on, `since` when sending ended (None: the run
    sends), `resumed_at` when the latest pause that was told ended.
    """

    def __init__(self, clock: Callable[[], float], *, pause: RunPaused | None = None) -> None:
        self._clock = clock
        self.pause = pause
        self.since = None if pause is None else clock()
        self.resumed_at: float | None = None
        self._paused_s = 0.0
        self._lost_since: float | None = None
        self._lost_s = 0.0
        self._recoveries = 0
        self._restarts = 0
        self._quarantined = 0

    def add(self, event: Event) -> None:
        """Take in one event, of any kind but the frequent ones."""
        if isinstance(event, EngineRestarted):
            self._restarts += event.outcome == "ok"
        elif isinstance(event, Decision):
            if event.kind == "recovery" and event.data.get("do") == "pause":
                self._recoveries += 1
                self._quarantined += len(event.data.get("quarantined", ()))
                self._begin(lost=True)
        elif isinstance(event, RunPaused):
            self.pause = event
            self._begin(lost=event.reason == "engine")
        elif isinstance(event, RunResumed | RunFinished):
            self._end()

    def sent(self) -> None:
        """Take note that a request was sent."""
        if self.since is not None and self.pause is None:
            self._end()

    def _begin(self, *, lost: bool) -> None:
        now = self._clock()
        if self.since is None:
            self.since = now
        if lost and self._lost_since is None:
            self._lost_since = now

    def _end(self) -> None:
        now = self._clock()
        self._paused_s, self._lost_s = self._times(now)
        self.since = self._lost_since = None
        if self.pause is not None:
            self.pause, self.resumed_at = None, now

    def _times(self, now: float) -> tuple[float, float]:
        """Seconds paused and lost so far."""
        paused_s, lost_s = (0.0 if at is None else now - at for at in (self.since, self._lost_since))
        return self._paused_s + paused_s, self._lost_s + lost_s

    def fields(self, now: float) -> dict[str, Any]:
        """The fields of BatchMetrics that trouble fills."""
        paused_s, lost_s = self._times(now)
        return {
            "paused": self.pause is not None,
            "recoveries": self._recoveries,
            "restarts": self._restarts,
            "quarantined": self._quarantined,
            "lost_s": lost_s,
            "paused_s": paused_s,
        }
