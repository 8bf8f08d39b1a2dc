"""Only type-checked: the contract as users write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from pydantic import BaseModel
from starlette.applications import Starlette

from ollama_batch import (
    BatchReport,
    BatchRequest,
    BatchResult,
    BatchRunner,
    Engine,
    Event,
    Hook,
    JsonSchema,
    OllamaEngine,
    Run,
    Supervisor,
    SystemdUnit,
)
from ollama_batch.analysis import analyze, compare
from ollama_batch.aris import Candidate, PraxisTemplate, RequestStream, read_candidates, to_requests
from ollama_batch.engines import EmbeddedEngine, Restartable
from ollama_batch.hooks import CommandHook, Notice, OpenTelemetryHook, PrometheusHook, WebhookHook
from ollama_batch.server import ServerSettings, create_app
from ollama_batch.structured import Answer, read_answer


class Counting:
    """A user's hook needs no base class."""

    def on_event(self, event: Event) -> None: ...


def text(notice: Notice) -> dict[str, str]:
    """What a service of the user's wants."""
    return {"text": notice.message}


hook: Hook = Counting()
hooks: list[Hook] = [PrometheusHook(9464), OpenTelemetryHook(rows=False)]
hooks += [CommandHook(["notify-send", "{message}"]), WebhookHook("https://example.org", body=text)]
assert_type(BatchRunner(model="gemma3:12b"), BatchRunner[Any])
runner = BatchRunner(model="gemma3:12b", defaults={"temperature": 0}, hooks=[hook])
assert_type(runner.run("requests.jsonl", output="results.jsonl", max_failures=0.1), BatchReport[Any])
assert_type(runner.start([BatchRequest.chat("Hello", system="Be brief")]), Run[Any])
for result in runner.iter_results(["one prompt", "another"]):
    assert_type(result, BatchResult[Any])


class Verdict(BaseModel):
    """What every answer must be."""

    score: int


typed = BatchRunner(model="gemma3:12b", response_model=Verdict, output_retries=2)
assert_type(typed, BatchRunner[Verdict])
assert_type(typed.run(["a prompt"]), BatchReport[Verdict])
assert_type(typed.start(["a prompt"]).wait(), BatchReport[Verdict])
for verdict in typed.run(["a prompt"]).results():
    assert_type(verdict, BatchResult[Verdict])
    assert_type(verdict.parsed, Verdict | None)
for verdict in typed.iter_results(["a prompt"]):
    assert_type(verdict.parsed, Verdict | None)
as_data = BatchRunner(model="gemma3:12b", response_model=JsonSchema({"type": "object"}))
assert_type(as_data, BatchRunner[Any])
assert_type(read_answer("{}", Verdict), Answer[Verdict])
with typed as entered:
    assert_type(entered, BatchRunner[Verdict])

engine: Engine = OllamaEngine.managed(num_parallel=8, kv_cache_type="q8_0")
own: list[Restartable] = [OllamaEngine.managed(), EmbeddedEngine.toy()]


class Tickets:
    """An adapter needs no base class either."""

    def request(self, item: dict[str, str], /) -> BatchRequest | None: ...


assert_type(to_requests("export.json", skip_evaluated=True), RequestStream[Candidate])
assert_type(to_requests(read_candidates("export.json"), PraxisTemplate()), RequestStream[Candidate])
assert_type(to_requests([{"id": "t"}], Tickets()), RequestStream[dict[str, str]])
runner.run(to_requests(read_candidates("export.json"), PraxisTemplate(message=lambda c: c.aristotle_id)))


async def restart() -> None:
    """A way to restart need not be async."""


for way in (restart, lambda: None, SystemdUnit("ollama")):
    BatchRunner(model="gemma3:12b", engine=engine, supervisor=Supervisor(way, most=3))


async def use() -> None:
    assert_type(await runner.arun({"messages": []} for _ in range(3)), BatchReport[Any])
    async for result in runner.stream(["a prompt"], output=None):
        assert_type(result.output, str | None)
    assert_type(await typed.arun(["a prompt"]), BatchReport[Verdict])
    assert_type(await typed.start(["a prompt"]), BatchReport[Verdict])
    async for verdict in typed.stream(["a prompt"]):
        assert_type(verdict.parsed, Verdict | None)
    found = analyze(await runner.arun(["a prompt"]), fields={"a.b": ["x", "y"]}, score=lambda answer: 1.0)
    assert_type(found.field("a.b").labels, Mapping[str, int])
    assert_type(compare("a.jsonl", ["b.jsonl", "c.jsonl"], fields=["a"]).field("a").kappa, float | None)


def serve() -> None:
    settings = ServerSettings(max_lines=10, runner={"concurrency": 4})
    app = create_app("data", base_url="http://127.0.0.1:11434", keys=["k" * 16], settings=settings)
    assert_type(app, Starlette)
