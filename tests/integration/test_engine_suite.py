"""The suite of all engines, on servers that need no GPU."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec

import pytest

from engine_suite import CHECKS, Subject
from ollama_batch.engines import EmbeddedEngine, OllamaEngine, OpenAIEngine
from ollama_batch.testing import FakeModel, FakeOllama


@asynccontextmanager
async def ollama() -> AsyncIterator[Subject]:
    with FakeOllama(models=(FakeModel("toy:1b"),)) as fake:
        engine = OllamaEngine(fake.url)
        yield Subject(engine=engine, model="toy:1b", num_ctx=2048)
        await engine.aclose()


@asynccontextmanager
async def openai() -> AsyncIterator[Subject]:
    with FakeOllama(models=(FakeModel("toy:1b"),)) as fake:
        engine = OpenAIEngine(f"{fake.url}/v1")
        yield Subject(engine=engine, model="toy:1b", num_ctx=2048, reports_overflow=False)
        await engine.aclose()


@asynccontextmanager
async def embedded() -> AsyncIterator[Subject]:
    if find_spec("xllamacpp") is None:
        pytest.skip("needs the extra [embedded]")
    engine = EmbeddedEngine.toy(num_ctx=1024)
    yield Subject(engine=engine, model=engine.model, num_ctx=1024)
    await engine.aclose()


@pytest.mark.parametrize("make", [ollama, openai, embedded], ids=lambda make: make.__name__)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_engine(
    make: Callable[[], AsyncIterator[Subject]], check: Callable[[Subject], Awaitable[None]]
) -> None:
    async with make() as subject:
        await check(subject)
