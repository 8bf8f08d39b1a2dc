"""Between OpenAI's chat form and Ollama's native `/api/chat`: request bodies one way, answers the other.

The bodies given here have passed `check_params`, so nothing is checked twice.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from ollama_batch.engines._http import Reply
from ollama_batch.errors import InvalidReplyError
from ollama_batch.types import ChatRequest, Completion, Timings, Usage

OPTIONS: Final = frozenset(
    {
        "temperature",
        "top_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "top_k",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "repeat_last_n",
        "num_keep",
    }
)
"""Body fields that are Ollama options of the same name and change no load."""

THINK_OF_EFFORT: Final[Mapping[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
}
"""`think` for each `reasoning_effort`, as ollama openai/openai.go has it."""


# Unique without asking the system for randomness on every answer.
_ID_PREFIX: Final = uuid.uuid4().hex[:20]
_ids = itertools.count()


def think_of(request: ChatRequest) -> bool | str:
    """The `think` that is sent: the row's `reasoning_effort`, or else the setting of the run."""
    effort = request.params.get("reasoning_effort")
    return request.think if effort is None else THINK_OF_EFFORT[effort]


def load_options(options: Mapping[str, Any], num_ctx: int | None) -> dict[str, Any]:
    """The options a load depends on: equal on every request, or the model is loaded anew each time."""
    return {**options} if num_ctx is None else {**options, "num_ctx": num_ctx}


def chat_body(request: ChatRequest, *, options: Mapping[str, Any], keep_alive: float | str) -> dict[str, Any]:
    """The body of `/api/chat` for `request`; `options` are the engine's frozen load options."""
    sent = load_options(options, request.num_ctx)
    # Positive always: a negative or missing value lets an answer run on for ten contexts.
    sent["num_predict"] = request.max_tokens
    body: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request.messages),
        "stream": False,
        # Without these two, long prompts are cut in silence and an answer pushes out its own prompt.
        "truncate": False,
        "shift": False,
        # Absent would mean on, for a model that can think.
        "think": think_of(request),
        "keep_alive": keep_alive,
        "options": sent,
    }
    params = request.params
    for name, value in params.items():
        if value is None:
            continue
        if name in OPTIONS:
            sent[name] = value
        elif name == "stop":
            sent["stop"] = [value] if isinstance(value, str) else value
        elif name == "response_format":
            _set_format(body, value)
        elif name == "tools":
            # "none" forbids the model to call tools; without any it cannot.
            if params.get("tool_choice") != "none":
                body["tools"] = value
        elif name in ("logprobs", "top_logprobs"):
            body[name] = value
    return body


def preload_body(
    model: str, *, options: Mapping[str, Any], num_ctx: int | None, keep_alive: float | str
) -> dict[str, Any]:
    """The body that loads `model` (or sets its `keep_alive`) with the load options its requests carry."""
    return {
        "model": model,
        "messages": [],
        "stream": False,
        "shift": False,
        "keep_alive": keep_alive,
        "options": load_options(options, num_ctx),
    }


def completion_of(reply: Mapping[str, Any], model: str) -> Completion:
    """The answer in a final message of `/api/chat`, as an OpenAI completion.

    Raises InvalidReplyError if it is not a finished one. Counts that Ollama leaves out are 0; cached tokens
    that it leaves out are unknown.
    """
    message = reply.get("message")
    if reply.get("done") is not True or not isinstance(message, dict):
        raise InvalidReplyError(
            "the engine broke off the answer without saying so (done is not true): Ollama does that after "
            "30 equal pieces of text in a row and when its runner fails in mid-answer",
            status=200,
        )
    done_reason = reply.get("done_reason")
    if done_reason in ("load", "unload"):
        raise InvalidReplyError(f"the engine answered {done_reason!r} instead of a completion", status=200)
    if done_reason not in (None, "", "stop", "length", "content_filter", "tool_calls"):
        raise InvalidReplyError(f"the engine broke off the answer (done_reason {done_reason!r})", status=200)
    answered_by = reply.get("model") or model
    if answered_by != model and full_name(str(answered_by)) != full_name(model):
        raise InvalidReplyError(f"{answered_by!r} answered instead of {model!r}", status=200)
    content = message.get("content")
    reasoning = message.get("thinking") or None
    if not isinstance(content, str | None) or not isinstance(reasoning, str | None):
        raise InvalidReplyError("the answer's content is not text", status=200)
    answer: dict[str, Any] = {"role": "assistant", "content": content or None}
    if reasoning is not None:
        answer["reasoning"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        answer["tool_calls"] = _tool_calls(calls)
    finish_reason = "tool_calls" if calls else "stop"
    if done_reason in ("length", "content_filter"):
        finish_reason = done_reason
    usage = Usage(
        prompt_tokens=_count(reply, "prompt_eval_count") or 0,
        completion_tokens=_count(reply, "eval_count") or 0,
        cached_tokens=_count(reply, "prompt_eval_cached_count"),
    )
    logprobs = reply.get("logprobs")
    body = {
        "id": f"chatcmpl-{_ID_PREFIX}{next(_ids):012x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answered_by,
        "choices": [
            {
                "index": 0,
                "message": answer,
                "finish_reason": finish_reason,
                "logprobs": {"content": logprobs} if logprobs else None,
            }
        ],
        "usage": usage.to_openai(),
    }
    return Completion(
        body=body,
        output=answer["content"],
        finish_reason=finish_reason,
        usage=usage,
        reasoning=reasoning,
        timings=_timings(reply),
    )


def full_name(model: str) -> str:
    """`model` as Ollama compares names: without the default registry, with its tag, in lower case."""
    name = model.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    tool_names: dict[str, str] = {}
    return [
        # The usual message has nothing to translate.
        message
        if len(message) == 2 and type(message.get("content")) is str and message["role"] in _PLAIN_ROLES
        else _message(message, tool_names)
        for message in messages
    ]


_PLAIN_ROLES: Final = frozenset({"system", "user", "assistant"})


def _message(message: Mapping[str, Any], tool_names: dict[str, str]) -> dict[str, Any]:
    role = message["role"]
    sent: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = message.get("content")
    if isinstance(content, str | None):
        sent["content"] = content or ""
    else:
        texts = [part.get("text", part.get("refusal", "")) for part in content if part["type"] != "image_url"]
        images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        # One message: Ollama's own /v1 route makes one of every part, and may then drop some of them.
        sent["content"] = "\n".join(texts)
        if images:
            sent["images"] = [url.partition(",")[2] for url in images]
    thinking = message.get("reasoning") or message.get("reasoning_content")
    if thinking:
        sent["thinking"] = thinking
    calls = message.get("tool_calls")
    if calls:
        sent["tool_calls"] = []
        for call in calls:
            function = call["function"]
            if call.get("id"):
                tool_names[call["id"]] = function["name"]
            arguments = orjson.loads(function.get("arguments") or "{}")
            sent["tool_calls"].append(
                {"id": call.get("id") or "", "function": {"name": function["name"], "arguments": arguments}}
            )
    if role == "tool":
        call_id = message.get("tool_call_id") or ""
        sent["tool_call_id"] = call_id
        name = message.get("name") or tool_names.get(call_id)
        if name:
            sent["tool_name"] = name
    return sent


def _set_format(body: dict[str, Any], response_format: Mapping[str, Any]) -> None:
    kind = response_format["type"]
    if kind == "json_object":
        body["format"] = "json"
    elif kind == "json_schema":
        body["format"] = response_format["json_schema"]["schema"]


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    answer = []
    try:
        for index, call in enumerate(calls):
            function = call["function"]
            answer.append(
                {
                    "id": call.get("id") or f"call_{uuid.uuid4().hex[:24]}",
                    "index": index,
                    "type": "function",
                    "function": {
                        "name": function["name"],
                        "arguments": orjson.dumps(function.get("arguments") or {}).decode(),
                    },
                }
            )
    except (KeyError, TypeError, AttributeError) as exc:
        raise InvalidReplyError(f"the answer holds a tool call that is none: {exc!r}", status=200) from exc
    return answer


def _count(reply: Mapping[str, Any], name: str) -> int | None:
    value = reply.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidReplyError(f"the answer's {name} is no count of tokens: {value!r}", status=200)
    return value


def _timings(reply: Mapping[str, Any]) -> Timings:
    total, load, prompt, generate = (
        value / 1e9 if isinstance(value := reply.get(name, 0), int | float) else 0.0
        for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    )
    if not total:
        return Timings()
    # What is left of the total is the wait for a free slot: the only sign of the server's real parallelism.
    queue = max(0.0, total - load - prompt - generate)
    return Timings(queue_s=queue, load_s=load, prompt_s=prompt, generate_s=generate)


def clock(reply: Reply) -> datetime:
    """What time it is for the server: that a model should be gone is said by its clock."""
    try:
        told = parsedate_to_datetime(reply.headers["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def left_s(expires: object, now: datetime) -> float | None:
    """Seconds until an `expires_at`, below 0 if it is past; None if that is not told."""
    if not isinstance(expires, str):
        return None
    try:
        at = datetime.fromisoformat(expires)
    except ValueError:
        return None
    # The year 1 is what Ollama writes where it does not know.
    return None if at.tzinfo is None or at.year < 2000 else (at - now).total_seconds()
