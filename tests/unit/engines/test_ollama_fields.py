from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from engines_support import HELLO, OLLAMA_ANSWER, Canned, request, soon
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.ollama_fields import OLLAMA_FIELDS

PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
ABSENT = object()


def option(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda body: body["options"].get(name, ABSENT)


def top(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda body: body.get(name, ABSENT)


# field, value, where it must be on the wire, what must be there
WIRE: list[tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]] = [
    ({"temperature": 0.0}, option("temperature"), 0.0),
    ({"temperature": 1}, option("temperature"), 1),
    ({"top_p": 0.5}, option("top_p"), 0.5),
    ({"seed": 7}, option("seed"), 7),
    ({"presence_penalty": -1.5}, option("presence_penalty"), -1.5),
    ({"frequency_penalty": 2}, option("frequency_penalty"), 2),
    ({"stop": "END"}, option("stop"), ["END"]),
    ({"stop": ["a", "b"]}, option("stop"), ["a", "b"]),
    ({"response_format": {"type": "text"}}, top("format"), ABSENT),
    ({"response_format": {"type": "json_object"}}, top("format"), "json"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "strict": True, "schema": SCHEMA},
            }
        },
        top("format"),
        SCHEMA,
    ),
    ({"tools": [TOOL]}, top("tools"), [TOOL]),
    ({"tools": [TOOL], "tool_choice": "auto"}, top("tools"), [TOOL]),
    ({"tools": [TOOL], "tool_choice": "auto"}, top("tool_choice"), ABSENT),
    ({"tools": [TOOL], "tool_choice": "none"}, top("tools"), ABSENT),
    ({"parallel_tool_calls": True}, top("parallel_tool_calls"), ABSENT),
    ({"reasoning_effort": "none"}, top("think"), False),
    ({"reasoning_effort": "minimal"}, top("think"), "low"),
    ({"reasoning_effort": "low"}, top("think"), "low"),
    ({"reasoning_effort": "medium"}, top("think"), "medium"),
    ({"reasoning_effort": "high"}, top("think"), "high"),
    ({"reasoning_effort": "xhigh"}, top("think"), "max"),
    ({"reasoning_effort": "max"}, top("think"), "max"),
    ({"logprobs": True}, top("logprobs"), True),
    ({"logprobs": True, "top_logprobs": 5}, top("top_logprobs"), 5),
    ({"n": 1}, top("n"), ABSENT),
    ({"stream": False}, top("stream"), False),
    ({"modalities": ["text"]}, top("modalities"), ABSENT),
    ({"top_k": 40}, option("top_k"), 40),
    ({"min_p": 0.05}, option("min_p"), 0.05),
    ({"typical_p": 0.9}, option("typical_p"), 0.9),
    ({"repeat_penalty": 1.1}, option("repeat_penalty"), 1.1),
    ({"repeat_last_n": -1}, option("repeat_last_n"), -1),
    ({"num_keep": 24}, option("num_keep"), 24),
    *(({name: None}, top(name), ABSENT) for name in ("temperature", "logit_bias", "stop", "stream_options")),
    *(
        ({name: "x"}, top(name), ABSENT)
        for name in (
            "user",
            "safety_identifier",
            "service_tier",
            "prompt_cache_key",
            "prompt_cache_retention",
        )
    ),
    ({"store": True}, top("store"), ABSENT),
    ({"metadata": {"a": "b"}}, top("metadata"), ABSENT),
    ({"prompt_cache_options": {}}, top("prompt_cache_options"), ABSENT),
]


async def on_the_wire(**changes: Any) -> dict[str, Any]:
    transport = Canned(OLLAMA_ANSWER)
    engine = OllamaEngine("host", transport=transport)
    await engine.complete(request(**changes), deadline=soon())
    return transport.sent()


@pytest.mark.parametrize(("params", "look", "expected"), WIRE)
async def test_accepted_fields_reach_ollama(
    params: dict[str, Any], look: Callable[[dict[str, Any]], Any], expected: Any
) -> None:
    assert OLLAMA_FIELDS.check({"messages": HELLO, **params}) is None
    assert look(await on_the_wire(params=params)) == expected


# body, path of the complaint
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"stop": ""}, "stop"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stop": [""]}, "stop[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 10, "max_completion_tokens": 20}, "max_completion_tokens"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    ({"tools": "f"}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (
        {"tools": [TOOL, {"type": "function", "function": {"name": "g", "parameters": 3}}]},
        "tools[1].function.parameters",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "g", "strict": True}}]},
        "tools[0].function.strict",
    ),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"reasoning_effort": True}, "reasoning_effort"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"stream": True}, "stream"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    *(
        ({name: {}}, name)
        for name in (
            "logit_bias",
            "audio",
            "prediction",
            "verbosity",
            "web_search_options",
            "moderation",
            "stream_options",
            "functions",
            "function_call",
            "num_ctx",
            "keep_alive",
            "truncate",
            "shift",
            "num_predict",
            "think",
            "reasoning",
            "format",
            "options",
            "base_url",
            "api_key",
            "extra_headers",
            "extra_query",
            "extra_body",
            "timeout",
        )
    ),
    ({"temprature": 0}, "temprature"),
    ({"temprature": None}, "temprature"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [*HELLO, "hello"]}, "messages[1]"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
        "messages[0].function_call",
    ),
    ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}]}, "messages[0].audio"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": {}}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "messages[0].tool_calls[0].function.name",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "assistant", "content": "x", "reasoning": 3}]}, "messages[0].reasoning"),
    *(
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]},
            "messages[0].content[0].image_url" + where,
        )
        for image, where in (
            ("data:image/png;base64,", ""),
            ({}, ".url"),
            ({"url": "https://example.com/a.png"}, ".url"),
            ({"url": f"data:text/plain;base64,{PNG}"}, ".url"),
            ({"url": "data:image/png;base64,"}, ".url"),
            ({"url": "data:image/png;base64,@@@@"}, ".url"),
            ({"url": f"data:image/png;base64,{PNG}", "detail": "high"}, ".detail"),
        )
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
    ),
]


@pytest.mark.parametrize(("body", "path"), REFUSED)
def test_what_ollama_cannot_honour_is_refused_by_path(body: dict[str, Any], path: str) -> None:
    complaint = OLLAMA_FIELDS.check(body)
    assert complaint is not None
    assert complaint[0] == path
    assert complaint[1]


def test_the_table_knows_every_field_of_openai() -> None:
    known = {field.name for field in OLLAMA_FIELDS.fields}
    assert set(CompletionCreateParamsBase.__annotations__) | {"stream"} <= known


def test_every_field_of_the_table_is_tested() -> None:
    tested = {name for params, _, _ in WIRE for name in params} | {
        name for body, _ in REFUSED for name in body
    }
    assert {field.name for field in OLLAMA_FIELDS.fields} <= tested | {"model"}


def test_equal_token_limits_under_both_names_are_accepted() -> None:
    assert OLLAMA_FIELDS.check({"max_tokens": 10, "max_completion_tokens": 10}) is None


async def test_messages_reach_ollama_in_its_own_form() -> None:
    messages = [
        {"role": "developer", "content": "rules"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "text", "text": "this?"},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"deep": true}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "assistant", "content": "a cat"},
    ]
    assert OLLAMA_FIELDS.check({"messages": messages}) is None
    assert (await on_the_wire(messages=messages))["messages"] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "what is\nthis?", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"deep": True}}}],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "c1", "tool_name": "look"},
        {"role": "assistant", "content": "a cat"},
    ]
