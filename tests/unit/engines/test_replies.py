from typing import Any

import httpx
import orjson
import pytest

from ollama_batch import errors as e
from ollama_batch.engines._http import Reply
from ollama_batch.engines._replies import check_outcome, classify, error_text, retry_after_s
from ollama_batch.engines.openai import completion_of

OVERFLOW = {
    "error": {
        "code": 400,
        "message": "request (5000 tokens) exceeds the available context size (4096 tokens), try ...",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    }
}

VLLM_TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5100 tokens"


def reply(status: int, body: Any, headers: dict[str, str] | None = None) -> Reply:
    content = body.encode() if isinstance(body, str) else orjson.dumps(body)
    return Reply(status, httpx.Headers(headers or {}), content)


def error_of(status: int, body: Any, headers: dict[str, str] | None = None) -> e.EngineError:
    return classify(reply(status, body, headers), missing_model="ollama pull m")


# Literals of ollama server/routes.go, server/sched.go, llm/llama_server.go and llm/status.go.
OLLAMA: list[tuple[int, str, type[e.EngineError]]] = [
    (404, "model 'm' not found", e.ModelNotFoundError),
    (404, 'model "m" not found, try pulling it first', e.ModelNotFoundError),
    (400, "model is required", e.RequestRejectedError),
    (400, "invalid model name", e.RequestRejectedError),
    (400, "missing request body", e.RequestRejectedError),
    (400, '"m" does not support chat', e.UnsupportedParamError),
    (400, '"m" does not support thinking', e.UnsupportedParamError),
    (400, "registry.ollama.ai/library/m does not support tools", e.UnsupportedParamError),
    # What llama.cpp's server says, and Ollama passes on.
    (500, "image input is not supported - hint: you may need to provide the mmproj", e.UnsupportedParamError),
    (500, "audio input is not supported", e.UnsupportedParamError),
    (500, "boom\nwarn: image input is not supported", e.EngineServerError),
    (503, "server busy, please try again.  maximum pending requests exceeded", e.EngineBusyError),
    (499, "request canceled", e.EngineLoadingError),
    (500, "llama-server process has terminated: exit status 1: boom", e.EngineCrashedError),
    (500, "llama-server process no longer running: boom", e.EngineCrashedError),
    (500, "llama runner process has terminated: exit status 2", e.EngineCrashedError),
    (500, "error starting llama-server: fork/exec", e.EngineCrashedError),
    (500, "llama-server binary not found (checked: /usr)", e.EngineStoppedError),
    (500, "llama-server reported out-of-memory during startup: x", e.EngineOutOfMemoryError),
    (500, "llama-server process has terminated: cudaMalloc failed: out of memory", e.EngineOutOfMemoryError),
    (500, "llama runner process has terminated: CUDA error: out of memory", e.EngineOutOfMemoryError),
    (500, "model requires more system memory (9 GiB) than is available (4 GiB)", e.EngineOutOfMemoryError),
    (500, "ErrorOutOfMemory", e.EngineOutOfMemoryError),
    (500, "VK_ERROR_OUT_OF_DEVICE_MEMORY", e.EngineOutOfMemoryError),
    (500, "alloc_tensor_range: failed to allocate CUDA0 buffer", e.EngineOutOfMemoryError),
    (500, "out of memory\nretrying without pipeline parallelism", e.EngineServerError),
    (500, "timed out waiting for llama-server to start - x", e.EngineServerError),
    (
        500,
        "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error",
        e.EngineCrashedError,
    ),
    (500, "an error was encountered while running the model: unexpected EOF", e.EngineCrashedError),
    (500, "unexpected server status: llm server loading model", e.EngineLoadingError),
    (500, "no slots available after 10 retries", e.EngineServerError),
    (500, 'invalid format: "x"; expected "json" or a valid JSON Schema object', e.RequestRejectedError),
    (500, 'option "stop" must be of type array', e.RequestRejectedError),
    (
        400,
        "the prompt is longer than the context length currently available to the model; ...",
        e.ContextTooLargeError,
    ),
    (
        400,
        "input length (9 tokens) exceeds the model's maximum context length (5 tokens)",
        e.ContextTooLargeError,
    ),
    (400, orjson.dumps(OVERFLOW).decode(), e.ContextTooLargeError),
    (400, orjson.dumps(OVERFLOW).decode() + "\nggml: warning", e.ContextTooLargeError),
    (429, "Server overloaded, please retry shortly", e.EngineBusyError),
    (502, "bad gateway", e.EngineServerError),
]


@pytest.mark.parametrize(("status", "text", "kind"), OLLAMA)
def test_every_error_ollama_words_has_its_class(status: int, text: str, kind: type[e.EngineError]) -> None:
    error = error_of(status, {"error": text})
    assert type(error) is kind
    assert error.status == status


OTHERS: list[tuple[int, Any, type[e.EngineError]]] = [
    (400, OVERFLOW, e.ContextTooLargeError),
    (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        e.EngineLoadingError,
    ),
    (500, {"error": {"message": "Input prompt is too big compared to KV size"}}, e.ContextTooLargeError),
    (400, {"object": "error", "message": VLLM_TOO_LONG, "type": "BadRequestError"}, e.ContextTooLargeError),
    (
        404,
        {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}},
        e.ModelNotFoundError,
    ),
    (400, {"error": {"message": "no such model", "code": "model_not_found"}}, e.ModelNotFoundError),
    (500, {"error": {"message": "EngineCore encountered an issue. See stack trace"}}, e.EngineStoppedError),
    (500, {"error": {"message": "x", "type": "EngineDeadError"}}, e.EngineStoppedError),
    (401, {"error": {"message": "Invalid API Key"}}, e.EngineAuthError),
    (403, "", e.EngineAuthError),
    (404, "404 page not found", e.InvalidReplyError),
    (405, {"detail": "Method Not Allowed"}, e.InvalidReplyError),
    (408, "", e.EngineTimeoutError),
    (413, "too large", e.RequestRejectedError),
    (422, {"detail": [{"msg": "bad"}]}, e.RequestRejectedError),
    (429, {"error": {"message": "slow down"}}, e.EngineBusyError),
    (500, "", e.EngineServerError),
    (500, "<html>oops</html>", e.EngineServerError),
    (503, "", e.EngineBusyError),
    (504, "", e.EngineServerError),
    (301, "", e.InvalidReplyError),
    (204, "", e.InvalidReplyError),
]


@pytest.mark.parametrize(("status", "body", "kind"), OTHERS)
def test_every_other_servers_error_has_its_class(status: int, body: Any, kind: type[e.EngineError]) -> None:
    assert type(error_of(status, body)) is kind


@pytest.mark.parametrize(
    ("body", "tokens", "limit"),
    [
        ({"error": orjson.dumps(OVERFLOW).decode()}, 5000, 4096),
        (OVERFLOW, 5000, 4096),
        ({"error": "input length (9 tokens) exceeds the model's maximum context length (5 tokens)"}, 9, 5),
        ({"message": VLLM_TOO_LONG}, 5100, 4096),
        ({"error": "the prompt is longer than the context length currently available"}, None, None),
    ],
)
def test_context_errors_tell_tokens_and_limit(body: Any, tokens: int | None, limit: int | None) -> None:
    error = error_of(400, body)
    assert isinstance(error, e.ContextTooLargeError)
    assert (error.tokens, error.limit) == (tokens, limit)


def test_a_row_that_quotes_an_oom_message_does_not_look_like_one() -> None:
    assert type(error_of(400, {"error": "invalid message: 'CUDA out of memory'"})) is e.RequestRejectedError


def test_what_the_runner_wrote_after_a_rejection_counts() -> None:
    error = error_of(400, {"error": '{"error":{"message":"failed"}}\ncudaMalloc failed: out of memory'})
    assert type(error) is e.EngineOutOfMemoryError


def test_a_missing_model_comes_with_the_command_on_a_line_of_its_own() -> None:
    assert "ollama pull m" in str(error_of(404, {"error": "model 'm' not found"})).splitlines()


def test_a_redirect_names_the_address_it_points_to() -> None:
    assert "https://new/" in str(error_of(301, "", {"location": "https://new/"}))


def test_a_long_error_page_is_not_carried_whole() -> None:
    assert len(str(error_of(500, "x" * 100_000))) < 3000


def test_json_inside_the_error_text_is_read() -> None:
    message, kind, detail = error_text(orjson.dumps({"error": orjson.dumps(OVERFLOW).decode()}))
    assert message.startswith("request (5000 tokens)")
    assert "exceed_context_size_error" in kind
    assert detail["n_ctx"] == 4096


@pytest.mark.parametrize(
    "body", ["", "[]", "3", '{"error": 3}', '{"error": null}', '{"error": "{broken"}', "\xff"]
)
def test_any_body_of_an_error_can_be_read(body: str) -> None:
    assert isinstance(error_of(500, body), e.EngineServerError)


CANARY = "canary in the coal mine"
SAID = {"role": "assistant", "content": CANARY, "thinking": CANARY}
NATIVE = {"model": "m", "message": SAID, "done": True, "done_reason": "stop"}
CHAT = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": SAID}]}
CHUNK = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": CANARY}}]}
UNSAID: list[Any] = [
    NATIVE,
    CHAT,
    CHUNK,
    {**NATIVE, "error": None},
    {**CHAT, "error": {}},
    {"error": NATIVE},
    {"error": CHAT},
    {"error": [CANARY]},
    {"error": {"message": SAID}},
    {"error": {"message": [CANARY]}},
    {"error": orjson.dumps(NATIVE).decode()},
    {"error": orjson.dumps(CHAT).decode() + "\nboom"},
    {"error": orjson.dumps(CHAT).decode()[:-9]},
    {"response": CANARY, "done": True},
    {"content": CANARY},
    {"detail": [{"loc": ["body"], "msg": "Field required", "input": {"messages": [SAID]}}]},
    {"detail": {"input": CANARY}},
    [NATIVE],
    [CANARY],
    orjson.dumps(CHAT).decode()[:-5],
    "\ufeff " + orjson.dumps(CHAT).decode(),
    orjson.dumps(NATIVE).decode() + "\n" + orjson.dumps(NATIVE).decode(),
    "data: " + orjson.dumps(CHUNK).decode() + "\n\ndata: [DONE]",
    "event: message\ndata: " + CANARY,
]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
@pytest.mark.parametrize("body", UNSAID, ids=range(len(UNSAID)))
def test_what_may_be_an_answer_is_not_told_as_an_error(status: int, body: Any) -> None:
    error = error_of(status, body)
    told = f"{error} {error!r} {error.to_row_error()}"
    assert "canary" not in told
    assert f"HTTP {status}" in told


def test_a_body_without_an_error_message_is_told_by_its_size() -> None:
    assert str(error_of(500, CHAT)).startswith(
        f"the server answered HTTP 500, with {len(orjson.dumps(CHAT))} bytes that are no error message"
    )
    assert str(error_of(500, "")) == "the server answered HTTP 500"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("boom", "boom"),
        ("[error] upstream timed out", "[error] upstream timed out"),
        ({"error": "boom"}, "boom"),
        ({"error": "[1] boom"}, "[1] boom"),
        ({"error": {"message": "boom"}}, "boom"),
        ({"message": "boom"}, "boom"),
        ({"detail": [{"loc": ["body"], "msg": "Field required", "input": CANARY}]}, "Field required"),
    ],
)
def test_an_error_message_is_told_in_the_servers_words(body: Any, said: str) -> None:
    assert str(error_of(500, body)) == f"{said} (HTTP 500)"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    now = 1_792_567_680.0  # 2026-10-21 07:28:00 UTC
    assert retry_after_s(httpx.Headers(headers), now) == seconds


def test_busy_and_server_errors_carry_retry_after() -> None:
    for status in (429, 500, 503):
        assert error_of(status, {"error": "x"}, {"retry-after": "3"}).retry_after_s == 3.0


def answer(message: dict[str, Any], finish_reason: str = "stop") -> Any:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return completion_of({"choices": [choice]})


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (answer({"content": "half an ans"}, "length"), e.OutputTruncatedError),
        (answer({"content": None, "reasoning": "hm"}, "length"), e.OutputTruncatedError),
        (answer({"content": None}), e.EmptyOutputError),
        (answer({"content": ""}), e.EmptyOutputError),
        (answer({"content": " \n\t "}), e.EmptyOutputError),
        (answer({"content": None, "reasoning_content": "hm"}), e.EmptyOutputError),
        (answer({"content": None}, "content_filter"), e.OutputRefusedError),
        (answer({"content": None, "refusal": "no"}), e.OutputRefusedError),
    ],
)
def test_answers_of_no_use_are_errors_that_carry_them(completion: Any, kind: type[e.OutcomeError]) -> None:
    with pytest.raises(kind) as caught:
        check_outcome(completion)
    assert caught.value.completion is completion


@pytest.mark.parametrize("message", [{"content": "yes"}, {"content": None, "tool_calls": [CALL]}])
def test_answers_of_use_pass(message: dict[str, Any]) -> None:
    completion = answer(message, "tool_calls" if "tool_calls" in message else "stop")
    assert check_outcome(completion) is completion


# OpenAI, llama.cpp, vLLM: the first three; text-generation-inference: "eos_token", "stop_sequence".
@pytest.mark.parametrize(
    "word", ["stop", "tool_calls", "function_call", "eos_token", "stop_sequence", "STOP"]
)
def test_an_answer_that_ended_by_itself_passes_in_every_servers_words(word: str) -> None:
    assert check_outcome(answer({"content": "yes"}, word)).finish_reason == word


@pytest.mark.parametrize("word", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_an_answer_that_was_cut_is_cut_in_every_servers_words(word: str) -> None:
    with pytest.raises(e.OutputTruncatedError):
        check_outcome(answer({"content": "yes"}, word))


# vLLM and SGLang: "abort"; DeepSeek: "insufficient_system_resource".
@pytest.mark.parametrize("word", ["abort", "error", "", "insufficient_system_resource", "timeout"])
def test_an_answer_that_ended_in_another_way_is_none(word: str) -> None:
    with pytest.raises(e.InvalidReplyError, match="broke off"):
        check_outcome(answer({"content": "yes"}, word))


@pytest.mark.parametrize(
    "calls", [[], None, [CALL], [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]]
)
def test_tool_calls_that_name_what_to_call_pass(calls: Any) -> None:
    assert answer({"content": "yes", "tool_calls": calls}).output == "yes"


@pytest.mark.parametrize("calls", ["f(1)", 5, {}, [None], [{}], [{"function": {"name": ""}}], [CALL, "x"]])
def test_tool_calls_that_name_nothing_are_no_answer(calls: Any) -> None:
    with pytest.raises(e.InvalidReplyError, match="tool call"):
        answer({"content": "yes", "tool_calls": calls})


@pytest.mark.parametrize("said", [{"content": "yes"}, {"content": "", "reasoning": "hm"}])
def test_a_limit_of_the_row_s_own_is_named_as_that(said: dict[str, Any]) -> None:
    reason = "length" if said["content"] else "stop"
    with pytest.raises(e.OutcomeError, match="raise the row's own max_tokens") as own:
        check_outcome(answer(said, reason), own_limit=True)
    with pytest.raises(e.OutcomeError, match="raise max_tokens") as run:
        check_outcome(answer(said, reason))
    assert (own.value.to_row_error().param, run.value.to_row_error().param) == ("max_tokens", None)


def test_an_answer_of_reasoning_alone_says_so() -> None:
    with pytest.raises(e.EmptyOutputError, match="only reasoning"):
        check_outcome(answer({"content": "", "reasoning": "let me think"}))
    with pytest.raises(e.EmptyOutputError, match="no text and no tool call"):
        check_outcome(answer({"content": ""}))
