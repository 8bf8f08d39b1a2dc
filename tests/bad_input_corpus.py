"""Input lines and items that must be refused: what they are, and the rule and field each is refused for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ollama_batch import BatchRequest

URL = "/v1/chat/completions"


@dataclass(frozen=True)
class BadLine:
    name: str
    raw: bytes
    code: str
    field: str | None = None
    custom_id: str | None = "a"


@dataclass(frozen=True)
class BadItem:
    name: str
    item: Any
    code: str
    field: str | None = None
    custom_id: str | None = None


def good(**changes: Any) -> dict[str, Any]:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": URL,
        "body": {"messages": [{"role": "user", "content": "x"}]},
    }
    line.update(changes)
    return line


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in good().items() if k != key}


def body(**fields: Any) -> dict[str, Any]:
    return good(body={"messages": [{"role": "user", "content": "x"}], **fields})


def messages(*found: Any) -> dict[str, Any]:
    return good(body={"messages": list(found)})


def user(content: Any) -> dict[str, Any]:
    return messages({"role": "user", "content": content})


def call(**changes: Any) -> dict[str, Any]:
    found = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    found.update(changes)
    return messages({"role": "assistant", "content": None, "tool_calls": [found]})


def _text(text: str) -> bytes:
    """A good line with `text`, JSON source, as the content of its message."""
    return json.dumps(user("@@")).replace('"@@"', text).encode()


def _seed(literal: str) -> bytes:
    return json.dumps(body(seed="@@")).replace('"@@"', literal).encode()


_M = "body.messages"
_M0 = "body.messages[0]"

# (name, line, code, field, custom_id if not "a"): hold for a line of a file and for a dict alike.
_OBJECTS: list[tuple[Any, ...]] = [
    ("id is a number", good(custom_id=7), "invalid_type", "custom_id", None),
    ("id is an object", good(custom_id={}), "invalid_type", "custom_id", None),
    ("id is a boolean", good(custom_id=True), "invalid_type", "custom_id", None),
    ("id is an array", good(custom_id=["a"]), "invalid_type", "custom_id", None),
    ("id is empty", good(custom_id=""), "invalid_value", "custom_id", None),
    ("id has 513 characters", good(custom_id="i" * 513), "invalid_value", "custom_id", None),
    ("method missing", without("method"), "missing_required_parameter", "method"),
    ("method GET", good(method="GET"), "invalid_value", "method"),
    ("method lower case", good(method="post"), "invalid_value", "method"),
    ("method null", good(method=None), "invalid_value", "method"),
    ("url missing", without("url"), "missing_required_parameter", "url"),
    ("url null", good(url=None), "invalid_type", "url"),
    ("url a number", good(url=1), "invalid_type", "url"),
    ("url of responses", good(url="/v1/responses"), "invalid_url", "url"),
    ("url of embeddings", good(url="/v1/embeddings"), "invalid_url", "url"),
    ("url of completions", good(url="/v1/completions"), "invalid_url", "url"),
    ("url of moderations", good(url="/v1/moderations"), "invalid_url", "url"),
    ("url of images", good(url="/v1/images/generations"), "invalid_url", "url"),
    ("url with host", good(url="https://api.openai.com" + URL), "invalid_url", "url"),
    ("url with slash at the end", good(url=URL + "/"), "invalid_url", "url"),
    ("url of Azure", good(url="/chat/completions"), "invalid_url", "url"),
    ("url empty", good(url=""), "invalid_url", "url"),
    ("body missing", without("body"), "missing_required_parameter", "body"),
    ("body null", good(body=None), "invalid_type", "body"),
    ("body a string", good(body="x"), "invalid_type", "body"),
    ("body an array", good(body=[]), "invalid_type", "body"),
    ("body empty", good(body={}), "invalid_request", _M),
    ("unknown key", good(priority=1), "unknown_parameter", "priority"),
    ("model beside the body", good(model="m"), "unknown_parameter", "model"),
    ("metadata beside the body", good(metadata={}), "unknown_parameter", "metadata"),
    (
        "a result line",
        {"id": "b", "custom_id": "a", "response": None, "error": None},
        "unknown_parameter",
        "id",
    ),
    ("messages null", good(body={"messages": None}), "invalid_type", _M),
    ("messages a string", good(body={"messages": "x"}), "invalid_type", _M),
    ("messages an object", good(body={"messages": {"role": "user"}}), "invalid_type", _M),
    ("messages empty", messages(), "invalid_request", _M),
    ("message a string", messages("x"), "invalid_type", _M0),
    ("message null", messages(None), "invalid_type", _M0),
    ("message an array", messages([]), "invalid_type", _M0),
    ("message empty", messages({}), "missing_required_parameter", f"{_M0}.role"),
    ("role missing", messages({"content": "x"}), "missing_required_parameter", f"{_M0}.role"),
    ("role null", messages({"role": None, "content": "x"}), "invalid_type", f"{_M0}.role"),
    ("role a number", messages({"role": 1, "content": "x"}), "invalid_type", f"{_M0}.role"),
    ("role unknown", messages({"role": "bot", "content": "x"}), "invalid_value", f"{_M0}.role"),
    ("role in capitals", messages({"role": "User", "content": "x"}), "invalid_value", f"{_M0}.role"),
    (
        "the second message is bad",
        messages({"role": "user", "content": "x"}, {"role": "?", "content": "x"}),
        "invalid_value",
        "body.messages[1].role",
    ),
    ("name a number", messages({"role": "user", "content": "x", "name": 1}), "invalid_type", f"{_M0}.name"),
    ("content missing", messages({"role": "user"}), "missing_required_parameter", f"{_M0}.content"),
    ("content null", user(None), "invalid_type", f"{_M0}.content"),
    ("content a number", user(5), "invalid_type", f"{_M0}.content"),
    ("content a boolean", user(True), "invalid_type", f"{_M0}.content"),
    ("content an object", user({"type": "text", "text": "x"}), "invalid_type", f"{_M0}.content"),
    ("content without parts", user([]), "invalid_value", f"{_M0}.content"),
    ("part a string", user(["x"]), "invalid_type", f"{_M0}.content[0]"),
    ("part null", user([None]), "invalid_type", f"{_M0}.content[0]"),
    ("part empty", user([{}]), "missing_required_parameter", f"{_M0}.content[0].type"),
    ("part type a number", user([{"type": 1}]), "invalid_type", f"{_M0}.content[0].type"),
    ("part type unknown", user([{"type": "video"}]), "invalid_value", f"{_M0}.content[0].type"),
    (
        "part refusal of a user",
        user([{"type": "refusal", "refusal": "x"}]),
        "invalid_value",
        f"{_M0}.content[0].type",
    ),
    (
        "text part without text",
        user([{"type": "text"}]),
        "missing_required_parameter",
        f"{_M0}.content[0].text",
    ),
    ("text part with null", user([{"type": "text", "text": None}]), "invalid_type", f"{_M0}.content[0].text"),
    (
        "image part without image",
        user([{"type": "image_url"}]),
        "missing_required_parameter",
        f"{_M0}.content[0].image_url",
    ),
    (
        "image part with a string",
        user([{"type": "image_url", "image_url": "u"}]),
        "invalid_type",
        f"{_M0}.content[0].image_url",
    ),
    (
        "image part without url",
        user([{"type": "image_url", "image_url": {}}]),
        "missing_required_parameter",
        f"{_M0}.content[0].image_url.url",
    ),
    (
        "image url a number",
        user([{"type": "image_url", "image_url": {"url": 1}}]),
        "invalid_type",
        f"{_M0}.content[0].image_url.url",
    ),
    (
        "audio part without audio",
        user([{"type": "input_audio"}]),
        "missing_required_parameter",
        f"{_M0}.content[0].input_audio",
    ),
    (
        "file part with a string",
        user([{"type": "file", "file": "x"}]),
        "invalid_type",
        f"{_M0}.content[0].file",
    ),
    (
        "second part bad",
        user([{"type": "text", "text": "x"}, {"type": "text"}]),
        "missing_required_parameter",
        f"{_M0}.content[1].text",
    ),
    (
        "image in a system message",
        messages({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}),
        "invalid_value",
        f"{_M0}.content[0].type",
    ),
    (
        "system without content",
        messages({"role": "system", "content": None}),
        "invalid_type",
        f"{_M0}.content",
    ),
    (
        "developer with a number",
        messages({"role": "developer", "content": 1}),
        "invalid_type",
        f"{_M0}.content",
    ),
    (
        "assistant with nothing",
        messages({"role": "assistant"}),
        "missing_required_parameter",
        f"{_M0}.content",
    ),
    (
        "assistant with null",
        messages({"role": "assistant", "content": None}),
        "invalid_type",
        f"{_M0}.content",
    ),
    (
        "assistant without calls",
        messages({"role": "assistant", "content": None, "tool_calls": []}),
        "invalid_type",
        f"{_M0}.content",
    ),
    (
        "calls an object",
        messages({"role": "assistant", "content": None, "tool_calls": {}}),
        "invalid_type",
        f"{_M0}.tool_calls",
    ),
    (
        "calls of a user",
        messages({"role": "user", "content": "x", "tool_calls": []}),
        "invalid_value",
        f"{_M0}.tool_calls",
    ),
    (
        "call a string",
        messages({"role": "assistant", "tool_calls": ["f"]}),
        "invalid_type",
        f"{_M0}.tool_calls[0]",
    ),
    ("call id null", call(id=None), "invalid_type", f"{_M0}.tool_calls[0].id"),
    ("call of another type", call(type="custom"), "invalid_value", f"{_M0}.tool_calls[0].type"),
    ("call without function", call(function=None), "invalid_type", f"{_M0}.tool_calls[0].function"),
    (
        "call without name",
        call(function={"arguments": ""}),
        "missing_required_parameter",
        f"{_M0}.tool_calls[0].function.name",
    ),
    (
        "call arguments an object",
        call(function={"name": "f", "arguments": {}}),
        "invalid_type",
        f"{_M0}.tool_calls[0].function.arguments",
    ),
    (
        "tool without call id",
        messages({"role": "tool", "content": "x"}),
        "missing_required_parameter",
        f"{_M0}.tool_call_id",
    ),
    (
        "tool call id a number",
        messages({"role": "tool", "content": "x", "tool_call_id": 1}),
        "invalid_type",
        f"{_M0}.tool_call_id",
    ),
    (
        "tool without content",
        messages({"role": "tool", "tool_call_id": "c"}),
        "missing_required_parameter",
        f"{_M0}.content",
    ),
    (
        "function without name",
        messages({"role": "function", "content": "x"}),
        "missing_required_parameter",
        f"{_M0}.name",
    ),
    (
        "function with parts",
        messages({"role": "function", "name": "f", "content": []}),
        "invalid_type",
        f"{_M0}.content",
    ),
    ("model a number", body(model=1), "invalid_type", "body.model"),
    ("model null", body(model=None), "invalid_type", "body.model"),
    ("model empty", body(model=""), "invalid_value", "body.model"),
    ("streamed", body(stream=True), "streaming_unsupported", "body.stream"),
    ("stream a string", body(stream="true"), "invalid_type", "body.stream"),
    ("stream 1", body(stream=1), "invalid_type", "body.stream"),
    ("metadata a string", body(metadata="x"), "invalid_type", "body.metadata"),
    ("metadata an array", body(metadata=[]), "invalid_type", "body.metadata"),
]

_JSON = "invalid_json_line"

_BYTES: list[tuple[Any, ...]] = [
    ("prose", b"hello", _JSON, None, None),
    ("cut off", json.dumps(good()).encode()[:-1], _JSON, None, None),
    ("two objects", json.dumps(good()).encode() * 2, _JSON, None, None),
    ("comma at the end", b'{"custom_id":"a",}', _JSON, None, None),
    ("single quotes", b"{'custom_id':'a'}", _JSON, None, None),
    ("a comment", b'{"custom_id":"a"} // x', _JSON, None, None),
    ("an array", b"[]", _JSON, None, None),
    ("a string", b'"x"', _JSON, None, None),
    ("a number", b"1", _JSON, None, None),
    ("null", b"null", _JSON, None, None),
    ("true", b"true", _JSON, None, None),
    ("empty object", b"{}", "missing_required_parameter", "custom_id", None),
    (
        "id missing",
        json.dumps(without("custom_id")).encode(),
        "missing_required_parameter",
        "custom_id",
        None,
    ),
    ("id null", json.dumps(good(custom_id=None)).encode(), "invalid_type", "custom_id", None),
    ("a bare body", json.dumps(good()["body"]).encode(), "unknown_parameter", "messages", None),
    ("a body with an id", b'{"custom_id":"a","messages":[]}', "unknown_parameter", "messages"),
    ("BOM in mid-file", b"\xef\xbb\xbf" + json.dumps(good()).encode(), _JSON, None, "a"),
    ("UTF-16", json.dumps(good()).encode("utf-16"), _JSON, None, "a"),
    ("Latin-1", '{"custom_id":"\u00e9"}'.encode("latin-1"), _JSON, None, None),
    ("overlong UTF-8", _text('"\xc0\xaf"').replace(b"\xc3\x80\xc2\xaf", b"\xc0\xaf"), _JSON, None, None),
    ("surrogate in UTF-8", _text('"@"').replace(b'"@"', b'"\xed\xa0\x80"'), _JSON, None, "a"),
    ("cut UTF-8", _text('"@"').replace(b'"@"', b'"\xe2\x82"'), _JSON, None, None),
    ("beyond Unicode", _text('"@"').replace(b'"@"', b'"\xf5\x80\x80\x80"'), _JSON, None, None),
    ("raw NUL", _text('"\x00"'), _JSON, None, None),
    ("NUL after the object", json.dumps(good()).encode() + b"\x00", _JSON, None, None),
    ("raw tab", _text('"\t"'), _JSON, None, None),
    ("escaped NUL", _text(r'"a\u0000b"'), _JSON),
    ("escaped NUL after a backslash", _text(r'"a\\\u0000"'), _JSON),
    ("escaped NUL in the id", json.dumps(good(custom_id="a\x00")).encode(), _JSON, None, None),
    ("high surrogate alone", _text(r'"\ud800"'), _JSON),
    ("low surrogate alone", _text(r'"\udc00"'), _JSON),
    ("surrogates the wrong way round", _text(r'"\udc00\ud800"'), _JSON),
    ("high surrogate in capitals", _text(r'"\uDBFF x"'), _JSON),
    ("surrogate in the id", rb'{"custom_id":"\ud800","custom_id":"a"}', _JSON, "custom_id"),
    ("bad escape", _text(r'"\x41"'), _JSON, None, None),
    ("short escape", _text(r'"\u12"'), _JSON, None, None),
    ("NaN", _seed("NaN"), _JSON),
    ("Infinity", _seed("Infinity"), _JSON),
    ("minus Infinity", _seed("-Infinity"), _JSON),
    ("float beyond 64 bits", _seed("1e999"), _JSON),
    ("integer beyond 64 bits", _seed("18446744073709551616"), _JSON),
    ("negative integer beyond 64 bits", _seed("-9223372036854775809"), _JSON),
    ("integer of 10,000 digits", _seed("9" * 10_000), _JSON),
    ("integer of a million digits", _seed("-" + "1" * 1_000_000), _JSON),
    ("leading zero", _seed("01"), _JSON, None, None),
    ("leading plus", _seed("+1"), _JSON, None, None),
    ("hexadecimal", _seed("0x10"), _JSON, None, None),
    ("custom_id twice", b'{"custom_id":"b","custom_id":"a"}', _JSON, "custom_id"),
    ("body twice", json.dumps(good()).encode()[:-1] + b',"body":{}}', _JSON, "body"),
    ("role twice", _text('"x","role":"system"'), _JSON, "role"),
    ("key twice, once escaped", _text(r'"x","c\u006fntent":"y"'), _JSON, "content"),
    ("keys twice deep inside", _seed('{"k":[{"z":1,"z":1}]}'), _JSON, "z"),
    ("100,000 arrays deep", _seed("[" * 100_000 + "]" * 100_000), _JSON, None, None),
    ("100,000 objects deep", _seed('{"a":' * 100_000 + "1" + "}" * 100_000), _JSON, None, None),
    ("100,000 arrays never closed", b"[" * 100_000, _JSON, None, None),
    ("65 levels deep", _seed("[" * 63 + "]" * 63), _JSON),
    (
        "a million keys",
        b'{"custom_id":"a",' + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}",
        "unknown_parameter",
        "0",
    ),
    ("a million equal keys", b"{" + b",".join([b'"k":1'] * 10**6) + b"}", _JSON, "k", None),
    ("100,000 opening quotes", b'"\\' * 100_000, _JSON, None, None),
    ("33 MiB", _text('"' + "x" * 33 * 2**20 + '"'), "line_too_long", None, None),
]


class _Odd:
    pass


_request: Any = BatchRequest  # untyped: what follows are mistakes


_CYCLE: list[Any] = []
_CYCLE.append(_CYCLE)

_ITEMS: list[tuple[Any, ...]] = [
    ("None", None, "invalid_type"),
    ("a number", 7, "invalid_type"),
    ("NaN for a missing cell", float("nan"), "invalid_type"),
    ("bytes", b"hello", "invalid_type"),
    ("a list of messages", [{"role": "user", "content": "x"}], "invalid_type"),
    ("an object of another class", _Odd(), "invalid_type"),
    ("empty prompt", "", "invalid_value"),
    ("NUL in a prompt", "a\x00b", "invalid_value", "body.messages[0].content"),
    ("surrogate in a prompt", "\ud800", "invalid_value", "body.messages[0].content"),
    ("empty dict", {}, "missing_required_parameter", "method"),
    ("dict of another kind", {"prompt": "x"}, "unknown_parameter", "prompt"),
    ("bare body streamed", {**good()["body"], "stream": True}, "streaming_unsupported", "body.stream"),
    ("bare body, no messages in it", {"messages": []}, "invalid_request", "body.messages"),
    ("NaN inside", body(temperature=float("nan")), "invalid_value", "body.temperature", "a"),
    ("infinity inside", body(temperature=float("inf")), "invalid_value", "body.temperature", "a"),
    ("integer beyond 64 bits", body(seed=2**64), "invalid_value", "body.seed", "a"),
    ("a set", body(stop={"a"}), "invalid_type", "body.stop", "a"),
    ("bytes inside", body(user=b"x"), "invalid_type", "body.user", "a"),
    ("a class as response_format", body(response_format=_Odd), "invalid_type", "body.response_format", "a"),
    ("keys that are numbers", body(logit_bias={1: 2}), "invalid_type", "body.logit_bias", "a"),
    ("a list in itself", body(stop=_CYCLE), "invalid_value", "body.stop" + "[0]" * 62, "a"),
    ("surrogate in the id", good(custom_id="\udfff"), "invalid_value", "custom_id"),
    ("surrogate in a key", body(**{"\udfff": 1}), "invalid_value", "body", "a"),
    ("NUL in a key", MappingProxyType(body(**{"a\x00": 1})), "invalid_value", "body", "a"),
    ("33 MiB", body(user="x" * 33 * 2**20), "line_too_long", None, "a"),
    ("request with a str of messages", _request(messages="x"), "invalid_type", "body.messages"),
    ("request without messages", _request(messages=[]), "invalid_request", "body.messages"),
    ("request with None", _request(messages=None), "invalid_type", "body.messages"),
    ("request with params None", _request(messages=[], params=None), "invalid_type", "params"),
    ("request with metadata None", _request(messages=[], metadata=None), "invalid_type", "metadata"),
    (
        "messages in params",
        _request(messages=[], params={"messages": []}),
        "invalid_value",
        "params.messages",
    ),
    (
        "metadata in params",
        _request(messages=[], custom_id="q", params={"metadata": {}}),
        "invalid_value",
        "params.metadata",
        "q",
    ),
    (
        "request streamed",
        _request.chat("x", stream=True, custom_id="q"),
        "streaming_unsupported",
        "body.stream",
        "q",
    ),
    ("request with an empty id", _request.chat("x", custom_id=""), "invalid_value", "custom_id"),
    (
        "metadata that is no JSON",
        _request.chat("x", metadata={"o": _Odd()}),
        "invalid_type",
        "body.metadata.o",
    ),
]


def bad_lines() -> list[BadLine]:
    """Every line that a file must not hold."""
    objects = [BadLine(name, json.dumps(line).encode(), *rest) for name, line, *rest in _OBJECTS]
    return objects + [BadLine(*case) for case in _BYTES]


def bad_items() -> list[BadItem]:
    """Every item that an iterable must not give."""
    objects = [BadItem(n, line, code, field, *(rest or ["a"])) for n, line, code, field, *rest in _OBJECTS]
    return objects + [BadItem(*case) for case in _ITEMS]
