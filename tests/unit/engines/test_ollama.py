from datetime import UTC, datetime
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from engines_support import HELLO, OLLAMA_ANSWER, Canned, request, soon
from ollama_batch import errors as e
from ollama_batch.engines._http import Reply
from ollama_batch.engines._ollama_wire import clock
from ollama_batch.engines.base import Identifying, Loadable, Probed
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.types import Timings

SHOW = {
    "details": {
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    },
    "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    "capabilities": ["completion", "tools"],
}
TAGS = {"models": [{"name": "other:latest", "digest": "b" * 64}, {"name": "m:1b", "digest": "a" * 64}]}
LOADED = {"models": [{"name": "m:1b", "model": "m:1b"}]}
NONE_LOADED: dict[str, Any] = {"models": []}
MISSING = (404, {"error": "model 'm:1b' not found"})


def server(**paths: Any) -> Canned:
    routes = {"/api/version": {"version": "0.33.0"}, "/api/show": SHOW, "/api/tags": TAGS, "/api/ps": LOADED}
    routes["/api/chat"] = OLLAMA_ANSWER
    return Canned(paths={**routes, **{f"/api/{name}": answer for name, answer in paths.items()}})


def engine(transport: Canned, **options: Any) -> OllamaEngine:
    return OllamaEngine("host", transport=transport, **options)


async def complete(answer: Any, **changes: Any) -> Any:
    return await engine(Canned(answer)).complete(request(**changes), deadline=soon())


def changed(**changes: Any) -> dict[str, Any]:
    return {**OLLAMA_ANSWER, **changes}


def said(**message: Any) -> dict[str, Any]:
    return changed(message={"role": "assistant", "content": "", **message})


async def test_a_request_is_sent_by_every_rule() -> None:
    transport = Canned(OLLAMA_ANSWER)
    await engine(transport, options={"num_batch": 512, "num_gpu": 99}).complete(request(), deadline=soon())
    assert str(transport.requests[0].url) == "http://host:11434/api/chat"
    assert transport.sent() == {
        "model": "m:1b",
        "messages": HELLO,
        "stream": False,
        "truncate": False,
        "shift": False,
        "think": False,
        "keep_alive": -1,
        "options": {"num_batch": 512, "num_gpu": 99, "num_ctx": 4096, "num_predict": 100},
    }


async def test_num_ctx_is_left_out_where_the_server_decides() -> None:
    transport = Canned(OLLAMA_ANSWER)
    await engine(transport).complete(request(num_ctx=None), deadline=soon())
    assert "num_ctx" not in transport.sent()["options"]


@pytest.mark.parametrize("think", [True, False, "low", "max"])
async def test_think_is_always_explicit(think: Any) -> None:
    transport = Canned(OLLAMA_ANSWER)
    await engine(transport).complete(request(think=think), deadline=soon())
    assert transport.sent()["think"] == think


async def test_an_answer_becomes_a_chat_completion() -> None:
    completion = await complete(OLLAMA_ANSWER)
    parsed = ChatCompletion.model_validate(completion.body, strict=True)
    assert parsed.choices[0].message.content == completion.output == "good day"
    assert parsed.choices[0].finish_reason == completion.finish_reason == "stop"
    assert parsed.usage is not None
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (
        26,
        7,
        33,
    )
    assert parsed.model == "m:1b"


async def test_ids_of_completions_differ() -> None:
    assert (await complete(OLLAMA_ANSWER)).body["id"] != (await complete(OLLAMA_ANSWER)).body["id"]


async def test_the_wait_for_a_slot_is_what_the_other_times_leave() -> None:
    completion = await complete(OLLAMA_ANSWER)
    assert completion.timings == Timings(queue_s=4.0, load_s=1.0, prompt_s=2.0, generate_s=3.0)


async def test_absent_counts_are_zero_and_absent_cache_is_unknown() -> None:
    answer = {key: value for key, value in OLLAMA_ANSWER.items() if not key.endswith(("_count", "_duration"))}
    completion = await complete(answer)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (0, 0)
    assert completion.usage.cached_tokens is None
    assert completion.timings == Timings()


@pytest.mark.parametrize("count", [0, 20])
async def test_reported_cache_is_passed_on(count: int) -> None:
    completion = await complete(changed(prompt_eval_cached_count=count))
    assert completion.usage.cached_tokens == count
    assert completion.body["usage"]["prompt_tokens_details"] == {"cached_tokens": count}


async def test_thinking_is_reasoning() -> None:
    completion = await complete(said(content="42", thinking="6 times 7"))
    assert (completion.output, completion.reasoning) == ("42", "6 times 7")
    assert completion.body["choices"][0]["message"]["reasoning"] == "6 times 7"


async def test_tool_calls_get_text_arguments_and_ids() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": [1]}}}, {"id": "x", "function": {"name": "g"}}]
    completion = await complete(said(tool_calls=calls))
    assert completion.finish_reason == "tool_calls"
    assert completion.output is None
    message = ChatCompletion.model_validate(completion.body).choices[0].message
    assert message.tool_calls is not None
    first, second = message.tool_calls
    assert first.type == second.type == "function"
    assert (first.function.name, first.function.arguments) == ("f", '{"a":[1]}')
    assert (second.id, second.function.arguments) == ("x", "{}")
    assert first.id
    assert first.id != second.id


async def test_logprobs_are_passed_on() -> None:
    entry = {"token": "good", "logprob": -0.1, "bytes": [103], "top_logprobs": []}
    completion = await complete(changed(logprobs=[entry]))
    parsed = ChatCompletion.model_validate(completion.body)
    assert parsed.choices[0].logprobs is not None
    assert parsed.choices[0].logprobs.content is not None
    assert parsed.choices[0].logprobs.content[0].logprob == -0.1


UNUSABLE: list[tuple[Any, type[e.EngineError]]] = [
    (changed(done=False), e.InvalidReplyError),
    ({key: value for key, value in OLLAMA_ANSWER.items() if key != "done"}, e.InvalidReplyError),
    (changed(done="true"), e.InvalidReplyError),
    (changed(done=1), e.InvalidReplyError),
    (
        {
            "model": "",
            "created_at": "0001-01-01T00:00:00Z",
            "message": {"role": "", "content": ""},
            "done": False,
        },
        e.InvalidReplyError,
    ),
    (changed(message=None), e.InvalidReplyError),
    (said(content=3), e.InvalidReplyError),
    (said(content="x", thinking=3), e.InvalidReplyError),
    (said(tool_calls=[{}]), e.InvalidReplyError),
    (said(tool_calls=["x"]), e.InvalidReplyError),
    (changed(done_reason="load"), e.InvalidReplyError),
    (changed(done_reason="unload"), e.InvalidReplyError),
    (changed(eval_count="7"), e.InvalidReplyError),
    (changed(eval_count=-7), e.InvalidReplyError),
    (changed(prompt_eval_count=1.5), e.InvalidReplyError),
    (changed(done_reason="length"), e.OutputTruncatedError),
    (said(), e.EmptyOutputError),
    (said(content=" \n"), e.EmptyOutputError),
    (said(thinking="hm"), e.ReasoningOnlyError),
    ("not json", e.InvalidReplyError),
    ("", e.InvalidReplyError),
    ("[]", e.InvalidReplyError),
    ("null", e.InvalidReplyError),
    ('{"done": true, "message": {"content": "cut sho', e.InvalidReplyError),
    ({"error": "an error was encountered while running the model: unexpected EOF"}, e.EngineCrashedError),
    ({"error": "out of memory"}, e.EngineOutOfMemoryError),
    (MISSING, e.ModelNotFoundError),
]


@pytest.mark.parametrize(("answer", "kind"), UNUSABLE)
async def test_what_is_no_usable_answer_is_never_a_result(answer: Any, kind: type[e.EngineError]) -> None:
    with pytest.raises(kind) as caught:
        await complete(answer)
    assert type(caught.value) is kind


async def test_a_truncated_answer_is_carried_by_its_error() -> None:
    with pytest.raises(e.OutputTruncatedError) as caught:
        await complete(changed(done_reason="length"))
    assert caught.value.completion.output == "good day"
    assert caught.value.completion.finish_reason == "length"


async def test_describe_tells_who_answers() -> None:
    info = await engine(server(), options={"num_gpu": 1}).describe("m:1b")
    assert (info.engine, info.version, info.model) == ("ollama", "0.33.0", "m:1b")
    assert info.digest == "a" * 64
    assert info.context_length == 131072
    assert info.slots is None
    assert info.details["capabilities"] == ["completion", "tools"]
    assert info.details["options"] == {"num_gpu": 1}


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        ("m", "m:latest"),
        ("m:latest", "m"),
        ("M:1B", "m:1b"),
        ("library/m", "m:latest"),
        ("u/m", "u/m:latest"),
        ("hf.co/u/m:Q4", "hf.co/u/m:q4"),
    ],
)
async def test_the_digest_is_found_under_every_name_of_a_model(asked: str, listed: str) -> None:
    transport = server(tags={"models": [{"name": listed, "model": listed, "digest": "d"}]})
    assert (await engine(transport).describe(asked)).digest == "d"


async def test_a_missing_model_is_told_with_the_exact_command() -> None:
    for call in ("describe", "load"):
        options: dict[str, Any] = {} if call == "describe" else {"num_ctx": 4096, "deadline": soon()}
        with pytest.raises(e.ModelNotFoundError) as caught:
            await getattr(engine(server(show=MISSING)), call)("m:1b", **options)
        assert "ollama pull m:1b" in str(caught.value).splitlines()


async def test_a_model_that_cannot_think_is_not_asked_to() -> None:
    transport = server()
    subject = engine(transport)
    await subject.describe("m:1b")
    for changes in ({"think": True}, {"params": {"reasoning_effort": "low"}}):
        with pytest.raises(e.UnsupportedParamError, match="cannot think") as caught:
            await subject.complete(request(**changes), deadline=soon())
        assert caught.value.param == "think"
    assert all(sent.url.path != "/api/chat" for sent in transport.requests)
    await subject.complete(request(think=False), deadline=soon())


async def test_a_model_that_can_think_is_asked_to() -> None:
    transport = server(show={**SHOW, "capabilities": ["completion", "thinking"]})
    subject = engine(transport)
    await subject.describe("m:1b")
    await subject.complete(request(think="high"), deadline=soon())
    assert transport.sent()["think"] == "high"


async def test_loading_carries_the_options_of_the_requests() -> None:
    transport = server(chat=changed(message={"role": "assistant", "content": ""}, done_reason="load"))
    subject = engine(transport, options={"num_batch": 256})
    info = await subject.load("m:1b", num_ctx=8192, deadline=soon())
    assert info.digest == "a" * 64
    assert transport.sent() == {
        "model": "m:1b",
        "messages": [],
        "stream": False,
        "shift": False,
        "keep_alive": -1,
        "options": {"num_batch": 256, "num_ctx": 8192},
    }


async def test_release_gives_the_usual_keep_alive_back() -> None:
    transport = server()
    await engine(transport).release("m:1b", num_ctx=8192)
    assert transport.sent()["keep_alive"] == "5m"
    assert transport.sent()["options"] == {"num_ctx": 8192}


async def test_release_does_not_load_a_model_that_is_gone() -> None:
    transport = server(ps=NONE_LOADED)
    await engine(transport).release("m:1b", num_ctx=8192)
    assert [sent.url.path for sent in transport.requests] == ["/api/ps"]


async def test_unloading_waits_until_the_model_is_gone() -> None:
    transport = server(ps=[LOADED, LOADED, NONE_LOADED])
    await engine(transport).release("m:1b", num_ctx=None, unload=True)
    asked = [sent.url.path for sent in transport.requests]
    assert asked == ["/api/ps", "/api/chat", "/api/ps", "/api/ps"]
    assert transport.sent(1)["keep_alive"] == 0


async def test_unloading_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_batch.engines.ollama.UNLOAD_S", 0.02)
    monkeypatch.setattr("ollama_batch.engines.ollama.POLL_S", 0.005)
    with pytest.raises(e.EngineError, match="m:1b"):
        await engine(server()).release("m:1b", num_ctx=None, unload=True)


@pytest.mark.parametrize(
    ("expires", "overdue"),
    [
        ("2026-11-29T02:00:30.25Z", 29.75),
        ("2026-11-29T03:01:30+01:00", None),  # in half a minute
        ("2318-03-10T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("soon", None),
        (None, None),
    ],
)
async def test_a_model_is_overdue_by_the_clock_of_its_server(
    monkeypatch: pytest.MonkeyPatch, expires: str | None, overdue: float | None
) -> None:
    now = datetime(2026, 11, 29, 2, 1, tzinfo=UTC)
    monkeypatch.setattr("ollama_batch.engines._ollama_wire.clock", lambda reply: now)
    listed = {"models": [{"name": "m:1b", "model": "m:1b", "expires_at": expires}]}
    loaded = await engine(server(ps=listed)).loaded("m:1b")
    assert loaded is not None
    assert loaded.overdue_s == overdue


def test_the_clock_of_a_server_is_in_its_replies() -> None:
    from httpx import Headers

    told = clock(Reply(200, Headers({"date": "Sun, 29 Nov 2026 02:01:00 GMT"}), b""))
    assert told == datetime(2026, 11, 29, 2, 1, tzinfo=UTC)
    ours = datetime.now(UTC)
    for headers in (Headers(), Headers({"date": "yesterday"})):
        assert abs((clock(Reply(200, headers, b"")) - ours).total_seconds()) < 60


async def test_the_digest_is_that_of_the_name_as_it_stands_now() -> None:
    swapped = {"models": [{"name": "m:1b", "digest": "c" * 64}]}
    subject = engine(server(tags=[TAGS, swapped, NONE_LOADED]))
    assert [await subject.digest("m:1b") for _ in range(3)] == ["a" * 64, "c" * 64, None]


async def test_health_is_whether_the_server_answers() -> None:
    import httpx

    assert await engine(server()).healthy()
    assert not await engine(server(version=(503, "busy"))).healthy()
    away = engine(server(version=httpx.ConnectError("refused")))
    assert not await away.healthy()
    assert isinstance(away.unwell, e.EngineUnreachableError)
    closed = engine(server())
    await closed.aclose()
    with pytest.raises(e.EngineStoppedError):
        await closed.healthy()


def test_the_engine_offers_what_its_protocols_ask() -> None:
    subject = OllamaEngine("host")
    assert isinstance(subject, Loadable)
    assert isinstance(subject, Probed)
    assert isinstance(subject, Identifying)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"options": {"num_ctx": 1}}, "setting of the run"),
        ({"options": {"num_predict": 1}}, "max_tokens"),
        ({"options": {"temperature": 0}}, "defaults"),
        ({"options": {"stop": ["x"]}}, "defaults"),
        ({"options": {"mirostat": 1}}, "no load option"),
        ({"keep_alive": 0}, "unload"),
        ({"keep_alive": True}, "keep_alive"),
        ({"keep_alive": ""}, "keep_alive"),
        ({"connect_timeout": -1}, "connect_timeout"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(e.ConfigError, match=hint):
        OllamaEngine("host", **options)


def test_the_options_of_an_engine_do_not_change() -> None:
    given = {"num_batch": 512}
    subject = OllamaEngine("host", options=given)
    given["num_batch"] = 1
    assert subject.options == {"num_batch": 512}
    with pytest.raises(TypeError):
        subject.options["num_batch"] = 1  # type: ignore[index] # that it cannot be set is what is tested
