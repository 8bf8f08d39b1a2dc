"""The figures of a run for Prometheus: read when it asks, from a small server or a registry of yours."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from ollama_batch.errors import ConfigError, MissingExtraError
from ollama_batch.events import Event, RowFinished, RunStarted
from ollama_batch.hooks.figures import FIGURES, LONG_SECONDS, Figure, RunFigures, Unit

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

PREFIX: Final = "ollama_batch_"

_SUFFIX: Final[dict[Unit, str]] = {"": "", "By": "_bytes", "s": "_seconds", "1": "_ratio"}


class PrometheusHook:
    """Tells Prometheus the figures of the run that it is given to; also a context manager.

    With a `port` it serves them at `url`, on `host` (for this machine alone, unless given) until `close()`; 0
    takes a free port. Without one they are in `registry` for a server of your own (None: a new one,
    `.registry`). They are worked out when they are asked for. Labels are outcomes, error codes, states and,
    in `ollama_batch_run_info`, model, engine and run: never a prompt, an answer or an id of yours.

    It follows one run at a time; counters go on over runs that follow each other. Raises MissingExtraError
    without prometheus-client, ConfigError if the port cannot be had.
    """

    def __init__(
        self,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        registry: CollectorRegistry | None = None,
    ) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise MissingExtraError(
                "PrometheusHook needs prometheus-client: install the extra, "
                'pip install ".[metrics]" in the project\'s folder (or: pip install prometheus-client)'
            ) from error
        if port is not None and (type(port) is not int or not 0 <= port <= 65_535):
            raise ConfigError(f"port={port!r}: must be a whole number from 0 to 65,535")
        self._figures = RunFigures()
        self._run: dict[str, str] | None = None
        self._buckets = [0] * (len(LONG_SECONDS) + 1)
        self._seconds = 0.0
        self._lock = threading.Lock()  # of the two above: a scrape sees them of one moment
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        self.url: str | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self.registry.register(cast("Collector", self))
        if port is None:
            return
        try:
            self._server, self._thread = prometheus_client.start_http_server(
                port, addr=host, registry=cast("Collector", self.registry)
            )
        except OSError as error:
            self.registry.unregister(cast("Collector", self))
            reason = error.strerror or type(error).__name__
            raise ConfigError(
                f"metrics cannot be served on port {port} of {host}: {reason}; choose another port"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving and take the figures out of the registry; may be called more than once."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        try:
            self.registry.unregister(cast("Collector", self))
        except KeyError:
            pass  # closed before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_event(self, event: Event) -> None:
        """Take note of `event`."""
        self._figures.on_event(event)
        if isinstance(event, RunStarted):
            engine = event.engine
            self._run = {
                "run_id": event.run_id,
                "model": event.model,
                "engine": "" if engine is None else engine.engine,
                "engine_version": "" if engine is None else engine.version or "",
            }
        elif isinstance(event, RowFinished) and event.result.latency_s is not None:
            with self._lock:
                self._buckets[bisect_left(LONG_SECONDS, event.result.latency_s)] += 1
                self._seconds += event.result.latency_s

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for; also what a registry calls."""
        from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily

        for figure, values in zip(FIGURES, self._figures.read(*FIGURES), strict=True):
            if values:
                yield _family(figure, values)
        with self._lock:
            buckets, seconds = list(self._buckets), self._seconds
        counted, cumulated = 0, []
        for bound, count in zip((*map(str, LONG_SECONDS), "+Inf"), buckets, strict=True):
            counted += count
            cumulated.append((bound, counted))
        yield HistogramMetricFamily(
            f"{PREFIX}row_latency_seconds",
            "Time of a row's last attempt, from sending to the complete answer.",
            buckets=cumulated,
            sum_value=seconds,
        )
        if self._run is not None:
            yield InfoMetricFamily(f"{PREFIX}run", "The run that is followed.", value=self._run)


def _family(figure: Figure, values: dict[str, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    labels = None if figure.label is None else [figure.label]
    made = family(f"{PREFIX}{figure.name}{_SUFFIX[figure.unit]}", figure.meaning, labels=labels)
    for label, value in values.items():
        made.add_metric([label] if figure.label is not None else [], value)
    return made
