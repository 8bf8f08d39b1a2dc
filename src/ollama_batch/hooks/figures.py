"""The figures of a run that monitoring systems are told: their names, units and meanings, in one table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from ollama_batch.events import Event, RunStarted
from ollama_batch.metrics import BatchMetrics, MetricsHook

Value: TypeAlias = float | Mapping[str, float] | None
Unit: TypeAlias = Literal["", "By", "s", "1"]

STATES: Final = ("waiting", "running", "paused", "stalled", "ending", "completed", "stopped", "interrupted")

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds of durations as the GenAI conventions of OpenTelemetry have them."""

LONG_SECONDS: Final = (*SECONDS, 163.84, 327.68, 655.36)
"""The same up to what a row of a batch may take."""


class Figure(NamedTuple):
    """One figure: a counter only grows, over all runs that one hook follows; a gauge goes up and down.

    `unit` is in UCUM, "1" a share. `value` is None where unknown: then nothing is told, never 0. With a
    `label` it is a value for each value of that label.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: Unit
    meaning: str
    value: Callable[[BatchMetrics], Value]
    label: str | None = None


def _rows(m: BatchMetrics) -> Mapping[str, float]:
    """Those of this session alone: what earlier ones did was counted by them."""
    return {"ok": m.ok - (m.resumed - m.resumed_failed), "failed": m.failed - m.resumed_failed}


def _state(m: BatchMetrics) -> Mapping[str, float]:
    return {state: float(m.state == state) for state in STATES}


FIGURES: Final[tuple[Figure, ...]] = (
    Figure("rows", "counter", "", "Rows that have a result, by outcome.", _rows, "outcome"),
    Figure("errors", "counter", "", "Failed rows, by error code.", lambda m: m.errors, "code"),
    Figure("requests_sent", "counter", "", "Requests handed to the engine.", lambda m: m.sent),
    Figure("retries", "counter", "", "Those of them that were not a row's first.", lambda m: m.retried),
    Figure("prompt_tokens", "counter", "", "Tokens of prompts, cached ones too.", lambda m: m.prompt_tokens),
    Figure("completion_tokens", "counter", "", "Tokens of answers.", lambda m: m.completion_tokens),
    Figure(
        "cached_prompt_tokens",
        "counter",
        "",
        "Prompt tokens that the engine took from its prefix cache, as far as it tells.",
        lambda m: m.cached_tokens,
    ),
    Figure(
        "reasoning_tokens",
        "counter",
        "",
        "Tokens of reasoning, as far as the engine tells.",
        lambda m: m.reasoning_tokens,
    ),
    Figure("trims", "counter", "", "Rows whose prompt was shortened.", lambda m: m.trims),
    Figure(
        "trimmed_tokens", "counter", "", "Tokens that shortening left out.", lambda m: m.trim_saved_tokens
    ),
    Figure(
        "recoveries", "counter", "", "Deaths and failures of memory of the engine.", lambda m: m.recoveries
    ),
    Figure("restarts", "counter", "", "Restarts of the engine that worked.", lambda m: m.restarts),
    Figure("quarantined_rows", "counter", "", "Rows that killed the engine.", lambda m: m.quarantined),
    Figure("lost", "counter", "s", "Time in which the engine kept the run from sending.", lambda m: m.lost_s),
    Figure("paused", "counter", "s", "Time of pauses, for any reason.", lambda m: m.paused_s),
    Figure("state", "gauge", "", "1 for the present state of the run.", _state, "state"),
    Figure("rows_expected", "gauge", "", "Rows of the input, once that is known.", lambda m: m.total),
    Figure("rows_completed", "gauge", "", "Rows done, of earlier sessions too.", lambda m: m.completed),
    Figure("in_flight", "gauge", "", "Requests that are with the engine.", lambda m: m.in_flight),
    Figure("concurrency", "gauge", "", "Requests that may be out now.", lambda m: m.concurrency),
    Figure(
        "queue_wait", "gauge", "s", "Mean wait for a slot, of answers that tell it.", lambda m: m.queue_mean_s
    ),
    Figure("queued_time", "gauge", "1", "Share of their time that answers waited.", lambda m: m.queue_share),
    Figure(
        "engine_idle", "gauge", "1", "Share of the time without a request out.", lambda m: m.engine_idle_share
    ),
    Figure("eta", "gauge", "s", "Time left, as far as it can be told.", lambda m: m.eta_s),
    Figure("context_peak_tokens", "gauge", "", "Longest prompt and answer so far.", lambda m: m.context_peak),
    Figure("context_limit_tokens", "gauge", "", "Context length of the run.", lambda m: m.context_limit),
    Figure("vram_used", "gauge", "By", "GPU memory in use.", lambda m: m.vram_used_bytes),
    Figure("vram_total", "gauge", "By", "GPU memory there is.", lambda m: m.vram_total_bytes),
    Figure("ram_used", "gauge", "By", "Memory of this machine in use.", lambda m: m.ram_used_bytes),
    Figure("vram_peak", "gauge", "By", "Most GPU memory in use so far.", lambda m: m.vram_peak_bytes),
    Figure(
        "ram_peak", "gauge", "By", "Most memory of this machine in use so far.", lambda m: m.ram_peak_bytes
    ),
    Figure("gpu_busy", "gauge", "1", "How busy the busiest GPU was.", lambda m: m.gpu_share),
    Figure(
        "gpu_busy_mean", "gauge", "1", "The same on average over the run so far.", lambda m: m.gpu_share_mean
    ),
    Figure("gpu_busy_p5", "gauge", "1", "What 5 % of its seconds did not exceed.", lambda m: m.gpu_share_p5),
)


class RunFigures:
    """Follows runs, one after another, and tells their figures; may be read from any thread.

    Counters go on over the runs that it follows, so that they never fall.
    """

    def __init__(self) -> None:
        self._metrics = MetricsHook()
        self._before: dict[tuple[str, str], float] = {}
        # Invariant: what is read is before a new run or in it, never both added up.
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        if isinstance(event, RunStarted):
            with self._lock:
                self._keep()
                self._metrics.on_event(event)
        else:
            self._metrics.on_event(event)

    def metrics(self) -> BatchMetrics:
        """The run as it is now."""
        return self._metrics.snapshot()

    def read(self, *figures: Figure) -> list[dict[str, float]]:
        """The values of `figures` at one moment: of each, by the value of its label ("" without one)."""
        with self._lock:
            now = self._metrics.snapshot()
            return [self._values(figure, now) for figure in figures]

    def _values(self, figure: Figure, now: BatchMetrics) -> dict[str, float]:
        found = figure.value(now)
        values: dict[str, float] = {}
        if isinstance(found, Mapping):
            values = dict(found)
        elif found is not None:
            values = {"": found}
        if figure.kind == "counter":
            for (name, label), before in self._before.items():
                if name == figure.name:
                    values[label] = values.get(label, 0.0) + before
        return values

    def _keep(self) -> None:
        """Put what a run has counted aside, as another one begins."""
        now = self._metrics.snapshot()
        self._before = {
            (figure.name, label): value
            for figure in FIGURES
            if figure.kind == "counter"
            for label, value in self._values(figure, now).items()
        }
