"""Results as the journal keeps them: a line of OpenAI's result files, and what that has no place for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from typing import Any, Final

import orjson

from ollama_batch.types import BatchResult, ResultRecord, RowError, Usage

__all__ = ["decode_result", "earlier_usage", "encode_result", "made_json", "told"]

_OK = 200
_HTTP_ERROR = 400

EARLIER: Final = "earlier_usage"
LEFT: Final = "rows_left"
"""The kind of the note that a session leaves of rows that it left pending although they had answers."""

EXTENSION = "ollama_batch"
"""The key of a line for what OpenAI's form has no place for and a reader of the file may want to know."""


def encode_result(
    result: BatchResult[Any], *, request_id: str | None = None, made: str | None = None
) -> ResultRecord:
    """`result` as a journal record; `decode_result` gives it back, all but `parsed`.

    The line of an answer holds status 200 and the answer's body. A row that failed with an HTTP status
    of 400 or more holds that status and an error body. A failed row with an answer that is of no use
    holds 200, the answer and an `error` beside it. Any other failed row holds only an `error`. A row of a
    conversation, or one whose prompt was trimmed, has a fifth key, EXTENSION: an object with `lane`, `trim`.
    So has a row that was asked again (`asked_again`, and `earlier_usage` with the usage of each answer before
    this), and one whose answer was repaired: the answer stays as the model gave it, and `parsed` is the JSON
    that it was repaired to (`made`).
    So `error is None and status_code == 200` is true of answers alone. The same result always gives
    the same line. Raises ValueError if `ok` and `error` contradict each other.
    """
    error = result.error
    if result.ok != (error is None):
        raise ValueError(f"result {result.index}: ok is {result.ok}, and error is {error!r}")
    stored = result.body
    if stored is None and error is None:
        stored = _minimal_body(result)
    if request_id is None:
        answer_id = None if stored is None else stored.get("id")
        request_id = answer_id if isinstance(answer_id, str) else ""
    tag = blake2b(f"{result.index}:{result.custom_id}".encode("utf-8", "replace"), digest_size=12).hexdigest()
    response: dict[str, Any] | None = None
    line_error: dict[str, Any] | None = None
    if error is not None and error.status is not None and error.status >= _HTTP_ERROR:
        kind = "invalid_request_error" if error.row_caused else "server_error"
        fault = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
        response = {"status_code": error.status, "request_id": request_id, "body": {"error": fault}}
    else:
        if stored is not None:
            response = {"status_code": _OK, "request_id": request_id, "body": stored}
        if error is not None:
            line_error = {"code": error.code, "message": error.message}
    line = {
        "id": f"batch_req_{tag}",
        "custom_id": result.custom_id or None,
        "response": response,
        "error": line_error,
    }
    extension = {
        name: value for name, usual in _EXTENDED.items() if (value := getattr(result, name)) != usual
    }
    if result.earlier_usage:
        extension[EARLIER] = [told(usage) for usage in result.earlier_usage]
    if result.repaired and made is not None:
        extension["parsed"] = json.loads(made)
    if extension:
        line[EXTENSION] = extension
    return ResultRecord(
        index=result.index,
        ok=result.ok,
        code=None if error is None else error.code,
        attempts=result.attempts,
        line=_dump(line),
        info=_dump(_info(result, line)),
    )


def decode_result(record: ResultRecord, custom_id: str | None) -> BatchResult[Any]:
    """The result in `record`, a row called `custom_id` (None: as its line says); `parsed` is None."""
    line = orjson.loads(record.line)
    values = _read_back(line, record.ok)
    info = orjson.loads(record.info)
    for name, kind in _PARTLY_TOLD.items():
        part = info.pop(name, _ABSENT)
        if isinstance(part, dict):
            base = values[name]
            values[name] = kind(**part) if base is None else replace(base, **part)
        elif part is None:
            values[name] = None
    return BatchResult(
        custom_id=custom_id or line["custom_id"] or "",
        ok=record.ok,
        index=record.index,
        attempts=record.attempts,
        **{**values, **info},
    )


def told(usage: Usage | None) -> dict[str, Any] | None:
    """`usage` as JSON data, which `earlier_usage` reads."""
    return None if usage is None else asdict(usage)


def earlier_usage(extension: Mapping[str, Any]) -> tuple[Usage | None, ...]:
    """What the extension of a line, or a note of kind LEFT, says of answers before the last one; nothing
    where it is not ours.
    """
    try:
        usages = extension.get(EARLIER) or ()
        return tuple(None if usage is None else Usage(**usage) for usage in usages)
    except TypeError:
        return ()


def made_json(record: ResultRecord) -> Any:
    """What the answer of a `repaired` row was repaired to, as JSON data; None for any other."""
    # Not by orjson, which makes floats of integers beyond 64 bits.
    extension: Mapping[str, Any] = json.loads(record.line).get(EXTENSION) or {}
    return extension.get("parsed")


_ABSENT: Any = object()
_EXTENDED: Mapping[str, Any] = {"lane": None, "trim": None, "asked_again": 0}
"""What of a result stands there where it is not as usual, and what is usual."""
_PARTLY_TOLD: Mapping[str, type[Any]] = {"usage": Usage, "error": RowError}
_FIELDS_OF: Mapping[type[Any], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in _PARTLY_TOLD.values()
}


def _info(result: BatchResult[Any], line: Mapping[str, Any]) -> dict[str, Any]:
    """What `decode_result` could not tell from `line`, by the names of BatchResult's fields."""
    info: dict[str, Any] = {}
    if result.latency_s is not None:
        info["latency_s"] = result.latency_s
    if result.repaired:
        info["repaired"] = True
    if result.metadata:
        info["metadata"] = result.metadata
    if result.model_digest is not None:
        info["model_digest"] = result.model_digest
    for name, read in _read_back(line, result.ok).items():
        real = tuple(result.earlier_usage) if name == EARLIER else getattr(result, name)
        if real is read or real == read:
            continue
        kind = _PARTLY_TOLD.get(name)
        if kind is None or real is None:
            info[name] = real
        else:
            info[name] = {
                key: value
                for key in _FIELDS_OF[kind]
                if (value := getattr(real, key)) != getattr(read, key, _ABSENT)
            }
    return info


def _minimal_body(result: BatchResult[Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": result.output}
    choice = {"index": 0, "finish_reason": result.finish_reason, "message": message}
    return {"object": "chat.completion", "choices": [choice]}


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_plain)
    except orjson.JSONEncodeError:
        # An unpaired surrogate in an error message, for instance: a readable record is worth more.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _read_back(line: Mapping[str, Any], ok: bool) -> dict[str, Any]:
    """The fields of a BatchResult that a line tells by itself, all of them with a value."""
    response, fault = line["response"], line["error"]
    status: int | None = None
    body: Any = None
    if response is not None:
        status, body = response["status_code"], response["body"]
    error: RowError | None = None
    if not ok:
        if status is not None and status >= _HTTP_ERROR:
            fault, body = body["error"], None
        error = RowError(fault["code"], fault["message"], status, fault.get("param"))
    message: Any = None
    choice: Any = None
    usage: Any = None
    if body is not None:
        choices, usage = body.get("choices"), body.get("usage")
        choice = choices[0] if isinstance(choices, list | tuple) and choices else None
        message = choice.get("message") if isinstance(choice, Mapping) else None
    message = message if isinstance(message, Mapping) else {}
    finish_reason = choice.get("finish_reason") if isinstance(choice, Mapping) else None
    output, reasoning = message.get("content"), message.get("reasoning") or message.get("reasoning_content")
    extension = line.get(EXTENSION, {})
    return {
        **{name: extension.get(name, usual) for name, usual in _EXTENDED.items()},
        EARLIER: earlier_usage(extension),
        "body": body,
        "error": error,
        "output": output if isinstance(output, str) else None,
        "reasoning": reasoning if isinstance(reasoning, str) else None,
        "finish_reason": finish_reason if isinstance(finish_reason, str) else None,
        "usage": _usage(usage) if isinstance(usage, Mapping) else None,
    }


def _usage(usage: Mapping[str, Any]) -> Usage | None:
    try:
        return Usage.from_openai(usage)
    except (TypeError, ValueError, AttributeError):  # a server's own idea of usage
        return None
