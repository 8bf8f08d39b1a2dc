"""The fake server as the official `ollama` and `openai` clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import ollama
import openai
import pytest

from ollama_batch.testing import FakeModel, FakeOllama, FakeReply

MODELS = (
    FakeModel("toy:1b", context_length=8192),
    FakeModel("thinker:1b", thinking=True),
    FakeModel("native:1b", rendered=False, tools=False),
)
USER: Any = [{"role": "user", "content": "row-1\nhello"}]


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    with FakeOllama(models=MODELS) as server:
        yield server


@pytest.fixture
def client(fake: FakeOllama) -> Iterator[ollama.Client]:
    client = ollama.Client(host=fake.url, trust_env=False)
    yield client
    client.close()


@pytest.fixture
def gpt(fake: FakeOllama) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fake.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def http(fake: FakeOllama) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fake.url, trust_env=False) as client:
        yield client


def test_chat_answers_with_words_and_counts(client: ollama.Client, fake: FakeOllama) -> None:
    answer = client.chat("toy:1b", USER, options={"num_ctx": 2048, "temperature": 0}, keep_alive="1m")
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.message.content
    assert answer.eval_count == len(answer.message.content.split())
    assert answer.prompt_eval_count == (len("<user>row-1\nhello\n") + 3) // 4
    assert answer.total_duration >= answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
    assert "prompt_eval_cached_count" not in answer.model_dump()
    (record,) = fake.ledger.completions()
    assert (record.key, record.model, record.route) == ("row-1", "toy:1b", "/api/chat")
    assert record.sent["options"] == {"num_ctx": 2048, "temperature": 0}
    assert record.sent["keep_alive"] == "1m"
    assert (record.outcome, record.status, record.in_flight) == ("answered", 200, 1)


def test_a_stream_says_the_same_as_a_whole_answer(client: ollama.Client) -> None:
    whole = client.chat("toy:1b", USER)
    chunks = list(client.chat("toy:1b", USER, stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    assert [chunk.done for chunk in chunks].count(True) == 1
    assert (chunks[-1].done_reason, chunks[-1].eval_count) == ("stop", whole.eval_count)


def test_generate_answers_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.generate("toy:1b", "hello")
    assert whole.done
    assert whole.response
    assert "".join(c.response for c in client.generate("toy:1b", "hello", stream=True)) == whole.response


def test_other_messages_and_other_sampling_give_other_answers(client: ollama.Client) -> None:
    def text(content: str, **options: Any) -> str | None:
        return client.chat("toy:1b", [{"role": "user", "content": content}], options=options).message.content

    assert text("a") == text("a") == text("a", num_ctx=1024, num_predict=100)
    assert len({text("a"), text("b"), text("a", seed=1)}) == 3


def test_an_answer_longer_than_num_predict_is_cut(client: ollama.Client) -> None:
    whole = client.chat("toy:1b", USER).message.content or ""
    cut = client.chat("toy:1b", USER, options={"num_predict": 3})
    assert (cut.message.content, cut.done_reason, cut.eval_count) == (
        " ".join(whole.split()[:3]),
        "length",
        3,
    )


def test_an_answer_stops_before_a_stop_sequence(client: ollama.Client) -> None:
    whole = client.chat("toy:1b", USER).message.content or ""
    word = whole.split()[4]
    stopped = client.chat("toy:1b", USER, options={"stop": [word]})
    assert stopped.message.content == whole.partition(word)[0]


def test_format_gives_json_that_fits(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}}}
    answer = client.chat("toy:1b", USER, format=schema).message.content or ""
    assert json.loads(answer)["score"] in range(1, 6)
    assert isinstance(json.loads(client.chat("toy:1b", USER, format="json").message.content or ""), dict)


def test_a_thinking_model_thinks_unless_told_not_to(client: ollama.Client) -> None:
    assert client.chat("thinker:1b", USER).message.thinking
    assert client.chat("thinker:1b", USER, think=True).message.thinking
    assert client.chat("thinker:1b", USER, think=False).message.thinking is None
    streamed = list(client.chat("thinker:1b", USER, stream=True))
    assert (
        "".join(c.message.thinking or "" for c in streamed)
        == client.chat("thinker:1b", USER).message.thinking
    )


def failure(client: ollama.Client, **settings: Any) -> tuple[int, str]:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(**{"model": "toy:1b", "messages": USER, **settings})
    return caught.value.status_code, caught.value.error


@pytest.mark.parametrize(
    ("settings", "status", "text"),
    [
        ({"model": "nobody:1b"}, 404, "model 'nobody:1b' not found"),
        ({"think": True}, 400, '"toy:1b" does not support thinking'),
        (
            {"model": "native:1b", "tools": [{"function": {"name": "f"}}]},
            400,
            "native:1b does not support tools",
        ),
        ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
    ],
)
def test_refusals_have_ollamas_status_and_words(
    client: ollama.Client, fake: FakeOllama, settings: dict[str, Any], status: int, text: str
) -> None:
    assert failure(client, **settings) == (status, text)
    assert [(record.status) for record in fake.ledger.records()] == [status]
    assert fake.ledger.answered() == 0


def test_an_unusable_body_is_refused(http: httpx.Client) -> None:
    assert http.post("/api/chat").json() == {"error": "missing request body"}
    assert http.post("/api/chat", content=b"{").status_code == 400
    assert (
        http.post("/api/chat", json={"model": "toy:1b", "messages": USER, "think": "hard"}).status_code == 400
    )
    assert http.post("/api/chat", json={"messages": USER}).json() == {"error": "model is required"}
    bad = {"model": "toy:1b", "messages": USER, "format": "yaml", "stream": False}
    reply = http.post("/api/chat", json=bad)
    assert (reply.status_code, reply.json()["error"]) == (
        500,
        'invalid format: "yaml"; expected "json" or a valid JSON Schema object',
    )


def long(words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "word " * words}]


def test_too_long_a_prompt_is_refused_with_json_in_a_string_where_asked_not_to_truncate(
    http: httpx.Client,
) -> None:
    body = {"model": "toy:1b", "messages": long(1000), "options": {"num_ctx": 100}, "truncate": False}
    reply = http.post("/api/chat", json=body | {"stream": False})
    tokens = (len("<user>" + "word " * 1000 + "\n") + 3) // 4
    assert reply.status_code == 400
    inner = json.loads(reply.json()["error"])["error"]
    assert inner == {
        "code": 400,
        "message": (
            f"request ({tokens} tokens) exceeds the available context size (100 tokens), try increasing it"
        ),
        "type": "exceed_context_size_error",
        "n_prompt_tokens": tokens,
        "n_ctx": 100,
    }


def test_too_long_a_prompt_is_cut_in_silence_otherwise(client: ollama.Client) -> None:
    answer = client.chat("toy:1b", long(1000), options={"num_ctx": 100})
    assert answer.prompt_eval_count == 52  # 100 - (100 - 4) // 2
    # Whole messages go first, system messages stay: 3 tokens of system and 7 of the last message.
    several = [{"role": "system", "content": "S"}, *long(300), {"role": "user", "content": "q" * 20}]
    assert client.chat("toy:1b", several, options={"num_ctx": 100}).prompt_eval_count == 10


def test_without_shift_or_on_the_native_path_too_long_a_prompt_is_refused(
    client: ollama.Client, http: httpx.Client
) -> None:
    body = {"model": "toy:1b", "messages": long(1000), "options": {"num_ctx": 100}, "shift": False}
    reply = http.post("/api/chat", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(
        "the prompt is longer than the context length currently available"
    )
    status, text = failure(client, model="native:1b", messages=long(1000), options={"num_ctx": 100})
    assert (status, json.loads(text)["error"]["n_ctx"]) == (400, 100)


def test_a_full_context_ends_the_answer_without_shift(http: httpx.Client) -> None:
    body = {"model": "toy:1b", "messages": long(70), "shift": False, "truncate": False, "stream": False}
    tokens = (len("<user>" + "word " * 70 + "\n") + 3) // 4
    reply = http.post("/api/chat", json=body | {"options": {"num_ctx": tokens + 2}}).json()
    assert (reply["done_reason"], reply["eval_count"]) == ("length", 2)


def test_models_are_loaded_once_and_again_when_load_options_change(
    client: ollama.Client, fake: FakeOllama, http: httpx.Client
) -> None:
    for options in ({"num_ctx": 2048}, {"num_ctx": 2048, "temperature": 1, "num_predict": 5}):
        client.chat("toy:1b", USER, options=options)
    assert fake.ledger.loads == 1
    client.chat("toy:1b", USER)  # the server's default of 4096
    assert fake.ledger.loads == 2
    http.post("/api/chat", json={"model": "toy:1b", "messages": USER, "shift": False})
    assert fake.ledger.loads == 3
    assert [load["num_ctx"] for load in fake.ledger.load_settings()] == [2048, 4096, 4096]


def test_preload_and_unload_show_in_ps(client: ollama.Client, fake: FakeOllama) -> None:
    assert client.ps().models == []
    loaded = client.generate("toy:1b", "", options={"num_ctx": 2048}, keep_alive="10m")
    assert (loaded.done_reason, loaded.response) == ("load", "")
    (entry,) = client.ps().models
    assert (entry.name, entry.context_length, entry.digest) == ("toy:1b", 2048, MODELS[0].digest)
    assert entry.size == entry.size_vram == MODELS[0].loaded_bytes(2048, 4)
    left = entry.expires_at - datetime.now(UTC)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)
    client.chat("toy:1b", [], options={"num_ctx": 2048}, keep_alive=-1)
    assert client.ps().models[0].expires_at.year > 2200
    assert client.chat("toy:1b", [], keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.chat("toy:1b", [], keep_alive=0).done_reason == "unload"
    assert fake.ledger.loads == 1
    assert fake.ledger.count() == 0


def test_a_model_with_no_time_left_is_gone(client: ollama.Client) -> None:
    client.chat("toy:1b", USER, keep_alive=0)
    assert client.ps().models == []


def test_show_tags_version_and_root(client: ollama.Client, http: httpx.Client) -> None:
    assert http.get("/").text == "Ollama is running"
    assert http.get("/api/version").json() == {"version": "0.33.0"}
    listed = client.list().models
    assert [model.model for model in listed] == ["toy:1b", "thinker:1b", "native:1b"]
    assert listed[0].digest == MODELS[0].digest
    shown = client.show("thinker:1b")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo["toy.context_length"] == 131_072
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("nobody")
    assert http.get("/api/chat").status_code == 405
    assert http.get("/nothing").status_code == 404
    assert http.post("/v1/batches").status_code == 404


def test_openai_chat_answers_whole_and_streamed(gpt: openai.OpenAI) -> None:
    whole = gpt.chat.completions.create(model="toy:1b", messages=USER)
    choice = whole.choices[0]
    assert choice.finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len((choice.message.content or "").split())
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details is None
    with gpt.chat.completions.create(
        model="toy:1b",
        messages=USER,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


def test_openai_routes_have_openai_errors_and_ignore_what_they_cannot_honour(
    gpt: openai.OpenAI, fake: FakeOllama
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        gpt.chat.completions.create(model="nobody", messages=USER)
    assert missing.value.body == {
        "message": "model 'nobody' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    with pytest.raises(openai.BadRequestError, match="does not support thinking"):
        gpt.chat.completions.create(model="toy:1b", messages=USER, reasoning_effort="low")
    answer = gpt.chat.completions.create(
        model="toy:1b",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ],
        max_completion_tokens=1,  # not in the struct of Ollama's route
        extra_body={"options": {"num_ctx": 16}, "num_ctx": 16},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert fake.ledger.load_settings()[0]["num_ctx"] == 4096
    limited = gpt.chat.completions.create(model="toy:1b", messages=USER, max_tokens=1)
    assert limited.choices[0].finish_reason == "length"


def test_an_image_costs_its_tokens_on_both_routes(gpt: openai.OpenAI, http: httpx.Client) -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}}
    answer = gpt.chat.completions.create(
        model="toy:1b",
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, url]}],
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 768 + (len("<user>a\n<user>\n") + 3) // 4
    messages = [{"role": "user", "content": "a", "images": ["iVBORw0K"]}]
    reply = http.post("/api/chat", json={"model": "toy:1b", "messages": messages, "stream": False})
    assert reply.json()["prompt_eval_count"] == 768 + (len("<user>a\n") + 3) // 4


def test_openai_models_are_listed(gpt: openai.OpenAI) -> None:
    assert [model.id for model in gpt.models.list()] == ["toy:1b", "thinker:1b", "native:1b"]
    assert gpt.models.retrieve("toy:1b").owned_by == "library"


ADD = {"name": "add", "arguments": {"a": 1}}
ADD_AS_TEXT = {"name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("call", "told_id"),
    [
        (ADD, "call_0"),
        ({"function": ADD}, "call_0"),
        ({"type": "function", "function": ADD_AS_TEXT}, "call_0"),
        ({"id": "c7", "type": "function", "function": ADD_AS_TEXT}, "c7"),
    ],
    ids=["plain", "ollama", "openai", "openai with id"],
)
def test_tool_calls_come_in_the_form_of_each_route(call: Any, told_id: str, stream: bool) -> None:
    reply = FakeReply(tool_calls=[call])
    with FakeOllama(reply=reply) as fake, httpx.Client(base_url=fake.url, trust_env=False) as http:
        body = {"model": "toy:1b", "messages": USER, "stream": stream}
        native = http.post("/api/chat", json=body).text.splitlines()[-1]
        assert json.loads(native)["message"]["tool_calls"] == [
            {"function": {"name": "add", "arguments": {"a": 1}}}
        ]
        if not stream:
            choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            (told,) = choice["message"]["tool_calls"]
            assert told["function"] == {"name": "add", "arguments": '{"a":1}'}
            assert told["id"] == told_id


def test_a_reply_may_be_a_function_of_the_body() -> None:
    def reply(body: Any) -> str | FakeReply | None:
        content = body["messages"][-1]["content"]
        return {"a": "seven", "b": FakeReply(body={"anything": 1}, status=202)}.get(content)

    with FakeOllama(reply=reply) as fake, httpx.Client(base_url=fake.url, trust_env=False) as http:

        def ask(content: str) -> httpx.Response:
            messages = [{"role": "user", "content": content}]
            return http.post("/api/chat", json={"model": "toy:1b", "messages": messages, "stream": False})

        assert ask("a").json()["message"]["content"] == "seven"
        assert (ask("b").status_code, ask("b").json()) == (202, {"anything": 1})
        assert ask("c").json()["eval_count"] >= 8


def test_an_api_key_is_asked_for_where_one_is_set() -> None:
    with FakeOllama(api_key="secret") as fake, httpx.Client(base_url=fake.url, trust_env=False) as http:
        assert http.get("/api/tags").status_code == 401
        assert http.get("/api/tags", headers={"Authorization": "Bearer secret"}).status_code == 200
