"""Prepared replies through the real engines, and through whole runs: each is exactly what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engines_support import request, soon
from ollama_batch import BatchReport, BatchRequest, BatchRunner
from ollama_batch import errors as e
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import FakeOllama
from reply_shapes import LOOP, SHAPES, SPACES, TEXT, USELESS, Shape

FORMS = ("native", "openai")
ONCE_MORE = RetryPolicy(transport=1, server=1, reply=1, timeout=0, wait_s=0.001, wait_max_s=0.002)
PASSING = ("engine_busy", "engine_loading", "out_of_memory", "engine_crashed")
"""The engine's own trouble, for which it depends on more than one row how often one is sent: in runs it
happens once."""


def engine_on(fake: FakeOllama, form: str) -> OllamaEngine | OpenAIEngine:
    return OllamaEngine(fake.url) if form == "native" else OpenAIEngine(fake.url)


async def ran(fake: FakeOllama, form: str, rows: list[BatchRequest]) -> BatchReport:
    """The report of a run of one row at a time, each sent once more at most for each kind of trouble."""
    engine = engine_on(fake, form)
    runner: BatchRunner = BatchRunner(
        model="toy:1b",
        engine=engine,
        num_ctx=2048 if form == "native" else "auto",
        concurrency=1,
        order="input",
        retry=ONCE_MORE,
        progress="none",
    )
    try:
        return await runner.arun(rows)
    finally:
        await engine.aclose()


@pytest.fixture(scope="module", params=FORMS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[FakeOllama, str]]:
    form = request.param
    with FakeOllama(faults=[shape.fault(form) for shape in SHAPES]) as fake:
        yield fake, form


def test_there_are_forty_shapes_of_different_names() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 40
    assert sum(shape.code is not None for shape in SHAPES) >= 40


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name.replace(" ", "_"))
async def test_an_engine_calls_each_reply_what_it_is(shape: Shape, served: tuple[FakeOllama, str]) -> None:
    fake, form = served
    engine = engine_on(fake, form)
    asked = request(model="toy:1b", messages=[{"role": "user", "content": shape.match}])
    try:
        if shape.code is None:
            assert (await engine.complete(asked, deadline=soon())).output == shape.output
            return
        with pytest.raises(e.EngineError) as caught:
            await engine.complete(asked, deadline=soon())
        assert (caught.value.code, caught.value.retryable) == (shape.code, shape.again)
    finally:
        await engine.aclose()


@pytest.mark.parametrize("form", FORMS)
async def test_a_run_ends_every_row_as_its_reply_says_and_counts_none_ok_that_is_not(form: str) -> None:
    """Good rows stand between, so that the engine is seen to work; the server says what it was asked."""

    def fault(shape: Shape) -> Any:
        return shape.fault(form, first=1) if shape.code in PASSING else shape.fault(form)

    rows = []
    for number, shape in enumerate(SHAPES):
        rows.append(BatchRequest.chat(shape.match, custom_id=shape.name))
        rows.append(BatchRequest.chat(f"good {number}", custom_id=f"good {number}"))
    with FakeOllama(faults=[fault(shape) for shape in SHAPES]) as fake:
        report = await ran(fake, form, rows)
        results = {result.custom_id: result for result in report.results()}
        asked = fake.ledger.counts()
    found, wanted = {}, {}
    for shape in SHAPES:
        result = results[shape.name]
        found[shape.name] = (
            result.ok,
            None if result.error is None else result.error.code,
            asked[shape.match],
        )
        passes = shape.code is None or shape.code in PASSING
        wanted[shape.name] = (passes, None if passes else shape.code, 2 if shape.again else 1)
    assert found == wanted
    assert all(results[f"good {number}"].ok for number in range(len(SHAPES)))
    assert report.metrics.ok == len(SHAPES) + sum(ok for ok, _, _ in wanted.values())


@pytest.mark.parametrize("form", FORMS)
async def test_what_a_useless_answer_said_is_kept_with_its_row(form: str) -> None:
    rows = [BatchRequest.chat(shape.match, custom_id=shape.name) for shape in USELESS]
    with FakeOllama(faults=[shape.fault(form) for shape in USELESS]) as fake:
        results = {result.custom_id: result for result in (await ran(fake, form, rows)).results()}
    assert results["cut by the limit"].output == TEXT
    assert results["runaway"].output == LOOP
    assert results["runaway of white space"].output == SPACES
    assert results["thinking ate the budget"].reasoning == "let me see"
    for name, hint in (
        ("cut by the limit", "raise max_tokens"),
        ("runaway", "the same over and over"),
        ("runaway of white space", "the same over and over"),
        ("thinking ate the budget", "only reasoning"),
        ("thinking in the text only", "only reasoning"),
    ):
        error = results[name].error
        assert error is not None
        assert hint in error.message
        assert error.row_caused
