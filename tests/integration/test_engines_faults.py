"""Every kind of trouble the fake server can make, and what the engines call it."""

from __future__ import annotations

import pytest

from engines_support import request, soon
from ollama_batch import errors as e
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.testing import FAULT_KINDS, FakeModel, FakeOllama, Fault

MODEL = "m:1b"

# None: the answer is one all the same.
NATIVE: dict[str, type[e.EngineError] | None] = {
    "status": e.EngineServerError,
    "busy": e.EngineBusyError,
    "cloud_busy": e.EngineBusyError,
    "too_many": e.EngineBusyError,
    "oom": e.EngineOutOfMemoryError,
    "oom_runtime": e.EngineOutOfMemoryError,
    "oom_legacy": e.EngineOutOfMemoryError,
    "crash": e.EngineCrashedError,
    "crash_running": e.EngineCrashedError,
    "loading": e.EngineLoadingError,
    "loading_llama_cpp": e.EngineLoadingError,
    "oom_llama_cpp": e.EngineOutOfMemoryError,
    "oom_vllm": e.EngineOutOfMemoryError,
    "engine_dead": e.EngineStoppedError,
    "runner_dies": e.EngineCrashedError,
    "runner_dies_reset": e.EngineConnectionError,
    "stuck_stopping": None,  # nothing was loaded that could be stuck
    "load_failed": e.EngineCrashedError,
    "load_stalled": e.EngineServerError,
    "no_slots": e.EngineServerError,
    "not_responding": e.EngineCrashedError,
    "cancelled": e.EngineLoadingError,
    "forbidden": e.EngineAuthError,
    "missing": e.ModelNotFoundError,
    "context": e.ContextTooLargeError,
    "garbage": e.InvalidReplyError,
    "no_body": e.InvalidReplyError,
    "half_json": e.InvalidReplyError,
    "json_array": e.InvalidReplyError,
    "json_null": e.InvalidReplyError,
    "zero_body": e.InvalidReplyError,
    "content_type": e.InvalidReplyError,
    "gateway": e.EngineServerError,
    "error_in_200": e.EngineBusyError,
    "not_done": e.InvalidReplyError,
    "done_missing": e.InvalidReplyError,
    "message_missing": e.InvalidReplyError,
    "content_null": e.EmptyOutputError,
    "content_number": e.InvalidReplyError,
    "empty": e.EmptyOutputError,
    "whitespace": e.EmptyOutputError,
    "thinking_only": e.ReasoningOnlyError,
    "length": e.OutputTruncatedError,
    "length_empty": e.OutputTruncatedError,
    "refusal": None,
    "fenced": None,
    "repeat": e.OutputTruncatedError,
    "no_metrics": None,
    "bad_utf8": e.InvalidReplyError,
    "wrong_model": e.InvalidReplyError,
    "cut": e.EngineConnectionError,
    "cut_open": e.EngineTimeoutError,
    "reset_mid": e.EngineConnectionError,
    "slow": e.EngineTimeoutError,
    "reset": e.EngineConnectionError,
    "close": e.EngineConnectionError,
    "hang": e.EngineTimeoutError,
    "refuse": e.EngineConnectionError,
    "model_swapped": None,
    "stream_error": e.EngineCrashedError,
    "content_filter": e.OutputRefusedError,
}
# Servers of OpenAI's form answer under names of their own.
OPENAI: dict[str, type[e.EngineError] | None] = {
    **NATIVE,
    "wrong_model": None,
}


def test_every_kind_of_fault_is_tested() -> None:
    assert set(NATIVE) == set(FAULT_KINDS)


@pytest.mark.parametrize(("kind", "native"), [(kind, native) for kind in NATIVE for native in (True, False)])
async def test_trouble_has_its_name(kind: str, native: bool) -> None:
    expected = (NATIVE if native else OPENAI)[kind]
    with FakeOllama(models=(FakeModel(MODEL),), faults=(Fault(kind, count=1),)) as fake:
        engine = OllamaEngine(fake.url) if native else OpenAIEngine(fake.url)
        patience = 0.5 if expected is e.EngineTimeoutError else 20.0
        try:
            if expected is None:
                assert (await engine.complete(request(), deadline=soon(patience))).output
            else:
                with pytest.raises(e.EngineError) as caught:
                    await engine.complete(request(), deadline=soon(patience))
                assert type(caught.value) is expected
        finally:
            await engine.aclose()


async def test_a_whole_run_loads_the_model_once() -> None:
    """Preload, requests of every kind and release carry the same load options: nothing loads anew."""
    with FakeOllama(models=(FakeModel(MODEL),)) as fake:
        engine = OllamaEngine(fake.url, options={"num_batch": 256})
        await engine.load(MODEL, num_ctx=2048, deadline=soon())
        for params in (
            {},
            {"temperature": 0.0, "stop": "x", "seed": 1},
            {"response_format": {"type": "json_object"}},
        ):
            await engine.complete(request(num_ctx=2048, params=params), deadline=soon())
        await engine.release(MODEL, num_ctx=2048)
        await engine.complete(request(num_ctx=2048), deadline=soon())
        assert fake.ledger.loads == 1
        await engine.complete(request(num_ctx=4096), deadline=soon())
        assert fake.ledger.loads == 2
        await engine.aclose()


async def test_an_unloaded_model_is_gone_and_loads_again() -> None:
    with FakeOllama(models=(FakeModel(MODEL),)) as fake:
        engine = OllamaEngine(fake.url)
        await engine.load(MODEL, num_ctx=2048, deadline=soon())
        await engine.release(MODEL, num_ctx=2048, unload=True)
        await engine.complete(request(num_ctx=2048), deadline=soon())
        assert fake.ledger.loads == 2
        await engine.aclose()
