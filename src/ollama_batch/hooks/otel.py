"""A run as OpenTelemetry spans and metrics, by its GenAI conventions where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ollama_batch.errors import MissingExtraError
from ollama_batch.events import (
    Decision,
    EngineRestarted,
    Event,
    RowFinished,
    RowRetried,
    RowSent,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStalled,
    RunStarted,
)
from ollama_batch.hooks.figures import FIGURES, SECONDS, Figure, RunFigures

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider

SCOPE: Final = "ollama_batch"

TOKENS: Final = tuple(4.0**n for n in range(14))
"""Bounds of token counts as the conventions have them: 1, 4, 16 ... 67,108,864."""

Attributes = dict[str, str | int | float | bool]


class OpenTelemetryHook:
    """Tells OpenTelemetry of the run that it is given to: spans, and metrics.

    Needs the API alone; the SDK and where things go are yours. Without providers the global ones are used.
    A run is a span, `ollama_batch run`, under the one that is current where the run is started; its pauses,
    stalls, restarts and decisions are events of it. With `rows=True` each row is a span `chat MODEL` in a
    trace of its own with a link to the run's, from its first sending to its result, so that your sampler can
    choose among them. Durations and tokens (counted ones; estimates are left out) go to
    `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`, the rest to `ollama_batch.NAME`.

    Codes, reasons, counts, model, address and the row's custom_id are told; never a prompt, an answer or a
    message of the engine. It follows one run at a time. Raises MissingExtraError without opentelemetry-api.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        rows: bool = True,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise MissingExtraError(
                "OpenTelemetryHook needs opentelemetry-api: install the extra, "
                'pip install ".[otel]" in the project\'s folder (or: pip install opentelemetry-api)'
            ) from error
        from ollama_batch import __version__

        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        self._rows = rows
        self._figures = RunFigures()
        self._about: Attributes = {}
        self._name = "chat"
        self._run: Span | None = None
        self._open: dict[int, Span] = {}
        meter = metrics.get_meter(SCOPE, __version__, meter_provider)
        self._duration: Histogram = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._tokens: Histogram = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )
        for figure in FIGURES:
            counter = figure.kind == "counter"
            create = meter.create_observable_counter if counter else meter.create_observable_gauge
            create(f"{SCOPE}.{figure.name}", [self._reader(figure)], figure.unit, figure.meaning)

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        self._figures.on_event(event)
        if isinstance(event, RowFinished):
            self._row_finished(event)
        elif isinstance(event, RowSent):
            if self._rows and event.index not in self._open:
                self._open[event.index] = self._row_span(event)
        elif isinstance(event, RunStarted):
            self._started(event)
        elif isinstance(event, RowRetried):
            if event.index in self._open:
                told: Attributes = {"error.type": event.code, "ollama_batch.attempt": event.attempt}
                self._open[event.index].add_event("retry", told)
        elif isinstance(event, RunFinished):
            self._finished(event)
        elif self._run is not None:
            self._happened(self._run, event)

    def _reader(self, figure: Figure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def read(options: CallbackOptions) -> Iterable[Observation]:
            (values,) = self._figures.read(figure)
            for label, value in values.items():
                yield Observation(value, {figure.label: label} if figure.label is not None else {})

        return read

    def _started(self, event: RunStarted) -> None:
        self._end_all()
        engine, self._name = event.engine, f"chat {event.model}"
        self._about = {"gen_ai.operation.name": "chat", "gen_ai.request.model": event.model}
        if engine is not None:
            self._about["gen_ai.provider.name"] = engine.engine
            self._about |= _server(engine.address)
        self._run = self._tracer.start_span("ollama_batch run", attributes=self._about)
        self._run.set_attributes({"ollama_batch.run_id": event.run_id, "ollama_batch.resumed": event.resumed})

    def _row_span(self, event: RowSent) -> Span:
        from opentelemetry.context import Context

        trace = self._trace
        return self._tracer.start_span(
            self._name,
            Context(),
            trace.SpanKind.CLIENT,
            {**self._about, "ollama_batch.custom_id": event.custom_id, "ollama_batch.row": event.index},
            links=() if self._run is None else (trace.Link(self._run.get_span_context()),),
        )

    def _row_finished(self, event: RowFinished) -> None:
        result = event.result
        about = dict(self._about)
        if result.error is not None:
            about["error.type"] = result.error.code
        if result.latency_s is not None:
            self._duration.record(result.latency_s, about)
        usage = result.usage
        for each in (*result.earlier_usage, usage):
            if each is not None and each.source == "engine":
                self._tokens.record(each.prompt_tokens, {**self._about, "gen_ai.token.type": "input"})
                self._tokens.record(each.completion_tokens, {**self._about, "gen_ai.token.type": "output"})
        span = self._open.pop(result.index, None)
        if span is None:
            return
        told: dict[str, Any] = {"ollama_batch.attempts": result.attempts}
        if result.finish_reason is not None:
            told["gen_ai.response.finish_reasons"] = (result.finish_reason,)
        if usage is not None:
            told["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            told["gen_ai.usage.output_tokens"] = usage.completion_tokens
            told["ollama_batch.usage_source"] = usage.source
            if usage.cached_tokens is not None:
                told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
            if usage.reasoning_tokens is not None:
                told["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        if result.error is not None:
            told["error.type"] = result.error.code
            span.set_status(self._trace.StatusCode.ERROR)
        span.set_attributes(told)
        span.end()

    def _happened(self, run: Span, event: Event) -> None:
        if isinstance(event, RunPaused):
            if not event.again:
                run.add_event("paused", {"ollama_batch.reason": event.reason})
        elif isinstance(event, RunResumed):
            told: Attributes = {"ollama_batch.reason": event.reason, "ollama_batch.paused_s": event.paused_s}
            run.add_event("resumed", told)
        elif isinstance(event, RunStalled):
            run.add_event("stalled", {"ollama_batch.silent_s": event.silent_s})
        elif isinstance(event, EngineRestarted):
            run.add_event("engine restarted", {"ollama_batch.outcome": event.outcome})
        elif isinstance(event, Decision):
            run.add_event("decision", {"ollama_batch.kind": event.kind})

    def _finished(self, event: RunFinished) -> None:
        if self._run is not None:
            now = self._figures.metrics()
            self._run.set_attributes(
                {
                    "ollama_batch.outcome": event.outcome,
                    "ollama_batch.rows.ok": now.ok,
                    "ollama_batch.rows.failed": now.failed,
                    "ollama_batch.recoveries": now.recoveries,
                    "ollama_batch.restarts": now.restarts,
                    "ollama_batch.lost_s": now.lost_s,
                }
            )
            if event.outcome == "stopped":
                self._run.set_status(self._trace.StatusCode.ERROR)
        self._end_all()

    def _end_all(self) -> None:
        """End what is open: rows that have no result are pending."""
        for span in self._open.values():
            span.set_attribute("ollama_batch.pending", True)
            span.end()
        self._open.clear()
        run, self._run = self._run, None
        if run is not None:
            run.end()


def _server(address: str) -> Attributes:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    if host is None:
        return {}
    return {"server.address": host} if port is None else {"server.address": host, "server.port": port}
