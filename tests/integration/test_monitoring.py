"""The figures of real runs as Prometheus and OpenTelemetry get them, by their own parsers and exporters."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from memory_support import GIB, device, sample
from ollama_batch import BatchRequest
from ollama_batch.cli import main
from ollama_batch.errors import ConfigError, MissingExtraError, RunCancelledError
from ollama_batch.events import MemoryMeasured, RunFinished, RunStarted
from ollama_batch.hooks import OpenTelemetryHook, PrometheusHook
from ollama_batch.hooks.figures import FIGURES
from ollama_batch.hooks.prometheus import _SUFFIX
from ollama_batch.testing import FakeModel, FakeOllama, FakeReply, Fault
from trouble_support import Recorder, name, quick_runner, rows

Factory = Callable[..., FakeOllama]

PROMPT, ANSWER = "a-prompt-nobody-sees", "an-answer-nobody-sees"
REFUSED = "request_rejected"
MEMORY = MemoryMeasured(sample=sample(0.0, device(10 * GIB)))


def secret_reply(body: Any) -> FakeReply:
    return FakeReply(ANSWER)


def secret_rows(count: int) -> list[BatchRequest]:
    return [BatchRequest.chat(f"{name(n)}\n{PROMPT}", custom_id=name(n)) for n in range(count)]


@pytest.fixture
def fake(fake_ollama_factory: Factory) -> FakeOllama:
    """Answers with what must not be seen, two rows only after an error, one never."""
    faults = (
        Fault("status", match=name(3), status=500, count=1),
        Fault("status", match=name(4), status=500, count=1),
        Fault("status", match=name(7), status=400, text=f"cannot parse {PROMPT}"),
    )
    return fake_ollama_factory(reply=secret_reply, reports_cached=True, faults=faults)


# Prometheus


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in parse_text(text):
        assert family.documentation
        for each in family.samples:
            found[each.name, tuple(sorted(each.labels.items()))] = each.value
    return found


def bare(found: dict[Any, float]) -> dict[str, float]:
    """The samples without labels, by name."""
    return {key[0].removeprefix("ollama_batch_"): value for key, value in found.items() if not key[1]}


def told(hook: PrometheusHook) -> str:
    """What a scrape gets."""
    return prometheus_client.generate_latest(hook.registry).decode()


@pytest.fixture
def prometheus() -> PrometheusHook:
    return PrometheusHook()


def test_prometheus_is_told_what_the_report_says(fake: FakeOllama, prometheus: PrometheusHook) -> None:
    report = quick_runner(fake, hooks=[prometheus]).run(secret_rows(20))
    found, metrics = samples(told(prometheus)), report.metrics
    assert found["ollama_batch_rows_total", (("outcome", "ok"),)] == 19
    assert found["ollama_batch_rows_total", (("outcome", "failed"),)] == 1
    assert found["ollama_batch_errors_total", (("code", REFUSED),)] == 1
    states = {key[1][0][1]: value for key, value in found.items() if key[0] == "ollama_batch_state"}
    assert [state for state, value in states.items() if value] == ["completed"]
    assert sum(states.values()) == 1
    plain = bare(found)
    assert plain["requests_sent_total"] == fake.ledger.count() == 22
    assert plain["retries_total"] == 2
    assert plain["prompt_tokens_total"] == metrics.prompt_tokens > 0
    assert plain["completion_tokens_total"] == metrics.completion_tokens > 0
    assert plain["cached_prompt_tokens_total"] == metrics.cached_tokens
    assert plain["concurrency"] == 4
    assert plain["in_flight"] == 0
    assert plain["rows_expected"] == plain["rows_completed"] == 20
    # Its clock begins a moment later.
    assert plain["engine_idle_ratio"] == pytest.approx(metrics.engine_idle_share, abs=0.1)
    assert plain["recoveries_total"] == plain["restarts_total"] == 0
    assert plain["row_latency_seconds_count"] == 20
    info = next(dict(key[1]) for key in found if key[0] == "ollama_batch_run_info")
    assert info["model"] == "toy:1b"
    assert info["engine"] == "ollama"
    assert info["run_id"] == report.run_id


def test_what_is_unknown_is_not_told_as_0(fake_ollama_factory: Factory, prometheus: PrometheusHook) -> None:
    fake = fake_ollama_factory(reports_cached=False)
    assert quick_runner(fake, hooks=[prometheus], guards=()).run(rows(4)).ok
    plain = bare(samples(told(prometheus)))
    for absent in (
        "cached_prompt_tokens_total",
        "reasoning_tokens_total",
        "vram_used_bytes",
        "ram_used_bytes",
        "vram_peak_bytes",
        "ram_peak_bytes",
        "gpu_busy_mean_ratio",
        "gpu_busy_p5_ratio",
    ):
        assert absent not in plain
    assert plain["prompt_tokens_total"] > 0


def test_names_and_types_are_what_prometheus_wants(fake: FakeOllama, prometheus: PrometheusHook) -> None:
    quick_runner(fake, hooks=[prometheus]).run(secret_rows(20))
    prometheus.on_event(MEMORY)
    plain = bare(samples(told(prometheus)))
    assert plain["vram_peak_bytes"] == 6 * GIB
    assert plain["gpu_busy_mean_ratio"] == plain["gpu_busy_p5_ratio"] == plain["gpu_busy_ratio"] == 0.5
    text = generate_openmetrics(prometheus.registry).decode()
    kinds = {}
    for family in parse_openmetrics(text):  # refuses what breaks the rules of the format
        assert family.name.startswith("ollama_batch_")
        kinds[family.name.removeprefix("ollama_batch_")] = family.type
    assert kinds["rows"] == kinds["prompt_tokens"] == kinds["lost_seconds"] == "counter"
    assert kinds["ram_used_bytes"] == kinds["vram_used_bytes"] == kinds["engine_idle_ratio"] == "gauge"
    assert kinds["row_latency_seconds"] == "histogram"
    assert kinds["run"] == "info"


def test_neither_prompt_nor_answer_nor_id_is_in_what_is_served(
    fake: FakeOllama, prometheus: PrometheusHook
) -> None:
    quick_runner(fake, hooks=[prometheus]).run(secret_rows(20))
    text = told(prometheus)
    assert "ollama_batch_rows_total" in text
    assert not [word for word in (PROMPT, ANSWER, name(7)) if word in text]


def test_counters_go_on_over_the_runs_that_one_hook_follows(
    fake_ollama: FakeOllama, prometheus: PrometheusHook
) -> None:
    runner = quick_runner(fake_ollama, hooks=[prometheus])
    first, second = runner.run(rows(5)), runner.run(rows(3))
    found = samples(told(prometheus))
    assert found["ollama_batch_rows_total", (("outcome", "ok"),)] == 8
    tokens = first.metrics.prompt_tokens + second.metrics.prompt_tokens
    assert bare(found)["prompt_tokens_total"] == tokens
    assert bare(found)["rows_completed"] == 3  # a gauge is of the present run


def test_rows_of_earlier_sessions_are_not_counted_again(
    fake_ollama: FakeOllama, prometheus: PrometheusHook, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    quick_runner(fake_ollama).run(rows(6), output=output, limit=4)
    quick_runner(fake_ollama, hooks=[prometheus]).run(rows(6), output=output)
    found = samples(told(prometheus))
    assert found["ollama_batch_rows_total", (("outcome", "ok"),)] == 2
    assert bare(found)["rows_completed"] == 6


def test_the_figures_can_be_in_a_registry_of_ones_own() -> None:
    registry = prometheus_client.CollectorRegistry()
    with PrometheusHook(registry=registry) as hook:
        assert hook.url is None
        assert registry.get_sample_value("ollama_batch_rows_total", {"outcome": "ok"}) == 0
    assert registry.get_sample_value("ollama_batch_rows_total", {"outcome": "ok"}) is None
    hook.close()


def test_it_serves_this_machine_alone_unless_it_is_told_otherwise(fake_ollama: FakeOllama) -> None:
    with PrometheusHook(0) as hook:
        assert quick_runner(fake_ollama, hooks=[hook]).run(rows(4)).ok
        assert hook.url is not None
        assert hook.url.startswith("http://127.0.0.1:")
        assert hook._server.socket.getsockname()[0] == "127.0.0.1"
        assert samples(scrape(hook.url)) == samples(told(hook))
    with pytest.raises(OSError, match="refused"):
        scrape(hook.url)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1: .*choose another"):
            PrometheusHook(port)


@pytest.mark.parametrize("port", [-1, 65_536, "80", True])
def test_what_is_no_port_is_refused(port: Any) -> None:
    with pytest.raises(ConfigError, match="from 0 to 65,535"):
        PrometheusHook(port)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_command_line_serves_figures_while_its_run_goes_on(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, port = tmp_path / "in.jsonl", free_port()
    source.write_text("".join(json.dumps(each.to_openai()) + "\n" for each in rows(6)))
    words = ["run", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", "toy:1b"]
    words += ["--base-url", fake_ollama.url, "--metrics-port", str(port), "--progress", "none"]
    fake_ollama.hold()
    codes: list[int] = []
    run = threading.Thread(target=lambda: codes.append(main(words)))
    run.start()
    try:
        fake_ollama.wait_until(lambda ledger: ledger.count() >= 4)
        url = f"http://127.0.0.1:{port}/metrics"
        assert bare(samples(scrape(url)))["in_flight"] == 4
    finally:
        fake_ollama.release()
        run.join(30)
    assert codes == [0]
    with pytest.raises(OSError, match="refused"):
        scrape(url)


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_the_command_line_refuses_what_is_no_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "in.jsonl", "-o", "out.jsonl", "--metrics-port", port])
    assert "is no port" in capsys.readouterr().err


# OpenTelemetry


class Telemetry:
    """The SDK, with exporters that keep what they get."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def hook(self, **options: Any) -> OpenTelemetryHook:
        return OpenTelemetryHook(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    def run_span(self) -> ReadableSpan:
        (found,) = [span for span in self.spans.get_finished_spans() if span.name == "ollama_batch run"]
        return found

    def row_spans(self) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name != "ollama_batch run"]

    def metrics(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "ollama_batch"
        return {metric.name: metric for metric in scope.metrics}

    def value(self, name: str, **labels: str) -> Any:
        (found,) = [each for each in self.metrics()[name].data.data_points if each.attributes == labels]
        return found.value


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def test_each_row_is_a_span_by_the_genai_conventions(fake: FakeOllama, telemetry: Telemetry) -> None:
    report = quick_runner(fake, hooks=[telemetry.hook()]).run(secret_rows(20))
    spans = {span.attributes["ollama_batch.custom_id"]: span for span in telemetry.row_spans()}  # type: ignore[index]  # there are some
    assert len(spans) == len(telemetry.row_spans()) == 20
    for result in report.results():
        span = spans[result.custom_id]
        told = dict(span.attributes or {})
        assert span.name == "chat toy:1b"
        assert span.kind is SpanKind.CLIENT
        assert told[names.GEN_AI_OPERATION_NAME] == names.GenAiOperationNameValues.CHAT.value
        assert told[names.GEN_AI_PROVIDER_NAME] == "ollama"
        assert told[names.GEN_AI_REQUEST_MODEL] == "toy:1b"
        assert told[server_attributes.SERVER_ADDRESS] == "127.0.0.1"
        assert told[server_attributes.SERVER_PORT] == int(fake.url.rpartition(":")[2])
        assert told["ollama_batch.attempts"] == result.attempts
        retries = [event for event in span.events if event.name == "retry"]
        assert len(retries) == result.attempts - 1
        if not result.ok:
            assert result.error is not None
            assert told[error_attributes.ERROR_TYPE] == result.error.code
            assert span.status.status_code is StatusCode.ERROR
            assert span.status.description is None
            continue
        assert result.usage is not None
        assert span.status.status_code is StatusCode.UNSET
        assert told[names.GEN_AI_RESPONSE_FINISH_REASONS] == (result.finish_reason,)
        assert told[names.GEN_AI_USAGE_INPUT_TOKENS] == result.usage.prompt_tokens
        assert told[names.GEN_AI_USAGE_OUTPUT_TOKENS] == result.usage.completion_tokens
        assert told[names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == result.usage.cached_tokens
    assert spans[name(3)].attributes["ollama_batch.attempts"] == 2  # type: ignore[index]  # as above


def test_rows_have_traces_of_their_own_that_lead_to_the_run(fake: FakeOllama, telemetry: Telemetry) -> None:
    report = quick_runner(fake, hooks=[telemetry.hook()]).run(secret_rows(20))
    run = telemetry.run_span()
    told = dict(run.attributes or {})
    assert told["ollama_batch.run_id"] == report.run_id
    assert (told["ollama_batch.rows.ok"], told["ollama_batch.rows.failed"]) == (19, 1)
    assert told["ollama_batch.outcome"] == "completed"
    trouble = [told[f"ollama_batch.{each}"] for each in ("recoveries", "restarts", "lost_s")]
    m = report.metrics
    assert trouble == [m.recoveries, m.restarts, pytest.approx(m.lost_s, abs=0.1)]
    traces = set()
    for span in telemetry.row_spans():
        assert span.parent is None
        (link,) = span.links
        assert link.context == run.context
        assert run.start_time is not None
        assert span.start_time is not None
        assert run.start_time <= span.start_time
        assert span.context is not None
        traces.add(span.context.trace_id)
    assert len(traces) == 20


def test_the_run_belongs_to_the_span_in_which_it_was_started(
    fake_ollama: FakeOllama, telemetry: Telemetry
) -> None:
    hook = telemetry.hook(rows=False)
    with telemetry.tracers.get_tracer("app").start_as_current_span("job") as job:
        assert quick_runner(fake_ollama, hooks=[hook]).run(rows(2)).ok
    run = telemetry.run_span()
    assert run.parent == job.get_span_context()
    assert [span.name for span in telemetry.row_spans()] == ["job"]  # no spans of rows


def test_durations_and_tokens_are_told_by_the_genai_conventions(
    fake: FakeOllama, telemetry: Telemetry
) -> None:
    report = quick_runner(fake, hooks=[telemetry.hook()]).run(secret_rows(20))
    metrics = telemetry.metrics()
    duration = metrics[gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION]
    assert duration.unit == "s"
    by_error = {each.attributes.get("error.type"): each for each in duration.data.data_points}
    assert {error: each.count for error, each in by_error.items()} == {None: 19, REFUSED: 1}
    assert by_error[None].explicit_bounds[:3] == (0.01, 0.02, 0.04)
    tokens = metrics[gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE]
    assert tokens.unit == "{token}"
    by_type = {each.attributes[names.GEN_AI_TOKEN_TYPE]: each for each in tokens.data.data_points}
    assert by_type[names.GenAiTokenTypeValues.INPUT.value].sum == report.metrics.prompt_tokens
    assert by_type["output"].sum == report.metrics.completion_tokens
    assert by_type["input"].explicit_bounds == tuple(4**n for n in range(14))


def test_the_other_figures_are_instruments_of_their_own(fake: FakeOllama, telemetry: Telemetry) -> None:
    hook = telemetry.hook()
    report = quick_runner(fake, hooks=[hook]).run(secret_rows(20))
    hook.on_event(MEMORY)
    assert telemetry.value("ollama_batch.rows", outcome="ok") == 19
    assert telemetry.value("ollama_batch.vram_used") == telemetry.value("ollama_batch.vram_peak") == 6 * GIB
    assert telemetry.value("ollama_batch.gpu_busy_mean") == telemetry.value("ollama_batch.gpu_busy_p5") == 0.5
    assert telemetry.value("ollama_batch.cached_prompt_tokens") == report.metrics.cached_tokens
    assert telemetry.value("ollama_batch.concurrency") == 4
    metrics = telemetry.metrics()
    assert metrics["ollama_batch.ram_used"].unit == "By"
    assert metrics["ollama_batch.rows"].data.is_monotonic
    assert "ollama_batch.reasoning_tokens" not in metrics  # nobody told


def test_neither_prompt_nor_answer_nor_message_is_in_a_span_or_a_metric(
    fake: FakeOllama, telemetry: Telemetry
) -> None:
    report = quick_runner(fake, hooks=[telemetry.hook()]).run(secret_rows(20))
    error = next(result.error for result in report.results() if result.error is not None)
    assert PROMPT in error.message  # an engine may repeat what it was told
    told = [span.to_json() for span in telemetry.spans.get_finished_spans()]
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    text = "".join([*told, data.to_json()])
    assert len(told) == 21
    assert name(7) in text
    assert not [word for word in (PROMPT, ANSWER, error.message) if word in text]


def test_rows_without_a_result_end_with_the_run_as_pending(
    fake_ollama: FakeOllama, telemetry: Telemetry
) -> None:
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[telemetry.hook()]).start(rows(8))
    fake_ollama.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(30)
    fake_ollama.release()
    pending = [dict(span.attributes or {}).get("ollama_batch.pending") for span in telemetry.row_spans()]
    assert pending == [True] * 4
    assert telemetry.run_span().status.status_code is StatusCode.ERROR


def test_a_stall_and_a_pause_are_events_of_the_run(
    fake_ollama: FakeOllama, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollama_batch import _watch

    monkeypatch.setattr(_watch, "STALL_S", 0.05)
    hook = telemetry.hook()

    def seen(event: object) -> None:
        hook.on_event(event)  # type: ignore[arg-type]  # an Event
        if type(event).__name__ == "RunStalled":
            run.pause()
            run.resume()
            fake_ollama.release()

    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[Recorder(seen)]).start(rows(4))
    assert run.wait(30).ok
    events = {event.name: dict(event.attributes or {}) for event in telemetry.run_span().events}
    assert events["stalled"]["ollama_batch.silent_s"] > 0.05
    assert events["paused"] == {"ollama_batch.reason": "user"}
    assert "resumed" in events


def test_without_an_sdk_nothing_is_told_and_nothing_fails(fake_ollama: FakeOllama) -> None:
    report = quick_runner(fake_ollama, hooks=[OpenTelemetryHook()]).run(rows(4))
    assert report.ok
    assert not report.notes
    assert not trace.get_current_span().is_recording()


def test_an_engine_without_an_address_is_no_trouble(telemetry: Telemetry) -> None:
    hook = telemetry.hook()
    started: dict[str, Any] = {"run_id": "r", "model": "m", "engine": None, "total": 0, "resumed": 0}
    started |= {"resumed_failed": 0, "concurrency": 1, "num_ctx": None, "max_tokens": 1, "durable": False}
    hook.on_event(RunStarted(**started, journal=None, output=None))
    hook.on_event(RunFinished(outcome="completed", error=None, duration_s=0.0))
    assert names.GEN_AI_PROVIDER_NAME not in dict(telemetry.run_span().attributes or {})


# Both


def test_the_page_names_every_figure_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
    rows_of_table = re.findall(r"^\| (`.*?) \| (?:counter|gauge|histogram|info) \|", page, re.MULTILINE)
    said = {word for row in rows_of_table for word in re.findall(r"`(\w+)`", row)} - {"outcome", "code"}
    kinds = {"counter": "_total", "gauge": ""}
    real = {f"{figure.name}{_SUFFIX[figure.unit]}{kinds[figure.kind]}" for figure in FIGURES}
    assert said == real | {"row_latency_seconds", "run_info"}


@pytest.mark.parametrize(
    ("made", "module", "extra"),
    [(PrometheusHook, "prometheus_client", "metrics"), (OpenTelemetryHook, "opentelemetry", "otel")],
)
def test_a_hook_whose_library_is_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, made: Callable[[], Any], module: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"\[{extra}\]"):
        made()


def test_both_follow_one_run_side_by_side_with_equal_figures(
    fake_ollama_factory: Factory, prometheus: PrometheusHook, telemetry: Telemetry
) -> None:
    fake = fake_ollama_factory(models=(FakeModel("toy:1b"),))
    assert quick_runner(fake, hooks=[prometheus, telemetry.hook()]).run(rows(6)).ok
    plain = bare(samples(told(prometheus)))
    for name_ in ("prompt_tokens", "completion_tokens", "requests_sent", "trims"):
        assert telemetry.value(f"ollama_batch.{name_}") == plain[f"{name_}_total"]
