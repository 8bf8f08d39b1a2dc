"""Only type-checked: the contract as users write it."""

from __future__ import annotations

from typing import Any, assert_type

from starlette.applications import Starlette

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
from ollama_batch.engines import EmbeddedEngine, Restartable
from ollama_batch.server import ServerSettings, create_app


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


def serve() -> None:
    settings = ServerSettings(max_lines=10, runner={"concurrency": 4})
    app = create_app("data", base_url="http://127.0.0.1:11434", keys=["k" * 16], settings=settings)
    assert_type(app, Starlette)
