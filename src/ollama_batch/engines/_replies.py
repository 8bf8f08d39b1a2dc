"""What engines' replies mean: errors by status and wording, and the outcome of complete answers.

This is the only place that looks at the wording of error messages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
import orjson

from ollama_batch._thinking import without_thinking
from ollama_batch.engines._http import Reply
from ollama_batch.engines._runaway import runs_away
from ollama_batch.errors import (
    ContextTooLargeError,
    EmptyOutputError,
    EngineAuthError,
    EngineBusyError,
    EngineCrashedError,
    EngineError,
    EngineLoadingError,
    EngineOutOfMemoryError,
    EngineServerError,
    EngineStoppedError,
    EngineTimeoutError,
    InvalidReplyError,
    ModelNotFoundError,
    OutcomeError,
    OutputRefusedError,
    OutputTruncatedError,
    ReasoningOnlyError,
    RequestRejectedError,
    UnsupportedParamError,
)
from ollama_batch.types import Completion

MAX_ERROR_CHARS: Final = 2000

# ollama llm/status.go, and what releases before 0.30 and MLX say.
OUT_OF_MEMORY: Final = (
    "out of memory",
    "out of device memory",
    "out-of-memory",
    "cudamalloc failed",
    "hipmalloc failed",
    "failed to allocate",
    "allocation failed",
    "not enough memory",
    "insufficient memory",
    "vk_error_out_of_device_memory",
    "erroroutofmemory",
    "model requires more system memory",
    "no available memory for the cache blocks",
    # llama.cpp: the slots share one cache, and what is in flight has filled it.
    "failed to find free space in the kv cache",
)

# ollama llm/llama_server.go and server/routes.go; older releases say "llama runner".
CRASHED: Final = (
    "llama-server process has terminated",
    "llama-server process no longer running",
    "llama runner process has terminated",
    "llama runner process no longer running",
    "model runner has unexpectedly stopped",
    "an error was encountered while running the model",
    "mlx runner failed",
    "error starting llama-server",
    "server not responding",
    "connection refused",
)

LOADING: Final = ("loading model",)

BUSY: Final = ("server busy", "server overloaded")

STOPPED: Final = (
    "enginedeaderror",
    "enginecore encountered an issue",
    "llama-server binary not found",
    # Of `ollama_batch.testing`: the test is wrong, and nothing to be waited for.
    "the reply function of fakeollama raised",
)

# Ollama reports these faults of the request itself with status 500.
REJECTED: Final = ("invalid format:", "invalid options", " must be of type ")

TOO_LONG: Final = (
    "the prompt is longer than the context length",
    "the input length exceeds the context length",
    "exceeds the available context size",
    "exceeds the model's maximum context length",
    "maximum context length is",
    "input prompt is too big compared to kv size",
    "exceed_context_size_error",
    "context_length_exceeded",
)

CUT_OFF: Final = frozenset({"length", "max_tokens", "max_length", "model_length"})
"""Ways in which servers say that a token limit ended an answer, lower-cased."""

FINISHED: Final = frozenset(
    {"stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn", "complete"}
)
"""Ways in which servers say that an answer ended by itself, lower-cased: all others ("abort" of vLLM and
SGLang, "error", "insufficient_system_resource") are no end of an answer."""

_TOKENS: Final = (
    re.compile(r"request \((\d+) tokens\)"),
    re.compile(r"input length \((\d+) tokens\)"),
    re.compile(r"prompt contains at least (\d+) input tokens"),
    re.compile(r"you requested (\d+) tokens"),
    re.compile(r"request has (\d+) input tokens"),
)
_LIMIT: Final = (
    re.compile(r"available context size \((\d+) tokens\)"),
    re.compile(r"maximum context length \((\d+) tokens\)"),
    re.compile(r"maximum context length is (\d+)"),
)
_DATA: Final = re.compile(r"[\ufeff\s]*(?:\{|\[\s*[\[{\"]|(?:data|event|id|retry):)")
"""How JSON, lines of JSON and server-sent events begin, whole or cut off."""
_NO_SUPPORT: Final = re.compile(r"does not support (\w+)")
_NO_INPUT: Final = re.compile(r"(image|audio) input is not supported")
"""What llama.cpp says, with status 500, of a model that cannot see or hear."""


def classify(reply: Reply, *, missing_model: str) -> EngineError:
    """The error that a reply without a usable answer means.

    `missing_model` tells the user how to get a model that the server does not have.
    """
    status = reply.status
    text, kind, detail = error_text(reply.content)
    lower = text.lower()
    shown = f"{text[:MAX_ERROR_CHARS]} (HTTP {status})" if text else _unsaid(status, reply.content)
    wait = retry_after_s(reply.headers)

    if status in (401, 403):
        hint = "" if status == 401 or text else "; an Ollama on loopback refuses other host names"
        return EngineAuthError(f"{shown}; check api_key and headers{hint}", status=status)
    if any(mark in lower or mark in kind for mark in TOO_LONG):
        error = ContextTooLargeError(*_context_numbers(text, detail), message=shown)
        error.status = status
        return error
    # Only what the runner wrote to stderr, which Ollama appends after a newline, can be ours below 500.
    where = lower if status >= 500 else lower.partition("\n")[2]
    if is_out_of_memory(where):
        return EngineOutOfMemoryError(shown, status=status)
    if _is_missing_model(status, lower, kind):
        return ModelNotFoundError(f"{shown}\n{missing_model}", status=status, param="model")
    if status < 400:
        return InvalidReplyError(_odd_status(status, reply.headers), status=status)
    if status == 408:
        return EngineTimeoutError(shown, status=status)
    if status in (425, 429):
        return EngineBusyError(shown, status=status, retry_after_s=wait)
    if status == 499:
        return EngineLoadingError(f"{shown}: loading the model was cancelled", status=status)
    if status == 404 or status == 405:
        return InvalidReplyError(f"{shown}: nothing answers at this path; check base_url", status=status)
    senseless = _NO_INPUT.search(lower.partition("\n")[0])
    if senseless:
        takes_no = "images" if senseless[1] == "image" else "audio"
        shown = f"the model takes no {takes_no}: {shown}"
        return UnsupportedParamError(shown, status=status, param="messages")
    if status < 500:
        return _rejected(shown, lower, status, detail)
    if any(mark in lower or mark in kind for mark in STOPPED):
        return EngineStoppedError(shown, status=status)
    if any(mark in lower for mark in REJECTED):
        return RequestRejectedError(shown, status=status)
    if any(mark in lower for mark in CRASHED):
        return EngineCrashedError(shown, status=status, retry_after_s=wait)
    if any(mark in lower for mark in LOADING):
        return EngineLoadingError(shown, status=status, retry_after_s=wait)
    if status == 503 or any(mark in lower for mark in BUSY):
        return EngineBusyError(shown, status=status, retry_after_s=wait)
    return EngineServerError(shown, status=status, retry_after_s=wait)


def is_out_of_memory(text: str) -> bool:
    """Whether an engine's words, lower-cased, mean that memory ran out (Ollama's own rule)."""
    if not any(mark in text for mark in OUT_OF_MEMORY):
        return False
    return "retrying without pipeline parallelism" not in text.rstrip().rpartition("\n")[2]


def error_text(content: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """The message of an error body, its lower-cased type and code, and the object they stand in.

    Reads Ollama's `{"error": text}`, OpenAI's `{"error": {"message": ...}}`, vLLM's flat form, and JSON that
    Ollama passes on inside the text. What is no JSON is itself the message. Anything else has none: it may
    be a prompt or an answer, which nobody is to read in a log.
    """
    decoded = _json(content)
    if decoded is None:
        text = content[:MAX_ERROR_CHARS].decode("utf-8", "replace").strip()
        return "" if _DATA.match(text) else text, "", {}
    error = decoded.get("error", decoded)
    if isinstance(error, str):
        inner_text, newline, stderr = error.partition("\n")
        inner = _json(inner_text.encode()) if inner_text.startswith("{") else None
        if inner is None:
            return stderr if inner_text.startswith("{") else error, "", {}
        message, kind, detail = error_text(inner_text.encode())
        return message + newline + stderr, kind, detail
    if not isinstance(error, dict):
        return "", "", {}
    said = error.get("message") or error.get("detail")
    kind = f"{error.get('type') or ''} {error.get('code') or ''}".lower()
    return _message(said), kind, error


def _message(said: Any) -> str:
    """The text of a message, or what FastAPI lists of a request: it has the request in it besides."""
    if isinstance(said, list):
        listed = [each.get("msg") for each in said if isinstance(each, dict)]
        return "; ".join(each for each in listed if isinstance(each, str))
    return said if isinstance(said, str) else ""


def _unsaid(status: int, content: bytes) -> str:
    """What is told of a body that holds no error message."""
    told = f"the server answered HTTP {status}"
    size = "1 byte that is" if len(content) == 1 else f"{len(content):,} bytes that are"
    return f"{told}, with {size} no error message" if content.strip() else told


def retry_after_s(headers: httpx.Headers, now: float | None = None) -> float | None:
    """How long the server asks to wait, in seconds: from `retry-after-ms`, or from `retry-after`,
    which holds seconds or a date.

    Never negative; None if it does not ask, or not in a form that can be read. `now` is `time.time()`.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            seconds = _seconds_until(value, time.time() if now is None else now)
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _seconds_until(date: str, now: float) -> float:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now)
    except (ValueError, OverflowError):
        return -1.0


def check_outcome(completion: Completion, *, own_limit: bool = False) -> Completion:
    """`completion`, if it is an answer of use. `own_limit`: its token limit is the row's own.

    Raises OutputTruncatedError if the token limit cut it off, OutputRefusedError if the engine withheld it,
    InvalidReplyError if it ended in a way that is none of an answer's, and EmptyOutputError if it has neither
    text nor a tool call (white space is no text, nor is thinking that the server has left in the text):
    ReasoningOnlyError where it has reasoning.
    """
    raised = "raise the row's own max_tokens" if own_limit else "raise max_tokens"
    for choice in completion.body["choices"]:
        message = choice["message"]
        reason = choice["finish_reason"].lower()
        content = message.get("content")
        if reason in CUT_OFF:
            more = _cut_off(content, completion.reasoning, raised)
            raise _limited(OutputTruncatedError(more, completion), own_limit)
        if reason == "content_filter" or message.get("refusal"):
            raise OutputRefusedError("the engine's content filter withheld the answer", completion)
        if reason not in FINISHED:
            raise InvalidReplyError(
                f"the engine broke off the answer (finish_reason {choice['finish_reason']!r})", status=200
            )
        if message.get("tool_calls") or message.get("function_call"):
            continue
        if not content or (isinstance(content, str) and not without_thinking(content)):
            if completion.reasoning or (content and content.strip("\ufeff \t\r\n")):
                said = f"the answer has only reasoning, no text: turn think off or {raised}"
                raise _limited(ReasoningOnlyError(said, completion), own_limit)
            raise EmptyOutputError("the answer has no text and no tool call", completion)
    return completion


def _limited(error: OutcomeError, own_limit: bool) -> OutcomeError:
    """`error`, naming the row's field that has set the limit, if one has."""
    error.param = "max_tokens" if own_limit else None
    return error


def _cut_off(content: Any, reasoning: str | None, raised: str) -> str:
    said = "the answer was cut off by its token limit"
    if runs_away(content if isinstance(content, str) and content else reasoning or ""):
        return (
            f"{said} while it said the same over and over, which more tokens would not end: "
            "ask for less, raise repeat_penalty or temperature, or give a schema"
        )
    return f"{said}; {raised}" + ("" if content else " (there is only reasoning, no text yet)")


def _json(content: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _context_numbers(text: str, detail: Mapping[str, Any]) -> tuple[int | None, int | None]:
    tokens, limit = detail.get("n_prompt_tokens"), detail.get("n_ctx")
    if not isinstance(tokens, int):
        tokens = _first(_TOKENS, text)
    if not isinstance(limit, int):
        limit = _first(_LIMIT, text)
    return tokens, limit


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    for pattern in patterns:
        found = pattern.search(text)
        if found:
            return int(found[1])
    return None


def _is_missing_model(status: int, text: str, kind: str) -> bool:
    if "model_not_found" in kind:
        return True
    return status == 404 and "model" in text and ("not found" in text or "does not exist" in text)


def _rejected(shown: str, lower: str, status: int, detail: Mapping[str, Any]) -> RequestRejectedError:
    param = detail.get("param")
    unsupported = _NO_SUPPORT.search(lower)
    if unsupported:
        names = {"thinking": "think", "vision": "messages", "tools": "tools"}
        return UnsupportedParamError(shown, status=status, param=names.get(unsupported[1]))
    return RequestRejectedError(shown, status=status, param=param if isinstance(param, str) else None)


def _odd_status(status: int, headers: httpx.Headers) -> str:
    target = headers.get("location")
    if target:
        return f"the server redirects (HTTP {status}) to {target}; use that address as base_url"
    return f"the server answered HTTP {status} without an answer"
