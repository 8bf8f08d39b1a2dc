"""The OpenAI body fields that `/api/chat` of Ollama can honour, and those it cannot."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ollama_batch.engines import fields as f
from ollama_batch.engines._ollama_wire import THINK_OF_EFFORT
from ollama_batch.engines.fields import HANDLED_BY_RUN, Complaint, Field, FieldTable

_NOT_HERE: Final = "Ollama has nothing like it"
_CONNECTION: Final = "belongs to the engine, not to a request"
_NO_EFFECT: Final = "accepted; only for OpenAI's own bookkeeping, not sent"
_TEXT_PARTS: Final = {"text": "text", "refusal": "refusal"}

_ROLES: Final[Mapping[str, frozenset[str]]] = {
    "system": frozenset({"role", "content"}),
    "developer": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset({"role", "content", "tool_calls", "reasoning", "reasoning_content"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
}
_PLAIN: Final = frozenset({"system", "developer", "user", "assistant"})


def check_messages(messages: Any) -> Complaint:
    """Accepts messages that Ollama's form can hold whole."""
    if not f.is_list(messages) or not messages:
        return "must be a list of at least one message"
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return f"[{index}]", "must be an object"
        role = message.get("role")
        content = message.get("content")
        if len(message) == 2 and type(content) is str and isinstance(role, str) and role in _PLAIN:
            continue
        complaint = _check_message(message, role, content)
        if complaint is not None:
            return f"[{index}]{complaint[0]}", complaint[1]
    return None


def _check_message(message: Mapping[str, Any], role: Any, content: Any) -> tuple[str, str] | None:
    allowed = _ROLES.get(role) if isinstance(role, str) else None
    if allowed is None:
        return ".role", f"must be one of {', '.join(_ROLES)}"
    for name, value in message.items():
        if name not in allowed and value is not None and value != []:
            return f".{name}", f"a message of role {role} has no place for it in Ollama"
    if content is None:
        if role != "assistant":
            return ".content", "must be text or a list of parts"
    elif not isinstance(content, str):
        complaint = _check_parts(content, images=role in ("user", "tool"))
        if complaint is not None:
            return complaint
    for name in ("reasoning", "reasoning_content", "tool_call_id", "name"):
        if message.get(name) is not None and not isinstance(message[name], str):
            return f".{name}", "must be text"
    return _check_calls(message.get("tool_calls"))


def _check_parts(parts: Any, *, images: bool) -> tuple[str, str] | None:
    if not f.is_list(parts):
        return ".content", "must be text or a list of parts"
    for index, part in enumerate(parts):
        where = f".content[{index}]"
        if not isinstance(part, Mapping):
            return where, "must be an object"
        kind = part.get("type")
        if kind == "image_url" and images:
            complaint = _check_image(part.get("image_url"))
            if complaint is not None:
                return f"{where}.image_url{complaint[0]}", complaint[1]
        elif isinstance(kind, str) and kind in _TEXT_PARTS:
            if not isinstance(part.get(_TEXT_PARTS[kind]), str):
                return f"{where}.{_TEXT_PARTS[kind]}", "must be text"
        else:
            return f"{where}.type", f"Ollama cannot take a part of type {kind!r} here"
    return None


def _check_image(image: Any) -> tuple[str, str] | None:
    if not isinstance(image, Mapping):
        return "", "must be an object with a url"
    if image.get("detail") not in (None, "auto"):
        return ".detail", "Ollama takes images as they are; leave detail out"
    url = image.get("url")
    if not isinstance(url, str):
        return ".url", "must be text"
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        return ".url", "must be a data URI (data:image/...;base64,...): Ollama fetches no addresses"
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except (ValueError, binascii.Error):
        return ".url", "is not valid base64"
    return None if data else (".url", "holds no image")


def _check_calls(calls: Any) -> tuple[str, str] | None:
    if calls is None:
        return None
    if not f.is_list(calls):
        return ".tool_calls", "must be a list"
    for index, call in enumerate(calls):
        where = f".tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return f"{where}.function", "must be an object: other calls are not known"
        if not isinstance(function.get("name"), str) or not function["name"]:
            return f"{where}.function.name", "must be text"
        try:
            arguments = orjson.loads(function.get("arguments") or "{}")
        except (orjson.JSONDecodeError, TypeError):
            arguments = None
        if not isinstance(arguments, dict):
            return f"{where}.function.arguments", "must be text that holds a JSON object"
    return None


def _check_tools(value: Any) -> Complaint:
    complaint = f.tools(value)
    if complaint is not None:
        return complaint
    for index, tool in enumerate(value):
        if tool["function"].get("strict"):
            return f"[{index}].function.strict", "Ollama does not hold tool arguments to their schema"
    return None


def _check_tool_choice(value: Any) -> Complaint:
    if value in ("auto", "none"):
        return None
    return "Ollama cannot be made to call a tool; only auto and none can be honoured"


def _refused(reason: str, *names: str) -> list[Field]:
    return [Field(name=name, refused=reason) for name in names]


_OPTION: Final = "`options.{}`"

OLLAMA_FIELDS: Final = FieldTable(
    "OllamaEngine",
    [
        Field(name="model", becomes=HANDLED_BY_RUN + ", sent as `model`", check=f.text),
        Field(name="messages", becomes="`messages`, see below", check=check_messages),
        Field(
            name="max_tokens", becomes=HANDLED_BY_RUN + ", sent as `options.num_predict`", check=f.integer(1)
        ),
        Field(
            name="max_completion_tokens",
            becomes="the same as `max_tokens`; if both are given they must be equal",
            check=f.integer(1),
        ),
        *(
            Field(name=name, becomes=_OPTION.format(name), check=check)
            for name, check in (
                ("temperature", f.number(0)),
                ("top_p", f.number(0, 1)),
                ("seed", f.integer()),
                ("presence_penalty", f.number(-2, 2)),
                ("frequency_penalty", f.number(-2, 2)),
            )
        ),
        Field(name="stop", becomes="`options.stop`, always as a list", check=f.stop),
        Field(
            name="response_format",
            becomes='`format`: `json_object` as `"json"`, `json_schema` as its schema, `text` as nothing',
            check=f.response_format,
        ),
        Field(name="tools", becomes="`tools`; `strict` functions are refused", check=_check_tools),
        Field(
            name="tool_choice",
            becomes="`auto` is what Ollama does, `none` sends no `tools`; others are refused",
            check=_check_tool_choice,
        ),
        Field(
            name="parallel_tool_calls",
            becomes="`true` is what Ollama does; `false` is refused",
            check=f.only(True, "Ollama cannot be held to one tool call at a time"),
        ),
        Field(
            name="reasoning_effort",
            becomes="`think`: `none` as false, `minimal` as low, `xhigh` and `ultra` as max; "
            "wins over the run's `think`",
            check=f.one_of(*THINK_OF_EFFORT),
        ),
        Field(name="logprobs", becomes="`logprobs`", check=f.boolean),
        Field(name="top_logprobs", becomes="`top_logprobs`, with `logprobs`", check=f.integer(0, 20)),
        Field(
            name="n",
            becomes="1 is what Ollama does; more is refused",
            check=f.only(1, "Ollama gives one answer to a request; repeat the row under other ids"),
        ),
        Field(
            name="stream",
            becomes="`false` is what is sent; `true` is refused",
            check=f.only(False, "a batch has no streams; leave it out"),
        ),
        Field(
            name="modalities",
            becomes='`["text"]` is what Ollama does; others are refused',
            check=f.only(["text"], "Ollama answers in text only"),
        ),
        *(
            Field(name=name, becomes=_NO_EFFECT, check=f.anything)
            for name in (
                "metadata",
                "user",
                "safety_identifier",
                "store",
                "service_tier",
                "prompt_cache_key",
                "prompt_cache_retention",
                "prompt_cache_options",
            )
        ),
        *(
            Field(name=name, becomes=f"{_OPTION.format(name)} (an extension of Ollama)", check=check)
            for name, check in (
                ("top_k", f.integer(0)),
                ("min_p", f.number(0, 1)),
                ("typical_p", f.number(0, 1)),
                ("repeat_penalty", f.number(0)),
                ("repeat_last_n", f.integer(-1)),
                ("num_keep", f.integer(-1)),
            )
        ),
        *_refused(
            _NOT_HERE, "logit_bias", "audio", "prediction", "verbosity", "web_search_options", "moderation"
        ),
        *_refused("a batch has no streams", "stream_options"),
        *_refused("the old form of tools: use tools and tool_choice", "functions", "function_call"),
        *_refused("a setting of the run: BatchRunner(num_ctx=...)", "num_ctx"),
        *_refused("a setting of the run: BatchRunner(keep_alive=...)", "keep_alive"),
        *_refused("always false: no prompt is cut without your knowing; leave it out", "truncate", "shift"),
        *_refused("the same as max_tokens: use that", "num_predict"),
        *_refused("use reasoning_effort, or think in the run", "think", "reasoning"),
        *_refused("use response_format", "format"),
        *_refused("give its entries as fields of their own", "options"),
        *_refused(
            _CONNECTION, "base_url", "api_key", "extra_headers", "extra_query", "extra_body", "timeout"
        ),
    ],
    unknown="is no field that OllamaEngine knows: remove it, or correct its name",
    together=f.token_limits,
)

OLLAMA_MESSAGES: Final = """\
Messages for OllamaEngine: `developer` becomes `system`; text parts are joined with a line feed into one
message; `image_url` parts (data URIs only) become `images`; `tool_calls` get their arguments as an object; a
`tool` message gets the `tool_name` of the call it answers; `reasoning` and `reasoning_content` become
`thinking`. Refused are `name` outside `tool` messages, audio, files, and `detail` of images but `auto`.
"""
