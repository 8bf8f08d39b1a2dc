"""EmbeddedEngine with the toy model: a real llama.cpp server in a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ollama_batch.engines.base import Loadable, Probed
from ollama_batch.engines.embedded import EmbeddedEngine
from ollama_batch.errors import (
    ConfigError,
    ContextTooLargeError,
    EngineStoppedError,
    ModelNotFoundError,
    OutputTruncatedError,
)
from ollama_batch.types import ChatRequest, Completion

pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def request(text: str, *, max_tokens: int = 1024, model: str = "toy", **params: Any) -> ChatRequest:
    messages = [
        {"role": "system", "content": "You judge candidates."},
        {"role": "user", "content": text},
    ]
    return ChatRequest(custom_id="r", model=model, messages=messages, params=params, max_tokens=max_tokens)


async def ask(engine: EmbeddedEngine, text: str, **options: Any) -> Completion:
    return await engine.complete(request(text, **options), deadline=time.monotonic() + 60)


async def gone(pid: int) -> bool:
    """Whether the process ends (or is a zombie of a parent that is not us) within 20 s."""
    for _ in range(400):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    """One server for the tests that leave it as it was."""
    engine = EmbeddedEngine.toy()
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture
async def own() -> AsyncIterator[EmbeddedEngine]:
    """A server for a test that ends it."""
    engine = EmbeddedEngine.toy(slots=1, num_ctx=512)
    yield engine
    await engine.aclose()


async def test_it_says_who_answers(engine: EmbeddedEngine) -> None:
    info = await engine.describe("toy")
    assert info.engine == "embedded"
    assert info.address.startswith("http://127.0.0.1:")
    assert info.version is not None
    assert info.version.startswith("xllamacpp 20")
    assert info.digest is not None
    assert len(info.digest) == len("sha256:") + 64
    assert (info.slots, info.context_length) == (4, 8192)
    assert info.details["toy"] is True
    assert "mean nothing" in info.details["note"]


async def test_it_can_be_loaded_and_probed(engine: EmbeddedEngine) -> None:
    assert isinstance(engine, Loadable)
    assert isinstance(engine, Probed)
    info = await engine.load("toy", num_ctx=4096, deadline=time.monotonic() + 60)
    assert info.model == "toy"
    await engine.release("toy", num_ctx=4096, unload=True)
    assert await engine.healthy() is True


async def test_more_context_than_a_slot_has_is_refused_at_load(engine: EmbeddedEngine) -> None:
    with pytest.raises(ConfigError, match="num_ctx is 9000"):
        await engine.load("toy", num_ctx=9000, deadline=time.monotonic() + 60)


async def test_it_can_be_loaded_with_the_context_it_tells_however_llama_cpp_rounds_it() -> None:
    engine = EmbeddedEngine.toy(slots=1, num_ctx=500)
    try:
        info = await engine.describe("toy")
        assert info.context_length == 500
        loaded = await engine.load("toy", num_ctx=info.context_length, deadline=time.monotonic() + 60)
        assert loaded.context_length == 500
    finally:
        await engine.aclose()


async def test_another_model_than_its_own_is_refused(engine: EmbeddedEngine) -> None:
    with pytest.raises(ModelNotFoundError, match="serves 'toy'"):
        await engine.describe("gemma3:12b")
    with pytest.raises(ModelNotFoundError, match="serves 'toy'"):
        await ask(engine, "Hello", model="gemma3:12b")


async def test_an_answer_ends_by_itself_and_is_counted_by_the_engine(engine: EmbeddedEngine) -> None:
    completion = await ask(engine, "Hello there", temperature=0)
    assert completion.finish_reason == "stop"
    assert completion.output
    assert completion.output.isascii()
    assert completion.usage is not None
    assert completion.usage.source == "engine"
    assert completion.usage.cached_tokens is not None
    assert completion.timings.generate_s is not None


async def test_the_same_request_again_is_answered_from_the_cache_and_alike(engine: EmbeddedEngine) -> None:
    """At temperature 0, alone on the server. The engine always evaluates the last token anew."""
    text = "A staff engineer, ten years at three companies, now leads a platform team. " * 4
    first = await ask(engine, text, temperature=0)
    again = await ask(engine, text, temperature=0)
    assert first.output == again.output
    assert again.usage is not None
    assert again.usage.cached_tokens is not None
    assert again.usage.cached_tokens > again.usage.prompt_tokens // 2


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 0.7])
async def test_answers_are_of_ordinary_length(engine: EmbeddedEngine, temperature: float) -> None:
    gate = asyncio.Semaphore(8)

    async def length(number: int) -> int:
        async with gate:
            try:
                done = await ask(
                    engine, f"Candidate {number}", temperature=temperature, seed=number, max_tokens=512
                )
            except OutputTruncatedError:
                return 512
        assert done.usage is not None
        return done.usage.completion_tokens

    lengths = await asyncio.gather(*map(length, range(300)))
    assert 20 <= sum(lengths) / 300 <= 70
    assert sum(tokens < 512 for tokens in lengths) >= 294
    assert min(lengths) >= 2


async def test_schema_constrained_answers_are_valid_json(engine: EmbeddedEngine) -> None:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["recommendation", "reasoning", "years", "is_engineer", "skills"],
        "properties": {
            "recommendation": {"enum": ["Yes", "Maybe", "No"]},
            "reasoning": {"type": "string"},
            "years": {"type": "integer"},
            "is_engineer": {"type": "boolean"},
            "skills": {"type": "array", "items": {"type": "string"}},
        },
    }
    form = {"type": "json_schema", "json_schema": {"name": "e", "strict": True, "schema": schema}}
    done = await asyncio.gather(
        *(ask(engine, f"Candidate {n}", response_format=form, temperature=0.7, seed=n) for n in range(12))
    )
    for completion in done:
        assert completion.output is not None
        answer = json.loads(completion.output)
        assert set(answer) == set(schema["required"])
        assert answer["recommendation"] in {"Yes", "Maybe", "No"}
        assert isinstance(answer["years"], int)


async def test_connections_that_the_server_closes_after_100_requests_cost_nothing(
    engine: EmbeddedEngine,
) -> None:
    """1,000 requests over 4 connections: no error reaches the caller."""
    numbers = iter(range(1000))

    async def worker() -> None:
        for number in numbers:
            with pytest.raises(OutputTruncatedError):
                await ask(engine, f"Row {number}", max_tokens=1)

    await asyncio.gather(*(worker() for _ in range(4)))
    assert next(numbers, None) is None


async def test_more_clients_than_slots_wait_their_turn(engine: EmbeddedEngine) -> None:
    done = await asyncio.gather(*(ask(engine, f"Client {n}") for n in range(48)))
    assert all(completion.output for completion in done)


async def test_a_prompt_beyond_the_slot_is_a_context_error_with_both_numbers(own: EmbeddedEngine) -> None:
    with pytest.raises(ContextTooLargeError) as caught:
        await ask(own, "word " * 1000)
    assert caught.value.limit == 512
    assert caught.value.tokens is not None
    assert caught.value.tokens > 1000


async def test_metrics_and_slots_can_be_read(engine: EmbeddedEngine) -> None:
    await engine.describe("toy")
    async with httpx.AsyncClient(base_url=engine.url or "", trust_env=False) as client:
        assert "llamacpp:" in (await client.get("/metrics")).text
        assert len((await client.get("/slots")).json()) == 4


async def test_it_listens_on_the_loopback_address_only(engine: EmbeddedEngine) -> None:
    await engine.describe("toy")
    assert engine.pid is not None
    listening = [c for c in psutil.Process(engine.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


async def test_nothing_starts_before_first_use() -> None:
    engine = EmbeddedEngine.toy()
    assert (engine.url, engine.pid) == (None, None)
    await engine.aclose()
    with pytest.raises(EngineStoppedError, match="closed"):
        await engine.describe("toy")


async def test_first_uses_at_the_same_time_start_one_process(own: EmbeddedEngine) -> None:
    children = set(psutil.Process().children())
    await asyncio.gather(*(own.describe("toy") for _ in range(8)))
    started = set(psutil.Process().children()) - children
    assert [child.pid for child in started] == [own.pid]


async def test_it_outlives_the_thread_and_the_loop_of_its_first_use(own: EmbeddedEngine) -> None:
    """A child bound to its parent by the kernel is bound to the parent's thread."""
    thread = threading.Thread(target=lambda: asyncio.run(own.healthy()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert (await ask(own, "Hello")).output


async def test_closing_ends_the_process_and_may_be_done_twice() -> None:
    engine = EmbeddedEngine.toy(slots=1, num_ctx=512)
    await engine.describe("toy")
    pid = engine.pid
    assert pid is not None
    await engine.aclose()
    await engine.aclose()
    assert not psutil.pid_exists(pid)
    with pytest.raises(EngineStoppedError, match="closed"):
        await ask(engine, "Hello")


@posix
async def test_a_server_killed_in_mid_answer_is_reported_as_stopped(own: EmbeddedEngine) -> None:
    await own.describe("toy")
    assert own.pid is not None
    # Frozen, so that the answer is surely not complete when the process dies.
    os.kill(own.pid, signal.SIGSTOP)
    pending = asyncio.create_task(ask(own, "Hello"))
    finished, _ = await asyncio.wait({pending}, timeout=0.2)
    assert not finished
    os.kill(own.pid, signal.SIGKILL)
    with pytest.raises(EngineStoppedError, match="SIGKILL"):
        await pending
    with pytest.raises(EngineStoppedError, match="SIGKILL"):
        await own.healthy()
    with pytest.raises(EngineStoppedError, match="SIGKILL"):
        await own.describe("toy")


async def test_a_file_that_is_no_model_is_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF, but not really")
    engine = EmbeddedEngine(path)
    for _ in range(2):
        with pytest.raises(EngineStoppedError, match=r"(?s)exit code 1.*failed to load model"):
            await engine.describe("broken")
    await engine.aclose()


@posix
async def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process() -> None:
    engine = EmbeddedEngine.toy(start_timeout=0.001)
    children = set(psutil.Process().children())
    with pytest.raises(EngineStoppedError, match="did not start within"):
        await engine.describe("toy")
    assert set(psutil.Process().children()) <= children
    await engine.aclose()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"num_ctx": 1}, "num_ctx is 1"),
        ({"threads": 0}, "threads is 0"),
        ({"cache_ram_mib": -1}, "cache_ram_mib is -1"),
        ({"start_timeout": 0}, "start_timeout is 0"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddedEngine.toy(**options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        EmbeddedEngine(tmp_path / "absent.gguf")


PARENT = """
import asyncio, sys
from ollama_batch.engines.embedded import EmbeddedEngine

async def main():
    engine = EmbeddedEngine.toy(slots=1, num_ctx=512)
    await engine.describe("toy")
    print(engine.pid, flush=True)
    if sys.argv[1] == "stay":
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["killed", "finished"])
async def test_the_server_ends_with_its_parent(how: str) -> None:
    """Killed without a chance to clean up, or come to its end without `aclose`."""
    argument = "stay" if how == "killed" else "go"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, argument], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        if how == "killed":
            parent.kill()
        assert await gone(pid)
