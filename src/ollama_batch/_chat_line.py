"""The rules one line of an OpenAI batch file has to keep, checked on the decoded value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch._strict_json import printable, shorten
from ollama_batch.types import CHAT_URL, BatchRequest, InvalidRow

_LINE_KEYS: Final = ("custom_id", "method", "url", "body")
_OTHER_URLS: Final = frozenset(
    f"/v1/{name}"
    for name in (
        "responses",
        "embeddings",
        "completions",
        "moderations",
        "images/generations",
        "images/edits",
        "videos",
    )
)
_RESULT_KEYS: Final = frozenset({"response", "error"})
_PARTS: Final[Mapping[str, tuple[str, type]]] = {
    "text": ("text", str),
    "image_url": ("image_url", dict),
    "input_audio": ("input_audio", dict),
    "file": ("file", dict),
    "refusal": ("refusal", str),
}
_PARTS_OF_ROLE: Final[Mapping[str, frozenset[str]]] = {
    "system": frozenset({"text"}),
    "developer": frozenset({"text"}),
    "user": frozenset({"text", "image_url", "input_audio", "file"}),
    "assistant": frozenset({"text", "refusal"}),
    "tool": frozenset({"text"}),
    "function": frozenset(),
}
_JSON_NAMES: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a line may be: bytes, levels of nesting, characters of the id, messages of one request."""

    max_line_bytes: int = 32 * 2**20
    max_depth: int = 64
    max_id_chars: int = 512
    max_messages: int = 100_000

    def __post_init__(self) -> None:
        for name in ("max_line_bytes", "max_depth", "max_id_chars", "max_messages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        # Above this the serialisers, and Python's own recursion, set the limit.
        if self.max_depth > 200:
            raise ValueError(f"max_depth must be at most 200, not {self.max_depth}")


class LineError(Exception):
    """Raised when a line is no valid request; has all that an InvalidRow needs but the place.

    `code` names the rule as OpenAI's Batch API does where it has a name for it.
    """

    def __init__(
        self, code: str, message: str, field: str | None = None, custom_id: str | None = None
    ) -> None:
        super().__init__(code, message, field, custom_id)
        self.code = code
        self.message = message
        self.field = field
        self.custom_id = custom_id

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def at(self, file: str, line: int) -> InvalidRow:
        """This error as data, at `line` (from 1) of `file`."""
        return InvalidRow(file, line, self.code, self.message, self.custom_id, self.field)


def json_name(value: object) -> str:
    """What `value` is called in JSON: "an object", "null" ...; its Python type if it is not JSON."""
    return _JSON_NAMES.get(type(value), f"a Python {type(value).__name__}")


def check_line(line: object, limits: Limits, *, id_required: bool = True) -> BatchRequest:
    """The request in a decoded `line`. Raises LineError for the first rule it breaks."""
    if not isinstance(line, dict):
        raise LineError(
            "invalid_json_line", f"a line must hold one JSON object, this holds {json_name(line)}"
        )
    custom_id = line.get("custom_id")
    try:
        if len(line) != 4 or not all(key in line for key in _LINE_KEYS):
            _check_keys(line, id_required)
        if custom_id is not None or id_required:
            check_id(custom_id, limits)
        if line["method"] != "POST":
            raise LineError("invalid_value", "the method must be 'POST'", "method")
        if line["url"] != CHAT_URL:
            raise _wrong_url(line["url"])
        check_body(line["body"], limits)
    except LineError as exc:
        if exc.field != "custom_id" or isinstance(custom_id, str):
            exc.custom_id = usable_id(custom_id, limits)
        raise
    return BatchRequest.from_openai(line)


def usable_id(custom_id: object, limits: Limits) -> str | None:
    """`custom_id` if it is a valid one, else None: what an error can name the line by."""
    try:
        check_id(custom_id, limits)
    except LineError:
        return None
    return custom_id if isinstance(custom_id, str) else None


def check_id(custom_id: object, limits: Limits) -> None:
    """Raise LineError unless `custom_id` is one that can name a row."""
    if not isinstance(custom_id, str):
        raise LineError(
            "invalid_type", f"custom_id must be a string, not {json_name(custom_id)}", "custom_id"
        )
    if not custom_id:
        raise LineError("invalid_value", "custom_id must not be empty", "custom_id")
    if len(custom_id) > limits.max_id_chars:
        raise LineError(
            "invalid_value",
            f"custom_id has {len(custom_id)} characters, {limits.max_id_chars} are allowed",
            "custom_id",
        )
    if "\x00" in custom_id:
        raise LineError("invalid_value", "custom_id must not contain a NUL character", "custom_id")
    if not custom_id.isascii() and printable(custom_id) != custom_id:
        raise LineError("invalid_value", "custom_id must not contain an unpaired surrogate", "custom_id")


def check_body(body: object, limits: Limits) -> None:
    """Raise LineError unless `body` is a chat body: its messages well-formed, not streamed.

    Which of the other fields can be honoured, and with which values, is the engine's to say.
    """
    if not isinstance(body, dict):
        raise LineError("invalid_type", f"body must be an object, not {json_name(body)}", "body")
    if "messages" not in body:
        raise LineError("invalid_request", "Messages parameter is required.", "body.messages")
    messages = body["messages"]
    if not isinstance(messages, list):
        raise LineError(
            "invalid_type", f"messages must be an array, not {json_name(messages)}", "body.messages"
        )
    if not messages:
        raise LineError("invalid_request", "messages must hold at least one message", "body.messages")
    if len(messages) > limits.max_messages:
        raise LineError(
            "invalid_value",
            f"there are {len(messages)} messages, {limits.max_messages} are allowed",
            "body.messages",
        )
    for number, message in enumerate(messages):
        fault = _message_fault(message)
        if fault is not None:
            code, inner, reason = fault
            raise LineError(code, reason, f"body.messages[{number}]{inner}")
    if "model" in body:
        model = body["model"]
        if not isinstance(model, str):
            raise LineError("invalid_type", f"model must be a string, not {json_name(model)}", "body.model")
        if not model:
            raise LineError("invalid_value", "model must not be empty", "body.model")
    if "stream" in body:
        _check_stream(body["stream"])
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise LineError(
            "invalid_type", f"metadata must be an object, not {json_name(metadata)}", "body.metadata"
        )


def _check_stream(stream: object) -> None:
    if stream is True:
        raise LineError(
            "streaming_unsupported", "a batch is not streamed: leave 'stream' out of the body", "body.stream"
        )
    if stream is not None and stream is not False:
        raise LineError("invalid_type", f"stream must be a boolean, not {json_name(stream)}", "body.stream")


def _check_keys(line: Mapping[str, Any], id_required: bool) -> None:
    for key in line:
        if key not in _LINE_KEYS:
            name = shorten(key)
            if "body" not in line and "messages" in line:
                hint = "this is a bare chat body: put it in 'body', beside custom_id, method and url"
            elif line.keys() >= _RESULT_KEYS:
                hint = "this is a line of a result file, not of an input file"
            else:
                hint = "a line has custom_id, method, url and body; settings of the request go into 'body'"
            raise LineError("unknown_parameter", f"Unknown parameter: {name}; {hint}", key[:64])
    for key in _LINE_KEYS:
        if key not in line and (key != "custom_id" or id_required):
            raise LineError("missing_required_parameter", f"Missing required parameter: '{key}'.", key)


def _wrong_url(url: object) -> LineError:
    if not isinstance(url, str):
        return LineError("invalid_type", f"url must be a string, not {json_name(url)}", "url")
    if url in _OTHER_URLS:
        reason = f"{url} is an endpoint of OpenAI's Batch API that is not supported here"
    else:
        reason = f"{shorten(url)} is not a supported url"
    return LineError("invalid_url", f"{reason}: use {CHAT_URL!r}", "url")


_Fault = tuple[str, str, str]
"""(code, path within the message, reason)"""


def _message_fault(message: object) -> _Fault | None:
    if not isinstance(message, dict):
        return "invalid_type", "", f"a message must be an object, not {json_name(message)}"
    role = message.get("role")
    # The message nearly every line is made of, decided first.
    if (role == "user" or role == "system") and len(message) == 2 and type(message.get("content")) is str:
        return None
    if "role" not in message:
        return "missing_required_parameter", ".role", "a message needs a role"
    if not isinstance(role, str):
        return "invalid_type", ".role", f"role must be a string, not {json_name(role)}"
    if role not in _PARTS_OF_ROLE:
        return "invalid_value", ".role", f"{shorten(role)} is not one of {', '.join(_PARTS_OF_ROLE)}"
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        return "invalid_type", ".name", f"name must be a string, not {json_name(name)}"
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        code = "invalid_type" if "tool_call_id" in message else "missing_required_parameter"
        return code, ".tool_call_id", "a tool message needs the tool_call_id (a string) that it answers"
    if role == "function" and name is None:
        return "missing_required_parameter", ".name", "a function message needs the name of its function"
    if role != "assistant" and message.get("tool_calls") is not None:
        return "invalid_value", ".tool_calls", f"only an assistant message has tool_calls, not one of {role}"
    fault = _calls_fault(message.get("tool_calls"))
    return fault if fault is not None else _content_fault(role, message)


def _content_fault(role: str, message: Mapping[str, Any]) -> _Fault | None:
    content = message.get("content")
    if isinstance(content, str):
        return None
    if content is None:
        stands_for_it = ("tool_calls", "function_call", "refusal", "audio")
        if role == "function" and "content" in message:
            return None
        if role == "assistant" and any(message.get(key) for key in stands_for_it):
            return None
        code = "invalid_type" if "content" in message else "missing_required_parameter"
        rule = "only an assistant message with tool_calls may have none"
        return code, ".content", f"a message of {role} needs content; {rule}"
    if not isinstance(content, list) or role == "function":
        kinds = "a string" if role == "function" else "a string or an array of parts"
        return "invalid_type", ".content", f"content must be {kinds}, not {json_name(content)}"
    if not content:
        return "invalid_value", ".content", "an array of content parts must not be empty"
    allowed = _PARTS_OF_ROLE[role]
    for number, part in enumerate(content):
        where = f".content[{number}]"
        if not isinstance(part, dict):
            return "invalid_type", where, f"a content part must be an object, not {json_name(part)}"
        kind = part.get("type")
        if "type" not in part:
            return "missing_required_parameter", f"{where}.type", "a content part needs a type"
        if not isinstance(kind, str):
            return "invalid_type", f"{where}.type", f"type must be a string, not {json_name(kind)}"
        if kind not in allowed:
            kinds = ", ".join(sorted(allowed))
            return "invalid_value", f"{where}.type", f"{shorten(kind)} is not one of {kinds} ({role} message)"
        key, wanted = _PARTS[kind]
        if not isinstance(part.get(key), wanted):
            code = "invalid_type" if key in part else "missing_required_parameter"
            return code, f"{where}.{key}", f"a part of type {kind} needs {key!r}, {_JSON_NAMES[wanted]}"
        if kind == "image_url" and not isinstance(part[key].get("url"), str):
            code = "invalid_type" if "url" in part[key] else "missing_required_parameter"
            return code, f"{where}.image_url.url", "an image part needs 'url', a string"
    return None


def _calls_fault(calls: object) -> _Fault | None:
    if calls is None:
        return None
    if not isinstance(calls, list):
        return "invalid_type", ".tool_calls", f"tool_calls must be an array, not {json_name(calls)}"
    for number, call in enumerate(calls):
        where = f".tool_calls[{number}]"
        if not isinstance(call, dict):
            return "invalid_type", where, f"a tool call must be an object, not {json_name(call)}"
        if not isinstance(call.get("id"), str):
            code = "invalid_type" if "id" in call else "missing_required_parameter"
            return code, f"{where}.id", "a tool call needs an id, a string"
        if call.get("type", "function") != "function":
            return "invalid_value", f"{where}.type", "a tool call must be of type 'function'"
        function = call.get("function")
        if not isinstance(function, dict):
            code = "invalid_type" if "function" in call else "missing_required_parameter"
            return code, f"{where}.function", "a tool call needs 'function', an object"
        for key in ("name", "arguments"):
            if not isinstance(function.get(key), str):
                code = "invalid_type" if key in function else "missing_required_parameter"
                return code, f"{where}.function.{key}", f"a function call needs {key!r}, a string"
    return None
