"""An Ollama of our own: `ollama serve` in a child process, with the settings that only its start can give."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ollama_batch.engines import _managed_server
from ollama_batch.engines._http import HttpClient, Reply
from ollama_batch.engines._owned import OwnedServer
from ollama_batch.engines._server_process import ServerProcess
from ollama_batch.engines.base import CACHE_TYPES, ONE_SLOT
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import (
    ConfigError,
    EngineConnectionError,
    EngineError,
    EngineUnreachableError,
    ModelNotFoundError,
)
from ollama_batch.tokens import user_state_dir
from ollama_batch.types import ChatRequest, Completion, EngineInfo

HOST: Final = "127.0.0.1"
GRACE_S: Final = 5.0
"""Between SIGTERM and SIGKILL."""

STOP_S: Final = 2 * GRACE_S
ANSWER_S: Final = 5.0
LOG_BYTES: Final = 8 * 1024 * 1024
LOGS: Final = 10
"""So many logs of managed servers are kept in the state folder, the newest, and those still written to."""

_PARAMETERS: Final = (
    "num_parallel", "kv_cache_type", "flash_attention", "context_length", "models", "max_loaded_models",
)  # fmt: skip
"""Those that stand for the variable of the same name."""

_BROKEN: Final = (EngineConnectionError, EngineUnreachableError)

_numbers = itertools.count(1)
_here: Final[weakref.WeakSet[ManagedOllama]] = weakref.WeakSet()
"""The engines of this process, whose logs are theirs."""


class ManagedOllama(OllamaEngine):
    """An engine with an `ollama serve` of its own, on a free port of 127.0.0.1, with these settings.

    It starts on first use and ends with `aclose`, with this object or with this process, however that
    ends (Linux: whatever it has started ends with it); a run restarts it when it dies. `num_parallel` is
    the slots of each model. `kv_cache_type`: "f16", "q8_0", "q4_0" or another that llama.cpp has; those
    with a q need flash attention and turn it on. `context_length`, in tokens, is for requests that carry
    none; those of a run do. `models` is the folder of the models, which must be there, `max_loaded_models`
    how many stay in memory, `env` any variable that no parameter is for; what is not given is as in the
    environment. `binary` is the program. `log` is the file of its log, 8 MiB at most and as much of before
    (None: in the user's state folder). It must answer within `start_timeout` seconds. `options` and
    `keep_alive` as with any OllamaEngine.

    Raises ConfigError for a wrong setting, and where there is no such program.
    """

    def __init__(
        self,
        *,
        num_parallel: int = 4,
        kv_cache_type: str | None = None,
        flash_attention: bool | None = None,
        context_length: int | None = None,
        models: str | os.PathLike[str] | None = None,
        max_loaded_models: int | None = None,
        env: Mapping[str, str] | None = None,
        binary: str | os.PathLike[str] = "ollama",
        log: str | os.PathLike[str] | None = None,
        start_timeout: float = 60.0,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str = -1,
    ) -> None:
        counts = {
            "num_parallel": num_parallel,
            "context_length": context_length,
            "max_loaded_models": max_loaded_models,
        }
        for name, value in counts.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 at least")
        if not start_timeout > 0:
            raise ConfigError(f"start_timeout is {start_timeout}; it must be a positive number of seconds")
        self._num_parallel = num_parallel
        _check_env(env or {})
        given = _settings(kv_cache_type, flash_attention)
        if models is not None and not Path(models).is_dir():
            # Ollama would make an empty one, and say of each model that it is not there.
            raise ConfigError(
                f"models is {os.fspath(models)!r}, and there is no such folder here: give the one that has "
                "Ollama's manifests and blobs, or make it for models that are yet to be pulled"
            )
        command = [_found(binary), "serve"]
        self._reserved = _reserve_port()
        weakref.finalize(self, self._reserved.close)
        port = self._reserved.getsockname()[1]
        if sys.platform != "linux":
            self._reserved.close()  # elsewhere a port that is bound twice may get no connections
        self._env = {
            **given,
            **{f"OLLAMA_{name.upper()}": str(value) for name, value in counts.items() if value is not None},
            **({} if models is None else {"OLLAMA_MODELS": str(Path(models).absolute())}),
            **dict(env or {}),
            "OLLAMA_HOST": f"{HOST}:{port}",
        }
        super().__init__(f"http://{HOST}:{port}", options=options, keep_alive=keep_alive)
        self._log = _default_log() if log is None else Path(log).absolute()
        _here.add(self)
        settings = {
            "command": command,
            "env": self._env,
            "log": str(self._log),
            "log_bytes": LOG_BYTES,
            "grace_s": GRACE_S,
        }
        name = f"ollama serve at {HOST}:{port}"
        self._server = OwnedServer(
            name,
            partial(ServerProcess, name, _managed_server.__file__, settings),
            start_timeout=start_timeout,
            stop_s=STOP_S,
            answers=partial(_answers, self._http),  # not of `self`, whose end is to end the server
        )

    def __repr__(self) -> str:
        return f"OllamaEngine.managed({self.address!r})"

    @property
    def pid(self) -> int | None:
        """The id of the process of `ollama serve`, None before it has started."""
        return self._server.pid

    @property
    def log(self) -> Path:
        """Where the server's log goes; what was before the last 8 MiB is beside it, in as much again."""
        return self._log

    async def describe(self, model: str) -> EngineInfo:
        """As any OllamaEngine; `slots` is what was asked for, or 1 where Ollama allows the model no more."""
        try:
            info = await super().describe(model)
        except ModelNotFoundError as exc:
            folder = self._env.get("OLLAMA_MODELS") or os.environ.get("OLLAMA_MODELS") or "~/.ollama/models"
            raise ModelNotFoundError(
                f"{exc}\nThis server has the models in {folder}. Those of an Ollama that runs as a service "
                "are elsewhere, often in /usr/share/ollama/.ollama/models: give that folder as models="
            ) from exc
        families = {info.details.get("family"), *(info.details.get("families") or ())}
        slots = 1 if families & ONE_SLOT else self._num_parallel
        kind = self._env.get("OLLAMA_KV_CACHE_TYPE") or os.environ.get("OLLAMA_KV_CACHE_TYPE") or "f16"
        told = {**info.details, "managed": True, "kv_cache_type": kind}
        return replace(info, slots=slots, details=told)

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        """As any OllamaEngine; starts the server on first use, EngineExitedError once it has ended."""
        child = await self._server.running()
        try:
            return await super().complete(request, deadline=deadline)
        except _BROKEN as error:
            await self._server.raise_if_ended(child, error)
            raise

    async def healthy(self) -> bool:
        """Whether the server answers. Raises EngineExitedError if its process has ended."""
        child = await self._server.running()
        if await super().healthy():
            return True
        await self._server.raise_if_ended(child, None)
        return False

    async def restart(self) -> None:
        """End the server if it still runs, and start it again at the same address with the same settings.

        Raises EngineExitedError with the last lines of its log if it does not come up.
        """
        await self._server.restart()

    async def aclose(self) -> None:
        """End the server, and whatever it has started; SIGTERM first, SIGKILL after 5 s."""
        await self._server.close()
        self._reserved.close()
        await super().aclose()

    async def _reply(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float) -> Reply:
        child = await self._server.running()
        try:
            return await super()._reply(method, path, body, deadline)
        except _BROKEN as error:
            await self._server.raise_if_ended(child, error)
            raise


def _check_env(env: Mapping[str, str]) -> None:
    """Refuse variables that would be overwritten, or of which the engine would not know."""
    if "OLLAMA_HOST" in env:
        raise ConfigError(
            f"env has OLLAMA_HOST={env['OLLAMA_HOST']!r}: a managed server listens on a free port of {HOST}, "
            "see .address; for a server that runs elsewhere give OllamaEngine(base_url=...)"
        )
    for name in _PARAMETERS:
        variable = f"OLLAMA_{name.upper()}"
        if variable in env:
            raise ConfigError(f"env has {variable}={env[variable]!r}: give {name}= instead")


def _settings(kv_cache_type: str | None, flash_attention: bool | None) -> dict[str, str]:
    given: object = kv_cache_type
    if given is not None and given not in CACHE_TYPES:
        raise ConfigError(f"kv_cache_type is {kv_cache_type!r}; there are {', '.join(CACHE_TYPES)}")
    quantized = kv_cache_type not in (None, "f16", "bf16", "f32")
    if quantized and flash_attention is False:
        raise ConfigError(
            f"kv_cache_type is {kv_cache_type!r}, which needs flash attention: leave "
            "flash_attention=False out"
        )
    settings = {} if kv_cache_type is None else {"OLLAMA_KV_CACHE_TYPE": kv_cache_type}
    if quantized or flash_attention is not None:
        settings["OLLAMA_FLASH_ATTENTION"] = "1" if quantized or flash_attention else "0"
    return settings


def _found(binary: str | os.PathLike[str]) -> str:
    found = shutil.which(binary)
    if found is None:
        raise ConfigError(
            f"there is no program {os.fspath(binary)!r} to run: install Ollama "
            "(https://ollama.com/download), or give its place with binary="
        )
    return str(Path(found).absolute())


async def _answers(http: HttpClient) -> bool:
    try:
        reply = await http.get("/api/version", deadline=time.monotonic() + ANSWER_S)
    except EngineError as exc:
        if not exc.retryable:
            raise
        return False
    return reply.status == 200


def _reserve_port() -> socket.socket:
    """A free port, bound and not listening: nobody else is given it, and the server may have it (Linux)."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((HOST, 0))
    return reserved


def _default_log() -> Path:
    """A new file in the state folder; of the older ones a few are kept, and all that may be written to."""
    folder = user_state_dir() / "managed"
    newest_first = sorted(folder.glob("ollama-*.log*"), key=_changed_at, reverse=True)
    for path in newest_first[2 * LOGS :]:
        if not _in_use(path):
            with suppress(OSError):  # another process clears up as well, or has it open (Windows)
                path.unlink()
    return folder / f"ollama-{os.getpid()}-{next(_numbers)}.log"


def _changed_at(path: Path) -> float:
    """When a file last changed; one that is gone by now comes last."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _in_use(path: Path) -> bool:
    """Whether a server may still write to this log, however long it has been quiet: it lives no longer than
    the process whose id is in the name.
    """
    named = re.match(r"ollama-(\d+)-", path.name)
    if named is None:
        return False
    if int(named[1]) == os.getpid():
        return any(path.name.startswith(engine.log.name) for engine in _here)
    import psutil

    return psutil.pid_exists(int(named[1]))
