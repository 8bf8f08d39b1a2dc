import copy
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from engines_support import OPENAI_ANSWER, Canned, request, soon
from ollama_batch import errors as e
from ollama_batch.engines.base import Loadable, Probed
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.types import Timings


def engine(transport: Canned, **options: Any) -> OpenAIEngine:
    return OpenAIEngine("http://host/v1", transport=transport, **options)


async def complete(answer: Any) -> Any:
    return await engine(Canned(answer)).complete(request(), deadline=soon())


def changed(**changes: Any) -> dict[str, Any]:
    return {**OPENAI_ANSWER, **changes}


def choice(**changes: Any) -> dict[str, Any]:
    answer = copy.deepcopy(OPENAI_ANSWER)
    answer["choices"][0].update(changes)
    return answer


def said(**message: Any) -> dict[str, Any]:
    return choice(message={"role": "assistant", "content": None, **message})


async def test_the_body_is_the_servers_own() -> None:
    completion = await complete(OPENAI_ANSWER)
    assert completion.body == OPENAI_ANSWER
    assert (completion.output, completion.finish_reason) == ("good day", "stop")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (26, 7)


async def test_requests_go_to_the_chat_route() -> None:
    transport = Canned(OPENAI_ANSWER)
    await engine(transport).complete(request(), deadline=soon())
    assert str(transport.requests[0].url) == "http://host/v1/chat/completions"


@pytest.mark.parametrize(
    ("usage", "extra", "cached"),
    [
        ({}, {}, None),
        ({"prompt_tokens_details": None}, {}, None),
        ({"prompt_tokens_details": {"cached_tokens": 0}}, {}, 0),
        ({"prompt_tokens_details": {"cached_tokens": 20}}, {}, 20),
        ({"prompt_tokens_details": {"audio_tokens": 0}}, {}, None),
        ({}, {"timings": {"cache_n": 12}}, 12),
    ],
)
async def test_cached_tokens_are_what_was_reported(usage: Any, extra: Any, cached: int | None) -> None:
    answer = changed(usage={**OPENAI_ANSWER["usage"], **usage}, **extra)
    assert (await complete(answer)).usage.cached_tokens == cached


async def test_without_usage_the_usage_is_unknown() -> None:
    assert (await complete(changed(usage=None))).usage is None


async def test_reasoning_tokens_and_text_are_read() -> None:
    for name in ("reasoning", "reasoning_content"):
        answer = said(content="42", **{name: "6 times 7"})
        answer["usage"] = {**OPENAI_ANSWER["usage"], "completion_tokens_details": {"reasoning_tokens": 5}}
        completion = await complete(answer)
        assert completion.reasoning == "6 times 7"
        assert completion.usage.reasoning_tokens == 5


async def test_timings_of_llama_cpp_are_read() -> None:
    completion = await complete(changed(timings={"prompt_ms": 250.0, "predicted_ms": 1500.0}))
    assert completion.timings == Timings(queue_s=0.0, prompt_s=0.25, generate_s=1.5)


async def test_the_wait_is_what_an_answer_of_llama_cpp_took_beyond_its_timings_and_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way takes 0.5 s here, of which nothing tells but the quickest answer."""
    own = engine(Canned(changed(timings={"prompt_ms": 250.0, "predicted_ms": 1500.0})))
    seconds = iter([0.0, 2.25, 10.0, 15.25, 20.0, 22.25])
    monkeypatch.setattr("ollama_batch.engines.openai.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    deadline = soon()
    waits = [(await own.complete(request(), deadline=deadline)).timings.queue_s for _ in range(3)]
    assert waits == [0.0, 3.0, 0.0]


async def test_without_timings_no_wait_is_told() -> None:
    assert (await complete(changed())).timings == Timings()


@pytest.mark.parametrize(
    ("page", "waiting"),
    [
        ('vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\nvllm:num_requests_running{} 9\n', 3),
        ('vllm:num_requests_waiting{engine="0"} 3.0\nvllm:num_requests_waiting{engine="1"} 2.0', 5),
        ("# HELP llamacpp:requests_deferred x\nllamacpp:requests_deferred 12\n", 12),
        ('sglang:num_queue_reqs{a="b"} 0.0', 0),
        ("up 1", None),
        ("", None),
    ],
)
async def test_the_servers_own_count_of_waiting_requests_is_read(page: str, waiting: int | None) -> None:
    assert await engine(Canned(page)).waiting() == waiting


async def test_a_server_without_metrics_tells_no_queue() -> None:
    assert await engine(Canned(None)).waiting() is None


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


async def test_a_tool_call_is_an_answer() -> None:
    completion = await complete(
        choice(message={"role": "assistant", "tool_calls": [CALL]}, finish_reason="tool_calls")
    )
    assert completion.output is None
    assert completion.finish_reason == "tool_calls"


UNUSABLE: list[tuple[Any, type[e.EngineError]]] = [
    (choice(finish_reason=None), e.InvalidReplyError),
    (choice(finish_reason=True), e.InvalidReplyError),
    (changed(choices=[]), e.InvalidReplyError),
    (changed(choices=None), e.InvalidReplyError),
    (changed(choices=[3]), e.InvalidReplyError),
    (choice(message=None), e.InvalidReplyError),
    (said(content=3), e.InvalidReplyError),
    (changed(usage={"prompt_tokens": "x"}), e.InvalidReplyError),
    ("data: {}", e.InvalidReplyError),
    ("", e.InvalidReplyError),
    ("[]", e.InvalidReplyError),
    (choice(finish_reason="length"), e.OutputTruncatedError),
    (said(), e.EmptyOutputError),
    (said(content="  "), e.EmptyOutputError),
    (choice(finish_reason="content_filter"), e.OutputRefusedError),
    ({"error": {"message": "Loading model", "code": 503}}, e.EngineLoadingError),
    ({"object": "error", "message": "EngineCore encountered an issue"}, e.EngineStoppedError),
    ((404, {"error": {"message": "The model `m:1b` does not exist."}}), e.ModelNotFoundError),
]


@pytest.mark.parametrize(("answer", "kind"), UNUSABLE)
async def test_what_is_no_usable_answer_is_never_a_result(answer: Any, kind: type[e.EngineError]) -> None:
    with pytest.raises(kind) as caught:
        await complete(answer)
    assert type(caught.value) is kind


async def test_one_cut_answer_of_several_is_noticed() -> None:
    answer = copy.deepcopy(OPENAI_ANSWER)
    answer["choices"].append({**answer["choices"][0], "index": 1, "finish_reason": "length"})
    with pytest.raises(e.OutputTruncatedError):
        await complete(answer)


MODELS = {"object": "list", "data": [{"id": "m:1b", "max_model_len": 8192}, {"id": "other"}]}


async def test_describe_reads_what_vllm_tells() -> None:
    info = await engine(Canned(paths={"/v1/models": MODELS, "/version": {"version": "0.11"}})).describe(
        "m:1b"
    )
    assert (info.engine, info.version, info.context_length, info.slots) == ("openai", "0.11", 8192, None)
    assert info.details["models"] == ["m:1b", "other"]
    assert "note" not in info.details


@pytest.mark.parametrize(
    ("paths", "shares"),
    [
        ({"/version": {"version": "0.11"}}, True),
        ({"/v1/models": {"data": [{"id": "m:1b", "owned_by": "vllm"}]}}, True),
        ({"/v1/models": {"data": [{"id": "m:1b", "owned_by": "sglang"}]}}, True),
        (
            {"/v1/models": {"data": [{"id": "m:1b", "owned_by": "llamacpp"}]}, "/props": {"total_slots": 4}},
            False,
        ),
        ({"/v1/models": {"data": [{"id": "m:1b", "owned_by": "library"}]}}, False),
        ({"/api/version": {"version": "0.33.0"}, "/version": {"version": "0.33.0"}}, False),
        ({}, False),
    ],
)
async def test_describe_knows_whose_slots_share_their_cache(paths: dict[str, Any], shares: bool) -> None:
    assert (await engine(Canned(paths=paths)).describe("m:1b")).shares_prefixes is shares


async def test_describe_reads_what_llama_cpp_tells_and_takes_any_name() -> None:
    props = {"total_slots": 4, "build_info": "b10488", "default_generation_settings": {"n_ctx": 2048}}
    info = await engine(Canned(paths={"/v1/models": MODELS, "/props": props})).describe("anything")
    assert (info.version, info.context_length, info.slots) == ("b10488", 2048, 4)


async def test_describe_of_a_bare_server_knows_little() -> None:
    info = await engine(Canned()).describe("m:1b")
    assert (info.version, info.context_length, info.slots, info.digest) == (None, None, None, None)


async def test_an_ollama_behind_the_address_is_named() -> None:
    paths = {"/v1/models": {"data": [{"id": "m:latest"}]}, "/api/version": {"version": "0.33.0"}}
    info = await engine(Canned(paths=paths)).describe("m")
    assert "OllamaEngine" in info.details["note"]
    assert info.version == "0.33.0"


async def test_a_model_that_is_not_served_is_told_early() -> None:
    with pytest.raises(e.ModelNotFoundError, match="other"):
        await engine(Canned(paths={"/v1/models": MODELS})).describe("absent")


async def test_errors_of_the_model_list_are_told() -> None:
    with pytest.raises(e.EngineAuthError):
        await engine(Canned(paths={"/v1/models": (401, {"error": "key"})})).describe("m:1b")
    loading = {"error": {"code": 503, "message": "Loading model"}}
    with pytest.raises(e.EngineLoadingError):
        await engine(Canned(paths={"/v1/models": (503, loading)})).describe("m:1b")


async def test_health_is_asked_of_health_or_else_of_the_model_list() -> None:
    assert await engine(Canned(paths={"/health": {"status": "ok"}})).healthy()
    assert await engine(Canned(paths={"/v1/models": MODELS})).healthy()
    assert not await engine(Canned(paths={"/health": (503, "loading"), "/v1/models": MODELS})).healthy()
    assert not await engine(Canned(paths={"/health": httpx.ConnectError("refused")})).healthy()


def test_the_engine_offers_what_its_protocols_ask() -> None:
    subject = OpenAIEngine("http://host")
    assert isinstance(subject, Probed)
    assert not isinstance(subject, Loadable)


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens", "stream", "n"])
def test_extra_body_cannot_hold_what_the_run_sets(name: str) -> None:
    with pytest.raises(e.ConfigError, match=name):
        OpenAIEngine("http://host", extra_body={name: 1})
