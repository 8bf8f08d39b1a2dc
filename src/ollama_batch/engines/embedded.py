"""An engine that brings its own server: llama.cpp from the package xllamacpp, in a child process."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ollama_batch.engines import _embedded_server
from ollama_batch.engines._owned import OwnedServer
from ollama_batch.engines._server_process import ServerProcess
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.engines.openai_fields import OPENAI_FIELDS
from ollama_batch.errors import (
    ConfigError,
    EngineConnectionError,
    EngineStoppedError,
    EngineTimeoutError,
    EngineUnreachableError,
    MissingExtraError,
    ModelNotFoundError,
)
from ollama_batch.types import ChatRequest, Completion, EngineInfo, Message

_STOP_S: Final = 5.0

_BROKEN: Final = (EngineConnectionError, EngineUnreachableError, EngineStoppedError)
"""What a request meets whose server ends; its client is closed once there is another server."""

_numbers = itertools.count(1)
_digests: dict[tuple[str, int, int], str] = {}


class _Serving(NamedTuple):
    """A server process, and the client that speaks to it."""

    child: ServerProcess
    client: OpenAIEngine


class EmbeddedEngine:
    """Answers from a GGUF file, on this machine's processor, with llama.cpp's own server.

    The server runs in a child process that listens on 127.0.0.1 only. It starts on first use and ends with
    `aclose`, with this object or with this process, however that ends. `num_ctx` is the context of each of
    the `slots`, in tokens; the memory for all of them is taken at the start. `threads` compute (None: one
    less than the processors this process may use); `cache_ram_mib` bounds the cache of displaced prompts in
    main memory (0: none). `alias` is the model's name (None: the file's name without its ending).
    `start_timeout` is in seconds. `extra_body` is laid under every request, as with OpenAIEngine.

    Raises ConfigError for a wrong option and MissingExtraError without xllamacpp. Once the process has ended,
    every call raises EngineExitedError with its exit code and last log lines, until `restart`; a run does
    that by itself (see Supervisor).
    """

    def __init__(
        self,
        gguf: str | os.PathLike[str],
        *,
        slots: int = 4,
        num_ctx: int = 8192,
        threads: int | None = None,
        cache_ram_mib: int = 0,
        alias: str | None = None,
        start_timeout: float = 120.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        threads = max(1, _usable_cpus() - 1) if threads is None else threads
        for name, value, least in (("slots", slots, 1), ("num_ctx", num_ctx, 16), ("threads", threads, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} at least")
        if cache_ram_mib < 0:
            raise ConfigError(f"cache_ram_mib is {cache_ram_mib}; it must not be negative")
        if not start_timeout > 0:
            raise ConfigError(f"start_timeout is {start_timeout}; it must be a positive number of seconds")
        path = Path(gguf).absolute()
        if not path.is_file():
            raise ConfigError(f"gguf is {str(gguf)!r}; there is no such file")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtraError(
                "the embedded engine needs xllamacpp, which is not installed: install the extra, "
                'pip install ".[embedded]" in the project\'s folder (or: pip install xllamacpp gguf numpy)'
            )
        self._path = path
        self._model = path.stem if alias is None else alias
        self._slots = slots
        self._num_ctx = num_ctx
        self._extra_body = dict(extra_body or {})
        self._details: dict[str, Any] = {
            "gguf": path.name,
            "threads": threads,
            "cache_ram_mib": cache_ram_mib,
            "extra_body": self._extra_body,
        }
        self._name = f"embedded:{self._model}#{next(_numbers)}"
        self._settings: dict[str, Any] = {
            "gguf": str(path),
            "alias": self._model,
            "slots": slots,
            "num_ctx": num_ctx,
            "threads": threads,
            "cache_ram_mib": cache_ram_mib,
            # A kept connection holds a thread of this server: with few of them, clients beyond that
            # number would wait seconds for one to become idle.
            "http_threads": 256,
        }
        launch = partial(ServerProcess, self._name, _embedded_server.__file__, self._settings)
        self._server = OwnedServer(self._name, launch, start_timeout=start_timeout, stop_s=_STOP_S)
        self._serving: _Serving | None = None
        self._lock = threading.Lock()  # one client for each process, whichever threads ask at once

    @classmethod
    def toy(
        cls,
        *,
        seed: int = 0,
        size_mib: int | None = None,
        slots: int = 4,
        num_ctx: int = 8192,
        threads: int | None = 1,
        cache_ram_mib: int = 0,
        alias: str | None = None,
        start_timeout: float = 120.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> EmbeddedEngine:
        """An engine with the toy model: everything is real but the answers, which mean nothing.

        The model file is written to the user's cache folder on first use; `seed` and `size_mib` are those
        of `ollama_batch.testing.toy.toy_gguf`. One thread is fastest for a model this small.
        """
        from ollama_batch.testing.toy import TOY_NAME, TOY_NOTE, toy_gguf

        engine = cls(
            toy_gguf(seed=seed, size_mib=size_mib),
            slots=slots,
            num_ctx=num_ctx,
            threads=threads,
            cache_ram_mib=cache_ram_mib,
            alias=TOY_NAME if alias is None else alias,
            start_timeout=start_timeout,
            extra_body=extra_body,
        )
        engine._details |= {"toy": True, "note": TOY_NOTE}
        return engine

    def __repr__(self) -> str:
        return f"EmbeddedEngine({str(self._path)!r}, alias={self._model!r})"

    @property
    def address(self) -> str:
        """A name of this engine that no other has; the server's own address is `url`."""
        return self._name

    @property
    def model(self) -> str:
        """The name of the model it serves."""
        return self._model

    @property
    def extra_body(self) -> Mapping[str, Any]:
        """The fields laid under every request."""
        return MappingProxyType(self._extra_body)

    @property
    def url(self) -> str | None:
        """Where the server listens, None before it has started."""
        child = self._server.child
        return child.ready.result().url if child is not None and child.is_ready else None

    @property
    def pid(self) -> int | None:
        """The id of the server's process, None before it has started."""
        return self._server.pid

    def check_params(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """Whether every field of an OpenAI chat `body` can be sent: None, or (field path, reason)."""
        return OPENAI_FIELDS.check(body)

    async def describe(self, model: str) -> EngineInfo:
        """Who answers; starts the server. `digest` is the SHA-256 of the GGUF file.

        Raises ModelNotFoundError for any other model than its own.
        """
        self._check_model(model)
        serving = await self._started()
        try:
            told = await serving.client.describe(model)
        except _BROKEN as error:
            await self._server.raise_if_ended(serving.child, error)
            raise
        ready = serving.child.ready.result()
        return replace(
            told,
            engine="embedded",
            address=ready.url,
            version=f"xllamacpp {ready.version}",
            digest=f"sha256:{await asyncio.to_thread(_digest, self._path)}",
            slots=self._slots,
            # llama.cpp rounds it up to a multiple of 256; what was asked for is what `load` takes.
            context_length=min(told.context_length or self._num_ctx, self._num_ctx),
            context_fixed=True,
            details=dict(self._details),
        )

    async def load(self, model: str, *, num_ctx: int | None, deadline: float) -> EngineInfo:
        """Start the server, before `deadline`.

        Raises ConfigError for a `num_ctx` that is more than a slot has.
        """
        if num_ctx is not None and num_ctx > self._num_ctx:
            raise ConfigError(
                f"num_ctx is {num_ctx}, but this embedded engine was made with num_ctx={self._num_ctx}: "
                "make it with a larger one"
            )
        try:
            async with asyncio.timeout(deadline - time.monotonic()) as limit:
                return await self.describe(model)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineTimeoutError(f"{self._name} did not load in time") from error

    async def release(self, model: str, *, num_ctx: int | None, unload: bool = False) -> None:
        """Nothing: the model stays loaded until `aclose`."""

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        """The complete answer to `request`, before `deadline` (`time.monotonic()` seconds).

        Starts the server on first use. Raises EngineExitedError if its process has ended.
        """
        self._check_model(request.model)
        serving = self._serving
        if serving is None or not self._server.serves(serving.child):
            serving = await self._started()
        try:
            return await serving.client.complete(request, deadline=deadline)
        except _BROKEN as error:
            await self._server.raise_if_ended(serving.child, error)
            raise

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float,
    ) -> int:
        """The tokens of a prompt, counted by the server and not answered. Raises EngineError."""
        self._check_model(model)
        serving = await self._started()
        try:
            return await serving.client.count_prompt(model, messages, tools=tools, deadline=deadline)
        except _BROKEN as error:
            await self._server.raise_if_ended(serving.child, error)
            raise

    async def models(self) -> Sequence[str]:
        """The one name that it answers to."""
        return (self.model,)

    async def waiting(self) -> int | None:
        """How many requests wait for a slot. Raises EngineError."""
        serving = await self._started()
        return await serving.client.waiting()

    async def healthy(self) -> bool:
        """Whether the server answers. Raises EngineExitedError if its process has ended."""
        serving = await self._started()
        if await serving.client.healthy():
            return True
        await self._server.raise_if_ended(serving.child, None)
        return False

    async def restart(self) -> None:
        """End the server's process if it still runs, and start another one; the model is loaded again.

        Requests that are out fail with EngineExitedError. Raises it as well if the server does not come up.
        """
        await self._server.restart()
        await self._started()

    async def aclose(self) -> None:
        """End the server's process and wait until it is gone; a second call does nothing."""
        await self._server.close()
        if self._serving is not None:
            await self._serving.client.aclose()

    def _check_model(self, model: str) -> None:
        if model != self._model:
            raise ModelNotFoundError(
                f"this embedded engine serves {self._model!r}, not {model!r}: use that name, "
                "or make the engine with alias="
            )

    async def _started(self) -> _Serving:
        """The running server and its client; the server is started if it never has been."""
        child = await self._server.running()
        with self._lock:
            old = self._serving
            if old is not None and old.child is child:
                return old
            client = OpenAIEngine(child.ready.result().url, extra_body=self._extra_body)
            new = self._serving = _Serving(child, client)
        if old is not None:
            await old.client.aclose()
        return new


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _digest(path: Path) -> str:
    """SHA-256 of a file, remembered while its size and modification time stay the same."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
