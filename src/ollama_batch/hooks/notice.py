"""What is worth telling somebody who is not looking: the end of a run, a stall, a pause."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from ollama_batch._text import count, duration
from ollama_batch.errors import ConfigError
from ollama_batch.events import EngineRestarted, Event, RunFinished, RunPaused, RunResumed, RunStalled
from ollama_batch.hooks._outbox import Outbox
from ollama_batch.metrics import BatchMetrics, MetricsHook

Occasion: TypeAlias = Literal["finished", "stalled", "paused", "resumed", "restarted"]

OCCASIONS: Final[tuple[str, ...]] = get_args(Occasion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a command or a URL is told of a run.

    `message` is one line for people and says it all. `event` is the occasion, `outcome` that of a run that
    has ended ("completed", "stopped", "interrupted") or of a restart, `reason` why, as the run's log has it.
    Rows are counted as in BatchMetrics; `total` is None while unknown. `elapsed_s`: since the run began to
    send.
    """

    event: str
    message: str
    run_id: str | None
    model: str | None
    outcome: str | None
    reason: str | None
    total: int | None
    completed: int
    ok: int
    failed: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for `json.dumps`."""
        return dataclasses.asdict(self)


FIELDS: Final = frozenset(field.name for field in dataclasses.fields(Notice))


class NoticeHook(ABC):
    """Makes notices of a run's events and has them delivered in the background.

    It follows one run at a time. A delivery has `timeout_s` seconds; one that fails is logged, not repeated.
    """

    def __init__(self, *, on: Collection[Occasion], timeout_s: float) -> None:
        unknown = [each for each in on if each not in OCCASIONS]
        if isinstance(on, str) or unknown or not on:
            raise ConfigError(f"on={on!r}: must be a list of some of {', '.join(OCCASIONS)}")
        if isinstance(timeout_s, bool) or not 0 < timeout_s < float("inf"):
            raise ConfigError(f"timeout_s={timeout_s!r}: must be a number of seconds above 0")
        self._on = frozenset(on)
        self._timeout_s = float(timeout_s)
        self._metrics = MetricsHook()
        self._outbox = Outbox(type(self).__name__, exit_s=2 * self._timeout_s)

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        self._metrics.on_event(event)
        found = _told(event)
        if found is None or found[0] not in self._on:
            return
        occasion, outcome, reason, happened = found
        now = self._metrics.snapshot()
        if occasion == "stalled" and now.paused:
            reason = f"{reason}; {now.state_message}"
        notice = _notice(occasion, outcome, reason, happened, now)
        self._outbox.put(lambda: self._deliver(notice))

    def wait(self, timeout_s: float) -> bool:
        """Wait until all notices are delivered or given up; False if that takes longer."""
        return self._outbox.wait(timeout_s)

    @abstractmethod
    def _deliver(self, notice: Notice) -> None:
        """Deliver it within `timeout_s`; called in a thread of its own, and may raise."""


def _told(event: Event) -> tuple[Occasion, str | None, str | None, str] | None:
    """The occasion, outcome and reason of an event, and what happened in words; None: not worth a notice."""
    match event:
        case RunFinished(outcome=outcome, error=error):
            return "finished", outcome, error, outcome
        case RunStalled(silent_s=silent_s, in_flight=out):
            requests = {0: "no request is", 1: "1 request is"}.get(out, f"{out:,} requests are")
            why = f"no row has finished for {duration(silent_s)}, {requests} out"
            return "stalled", None, why, "stalled"
        case RunPaused(message=message, again=False):
            return "paused", None, message, "paused"
        case RunResumed(paused_s=paused_s):
            return "resumed", None, None, f"goes on after {duration(paused_s)}"
        case EngineRestarted(outcome=outcome, reason=reason):
            return "restarted", outcome, reason, f"had its engine restarted ({outcome})"
    return None


def _notice(
    event: Occasion, outcome: str | None, reason: str | None, happened: str, now: BatchMetrics
) -> Notice:
    of = "" if now.total is None else f" of {count(now.total)}"
    who = "run" if now.run_id is None else f"run {now.run_id[:8]}"
    model = "" if now.model is None else f" of {now.model}"
    told = [f"{count(now.completed)}{of} rows done, {count(now.failed)} failed, {duration(now.elapsed_s)}"]
    if outcome == "stopped" and now.run_id is None:  # what earlier sessions have done was not counted
        told = ["before it sent anything"]
    if reason is not None:
        told.append(" ".join(reason.split()))
    return Notice(
        event=event,
        message=f"{who}{model} {happened}: {'; '.join(told)}",
        run_id=now.run_id,
        model=now.model,
        outcome=outcome,
        reason=reason,
        total=now.total,
        completed=now.completed,
        ok=now.ok,
        failed=now.failed,
        elapsed_s=now.elapsed_s,
    )
