from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from engines_support import HELLO, OPENAI_ANSWER, Canned, request, soon
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.engines.openai_fields import OPENAI_FIELDS
from ollama_batch.errors import UnsupportedParamError

SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}

NUMBERS = [
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repetition_penalty",
    "length_penalty",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dynatemp_range",
    "dynatemp_exponent",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
]
INTEGERS = [
    "top_k",
    "repeat_last_n",
    "min_tokens",
    "truncate_prompt_tokens",
    "dry_penalty_last_n",
    "mirostat",
    "priority",
    "id_slot",
    "thinking_budget_tokens",
    "reasoning_budget",
]
FLAGS = [
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "add_generation_prompt",
    "continue_final_message",
    "cache_prompt",
    "store",
    "parallel_tool_calls",
    "logprobs",
]
WORDS = [
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "grammar",
    "guided_regex",
    "guided_grammar",
    "chat_template",
    "reasoning_format",
]
OBJECTS = [
    "logit_bias",
    "audio",
    "prediction",
    "web_search_options",
    "moderation",
    "prompt_cache_options",
    "chat_template_kwargs",
    "structured_outputs",
    "mm_processor_kwargs",
    "guided_json",
    "json_schema",
]
LISTS = ["modalities", "functions", "guided_choice", "samplers", "stop_token_ids", "bad_words", "documents"]

SENT: list[tuple[str, Any]] = [
    ("temperature", 0.0),
    ("top_p", 0.5),
    ("seed", 7),
    ("presence_penalty", -2),
    ("frequency_penalty", 0.5),
    ("stop", "END"),
    ("stop", ["a"]),
    ("response_format", SCHEMA),
    ("tools", [TOOL]),
    *((name, 0.5) for name in NUMBERS),
    *((name, 3) for name in INTEGERS),
    *((name, True) for name in FLAGS),
    *((name, "x") for name in WORDS),
    *((name, {"a": 1}) for name in OBJECTS),
    *((name, ["a"]) for name in LISTS),
    ("function_call", "auto"),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.1}, "temperature"),
    ({"n": 0}, "n"),
    ({"stream": True}, "stream"),
    ({"seed": "x"}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"user": 3}, "user"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"messages": []}, "messages"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    *(
        ({name: {}}, name)
        for name in (
            "stream_options",
            "n_predict",
            "num_predict",
            "think",
            "reasoning",
            "num_ctx",
            "options",
            "keep_alive",
            "format",
            "base_url",
            "api_key",
            "extra_headers",
            "extra_query",
            "extra_body",
            "timeout",
        )
    ),
]


async def on_the_wire(engine_options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    transport = Canned(OPENAI_ANSWER)
    engine = OpenAIEngine("http://host", transport=transport, **(engine_options or {}))
    await engine.complete(request(**changes), deadline=soon())
    return transport.sent()


async def test_several_answers_are_asked_for_and_fewer_are_no_answer() -> None:
    choice = OPENAI_ANSWER["choices"][0]
    transport = Canned({**OPENAI_ANSWER, "choices": [choice, {**choice, "index": 1}]})
    engine = OpenAIEngine("http://host", transport=transport)
    completion = await engine.complete(request(params={"n": 2}), deadline=soon())
    assert transport.sent()["n"] == 2
    assert len(completion.body["choices"]) == 2
    with pytest.raises(UnsupportedParamError, match="gave 2 of the 3 answers") as caught:
        await engine.complete(request(params={"n": 3}), deadline=soon())
    assert caught.value.param == "n"


@pytest.mark.parametrize(("name", "value"), SENT)
async def test_accepted_fields_are_sent_as_they_are(name: str, value: Any) -> None:
    assert OPENAI_FIELDS.check({"messages": HELLO, name: value}) is None
    assert (await on_the_wire(params={name: value}))[name] == value


@pytest.mark.parametrize(("body", "path"), REFUSED)
def test_what_cannot_be_sent_is_refused_by_path(body: dict[str, Any], path: str) -> None:
    complaint = OPENAI_FIELDS.check(body)
    assert complaint is not None
    assert complaint[0] == path
    assert complaint[1]


async def test_fields_that_need_each_other_are_sent_together() -> None:
    params = {"logprobs": True, "top_logprobs": 3, "tools": [TOOL], "tool_choice": "required"}
    assert OPENAI_FIELDS.check(params) is None
    assert params.items() <= (await on_the_wire(params=params)).items()


async def test_nulls_are_not_sent() -> None:
    assert "seed" not in await on_the_wire(params={"seed": None})


def test_the_table_knows_every_field_of_openai() -> None:
    known = {field.name for field in OPENAI_FIELDS.fields}
    assert set(CompletionCreateParamsBase.__annotations__) | {"stream"} <= known


def test_every_field_of_the_table_is_tested() -> None:
    tested = {name for name, _ in SENT} | {name for body, _ in REFUSED for name in body}
    assert {field.name for field in OPENAI_FIELDS.fields} <= tested | {"model", "metadata"}


async def test_a_request_carries_the_limits_of_the_run() -> None:
    body = await on_the_wire(max_tokens=77)
    assert body == {"model": "m:1b", "messages": HELLO, "max_tokens": 77, "stream": False}


async def test_a_thinking_level_is_sent_as_reasoning_effort_unless_the_row_has_its_own() -> None:
    assert (await on_the_wire(think="high"))["reasoning_effort"] == "high"
    assert (await on_the_wire(think="high", params={"reasoning_effort": "low"}))["reasoning_effort"] == "low"
    for think in (True, False):
        assert "reasoning_effort" not in await on_the_wire(think=think)


async def test_a_rows_own_field_wins_over_extra_body() -> None:
    options = {"extra_body": {"top_k": 1, "seed": 1}}
    body = await on_the_wire(options, params={"seed": 2})
    assert (body["top_k"], body["seed"]) == (1, 2)
