"""What happens in a run, as frozen events, and the hook that is told.

A hook is any object with `on_event`. Events gain fields over time and never lose them, so match on the
class and read what you need. Hooks are called on the run's event loop: be quick, do not block. A hook
that raises is logged and the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from ollama_batch.memory.sample import MemorySample
from ollama_batch.types import BatchResult, EngineInfo, Timings, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The run begins to send.

    `total` is None while a stream's length is unknown; `resumed` rows were done before, `resumed_failed` of
    them failed. `num_ctx` is what every request carries (None: the server sets its own), `context` the tokens
    that prompt and answer may have together (None: nobody tells).
    """

    run_id: str
    model: str
    engine: EngineInfo | None
    total: int | None
    resumed: int
    resumed_failed: int
    concurrency: int
    num_ctx: int | None
    max_tokens: int
    durable: bool
    journal: str | None
    output: str | None
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFound:
    """A stream gave more rows: `total` so far, `complete` once it has ended."""

    total: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSent:
    """A request was handed to the engine, for the `attempt`-th time; `in_flight` counts it.

    `idle_s`: for so many seconds before, since the last answer, none of this run was with the engine.
    """

    index: int
    custom_id: str
    attempt: int
    in_flight: int
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRetried:
    """An attempt failed and the row waits `wait_s` seconds for the next one; `in_flight` (None: not told) no
    longer counts it.
    """

    index: int
    custom_id: str
    attempt: int
    code: str
    wait_s: float
    in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFinished:
    """A row's result is durable (where the journal is). `in_flight` no longer counts it.

    `head` names what its prompt begins with (see `ollama_batch.ordering`): equal heads, equal names.
    `timings` are of the last answer; `earlier_timings` has those of each answer of `result.earlier_usage`, or
    nothing.
    """

    result: BatchResult[Any]
    timings: Timings
    in_flight: int
    head: str | None = None
    earlier_timings: Sequence[Timings] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLeft:
    """The run ends early, and a row stays pending although it had answers, which did not fit.

    `earlier_usage` has the usage of each (None: the engine did not tell), `earlier_timings` the times. A row
    that was not answered as yet is left without an event.
    """

    index: int
    custom_id: str
    earlier_usage: Sequence[Usage | None]
    earlier_timings: Sequence[Timings]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaused:
    """Nothing more is sent until `RunResumed` or `RunFinished`, except that for the reason "refused" one
    request at a time is.

    `reason` is a stable word, `message` for people. If it lasts, the run stops in `stops_in_s` seconds (None:
    it waits as long as it takes). `again`: it is the same pause, of which `message` is the latest.
    """

    reason: str
    message: str
    stops_in_s: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """Sending goes on after `paused_s` seconds."""

    reason: str
    paused_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStalled:
    """No row has finished for `silent_s` seconds although requests are out, or the engine has kept the run
    from sending (then `in_flight` may be 0).
    """

    silent_s: float
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRestarted:
    """The engine was restarted, or that was tried, because of `reason`; also in the journal and the report.

    `outcome` is "ok", "failed", "refused", "password" or "slow"; `message` says more, "" where it is ok.
    """

    reason: str
    outcome: str
    message: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnding:
    """The run was asked to end early: nothing more is sent, requests that are out may finish."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMeasured:
    """Memory was read, about once a second while the run sends, if it has guards."""

    sample: MemorySample


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The run changed a setting by itself; also in the journal (of one kind the first 200 at least).

    Of kind "concurrency": `data` has `before` and `after`, and as far as known `why`, `queue` (how many
    waited, on average), `wait_share` (of the time of answers) and `work_per_s`. Of kind "memory_guard":
    that of a `GuardDecision`; without `actions` nothing was changed, and it only tells what the guard says.
    """

    kind: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """Something about the run is worth knowing and changes nothing; also in the report's notes."""

    kind: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run ended: `outcome` is "completed", "stopped" or "interrupted"; `error` says why it stopped."""

    outcome: str
    error: str | None
    duration_s: float


Event: TypeAlias = (
    RunStarted
    | RowsFound
    | RowSent
    | RowRetried
    | RowFinished
    | RowLeft
    | RunPaused
    | RunResumed
    | RunStalled
    | EngineRestarted
    | RunEnding
    | MemoryMeasured
    | Decision
    | Noticed
    | RunFinished
)


class Hook(Protocol):
    """Is told what happens in a run."""

    def on_event(self, event: Event) -> None:
        """Take note of `event`; called on the run's event loop, in the order things happen."""
        ...
