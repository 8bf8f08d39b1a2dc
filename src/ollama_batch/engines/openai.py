"""The engine for servers that speak OpenAI's chat form: vLLM, llama.cpp, LM Studio and others."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal

import httpx
import orjson

from ollama_batch.engines._address import parse_base_url
from ollama_batch.engines._http import HttpClient, Reply, dump_json
from ollama_batch.engines._replies import check_outcome, classify
from ollama_batch.engines.openai_fields import OPENAI_FIELDS
from ollama_batch.errors import (
    ConfigError,
    EngineError,
    InvalidReplyError,
    ModelNotFoundError,
    UnsupportedParamError,
)
from ollama_batch.types import ChatRequest, Completion, EngineInfo, Message, Timings, Usage

ASK_S: Final = 30.0
"""Longest wait for an answer that needs no model."""

OLLAMA_NOTE: Final = (
    "An Ollama answers at this address. Its /v1 routes can set neither the context length (num_ctx) nor "
    "forbid that long prompts are cut in silence; use OllamaEngine with the same address."
)

_SHARING: Final = frozenset({"vllm", "sglang"})
"""What servers whose slots share their prefix cache write into `owned_by`."""

_TEMPLATE_FIELDS: Final = ("chat_template_kwargs", "chat_template")
"""Fields of a body that change what a prompt is made of."""

_WAITING: Final = re.compile(
    rb"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)"
    rb"(?:\{[^}]*\})? ([0-9.e+]+)",
    re.MULTILINE,
)
"""What servers call the number of requests that wait for a slot."""

_OWN_FIELDS: Final = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "stream", "n"})


class OpenAIEngine:
    """Answers through `/v1/chat/completions` of any server that has it.

    `base_url` may end in `/v1` or not. Fields are sent as they are (`docs/body-fields.md`); `extra_body`
    is laid under every request, so that a row's own field wins. The server decides its context length, and a
    `think` of the run is sent as `reasoning_effort` where it names a level: true and false have no common
    form (vLLM and llama.cpp take `chat_template_kwargs={"enable_thinking": False}` in `extra_body`).
    An answer counts only with a finish_reason. A `transport` of your own stays yours to close.
    Raises ConfigError for a wrong option.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        extra_body: Mapping[str, Any] | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        address = parse_base_url(base_url.strip().rstrip("/").removesuffix("/v1"))
        self._http = HttpClient(
            address, api_key=api_key, headers=headers, transport=transport, connect_timeout=connect_timeout
        )
        self._extra_body = _checked_extra(extra_body or {})
        self._tokenizer: Literal["llama.cpp", "vllm"] = "llama.cpp"
        self._way_s = float("inf")
        self.unwell: EngineError | None = None
        """What the latest `healthy` met on its way to the server; None if the server answered."""

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.address!r})"

    @property
    def address(self) -> str:
        """The server's URL, without `/v1` and credentials."""
        return self._http.address.url

    @property
    def extra_body(self) -> Mapping[str, Any]:
        """The fields laid under every request."""
        return self._extra_body

    def check_params(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """Whether every field of an OpenAI chat `body` can be sent: None, or (field path, reason)."""
        return OPENAI_FIELDS.check(body)

    async def describe(self, model: str) -> EngineInfo:
        """What the server tells about itself and `model`; `slots` from llama.cpp only.

        `shares_prefixes` where vLLM or SGLang answers: by the owner they give their models, or by `/version`.

        Where an Ollama answers, `details["note"]` says so and names the native engine. Raises
        ModelNotFoundError if the server lists its models and `model` is not among them.
        """
        deadline = time.monotonic() + ASK_S
        listing = await self._http.get("/v1/models", deadline=deadline)
        if listing.status not in (200, 404):
            raise classify(listing, missing_model=_how_to_get(model))
        props = _object(await self._http.get("/props", deadline=deadline))
        ollama = {} if props else _object(await self._http.get("/api/version", deadline=deadline))
        vllm = {} if props or ollama else _object(await self._http.get("/version", deadline=deadline))
        models = _models(_object(listing))
        entry = models.get(model) or models.get(f"{model}:latest")
        # llama.cpp answers to any name.
        if entry is None and models and not props and "*" not in "".join(models):
            raise ModelNotFoundError(
                f"{self.address} does not serve {model!r}, only {', '.join(sorted(models))}. "
                + _how_to_get(model),
                param="model",
            )
        details: dict[str, Any] = {"extra_body": dict(self._extra_body), "models": sorted(models)}
        if "version" in ollama:
            details["note"] = OLLAMA_NOTE
        settings = props.get("default_generation_settings")
        n_ctx = settings.get("n_ctx") if isinstance(settings, dict) else None
        context = _positive(n_ctx) or _positive((entry or {}).get("max_model_len"))
        self._tokenizer = "llama.cpp" if props else "vllm"
        version = props.get("build_info") or ollama.get("version") or vllm.get("version")
        return EngineInfo(
            engine="openai",
            address=self.address,
            version=None if version is None else str(version),
            model=model,
            digest=None,
            slots=_positive(props.get("total_slots")),
            context_length=context,
            context_fixed=context is not None,
            tokenizes=bool(props or vllm),
            shares_prefixes="version" in vllm or (entry or {}).get("owned_by") in _SHARING,
            details=details,
        )

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        """The complete answer to `request`, before `deadline` (`time.monotonic()` seconds).

        Raises EngineError; OutputTruncatedError and EmptyOutputError carry the completion.
        """
        body: dict[str, Any] = {**self._extra_body, "model": request.model, "messages": request.messages}
        if isinstance(request.think, str):
            body["reasoning_effort"] = request.think
        body.update({name: value for name, value in request.params.items() if value is not None})
        body["max_tokens"] = request.max_tokens
        body["stream"] = False
        content = dump_json(body)
        sent = time.monotonic()
        reply = await self._http.post("/v1/chat/completions", content, deadline=deadline)
        took_s = time.monotonic() - sent
        completion = completion_of(self._decoded(reply, request.model))
        given, asked = len(completion.body["choices"]), body.get("n")
        if isinstance(asked, int) and given < asked:
            raise UnsupportedParamError(
                f"{self.address} gave {given} of the {asked} answers that n asks for: it does not honour n; "
                "repeat the row under other ids",
                param="n",
            )
        return check_outcome(self._with_wait(completion, took_s), own_limit=request.own_limit)

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float,
    ) -> int:
        """The tokens of a prompt, counted by a server that `tokenizes` (llama.cpp, vLLM), not answered.

        Raises EngineError; InvalidReplyError from a server that cannot.
        """
        chat: dict[str, Any] = {"model": model, "messages": messages, "add_generation_prompt": True}
        chat |= {name: self._extra_body[name] for name in _TEMPLATE_FIELDS if name in self._extra_body}
        if tools:
            chat["tools"] = tools
        if self._tokenizer == "vllm":
            count = (await self._told("/tokenize", chat, model, deadline)).get("count")
        else:
            prompt = (await self._told("/apply-template", chat, model, deadline)).get("prompt")
            text = {"content": prompt, "add_special": True, "parse_special": True}
            tokens = (await self._told("/tokenize", text, model, deadline)).get("tokens")
            count = len(tokens) if isinstance(tokens, list) else None
        if type(count) is not int:
            raise InvalidReplyError(f"{self.address} did not count a prompt", status=200)
        return count

    async def models(self) -> Sequence[str]:
        """The names of the models that `/v1/models` lists, sorted."""
        reply = await self._http.get("/v1/models", deadline=time.monotonic() + ASK_S)
        return sorted(_models(self._decoded(reply, "")))

    async def waiting(self) -> int | None:
        """How many requests wait, as `/metrics` of vLLM, SGLang or llama.cpp (`--metrics`) has it."""
        reply = await self._http.get("/metrics", deadline=time.monotonic() + ASK_S)
        return waiting_in(reply.content) if reply.status == 200 else None

    async def healthy(self) -> bool:
        """Whether the server answers and its model is loaded, by `/health` or, without that, `/v1/models`."""
        deadline = time.monotonic() + ASK_S
        try:
            reply = await self._http.get("/health", deadline=deadline)
            if reply.status == 404:
                reply = await self._http.get("/v1/models", deadline=deadline)
        except EngineError as exc:
            if not exc.retryable:
                raise
            self.unwell = exc
            return False
        self.unwell = None
        return reply.status == 200

    async def aclose(self) -> None:
        """Close the connections to the server; a second call does nothing."""
        await self._http.aclose()

    def _with_wait(self, completion: Completion, took_s: float) -> Completion:
        """`completion` with the wait for a slot, where its timings tell the rest (llama.cpp).

        It is what the answer took beyond its timings, less the least of that seen so far: the way there and
        back, which is no wait.
        """
        timings = completion.timings
        if timings.prompt_s is None or timings.generate_s is None:
            return completion
        beyond_s = max(0.0, took_s - timings.prompt_s - timings.generate_s)
        self._way_s = min(self._way_s, beyond_s)
        return replace(completion, timings=replace(timings, queue_s=beyond_s - self._way_s))

    async def _told(self, path: str, body: Mapping[str, Any], model: str, deadline: float) -> dict[str, Any]:
        return self._decoded(await self._http.post(path, dump_json(body), deadline=deadline), model)

    def _decoded(self, reply: Reply, model: str) -> dict[str, Any]:
        if reply.status != 200:
            raise classify(reply, missing_model=_how_to_get(model))
        try:
            body = orjson.loads(reply.content)
        except orjson.JSONDecodeError as exc:
            raise InvalidReplyError(f"the answer of {self.address} is not JSON ({exc})", status=200) from exc
        if not isinstance(body, dict):
            raise InvalidReplyError(f"the answer of {self.address} is no JSON object", status=200)
        if body.get("error") is not None or body.get("object") == "error":
            raise classify(Reply(500, reply.headers, reply.content), missing_model=_how_to_get(model))
        return body


def completion_of(body: dict[str, Any]) -> Completion:
    """The completion in a decoded `chat.completion` object.

    Raises InvalidReplyError unless every choice has a message and a finish_reason.
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise InvalidReplyError("the answer has no choices", status=200)
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise InvalidReplyError("a choice of the answer has no message", status=200)
        if not isinstance(choice.get("finish_reason"), str):
            raise InvalidReplyError("the engine broke off the answer: it has no finish_reason", status=200)
        if not isinstance(choice["message"].get("content"), str | None):
            raise InvalidReplyError("the answer's content is not text", status=200)
        _check_tool_calls(choice["message"].get("tool_calls"))
    message = choices[0]["message"]
    content = message.get("content")
    timings = body.get("timings")
    timings = timings if isinstance(timings, dict) else {}
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return Completion(
        body=body,
        output=content or None,
        finish_reason=choices[0]["finish_reason"],
        usage=_usage(body.get("usage"), timings),
        reasoning=reasoning if isinstance(reasoning, str) else None,
        timings=Timings(
            prompt_s=_milliseconds(timings.get("prompt_ms")),
            generate_s=_milliseconds(timings.get("predicted_ms")),
        ),
    )


def waiting_in(metrics: bytes) -> int | None:
    """The requests that wait by a Prometheus page, of all models; None if it does not say."""
    found = [float(match[1]) for match in _WAITING.finditer(metrics)]
    return round(sum(found)) if found else None


def _usage(usage: Any, timings: Mapping[str, Any]) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    if cached is None and isinstance(timings.get("cache_n"), int):
        cached = timings["cache_n"]
    return Usage(
        prompt_tokens=_tokens(usage, "prompt_tokens") or 0,
        completion_tokens=_tokens(usage, "completion_tokens") or 0,
        cached_tokens=cached,
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(usage: Mapping[str, Any], details: str, name: str) -> int | None:
    inner = usage.get(details)
    return _tokens(inner, name) if isinstance(inner, dict) else None


def _tokens(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidReplyError(f"the answer's {name} is no count of tokens: {value!r}", status=200)
    return value


def _check_tool_calls(calls: Any) -> None:
    """Raises InvalidReplyError for what stands in `tool_calls` and names nothing that could be called."""
    if calls is None:
        return
    for call in calls if isinstance(calls, list) else (calls,):
        called = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
        if not isinstance(called, dict) or not called.get("name"):
            raise InvalidReplyError("the answer holds a tool call that names no function", status=200)


def _milliseconds(value: Any) -> float | None:
    return value / 1000 if isinstance(value, int | float) else None


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer, {} for anything else: optional routes may answer what they like."""
    if reply.status != 200:
        return {}
    try:
        decoded = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _models(listing: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    data = listing.get("data")
    entries = data if isinstance(data, list) else []
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _how_to_get(model: str) -> str:
    return f"Start the server with {model!r}, or give the run the name under which the server has it."


def _checked_extra(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in extra:
        if name in _OWN_FIELDS:
            raise ConfigError(f"extra_body[{name!r}]: this field is set by the run or the request")
    return MappingProxyType(dict(extra))
