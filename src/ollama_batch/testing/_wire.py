"""Answers as bytes: Ollama's own form and OpenAI's, whole and streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from time import time
from typing import Any

import orjson

from ollama_batch.testing import _answers
from ollama_batch.testing._answer import Answer
from ollama_batch.testing._asks import Ask
from ollama_batch.testing._ollama import now

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
_PIECES = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def error(ask_api: str, status: int, text: str) -> bytes:
    """The body of an error, in the form of the route."""
    if ask_api == "openai":
        kind = _ERROR_TYPES.get(status, "api_error")
        return orjson.dumps({"error": {"message": text, "type": kind, "param": None, "code": None}})
    return orjson.dumps({"error": text})


def whole(ask: Ask, answer: Answer) -> bytes:
    """The body of an answer that is not streamed."""
    if answer.body is not None:
        return answer.body.encode() if isinstance(answer.body, str) else orjson.dumps(answer.body)
    body = _openai(ask, answer) if ask.api == "openai" else _native(ask, answer)
    return _damaged(answer, orjson.dumps(body))


def pieces(ask: Ask, answer: Answer) -> Iterator[bytes]:
    """The lines of a streamed answer, one per word."""
    parts = [("thinking", part) for part in _PIECES.findall(answer.thinking)]
    parts += [("content", part) for part in _PIECES.findall(answer.text)]
    make = _openai_pieces if ask.api == "openai" else _native_pieces
    for piece in make(ask, answer, parts):
        yield _damaged(answer, piece)


def stream_failure(ask: Ask, text: str) -> bytes:
    """What ends a stream in which the model failed."""
    if ask.api == "openai":  # ollama middleware/openai.go drops the error and sends an empty chunk
        return _event(_chunk(ask.model, {"role": "assistant", "content": ""}, None))
    return orjson.dumps({"error": text}) + b"\n"


def alter(answer: Answer, kind: str, num_predict: int) -> None:
    """Change an answer as the fault of that name says."""
    answer.fault = kind
    if kind == "not_done":
        answer.text = answer.text[: len(answer.text) // 2]
        answer.done = False
    elif kind in ("empty", "length_empty", "content_filter"):
        answer.text = ""
    elif kind == "whitespace":
        answer.text = "\n\n \t\n"
    elif kind == "thinking_only":
        answer.thinking, answer.text = answer.thinking or answer.text, ""
    elif kind == "length":
        answer.text = answer.text[: len(answer.text) // 2]
    elif kind == "refusal":
        answer.text = _answers.REFUSAL
    elif kind == "fenced":
        answer.text = f"```json\n{answer.text}\n```"
    elif kind == "repeat":
        answer.eval_tokens = num_predict if num_predict > 0 else 2048
        answer.text = " ".join(["again"] * answer.eval_tokens)
    elif kind == "wrong_model":
        answer.model = "other:1b"
    if kind in ("length", "length_empty", "repeat"):
        answer.done_reason = "length"
    elif kind == "content_filter":
        answer.done_reason = "content_filter"


def _message(ask: Ask, answer: Answer) -> dict[str, Any]:
    if ask.api == "generate":
        message: dict[str, Any] = {"response": answer.text}
    else:
        message = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        message["reasoning" if ask.api == "openai" else "thinking"] = answer.thinking
    if answer.tool_calls:
        message["tool_calls"] = [_tool_call(ask, index, call) for index, call in enumerate(answer.tool_calls)]
    text = "response" if ask.api == "generate" else "content"
    if answer.fault == "content_null":
        message[text] = None
    elif answer.fault == "content_number":
        message[text] = 42
    return message


def _tool_call(ask: Ask, index: int, call: Mapping[str, Any]) -> dict[str, Any]:
    if ask.api != "openai":
        return {"function": {"name": call["name"], "arguments": dict(call["arguments"])}}
    arguments = orjson.dumps(call["arguments"]).decode()
    function = {"name": call["name"], "arguments": arguments}
    return {"id": call.get("id", f"call_{index}"), "index": index, "type": "function", "function": function}


def _native(ask: Ask, answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = {"model": answer.model, "created_at": now()}
    if answer.fault != "message_missing":
        message = _message(ask, answer)
        body |= message if ask.api == "generate" else {"message": message}
    if answer.fault != "done_missing":
        body["done"] = answer.done
    if not answer.done:
        return body
    if answer.done_reason:
        body["done_reason"] = answer.done_reason
    if answer.fault != "no_metrics":
        body |= _metrics(answer)
    return body


def _metrics(answer: Answer) -> dict[str, int]:
    metrics = {
        "total_duration": answer.total_ns,
        "load_duration": answer.load_ns,
        "prompt_eval_count": answer.prompt_tokens,
        "prompt_eval_duration": answer.prompt_ns,
        "eval_count": answer.eval_tokens,
        "eval_duration": answer.eval_ns,
    }
    if answer.done_reason in ("load", "unload"):
        metrics = {name: metrics[name] for name in ("total_duration", "load_duration")}
    told = {name: value for name, value in metrics.items() if value}  # omitempty: absent means 0
    if answer.cached is not None and "prompt_eval_duration" in told:
        told["prompt_eval_cached_count"] = answer.cached  # a pointer there: 0 is told
    return told


def _native_pieces(ask: Ask, answer: Answer, parts: list[tuple[str, str]]) -> Iterator[bytes]:
    for kind, part in parts:
        piece = Answer(answer.model, part if kind == "content" else "", done=False, fault=answer.fault)
        piece.thinking = part if kind == "thinking" else ""
        yield orjson.dumps(_native(ask, piece)) + b"\n"
    if not answer.done:
        return
    last = _native(ask, answer)
    message = last if ask.api == "generate" else last.get("message", {})
    message.pop("thinking", None)
    text = "response" if ask.api == "generate" else "content"
    if isinstance(message.get(text), str):
        message[text] = ""
    yield orjson.dumps(last) + b"\n"


def _openai(ask: Ask, answer: Answer) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0}
    if answer.fault != "message_missing":
        choice["message"] = _message(ask, answer)
    if answer.fault != "done_missing":
        choice["finish_reason"] = _finish(answer)
    body = {**_head(answer.model, "chat.completion"), "choices": [choice]}
    if answer.fault != "no_metrics":
        body["usage"] = _usage(answer)
    return body


def _finish(answer: Answer) -> str | None:
    if not answer.done:
        return None
    return "tool_calls" if answer.tool_calls else answer.done_reason or None


def _usage(answer: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.eval_tokens,
        "total_tokens": answer.prompt_tokens + answer.eval_tokens,
    }
    if answer.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": answer.cached}
    return usage


def _head(model: str, kind: str) -> dict[str, Any]:
    created = time()
    return {
        "id": f"chatcmpl-{int(created * 1e6) % 999}",  # 0 to 998, as Ollama's: not unique
        "object": kind,
        "created": int(created),
        "model": model,
        "system_fingerprint": "fp_ollama",
    }


def _chunk(model: str, delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {**_head(model, "chat.completion.chunk"), "choices": [choice]}


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _openai_pieces(ask: Ask, answer: Answer, parts: list[tuple[str, str]]) -> Iterator[bytes]:
    for kind, part in parts:
        delta = {"role": "assistant", "content": part if kind == "content" else ""}
        if kind == "thinking":
            delta["reasoning"] = part
        yield _event(_chunk(answer.model, delta, None))
    if not answer.done:
        return
    delta = _message(ask, answer)
    delta.pop("reasoning", None)
    if isinstance(delta["content"], str):
        delta["content"] = ""
    yield _event(_chunk(answer.model, delta, _finish(answer)))
    if ask.include_usage:
        yield _event({**_chunk(answer.model, {}, None), "choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def _damaged(answer: Answer, body: bytes) -> bytes:
    if answer.fault != "bad_utf8":
        return body
    return re.sub(rb'"(content|response)":"', b'"\\1":"\xff\xfe', body, count=1)
