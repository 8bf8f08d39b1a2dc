"""Only type-checked: the contract as users write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from ollama_batch import (
    BatchReport,
    BatchRequest,
    BatchResult,
    BatchRunner,
    Engine,
    Event,
    Hook,
    OllamaEngine,
    Run,
    Supervisor,
    SystemdUnit,
)
from ollama_batch.analysis import analyze, compare
from ollama_batch.engines import EmbeddedEngine, Restartable


class Counting:
    """A user's hook needs no base class."""

    def on_event(self, event: Event) -> None: ...


hook: Hook = Counting()
runner = BatchRunner(model="gemma3:12b", defaults={"temperature": 0}, hooks=[hook])
assert_type(runner.run("requests.jsonl", output="results.jsonl", max_failures=0.1), BatchReport[Any])
assert_type(runner.start([BatchRequest.chat("Hello", system="Be brief")]), Run)
for result in runner.iter_results(["one prompt", "another"]):
    assert_type(result, BatchResult[Any])

engine: Engine = OllamaEngine.managed(num_parallel=8, kv_cache_type="q8_0")
own: list[Restartable] = [OllamaEngine.managed(), EmbeddedEngine.toy()]


async def restart() -> None:
    """A way to restart need not be async."""


for way in (restart, lambda: None, SystemdUnit("ollama")):
    BatchRunner(model="gemma3:12b", engine=engine, supervisor=Supervisor(way, most=3))


async def use() -> None:
    assert_type(await runner.arun({"messages": []} for _ in range(3)), BatchReport[Any])
    async for result in runner.stream(["a prompt"], output=None):
        assert_type(result.output, str | None)

    found = analyze(await runner.arun(["a prompt"]), fields={"a.b": ["x", "y"]}, score=lambda answer: 1.0)
    assert_type(found.field("a.b").labels, Mapping[str, int])
    assert_type(compare("a.jsonl", ["b.jsonl", "c.jsonl"], fields=["a"]).field("a").kappa, float | None)
