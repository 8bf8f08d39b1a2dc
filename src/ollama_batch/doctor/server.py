"""What an Ollama server says of itself: version, models, and what it has loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any, Final

import httpx
import orjson

from ollama_batch.engines._address import parse_ollama_host
from ollama_batch.engines._http import HttpClient
from ollama_batch.engines._ollama_wire import clock, full_name, left_s
from ollama_batch.engines._replies import classify
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import InvalidReplyError
from ollama_batch.types import LoadedModel

FOREVER_S: Final = 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Running:
    """A model in memory: bytes in all and on the GPU, tokens of context, seconds until it is unloaded.

    `digest` says which weights. None: not told. `left_s` below 0: it should be gone already.
    """

    name: str
    size: int | None
    vram: int | None
    context: int | None
    left_s: float | None
    digest: str | None = None

    @property
    def for_ever(self) -> bool:
        """Whether it stays until somebody unloads it."""
        return self.left_s is not None and self.left_s > FOREVER_S

    @property
    def keep_alive(self) -> int:
        """What leaves it loaded for as long as it is now, or the 5 minutes of Ollama's own, in seconds."""
        return -1 if self.for_ever else max(300, ceil(self.left_s or 0))

    def told(self) -> LoadedModel:
        """As an engine tells it."""
        return LoadedModel(self.name, self.size, self.vram, self.context, self.digest)

    def is_model(self, model: str) -> bool:
        """Whether this is `model`, whose tag may be left out."""
        return full_name(self.name) == full_name(model)


class Server:
    """Asks the questions that `OllamaEngine` does not, each within `patience_s` seconds.

    Takes the address as the engine does. Every question raises EngineError; a wrong address ConfigError.
    """

    def __init__(
        self,
        base_url: str | None,
        *,
        api_key: str | None = None,
        patience_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        host = os.environ.get("OLLAMA_HOST") if base_url is None else base_url
        self._host = (host or "").strip().rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self._patience_s = patience_s
        self._transport = transport
        self._http = HttpClient(
            parse_ollama_host(self._host), api_key=api_key, transport=transport, connect_timeout=patience_s
        )

    @property
    def address(self) -> str:
        """Its URL, without credentials."""
        return self._http.address.url

    def engine(self, keep_alive: float | str) -> OllamaEngine:
        """An engine on this server, for the caller to close."""
        return OllamaEngine(
            self._host, api_key=self._api_key, keep_alive=keep_alive, transport=self._transport
        )

    async def version(self) -> tuple[str, float]:
        """The version ("" if it is not told), and the seconds the answer took."""
        began = time.perf_counter()
        data, _ = await self._ask("GET", "/api/version")
        version = data.get("version")
        return version if isinstance(version, str) else "", time.perf_counter() - began

    async def models(self) -> dict[str, Mapping[str, Any]]:
        """What `/api/tags` says of each model, by its full name."""
        data, _ = await self._ask("GET", "/api/tags")
        entries = data.get("models")
        return {
            full_name(str(entry.get("name") or entry.get("model"))): entry
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        }

    async def show(self, model: str) -> Mapping[str, Any]:
        """What `/api/show` says of `model`."""
        return (await self._ask("POST", "/api/show", {"model": model}))[0]

    async def running(self) -> tuple[Running, ...]:
        """The models in memory."""
        data, now = await self._ask("GET", "/api/ps")
        entries = data.get("models")
        return tuple(
            Running(
                str(entry.get("name") or entry.get("model")),
                _number(entry.get("size")) or None,
                _number(entry.get("size_vram")) if _number(entry.get("size")) else None,
                _number(entry.get("context_length")) or None,
                left_s(entry.get("expires_at"), now),
                digest if isinstance(digest := entry.get("digest"), str) and digest else None,
            )
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict)
        )

    async def speaks_openai(self) -> bool:
        """Whether it has the routes of OpenAI's API."""
        reply = await self._http.get("/v1/models", deadline=time.monotonic() + self._patience_s)
        return reply.status == 200

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], datetime]:
        """The answer, and what time it is for the server."""
        content = None if body is None else orjson.dumps(body)
        reply = await self._http.send(method, path, content, deadline=time.monotonic() + self._patience_s)
        if reply.status != 200:
            raise classify(reply, missing_model="ollama pull")
        try:
            data = orjson.loads(reply.content)
        except orjson.JSONDecodeError as exc:
            raise InvalidReplyError(f"the answer to {path} is not JSON ({exc})", status=200) from exc
        if not isinstance(data, dict):
            raise InvalidReplyError(f"the answer to {path} is no JSON object", status=200)
        return data, clock(reply)


def _number(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
