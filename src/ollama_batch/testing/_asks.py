"""Requests for a completion, read as Ollama reads them (ollama api/types.go, openai/openai.go)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Any, Literal

import orjson

LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
"""Options that belong to the loaded model: another value is another load."""

_NOT_SAMPLING = frozenset((*LOAD_OPTIONS, "num_predict", "num_keep", "stop"))
_NUMBERS = (
    "num_predict",
    "seed",
    "top_k",
    "top_p",
    "min_p",
    "temperature",
    "repeat_penalty",
    "repeat_last_n",
)
_NOT_SENT = frozenset(("model", "messages", "prompt", "system", "suffix", "images", "context"))
_EFFORTS = {"none": False, "minimal": "low", "xhigh": "max", "ultra": "max"}
_GO_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_GO_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(h|ms|m|s|us|µs|ns)")


class Refusal(Exception):
    """Raised when the fake answers with an error, as Ollama would.

    `fault` names the kind of trouble in the ledger. `raw`: the text is the whole body. `reset`: there is no
    answer, the connection is reset. `told` is the response if it has been sent already, as part of a stream.
    """

    told: Any = None

    def __init__(
        self, status: int, text: str, *, fault: str = "", raw: bool = False, reset: bool = False
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.fault = fault
        self.raw = raw
        self.reset = reset


@dataclass(slots=True)
class Ask:
    """One request for a completion, whichever route it came by. Messages have string contents."""

    api: Literal["chat", "generate", "openai"]
    body: Mapping[str, Any]
    model: str
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    stream: bool
    format: Any = None
    think: Any = None
    keep_alive: Any = None
    truncate: bool = True
    shift: bool = True
    tools: bool = False
    include_usage: bool = False

    @property
    def last_user(self) -> str:
        """The content of the last user message."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                return str(message["content"])
        return ""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that depend on the messages alone."""
        text = orjson.dumps(self.messages, option=orjson.OPT_SORT_KEYS)
        return blake2b(text, digest_size=8).hexdigest()

    @property
    def sent(self) -> dict[str, Any]:
        """Everything the client really sent, but what says what is asked of which model."""
        return {name: value for name, value in self.body.items() if name not in _NOT_SENT}

    @property
    def sampling(self) -> dict[str, Any]:
        """The options that an answer depends on."""
        return {name: value for name, value in self.options.items() if name not in _NOT_SAMPLING}


def read_body(raw: bytes) -> dict[str, Any]:
    """The request body as an object. Raises Refusal with the words of Ollama's own reader."""
    if not raw:
        raise Refusal(400, "missing request body")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise Refusal(400, "invalid character in request body: not valid JSON") from exc
    if not isinstance(body, dict):
        raise Refusal(400, "json: cannot unmarshal value into Go value of type api.ChatRequest")
    return body


def read_chat(body: Mapping[str, Any]) -> Ask:
    """A body of `/api/chat`."""
    messages = body.get("messages") or []
    for message in messages:
        if not isinstance(message.get("content", ""), str):
            field = "ChatRequest.messages.content of type string"
            raise Refusal(400, f"json: cannot unmarshal value into Go struct field {field}")
        if message.get("role") not in ("user", "system", "assistant", "tool"):
            message["role"] = str(message.get("role", "")).lower()
        if message.get("content") is None:
            message["content"] = ""
    return _native("chat", body, messages)


def read_generate(body: Mapping[str, Any]) -> Ask:
    """A body of `/api/generate`."""
    messages: list[Mapping[str, Any]] = []
    if body.get("prompt"):
        if body.get("system"):
            messages.append({"role": "system", "content": body["system"]})
        user = {"role": "user", "content": body["prompt"]}
        messages.append({**user, "images": body["images"]} if body.get("images") else user)
    return _native("generate", body, messages)


def _native(
    api: Literal["chat", "generate"], body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
) -> Ask:
    options = body.get("options") or {}
    check_options(options)
    think = body.get("think")
    if isinstance(think, str) and think not in ("low", "medium", "high", "max"):
        raise Refusal(
            400, f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)'
        )
    return Ask(
        api,
        body,
        str(body.get("model") or ""),
        messages,
        options,
        stream=body.get("stream") is not False,
        format=body.get("format"),
        think=think,
        keep_alive=body.get("keep_alive"),
        truncate=body.get("truncate") is not False,
        shift=body.get("shift") is not False,
        tools=bool(body.get("tools")),
    )


def read_openai(body: Mapping[str, Any]) -> Ask:
    """A body of `/v1/chat/completions`: what that route ignores is ignored."""
    messages: list[Mapping[str, Any]] = []
    for message in body.get("messages") or []:
        content = message.get("content")
        if isinstance(content, list):  # Ollama makes one message of each part
            messages.extend(_part(message["role"], part) for part in content)
        else:
            messages.append({"role": str(message.get("role", "")).lower(), "content": content or ""})
    if not messages:
        raise Refusal(400, "[] is too short - 'messages'")
    options: dict[str, Any] = {
        "temperature": body.get("temperature", 1.0),
        "top_p": body.get("top_p", 1.0),
    }
    for theirs, ours in (("max_tokens", "num_predict"), ("seed", "seed")):
        if body.get(theirs) is not None:
            options[ours] = body[theirs]
    for name in ("frequency_penalty", "presence_penalty"):
        if body.get(name) is not None:
            options[name] = body[name]
    if body.get("stop") is not None:
        options["stop"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    return Ask(
        "openai",
        body,
        str(body.get("model") or ""),
        messages,
        options,
        stream=bool(body.get("stream")),
        format=_response_format(body.get("response_format")),
        think=_effort(body),
        tools=bool(body.get("tools")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def _part(role: str, part: Mapping[str, Any]) -> Mapping[str, Any]:
    if part.get("type") == "image_url":
        url = str(part["image_url"]["url"])
        if not url.startswith("data:"):
            raise Refusal(400, "invalid image input")
        return {"role": role, "content": "", "images": [url.partition(",")[2]]}
    return {"role": role, "content": str(part.get("text", ""))}


def _response_format(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return None
    if value.get("type") == "json_object":
        return "json"
    return value["json_schema"].get("schema") if value.get("type") == "json_schema" else None


def _effort(body: Mapping[str, Any]) -> Any:
    effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
    if effort is None:
        return None
    effort = _EFFORTS.get(effort, effort)
    if effort is not False and effort not in ("low", "medium", "high", "max"):
        raise Refusal(
            400, f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", or "none")'
        )
    return effort


def check_options(options: Mapping[str, Any]) -> None:
    """Raises Refusal, with Ollama's status 500, for an option of the wrong type."""
    stop = options.get("stop")
    if stop is not None and not isinstance(stop, list):
        raise Refusal(500, 'option "stop" must be of type array')
    for name in _NUMBERS + LOAD_OPTIONS:
        value = options.get(name)
        if value is not None and name != "use_mmap" and not isinstance(value, int | float):
            raise Refusal(500, f'option "{name}" must be of type integer')


def check_format(value: Any) -> None:
    """Raises Refusal, with Ollama's status 500, for a format that is neither "json" nor a schema."""
    if value not in (None, "", "json") and not isinstance(value, Mapping):
        text = orjson.dumps(value).decode()
        raise Refusal(500, f'invalid format: {text}; expected "json" or a valid JSON Schema object')


def keep_alive_s(value: Any, default: float = 300.0) -> float:
    """Seconds to keep a model loaded: a number, or a Go duration; infinite if negative."""
    if value is None:
        return default
    if isinstance(value, str):
        text = value.strip()
        parts = _GO_DURATION.findall(text)
        if text in ("0", "-0"):
            return 0.0
        if not parts or "".join(a + b for a, b in parts) != text.lstrip("+-"):
            raise Refusal(400, f'time: invalid duration "{value}"')
        seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
        return inf if text.startswith("-") else seconds
    return inf if value < 0 else float(value)
