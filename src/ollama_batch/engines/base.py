"""What a runner needs from an engine: one required protocol, and small optional ones.

An engine owns its wire format and its error map: it takes a `ChatRequest`, returns a `Completion` or raises
an `EngineError`. Engines hold no event loop until first used and may serve several loops. Who makes an
engine closes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from ollama_batch.types import ChatRequest, Completion, EngineInfo, LoadedModel

CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp keeps a context in. Ollama passes on whatever it is told; with another no model loads."""

ONE_SLOT: Final = frozenset(
    {
        "mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe",
        "nemotron_h", "nemotron_h_moe", "nemotron_h_omni",
    }
)  # fmt: skip
"""Families that Ollama runs with one slot whatever OLLAMA_NUM_PARALLEL says (its server/sched.go)."""


OLLAMA_PROCESSES: Final = frozenset({"ollama", "ollama.exe", "llama-server", "llama-server.exe"})
"""What the processes of an Ollama are called: the server's, and those that run its models."""


class Engine(Protocol):
    """Answers chat requests."""

    @property
    def address(self) -> str:
        """Where requests go, without credentials: runs on one address share its concurrency."""
        ...

    def check_params(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """Whether every field of an OpenAI chat `body` can be honoured.

        Returns None, or (field path, why it cannot be sent) for the first field that cannot.
        """
        ...

    async def describe(self, model: str) -> EngineInfo:
        """Who answers for `model`. Raises ModelNotFoundError, EngineUnreachableError, other EngineErrors."""
        ...

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        """The complete answer to `request`, before `deadline` (seconds of `time.monotonic()`).

        Raises EngineError: EngineTimeoutError once the deadline has passed, OutcomeError for an
        answer that is of no use.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and processes; may be called more than once."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """An engine that loads models on demand."""

    async def load(self, model: str, *, num_ctx: int | None, deadline: float) -> EngineInfo:
        """Load `model` with the options its requests will carry and keep it loaded."""
        ...

    async def release(self, model: str, *, num_ctx: int | None, unload: bool = False) -> None:
        """Let the server unload `model` when it likes (or at once, with `unload`)."""
        ...


@runtime_checkable
class Probed(Protocol):
    """An engine whose health can be asked without spending a completion."""

    async def healthy(self) -> bool:
        """Whether the server answers and can take requests; raises EngineStoppedError if it never will."""
        ...


@runtime_checkable
class Listing(Protocol):
    """An engine that tells which models it has."""

    async def models(self) -> Sequence[str]:
        """The names of its models, sorted. Raises EngineError."""
        ...


@runtime_checkable
class Identifying(Protocol):
    """An engine that can be asked again and again which weights the name of a model stands for."""

    async def digest(self, model: str) -> str | None:
        """What `describe` would tell as the digest now; None if that is not known. Raises EngineError."""
        ...


@runtime_checkable
class QueueReporting(Protocol):
    """An engine that may tell how many requests wait, where its answers do not tell for how long they did."""

    async def waiting(self) -> int | None:
        """How many requests wait for a slot, of all clients; None if it is not told. Raises EngineError."""
        ...


@runtime_checkable
class Restartable(Protocol):
    """An engine whose server is its own child process: nobody else uses it, so a run may restart it."""

    async def restart(self) -> None:
        """End the server if it still runs, and start it again; it answers when this returns.

        Two calls at once are one restart. Raises EngineExitedError with the last lines of its log if it
        does not come up, and EngineStoppedError once the engine is closed.
        """
        ...


@runtime_checkable
class OwnsProcess(Protocol):
    """An engine whose server is a process of this machine that it has started itself."""

    @property
    def pid(self) -> int | None:
        """The id of the server's process, whose children are the server's as well; None: not started yet."""
        ...


@runtime_checkable
class NamesProcesses(Protocol):
    """An engine whose server somebody else has started: where it runs, names tell its processes."""

    @property
    def process_names(self) -> Collection[str]:
        """What they are called."""
        ...


@runtime_checkable
class Unloading(Protocol):
    """An engine that can be asked to unload models beside the one that a run needs."""

    async def unload_others(self, model: str) -> Sequence[str]:
        """Have the server unload every model but `model`, whoever uses it; their names.

        Raises EngineError.
        """
        ...


@runtime_checkable
class BatchSized(Protocol):
    """An engine whose requests say how many tokens of a prompt are evaluated at a time: fewer take less
    memory. Answers stay what they are; the model is loaded anew.
    """

    @property
    def num_batch(self) -> int | None:
        """What its requests ask for now, in tokens; None: nothing, the server chooses."""
        ...

    def limit_batch(self, num_batch: int | None) -> None:
        """Ask for `num_batch` tokens from the next request on; None: for what was asked at first."""
        ...


@runtime_checkable
class MemoryReporting(Protocol):
    """An engine that tells how much memory a model takes."""

    async def loaded(self, model: str) -> LoadedModel | None:
        """What the server holds in memory for `model`; None if it is not loaded. Raises EngineError."""
        ...

    async def metadata(self, model: str) -> Mapping[str, Any]:
        """What a memory plan needs to know of `model`: Ollama's `/api/show`, with `size` (bytes of the
        files) and `digest` where known. Raises EngineError.
        """
        ...
