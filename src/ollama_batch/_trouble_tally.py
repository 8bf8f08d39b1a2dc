"""What trouble with the engine adds up to in the metrics of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ollama_batch.events import Decision, EngineRestarted, Event, RunPaused, RunResumed


class TroubleTally:
    """Recoveries, restarts, and the time during which the engine kept the run from sending."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recoveries = 0
        self._restarts = 0
        self._quarantined = 0
        self._lost_s = 0.0
        self._since: float | None = None

    def add(self, event: Event) -> None:
        """Take in one event, of any kind."""
        if isinstance(event, EngineRestarted):
            self._restarts += event.outcome == "ok"
        elif isinstance(event, Decision):
            if event.kind == "recovery" and event.data.get("do") == "pause":
                self._recoveries += 1
                self._quarantined += len(event.data.get("quarantined", ()))
        elif isinstance(event, RunPaused):
            if event.reason == "engine" and self._since is None:
                self._since = self._clock()
        elif isinstance(event, RunResumed) and self._since is not None:
            self._lost_s += self._clock() - self._since
            self._since = None

    def fields(self, now: float) -> dict[str, Any]:
        """The fields of BatchMetrics that trouble fills."""
        lost_s = self._lost_s + (0.0 if self._since is None else now - self._since)
        return {
            "recoveries": self._recoveries,
            "restarts": self._restarts,
            "quarantined": self._quarantined,
            "lost_s": lost_s,
        }
