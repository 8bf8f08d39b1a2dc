"""Events to feed metrics, progress and reports, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ollama_batch.events import RowFinished, RowSent, RunStarted
from ollama_batch.metrics import MetricsHook
from ollama_batch.types import BatchResult, RowError, Timings, Usage

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "a\rb",
    "bell\x07",
    "\x9b31m",
    "\x1b]0;title\x07",
    "\u202eevil",
    "zero\u200bwidth",
    "\ud800",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[red]markup[/red]",
    "'; DROP TABLE rows; --",
    "tab\tand\nnewline",
    "{0}%s",
]


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


def started(**changed: Any) -> RunStarted:
    values: dict[str, Any] = {
        "run_id": "3f2a",
        "model": "gemma3:12b",
        "engine": None,
        "total": 100,
        "resumed": 0,
        "resumed_failed": 0,
        "concurrency": 4,
        "num_ctx": 8192,
        "max_tokens": 1024,
        "durable": True,
        "journal": "results.jsonl.run.db",
        "output": "results.jsonl",
    }
    return RunStarted(**{**values, **changed})


def sent(attempt: int = 1, in_flight: int = 1) -> RowSent:
    return RowSent(index=0, custom_id="row", attempt=attempt, in_flight=in_flight)


def finished(
    *,
    ok: bool = True,
    prompt: int = 100,
    completion: int = 10,
    cached: int | None = None,
    reasoning: int | None = None,
    source: Any = "engine",
    usage: bool = True,
    latency_s: float | None = 1.0,
    code: str = "request_timeout",
    in_flight: int = 0,
    trim: Any = None,
    custom_id: str = "row",
    output: str | None = None,
    head: str | None = None,
    prompt_s: float | None = None,
) -> RowFinished:
    result: BatchResult[Any] = BatchResult(
        custom_id=custom_id,
        ok=ok,
        output=output,
        error=None if ok else RowError(code, "no complete answer"),
        usage=Usage(prompt, completion, cached, reasoning, source) if usage else None,
        attempts=1,
        latency_s=latency_s,
        trim=trim,
    )
    return RowFinished(result=result, timings=Timings(prompt_s=prompt_s), in_flight=in_flight, head=head)


def results(*rows: RowFinished) -> Iterator[BatchResult[Any]]:
    return (row.result for row in rows)


def hook(clock: FakeClock, **changed: Any) -> MetricsHook:
    """A metrics hook whose run has just started."""
    metrics = MetricsHook(clock=clock)
    metrics.on_event(started(**changed))
    return metrics
