"""How a run goes, in numbers: built from events, read as frozen snapshots."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ollama_batch._histogram import LogHistogram
from ollama_batch._load import LoadTally
from ollama_batch._memory_tally import MEASURED, NOT_MEASURED, MemoryTally
from ollama_batch._minute import WINDOW_S, Minute
from ollama_batch._text import jsonable
from ollama_batch._trouble_tally import TroubleTally
from ollama_batch._usage import UsageTally
from ollama_batch.events import (
    Decision,
    Event,
    MemoryMeasured,
    RowFinished,
    RowLeft,
    RowRetried,
    RowSent,
    RowsFound,
    RunEnding,
    RunFinished,
    RunResumed,
    RunStalled,
    RunStarted,
)
from ollama_batch.savings import HeadUsage

# Fewer rows than this in the last minute say less about the time left than the whole run does.
_ENOUGH_ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMetrics:
    """A run at one moment. `None` says unknown or not reported, which is never the same as 0.

    Rows: `total` (None until the end of the input is known; `found` rows so far) and `completed` = `ok` +
    `failed`, with the `resumed` rows of earlier sessions (`resumed_failed` of them failed). Everything else
    is of this session alone. `sent` counts requests handed to the engine, `retried` those of them that were
    not the first attempt of their row, `errors` the failed rows by error code. `repaired` rows have an answer
    that was repaired, `asked_again` counts the times that one did not fit the response model.

    State: "waiting", "running", "paused", "stalled", "ending" (asked to end early, and requests are out), or
    the outcome "completed", "stopped", "interrupted";
    `state_reason` is a stable word, `state_message` for people, `state_s` how long it has lasted (seconds).

    Tokens are sums over the `answers` that came with a usage: of ok rows, of failed ones as far as they had
    one, and `earlier_answers` that did not fit and were asked for again. `estimated` of them were estimated
    rather than counted by the engine. `cached_tokens` sums what
    `cached_reported` answers told of their cache, None if none did; `cached_share` is its share (0 to 1) of
    the prompt tokens of those same answers. `reasoning_tokens` likewise. Means are per answer.

    Savings: `prompt_tokens` is what the engine would have evaluated without reuse, `cached_tokens` what it
    did not have to. `heads` has the same figures for the heads with most prompt tokens, 10 at most, largest
    first; `heads_total` counts the heads met, 1,001 says more than 1,000. `cached_estimate` is for an engine
    that is silent: cached tokens guessed from prompt-evaluation times (docs/savings.md), None if any answer
    told or there is nothing to go by. It is part of no other figure.

    Context, in tokens of prompt and answer: of the latest answer, the largest so far, and `context_limit`,
    what they may have. `trims` counts rows that were shortened, `trim_saved_tokens` the gain, None if untold.

    Load: `concurrency` is how many requests may be out now, between `concurrency_min` and `concurrency_max`
    so far; `concurrency_changes` counts the run's own decisions about it, `concurrency_decisions` has the
    latest 10 in words. `queue_reported` answers told how long they waited for a slot: `queue_mean_s` seconds
    on average, `queue_share` of their time. `served_mean` requests were in work at once on average, by the
    times that answers tell. `engine_idle_share` is the share (0 to 1) of the time in which none was with the
    engine between one and the next; a slot that is idle beside others is not in it. For both, pauses are left
    out as far as nothing was out in them.

    Trouble: `recoveries` counts the engine's deaths and failures of memory that the run has recovered from or
    does now, `restarts` how often it was restarted for it, `quarantined` the rows that killed it. `lost_s` is
    for how many seconds it kept the run from sending, or refused all that was sent, which is part of
    `paused_s`, pauses of any kind.
    `memory_pauses` and `memory_paused_s` are those of memory guards, `memory_pause_why` what the latest said.
    `refused` counts requests that the engine was too busy to take (429, 503), `refused_alone` those of them
    that left none of this run out, `refused_s` the seconds after that in which nothing was answered.
    `spilled_bytes` of the model are not on the GPU (`spilled_share`, 0 to 1) and computed by the CPU; None if
    the engine has not told of any.

    Latency, in seconds, is the last attempt of answered rows: mean and max are exact, percentiles (nearest
    rank) within 1 %. Rates are per second of `elapsed_s`, pauses included; those that end in `_1m` cover
    the last 60 seconds, or the run if it is younger. `rows_per_s` counts rows that are done,
    `requests_per_s` also the answers that were asked for again, `tokens_per_s` prompt and answer of all
    these, `completion_tokens_per_s` the answers. `eta_s` is None while paused and with nothing to go by.

    Memory, in bytes: in use now, of the GPUs that hold the model (`vram_used_bytes` of `vram_total_bytes`; of
    an engine on another machine what that reports) and of this machine, and the most so far; `gpu_share` (0
    to 1) is how busy the busiest of those GPUs was in the last second, with its mean and the share that 5 %
    of the seconds did not exceed. Unknown is None, and `unmeasured` maps the field to the reason. Measured
    while the run sends, if it has guards.
    """

    model: str | None = None
    run_id: str | None = None
    state: str = "waiting"
    state_reason: str | None = None
    state_message: str | None = None
    state_s: float | None = None
    paused: bool = False

    total: int | None = None
    found: int = 0
    completed: int = 0
    ok: int = 0
    failed: int = 0
    resumed: int = 0
    resumed_failed: int = 0
    sent: int = 0
    retried: int = 0
    in_flight: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    repaired: int = 0
    asked_again: int = 0

    answers: int = 0
    earlier_answers: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    cached_reported: int = 0
    cached_share: float | None = None
    cached_estimate: int | None = None
    heads: Sequence[HeadUsage] = ()
    heads_total: int = 0
    reasoning_tokens: int | None = None
    reasoning_reported: int = 0
    prompt_tokens_mean: float | None = None
    completion_tokens_mean: float | None = None

    context_current: int | None = None
    context_peak: int | None = None
    context_limit: int | None = None
    trims: int = 0
    trim_saved_tokens: int | None = 0

    concurrency: int | None = None
    concurrency_min: int | None = None
    concurrency_max: int | None = None
    concurrency_changes: int = 0
    concurrency_decisions: Sequence[str] = ()
    queue_reported: int = 0
    queue_mean_s: float | None = None
    queue_share: float | None = None
    served_mean: float | None = None
    engine_idle_share: float | None = None

    recoveries: int = 0
    restarts: int = 0
    quarantined: int = 0
    lost_s: float = 0.0
    memory_pauses: int = 0
    memory_paused_s: float = 0.0
    memory_pause_why: str | None = None
    refused: int = 0
    refused_alone: int = 0
    refused_s: float = 0.0
    spilled_bytes: int | None = None
    spilled_share: float | None = None

    latency_mean_s: float | None = None
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    latency_p95_s: float | None = None
    latency_p99_s: float | None = None
    latency_max_s: float | None = None

    elapsed_s: float = 0.0
    paused_s: float = 0.0
    eta_s: float | None = None
    rows_per_s: float | None = None
    requests_per_s: float | None = None
    requests_per_s_1m: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_1m: float | None = None
    completion_tokens_per_s: float | None = None
    completion_tokens_per_s_1m: float | None = None

    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    ram_used_bytes: int | None = None
    gpu_share: float | None = None
    vram_peak_bytes: int | None = None
    ram_peak_bytes: int | None = None
    gpu_share_mean: float | None = None
    gpu_share_p5: float | None = None
    unmeasured: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(MEASURED, NOT_MEASURED))

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cached_estimate_share(self) -> float | None:
        """`cached_estimate` as a share (0 to 1) of all prompt tokens; an estimate, too."""
        return None if self.cached_estimate is None else _over(self.cached_estimate, self.prompt_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for `json.dumps`."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}


class MetricsHook:
    """Builds the metrics of one run at a time from its events; `snapshot()` may be called from any thread.

    Memory is constant in the number of rows. A `RunStarted` begins anew, so one hook can follow several runs
    one after another.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Invariant: a snapshot is of one moment. Written on the run's loop, read by the screen's thread.
        self._lock = threading.Lock()
        self._started: RunStarted | None = None
        self._reset()

    def _reset(self) -> None:
        self._start: float | None = None
        self._end: float | None = None
        self._finished: RunFinished | None = None
        self._total: int | None = None
        self._found = 0
        self._ok = self._failed = 0
        self._sent = self._retried = self._in_flight = 0
        self._errors: dict[str, int] = {}
        self._usage = UsageTally()
        self._memory = MemoryTally()
        self._load = LoadTally()
        self._trouble = TroubleTally(self._clock)
        self._context_limit: int | None = None
        self._latency = LogHistogram()
        self._minute = Minute()
        self._stall: RunStalled | None = None
        self._stall_at = 0.0
        self._ending: RunEnding | None = None

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        with self._lock:
            # The two frequent ones first.
            if isinstance(event, RowFinished):
                self._row_finished(event)
            elif isinstance(event, RowSent):
                self._sent += 1
                self._in_flight = event.in_flight
                self._load.sent(event)
                self._trouble.sent()
                self._trouble.out(event.in_flight)
                if event.attempt > 1:
                    self._retried += 1
            else:
                self._trouble.add(event)
            if isinstance(event, RunStarted):
                self._run_started(event)
            elif isinstance(event, RowsFound):
                self._found = event.total
                self._total = event.total if event.complete else None
            elif isinstance(event, MemoryMeasured):
                self._memory.add(event.sample)
            elif isinstance(event, RowRetried):
                if event.in_flight is not None:
                    self._in_flight = event.in_flight
                    self._trouble.out(event.in_flight)
            elif isinstance(event, RowLeft):
                self._usage.left(event)
            elif isinstance(event, RunStalled):
                self._stall = event
                self._stall_at = self._clock()
            elif isinstance(event, RunResumed):
                if self._stall is not None and not self._stall.in_flight:
                    self._stall = None  # it was the pause's
            elif isinstance(event, RunEnding):
                self._ending = event
            elif isinstance(event, Decision):
                self._load.decided(event)
                context = event.data.get("context", event.data.get("num_ctx"))
                if isinstance(context, int):
                    self._context_limit = context
            elif isinstance(event, RunFinished):
                self._end = self._clock()
                self._finished = event
                self._in_flight = 0

    def _run_started(self, event: RunStarted) -> None:
        pause, ending = self._trouble.pause, self._ending  # asked for while the model was loaded: they hold
        self._reset()
        self._started = event
        self._start = self._clock()
        self._trouble, self._ending = TroubleTally(self._clock, pause=pause), ending
        self._total = event.total
        self._found = event.total or event.resumed
        self._context_limit = event.num_ctx if event.context is None else event.context
        self._load = LoadTally(event.concurrency)

    def _row_finished(self, event: RowFinished) -> None:
        now = self._clock()
        if self._start is None:
            self._start = now
        result = event.result
        self._in_flight = event.in_flight
        self._load.finished(event)
        self._trouble.out(event.in_flight)
        self._stall = None
        if result.ok:
            self._ok += 1
        else:
            self._failed += 1
            code = result.error.code if result.error is not None else "unknown"
            self._errors[code] = self._errors.get(code, 0) + 1
        prompt, completion = self._usage.add(event)
        if result.ok or result.usage is not None:
            self._trouble.answered()
        if result.latency_s is not None and (result.ok or result.usage is not None):
            self._latency.add(result.latency_s)
        self._minute.add(now - self._start, 1 + len(result.earlier_usage), prompt, completion)

    def snapshot(self) -> BatchMetrics:
        """The run as it is now."""
        with self._lock:
            now = self._clock() if self._end is None else self._end
            elapsed = 0.0 if self._start is None else now - self._start
            trouble = self._trouble.fields(now)
            paused_s = trouble["paused_s"]
            state, reason, message, state_s = self._state(now)
            (rows, requests, prompt, completion), window_s = self._minute.sums(elapsed)
            latency = self._latency.copy()
            begun = self._started
            resumed = 0 if begun is None else begun.resumed
            resumed_failed = 0 if begun is None else begun.resumed_failed
            done = self._ok + self._failed
            usage = self._usage
            frozen = BatchMetrics(
                model=None if begun is None else begun.model,
                run_id=None if begun is None else begun.run_id,
                state=state,
                state_reason=reason,
                state_message=message,
                state_s=state_s,
                total=self._total,
                found=self._found,
                completed=resumed + done,
                ok=resumed - resumed_failed + self._ok,
                failed=resumed_failed + self._failed,
                resumed=resumed,
                resumed_failed=resumed_failed,
                sent=self._sent,
                retried=self._retried,
                in_flight=self._in_flight,
                errors=dict(self._errors),
                **usage.fields(),
                **self._memory.fields(),
                **self._load.fields(elapsed, self._trouble.quiet_s(now)),
                **trouble,
                context_limit=self._context_limit,
                elapsed_s=elapsed,
                eta_s=self._eta(
                    now, elapsed - paused_s, _over(rows, window_s) if rows >= _ENOUGH_ROWS else None
                ),
                rows_per_s=_over(done, elapsed),
                requests_per_s=_over(done + usage.earlier, elapsed),
                requests_per_s_1m=_over(requests, window_s),
                tokens_per_s=_over(usage.prompt + usage.completion, elapsed),
                tokens_per_s_1m=_over(prompt + completion, window_s),
                completion_tokens_per_s=_over(usage.completion, elapsed),
                completion_tokens_per_s_1m=_over(completion, window_s),
            )
        p50, p90, p95, p99 = latency.quantiles((0.5, 0.9, 0.95, 0.99))
        return dataclasses.replace(
            frozen,
            latency_mean_s=latency.mean,
            latency_p50_s=p50,
            latency_p90_s=p90,
            latency_p95_s=p95,
            latency_p99_s=p99,
            latency_max_s=latency.high if latency.count else None,
        )

    def _state(self, now: float) -> tuple[str, str | None, str | None, float | None]:
        if self._finished is not None:
            return self._finished.outcome, None, self._finished.error, None
        if self._ending is not None:
            return "ending", None, self._ending.message, None
        pause, since = self._trouble.pause, self._trouble.since
        if pause is not None:
            return "paused", pause.reason, pause.message, now - (now if since is None else since)
        if self._stall is not None:
            message = f"no row has finished although {self._stall.in_flight} are in flight"
            return "stalled", "no_progress", message, self._stall.silent_s + now - self._stall_at
        return ("waiting" if self._start is None else "running"), None, None, None

    def _eta(self, now: float, active_s: float, minute: float | None) -> float | None:
        """Seconds left, at the pace of the last `minute` if known, else at that of all time not paused."""
        if self._total is None or self._trouble.pause is not None:
            return None
        done = self._ok + self._failed
        left = self._total - done - (0 if self._started is None else self._started.resumed)
        if left <= 0:
            return 0.0
        if self._finished is not None:
            return None
        # A pause within the window makes the last minute look slower than the engine is.
        resumed_at = self._trouble.resumed_at
        if minute and (resumed_at is None or now - resumed_at > WINDOW_S):
            return left / minute
        return left * active_s / done if done and active_s > 0 else None


def _over(amount: float, of: float) -> float | None:
    return amount / of if of > 0 else None
