"""What pauses and trouble with the engine add up to in the metrics of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ollama_batch.errors import EngineBusyError
from ollama_batch.events import (
    Decision,
    EngineRestarted,
    Event,
    Noticed,
    RowRetried,
    RunFinished,
    RunPaused,
    RunResumed,
)

BUSY: Final = EngineBusyError.code
MEMORY: Final = "memory"
"""The reason of pauses by memory guards."""
REFUSED: Final = "refused"
"""The reason of pauses in which the engine refuses all that is sent: one row goes on to ask."""


class Spans:
    """Time that adds up over spans; `since` is when the present one began (None: there is none)."""

    __slots__ = ("_sum_s", "since")

    def __init__(self, since: float | None = None) -> None:
        self.since = since
        self._sum_s = 0.0

    def begin(self, now: float) -> None:
        """A span begins, if none goes on."""
        if self.since is None:
            self.since = now

    def end(self, now: float) -> None:
        """The present span ends, if there is one."""
        self._sum_s = self.seconds(now)
        self.since = None

    def seconds(self, now: float) -> float:
        """All of it so far."""
        return self._sum_s + (0.0 if self.since is None else now - self.since)


class TroubleTally:
    """Recoveries, restarts, refusals, and the time in which nothing was sent, for any reason, because of the
    engine or because of memory.

    A recovery that is over soon is told as a decision alone, without a pause: its time ends as the next
    request is sent. `pause` is the one that was told and goes on, `since` when sending ended (None: the run
    sends), `resumed_at` when the latest pause that was told ended.
    """

    def __init__(self, clock: Callable[[], float], *, pause: RunPaused | None = None) -> None:
        self._clock = clock
        self.pause: RunPaused | None = None
        self.resumed_at: float | None = None
        self._paused = Spans()
        self._lost = Spans()
        self._short = Spans()
        self._quiet = Spans()
        self._refused = Spans()
        self._out = 0
        self._recoveries = 0
        self._restarts = 0
        self._quarantined = 0
        self._refusals = self._refused_alone = 0
        self._memory_pauses = 0
        self._memory_why: str | None = None
        self._spilled: tuple[int, float] | None = None
        if pause is not None:
            self.add(pause)

    @property
    def since(self) -> float | None:
        """When sending ended; None while the run sends."""
        return self._paused.since

    def add(self, event: Event) -> None:
        """Take in one event, of any kind but the most frequent ones."""
        if isinstance(event, RowRetried):
            if event.code == BUSY:
                self._refusals += 1
                self._refused_alone += event.in_flight == 0
                self._refused.begin(self._clock())
        elif isinstance(event, EngineRestarted):
            self._restarts += event.outcome == "ok"
        elif isinstance(event, Decision):
            if event.kind == "recovery" and event.data.get("do") == "pause":
                self._recoveries += 1
                self._quarantined += len(event.data.get("quarantined", ()))
                self._begin(lost=True)
        elif isinstance(event, RunPaused):
            self._told(event)
        elif isinstance(event, RunResumed | RunFinished):
            self._end()
        elif isinstance(event, Noticed) and event.kind == "spilled":
            spilled, size = event.data["spilled_bytes"], event.data["size_bytes"]
            self._spilled = spilled, spilled / size

    def _told(self, pause: RunPaused) -> None:
        self.pause = pause
        if pause.again:
            return
        if pause.reason == MEMORY:
            self._memory_pauses += 1
            self._memory_why = pause.message
            self._short.begin(self._clock())
        self._begin(lost=pause.reason in ("engine", REFUSED), refused=pause.reason == REFUSED)

    def sent(self) -> None:
        """Take note that a request was sent."""
        if self.since is not None and self.pause is None:
            self._end()

    def out(self, in_flight: int) -> None:
        """So many requests are out now."""
        if self.since is not None and (in_flight == 0) != (self._out == 0):
            (self._quiet.end if in_flight else self._quiet.begin)(self._clock())
        self._out = in_flight

    def answered(self) -> None:
        """The engine has answered a request."""
        if self._refused.since is not None:
            self._refused.end(self._clock())

    def quiet_s(self, now: float) -> float:
        """Seconds of pauses in which nothing was out either."""
        return self._quiet.seconds(now)

    def _begin(self, *, lost: bool, refused: bool = False) -> None:
        now = self._clock()
        if not refused:
            self._refused.end(now)  # from now on something else is why nothing is answered
        if self.since is None and not self._out:
            self._quiet.begin(now)
        self._paused.begin(now)
        if lost:
            self._lost.begin(now)

    def _end(self) -> None:
        now = self._clock()
        for each in (self._paused, self._lost, self._short, self._quiet, self._refused):
            each.end(now)
        if self.pause is not None:
            self.pause, self.resumed_at = None, now

    def fields(self, now: float) -> dict[str, Any]:
        """The fields of BatchMetrics that trouble fills."""
        spilled, share = (None, None) if self._spilled is None else self._spilled
        return {
            "paused": self.pause is not None,
            "recoveries": self._recoveries,
            "restarts": self._restarts,
            "quarantined": self._quarantined,
            "lost_s": self._lost.seconds(now),
            "paused_s": self._paused.seconds(now),
            "memory_pauses": self._memory_pauses,
            "memory_paused_s": self._short.seconds(now),
            "memory_pause_why": self._memory_why,
            "refused": self._refusals,
            "refused_alone": self._refused_alone,
            "refused_s": self._refused.seconds(now),
            "spilled_bytes": spilled,
            "spilled_share": share,
        }
