"""`/v1/chat/completions` and `/v1/models`: the engine itself, in turn with the batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ollama_batch._chat_line import Limits, LineError, check_body
from ollama_batch.errors import (
    EngineAuthError,
    EngineBusyError,
    EngineError,
    EngineLoadingError,
    EngineUnreachableError,
    ModelNotFoundError,
    OutcomeError,
    OutputTruncatedError,
    RequestRejectedError,
)
from ollama_batch.server.asked import service_of, text_of
from ollama_batch.server.faults import ApiFault
from ollama_batch.server.reading import json_object
from ollama_batch.server.service import Service
from ollama_batch.server.validation import plain_param
from ollama_batch.types import ChatRequest, Completion

_OWN = ("model", "messages", "metadata", "max_tokens", "max_completion_tokens", "stream", "stream_options")


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service = service_of(request)
    try:
        names = await service.engine.models()
    except EngineError as error:
        raise _fault(error) from None
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    service, name = service_of(request), request.path_params["id"]
    try:
        await service.engine.describe(name)
    except ModelNotFoundError:
        raise await _no_model(service) from None
    except EngineError as error:
        raise _fault(error) from None
    return JSONResponse(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(service.began_at), "owned_by": "engine"}


async def _no_model(service: Service) -> ApiFault:
    said = f"The engine does not have this model.{await service.engine.names()}"
    return ApiFault(404, said, code="model_not_found", param="model")


async def complete(request: Request) -> Response:
    """POST /v1/chat/completions. A stream is asked for and comes in one piece."""
    service = service_of(request)
    body = await json_object(request, service.settings, most=service.settings.max_line_bytes)
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise ApiFault(
            400, "Invalid type for 'stream': expected a boolean.", code="invalid_type", param="stream"
        )
    try:
        check_body({name: value for name, value in body.items() if name != "stream"}, Limits())
    except LineError as error:
        raise ApiFault(400, error.message, code=error.code, param=plain_param(error.field)) from None
    chat = _request_of(body, service)
    try:
        completion = await service.engine.complete(
            chat, timeout=service.settings.runner.get("timeout", 600.0)
        )
    except OutputTruncatedError as error:
        completion = error.completion
    except ModelNotFoundError:
        raise await _no_model(service) from None
    except EngineError as error:
        raise _fault(error) from None
    if not stream:
        return JSONResponse(dict(completion.body))
    usage = isinstance(options, dict) and options.get("include_usage") is True
    return StreamingResponse(_events(completion, usage=usage), media_type="text/event-stream")


def _request_of(body: dict[str, Any], service: Service) -> ChatRequest:
    """What the engine is to answer. Raises ApiFault for fields that it cannot honour."""
    default = service.settings.default_model
    model = default if default is not None and body.get("model") is None else text_of(body, "model")
    sent = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    refused = service.engine.engine.check_params(sent)
    if refused is not None:
        raise ApiFault(400, f"'{refused[0]}': {refused[1]}", code="unsupported_parameter", param=refused[0])
    runner = service.settings.runner
    most = body.get("max_completion_tokens") or body.get("max_tokens") or runner.get("max_tokens", 1024)
    if type(most) is not int or most < 1:
        raise ApiFault(
            400,
            "Invalid 'max_tokens': expected a whole number above 0.",
            code="invalid_value",
            param="max_tokens",
        )
    num_ctx = service.scheduler.num_ctx_of(model)
    if num_ctx is None and service.settings.num_ctx != "auto":
        num_ctx = int(service.settings.num_ctx)
    return ChatRequest(
        custom_id="chat",
        model=model,
        messages=body["messages"],
        params={name: value for name, value in body.items() if name not in _OWN},
        max_tokens=most,
        num_ctx=num_ctx,
        think=runner.get("think", False),
    )


def _fault(error: EngineError) -> ApiFault:
    """An error of the engine as this server's own; its address is nobody's business."""
    if isinstance(error, RequestRejectedError):
        return ApiFault(400, error.message, code=error.code, param=error.param)
    if isinstance(error, OutcomeError):
        return ApiFault(502, error.message, code=error.code)
    if isinstance(error, EngineBusyError | EngineLoadingError | EngineUnreachableError):
        return ApiFault(503, "The engine cannot answer now.", code=error.code, headers={"retry-after": "5"})
    if isinstance(error, EngineAuthError):
        return ApiFault(502, "The engine refuses this server's key.", code=error.code)
    return ApiFault(502, "The engine failed.", code=error.code)


def _events(completion: Completion, *, usage: bool) -> Iterator[bytes]:
    """The answer as server-sent events: all of it in one, then the end."""
    body = dict(completion.body)
    base = {name: body.get(name) for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choices = body.get("choices") or []
    for end in (False, True):
        told = []
        for number, choice in enumerate(choices):
            delta = {} if end else dict(choice["message"])
            if delta.get("tool_calls"):
                delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(delta["tool_calls"])]
            reason = choice["finish_reason"] if end else None
            told.append({"index": choice.get("index", number), "delta": delta, "finish_reason": reason})
        yield b"data: " + orjson.dumps({**base, "choices": told}) + b"\n\n"
    if usage:
        yield b"data: " + orjson.dumps({**base, "choices": [], "usage": body.get("usage")}) + b"\n\n"
    yield b"data: [DONE]\n\n"
