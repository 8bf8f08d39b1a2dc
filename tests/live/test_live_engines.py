"""The suite of all engines on a real Ollama, and what a real GPU shows.

Needs OLLAMA_HOST and OLLAMA_BATCH_LIVE_MODEL; skipped without them, or failed if REQUIRE_LIVE=1.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from engine_suite import CHECKS, Subject
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.openai import OLLAMA_NOTE, OpenAIEngine

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

NUM_CTX = 2048


def unavailable(reason: str) -> None:
    """Skip, or fail where live tests are promised."""
    if os.environ.get("REQUIRE_LIVE") == "1":
        pytest.fail(f"REQUIRE_LIVE=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def model() -> str:
    name = os.environ.get("OLLAMA_BATCH_LIVE_MODEL", "")
    if not os.environ.get("OLLAMA_HOST") or not name:
        unavailable("OLLAMA_HOST and OLLAMA_BATCH_LIVE_MODEL are not both set")
    return name


@pytest.fixture
async def engine(model: str) -> AsyncIterator[OllamaEngine]:
    engine = OllamaEngine()
    yield engine
    await engine.aclose()


@pytest.fixture
def gpu() -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        unavailable(f"there is no NVIDIA GPU here ({exc})")
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_native(engine: OllamaEngine, model: str, check: Callable[[Subject], Awaitable[None]]) -> None:
    await check(Subject(engine=engine, model=model, num_ctx=NUM_CTX, deadline_s=600.0))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_openai_routes(
    engine: OllamaEngine, model: str, check: Callable[[Subject], Awaitable[None]]
) -> None:
    openai = OpenAIEngine(engine.address)
    subject = Subject(engine=openai, model=model, num_ctx=NUM_CTX, reports_overflow=False, deadline_s=600.0)
    try:
        await check(subject)
    finally:
        await openai.aclose()


async def test_the_openai_engine_names_the_native_one(engine: OllamaEngine, model: str) -> None:
    openai = OpenAIEngine(engine.address)
    try:
        assert (await openai.describe(model)).details["note"] == OLLAMA_NOTE
    finally:
        await openai.aclose()


async def test_the_load_options_of_requests_match_those_of_the_load(engine: OllamaEngine, model: str) -> None:
    """A request after `load` does not load again: the server's context and expiry stay as they were set."""
    subject = Subject(engine=engine, model=model, num_ctx=NUM_CTX, deadline_s=600.0)
    await engine.load(model, num_ctx=NUM_CTX, deadline=subject.deadline())
    completion = await subject.ask(max_tokens=8)
    assert completion.timings.load_s is not None
    assert completion.timings.load_s < 2.0
    async with httpx.AsyncClient(base_url=engine.address, trust_env=False) as client:
        running = (await client.get("/api/ps")).json()["models"]
    assert NUM_CTX in [entry.get("context_length") for entry in running]
    await engine.release(model, num_ctx=NUM_CTX)


@pytest.mark.gpu
async def test_unloading_frees_gpu_memory(engine: OllamaEngine, model: str, gpu: Any) -> None:
    import pynvml

    subject = Subject(engine=engine, model=model, num_ctx=NUM_CTX, deadline_s=600.0)
    await engine.load(model, num_ctx=NUM_CTX, deadline=subject.deadline())
    loaded = pynvml.nvmlDeviceGetMemoryInfo(gpu).used
    await engine.release(model, num_ctx=NUM_CTX, unload=True)
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu).used < loaded
