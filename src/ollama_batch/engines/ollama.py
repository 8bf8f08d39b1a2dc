"""The engine for Ollama's native API."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson

from ollama_batch.engines import _ollama_wire as wire
from ollama_batch.engines._address import parse_ollama_host, serve_line
from ollama_batch.engines._http import HttpClient, Reply, dump_json
from ollama_batch.engines._replies import check_outcome, classify
from ollama_batch.engines.base import OLLAMA_PROCESSES
from ollama_batch.engines.ollama_fields import OLLAMA_FIELDS
from ollama_batch.errors import (
    ConfigError,
    EngineError,
    EngineServerError,
    EngineUnreachableError,
    InvalidReplyError,
    UnsupportedParamError,
)
from ollama_batch.types import ChatRequest, Completion, EngineInfo, LoadedModel

if TYPE_CHECKING:
    from ollama_batch.engines.managed import ManagedOllama

LOAD_OPTIONS: Final = frozenset(
    {"num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
"""Options that belong to a load; num_ctx is one too, but a setting of the run."""

ASK_S: Final = 30.0
"""Longest wait for an answer that needs no model."""

UNLOAD_S: Final = 60.0
"""Longest wait for a model to be gone from memory."""

POLL_S: Final = 0.25


class _Managed:
    """Gives the class of a managed engine, whose arguments are said there alone, once it is asked for."""

    def __get__(self, engine: object, owner: type | None = None) -> type[ManagedOllama]:
        from ollama_batch.engines.managed import ManagedOllama

        return ManagedOllama


class OllamaEngine:
    """Answers with the models of an Ollama server, by `/api/chat`.

    Every request carries the same load options (`options`, and the run's num_ctx), so that the model is
    loaded once; prompts that do not fit are errors, never cut; an answer counts only once the server
    says that it is done.

    `base_url` takes what `OLLAMA_HOST` takes, which is also its default. `options` are load options
    (num_batch, num_gpu, main_gpu, use_mmap, num_thread, draft_num_predict), frozen here. `keep_alive` is in
    seconds (negative: for ever) or a Go duration such as "10m". `api_key` is sent as a bearer token.
    A `transport` of your own stays yours to close. Raises ConfigError for a wrong option.

    `OllamaEngine.managed(...)` makes one with an `ollama serve` of its own.
    """

    managed = _Managed()

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str = -1,
        transport: httpx.AsyncBaseTransport | None = None,
        connect_timeout: float = 10.0,
    ) -> None:
        host = os.environ.get("OLLAMA_HOST") if base_url is None else base_url
        # People copy the address of the OpenAI routes; the native ones begin at the root.
        address = parse_ollama_host((host or "").strip().rstrip("/").removesuffix("/v1"))
        self._options = _checked_options(options or {})
        self._load_options = self._options
        self._keep_alive = _checked_keep_alive(keep_alive)
        self._http = HttpClient(
            address, api_key=api_key, headers=headers, transport=transport, connect_timeout=connect_timeout
        )
        self._capabilities: dict[str, frozenset[str]] = {}
        self.unwell: EngineError | None = None
        """What the latest `healthy` met on its way to the server; None if the server answered."""

    def __repr__(self) -> str:
        return f"OllamaEngine({self.address!r})"

    @property
    def address(self) -> str:
        """The server's URL, without credentials."""
        return self._http.address.url

    @property
    def options(self) -> Mapping[str, Any]:
        """The frozen load options that every request carries, but for `limit_batch`."""
        return self._options

    @property
    def num_batch(self) -> int | None:
        """The `num_batch` of the requests, in tokens; None: Ollama chooses."""
        return self._load_options.get("num_batch")

    def limit_batch(self, num_batch: int | None) -> None:
        """Have prompts evaluated in pieces of `num_batch` tokens from now on; None: as `options` say.

        Ollama loads the model anew for it, at the next request.
        """
        limited = {} if num_batch is None else {"num_batch": num_batch}
        self._load_options = MappingProxyType({**self._options, **limited})

    def _how_to_start(self) -> str:
        address = self._http.address
        if address.is_loopback:
            return f"Start Ollama with:\n{serve_line(address.url)}"
        # An Ollama listens to its own machine alone unless told otherwise.
        return f"Start Ollama on {address.host}, with OLLAMA_HOST=0.0.0.0 so that it listens to others"

    def check_params(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """Whether Ollama can honour every field of an OpenAI chat `body`: None, or (field path, reason)."""
        return OLLAMA_FIELDS.check(body)

    async def describe(self, model: str) -> EngineInfo:
        """The server's version, and digest, trained context length and capabilities of `model`.

        Raises ModelNotFoundError, with the `ollama pull` line, if the server does not have it.
        """
        deadline = time.monotonic() + ASK_S
        try:
            version = (await self._ask("GET", "/api/version", None, model, deadline)).get("version")
        except EngineUnreachableError as exc:
            raise EngineUnreachableError(
                f"{exc}\n{self._how_to_start()}\nor give its address (base_url=, or the variable OLLAMA_HOST)"
            ) from exc
        shown, tags = await asyncio.gather(
            self._ask("POST", "/api/show", {"model": model}, model, deadline),
            self._ask("GET", "/api/tags", None, model, deadline),
        )
        details = _dict(shown.get("details"))
        model_info = _dict(shown.get("model_info"))
        architecture = model_info.get("general.architecture")
        context_length = model_info.get(f"{architecture}.context_length")
        capabilities = shown.get("capabilities")
        if isinstance(capabilities, list):
            self._capabilities[model] = frozenset(map(str, capabilities))
        return EngineInfo(
            engine="ollama",
            address=self.address,
            version=version if isinstance(version, str) else None,
            model=model,
            digest=_digest(tags, model),
            slots=None,
            context_length=context_length if isinstance(context_length, int) else None,
            details={
                "capabilities": capabilities,
                "family": details.get("family"),
                "families": details.get("families"),
                "parameter_size": details.get("parameter_size"),
                "quantization": details.get("quantization_level"),
                "options": dict(self._options),
            },
        )

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        """The complete answer to `request`, before `deadline` (`time.monotonic()` seconds).

        Raises EngineError; OutputTruncatedError and EmptyOutputError carry the completion.
        """
        if wire.think_of(request):
            self._check_thinks(request.model)
        body = wire.chat_body(request, options=self._load_options, keep_alive=self._keep_alive)
        reply = await self._http.post("/api/chat", dump_json(body), deadline=deadline)
        decoded = self._decode(reply, request.model)
        completion = wire.completion_of(decoded, request.model)
        return check_outcome(completion, own_limit=request.own_limit)

    async def load(self, model: str, *, num_ctx: int | None, deadline: float) -> EngineInfo:
        """Load `model` with the options its requests will carry, and keep it loaded.

        Give a `deadline` of minutes: the load of a large model is given up when its request ends.
        """
        info = await self.describe(model)
        body = wire.preload_body(
            model, options=self._load_options, num_ctx=num_ctx, keep_alive=self._keep_alive
        )
        loaded = await self._ask("POST", "/api/chat", body, model, deadline)
        if loaded.get("done") is not True:
            raise InvalidReplyError(f"{self.address} did not say that {model} is loaded", status=200)
        return info

    async def release(self, model: str, *, num_ctx: int | None, unload: bool = False) -> None:
        """Give `model` Ollama's usual keep_alive of 5 minutes back, or unload it and wait until it is gone.

        Does nothing to a model that is not loaded. Raises EngineServerError if it stays loaded for a minute.
        """
        deadline = time.monotonic() + ASK_S
        if not await self._is_loaded(model, deadline):
            return
        keep_alive: float | str = 0 if unload else "5m"
        body = wire.preload_body(model, options=self._load_options, num_ctx=num_ctx, keep_alive=keep_alive)
        await self._ask("POST", "/api/chat", body, model, deadline)
        if not unload:
            return
        deadline = time.monotonic() + UNLOAD_S
        while await self._is_loaded(model, time.monotonic() + ASK_S):
            if time.monotonic() + POLL_S >= deadline:
                raise EngineServerError(
                    f"{self.address} still holds {model} in memory after {UNLOAD_S:.0f} s"
                )
            await asyncio.sleep(POLL_S)

    @property
    def process_names(self) -> frozenset[str]:
        """What the processes of an Ollama are called."""
        return OLLAMA_PROCESSES

    async def unload_others(self, model: str) -> Sequence[str]:
        """Have the server unload every model but `model` as soon as nothing uses it; returns their names."""
        deadline = time.monotonic() + ASK_S
        running = (await self._ask("GET", "/api/ps", None, model, deadline)).get("models")
        entries = [each for each in running if isinstance(each, dict)] if isinstance(running, list) else []
        wanted = wire.full_name(model)
        names = [name for each in entries if isinstance(name := each.get("model") or each.get("name"), str)]
        others = [name for name in names if wire.full_name(name) != wanted]
        for name in others:
            body = {"model": name, "messages": [], "stream": False, "keep_alive": 0}
            await self._ask("POST", "/api/chat", body, name, deadline)
        return others

    async def loaded(self, model: str) -> LoadedModel | None:
        """What `/api/ps` says of `model`, None if it is not loaded.

        Its sizes are those of the load: the context of every slot is allocated then, and does not grow.
        """
        reply = await self._reply("GET", "/api/ps", None, time.monotonic() + ASK_S)
        entry = _find(self._decode(reply, model), model)
        if entry is None:
            return None
        size, vram, context = (_size(entry.get(name)) for name in ("size", "size_vram", "context_length"))
        digest, left_s = entry.get("digest"), wire.left_s(entry.get("expires_at"), wire.clock(reply))
        return LoadedModel(
            model=model,
            # A loaded model that takes nothing is one whose size is not told.
            size_bytes=size or None,
            vram_bytes=vram if size else None,
            context_length=context or None,
            digest=digest if isinstance(digest, str) and digest else None,
            overdue_s=None if left_s is None or left_s > 0 else -left_s,
        )

    async def metadata(self, model: str) -> Mapping[str, Any]:
        """What `/api/show` says of `model`, with the `size` and `digest` of `/api/tags`.

        Lists that Ollama empties are asked for again with `verbose`, which sends the whole vocabulary
        (some MB): of a list of the tokenizer only its length is kept.
        """
        deadline = time.monotonic() + ASK_S
        shown, tags = await asyncio.gather(
            self._ask("POST", "/api/show", {"model": model}, model, deadline),
            self._ask("GET", "/api/tags", None, model, deadline),
        )
        info = _dict(shown.get("model_info"))
        if any(_emptied(info[key]) for key in info if not key.startswith("tokenizer.")):
            body = {"model": model, "verbose": True}
            shown = await self._ask("POST", "/api/show", body, model, deadline)
            info = _dict(shown.get("model_info"))
        kept = {
            key: len(value) if key.startswith("tokenizer.") and isinstance(value, list) else value
            for key, value in info.items()
        }
        entry = _find(tags, model) or {}
        return {
            **{name: shown.get(name) for name in ("details", "capabilities")},
            "model_info": kept,
            "size": _size(entry.get("size")) or None,
            "digest": _digest(tags, model),
        }

    async def digest(self, model: str) -> str | None:
        """The digest of what answers `model` from now on, which a pull changes; None if it is gone."""
        return _digest(await self._ask("GET", "/api/tags", None, model, time.monotonic() + ASK_S), model)

    async def models(self) -> Sequence[str]:
        """The names of the models that were pulled, sorted."""
        tags = await self._ask("GET", "/api/tags", None, "", time.monotonic() + ASK_S)
        listed = tags.get("models")
        names = [_dict(entry).get("name") for entry in (listed if isinstance(listed, list) else ())]
        return sorted(name for name in names if isinstance(name, str))

    async def healthy(self) -> bool:
        """Whether the server answers; that a model can run is only shown by a completion."""
        try:
            reply = await self._http.get("/api/version", deadline=time.monotonic() + ASK_S)
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

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, model: str, deadline: float
    ) -> dict[str, Any]:
        return self._decode(await self._reply(method, path, body, deadline), model)

    async def _reply(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float) -> Reply:
        content = None if body is None else dump_json(body)
        return await self._http.send(method, path, content, deadline=deadline)

    def _decode(self, reply: Reply, model: str) -> dict[str, Any]:
        if reply.status != 200:
            raise classify(reply, missing_model=_how_to_get(model))
        try:
            decoded = orjson.loads(reply.content)
        except orjson.JSONDecodeError as exc:
            raise InvalidReplyError(f"the answer of {self.address} is not JSON ({exc})", status=200) from exc
        if not isinstance(decoded, dict):
            raise InvalidReplyError(f"the answer of {self.address} is no JSON object", status=200)
        if decoded.get("error") is not None:
            raise classify(Reply(500, reply.headers, reply.content), missing_model=_how_to_get(model))
        return decoded

    async def _is_loaded(self, model: str, deadline: float) -> bool:
        running = await self._ask("GET", "/api/ps", None, model, deadline)
        return _find(running, model) is not None

    def _check_thinks(self, model: str) -> None:
        capabilities = self._capabilities.get(model)
        if capabilities is not None and "thinking" not in capabilities:
            raise UnsupportedParamError(
                f"{model} cannot think (capabilities: {', '.join(sorted(capabilities))}); "
                "set think=False and leave reasoning_effort out",
                param="think",
            )


def _how_to_get(model: str) -> str:
    return f"Get it with:\nollama pull {model}"


def _checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in options:
        if name == "num_ctx":
            raise ConfigError(
                "options['num_ctx']: the context length is a setting of the run; give num_ctx there"
            )
        if name == "num_predict":
            raise ConfigError("options['num_predict']: give max_tokens to the run or the request")
        if name in wire.OPTIONS or name == "stop":
            raise ConfigError(
                f"options[{name!r}] is a setting of requests; give it in defaults or in the request"
            )
        if name not in LOAD_OPTIONS:
            raise ConfigError(
                f"options[{name!r}] is no load option of Ollama; those are {', '.join(sorted(LOAD_OPTIONS))}"
            )
    return MappingProxyType(dict(options))


def _checked_keep_alive(keep_alive: Any) -> float | str:
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float | str) or keep_alive == "":
        raise ConfigError(f"keep_alive must be seconds or a duration such as '10m', not {keep_alive!r}")
    if keep_alive == 0:
        raise ConfigError("keep_alive=0 would unload the model after every request; use -1 or some minutes")
    checked: float | str = keep_alive
    return checked


def _digest(listing: Mapping[str, Any], model: str) -> str | None:
    entry = _find(listing, model)
    digest = None if entry is None else entry.get("digest")
    return digest if isinstance(digest, str) and digest else None


def _find(listing: Mapping[str, Any], model: str) -> Mapping[str, Any] | None:
    wanted = wire.full_name(model)
    models = listing.get("models")
    for entry in models if isinstance(models, list) else ():
        if isinstance(entry, dict):
            names = (entry.get("name"), entry.get("model"))
            if any(isinstance(name, str) and wire.full_name(name) == wanted for name in names):
                return entry
    return None


def _size(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _emptied(value: Any) -> bool:
    return value is None or value == []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
