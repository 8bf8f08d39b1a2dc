"""Only type-checked: the contract as users write it."""

from __future__ import annotations

from typing import Any, assert_type

from ollama_batch import BatchReport, BatchRequest, BatchResult, BatchRunner, Event, Hook, Run


class Counting:
    """A user's hook needs no base class."""

    def on_event(self, event: Event) -> None: ...


hook: Hook = Counting()
runner = BatchRunner(model="gemma3:12b", defaults={"temperature": 0}, hooks=[hook])
assert_type(runner.run("requests.jsonl", output="results.jsonl", max_failures=0.1), BatchReport[Any])
assert_type(runner.start([BatchRequest.chat("Hello", system="Be brief")]), Run)
for result in runner.iter_results(["one prompt", "another"]):
    assert_type(result, BatchResult[Any])


async def use() -> None:
    assert_type(await runner.arun({"messages": []} for _ in range(3)), BatchReport[Any])
    async for result in runner.stream(["a prompt"], output=None):
        assert_type(result.output, str | None)
