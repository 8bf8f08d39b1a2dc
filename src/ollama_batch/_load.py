"""How busy a run keeps its engine, added up from events."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from ollama_batch.events import Decision, RowFinished, RowSent

TOLD: Final = 10
"""So many of the latest decisions are kept in words."""


class LoadTally:
    """The limit of requests out, why it changed, waits for a slot, work and idle time. Not locked."""

    def __init__(self, concurrency: int | None = None) -> None:
        self._limit = self._least = self._most = concurrency or None
        self._changes = 0
        self._said: deque[str] = deque(maxlen=TOLD)
        self._queued = 0
        self._queue_s = self._queue_of_s = 0.0
        self._served_s: float | None = None
        self._idle_s = 0.0

    def decided(self, event: Decision) -> None:
        """Another number of requests may be out; decisions of other kinds change nothing."""
        if event.kind != "concurrency":
            return
        before, self._limit = event.data["before"], event.data["after"]
        for limit in (before, self._limit):
            self._least = limit if self._least is None else min(self._least, limit)
            self._most = limit if self._most is None else max(self._most, limit)
        self._changes += 1
        self._said.append(event.message)

    def sent(self, event: RowSent) -> None:
        """A request was sent, perhaps after nothing was."""
        self._idle_s += event.idle_s

    def finished(self, event: RowFinished) -> None:
        """A row has a result; what its answer tells of times counts."""
        timings, latency_s = event.timings, event.result.latency_s
        if timings.queue_s is not None and latency_s is not None:
            self._queued += 1
            self._queue_s += min(timings.queue_s, latency_s)
            self._queue_of_s += latency_s
        for each in (*event.earlier_timings, timings):
            if each.prompt_s is not None and each.generate_s is not None:
                self._served_s = (self._served_s or 0.0) + each.prompt_s + each.generate_s

    def fields(self, elapsed_s: float, quiet_s: float) -> dict[str, Any]:
        """What `BatchMetrics` says of it, by field. `quiet_s` of the time was paused with nothing out: what a
        pause finds in work is finished in it, so that this time counts.
        """
        active_s = elapsed_s - quiet_s
        share = self._queue_s / self._queue_of_s if self._queue_of_s > 0 else None
        known = active_s > 0
        return {
            "concurrency": self._limit,
            "concurrency_min": self._least,
            "concurrency_max": self._most,
            "concurrency_changes": self._changes,
            "concurrency_decisions": tuple(self._said),
            "queue_reported": self._queued,
            "queue_mean_s": self._queue_s / self._queued if self._queued else None,
            "queue_share": share,
            "served_mean": self._served_s / active_s if self._served_s is not None and known else None,
            "engine_idle_share": min(1.0, max(0.0, self._idle_s - quiet_s) / active_s) if known else None,
        }
