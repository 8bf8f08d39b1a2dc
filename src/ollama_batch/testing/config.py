"""What a fake server is made of: its models, its speed, its prepared answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import import_module
from typing import Any, Literal, TypeAlias

from ollama_batch.testing._tool_calls import checked_calls
from ollama_batch.testing.faults import Fault
from ollama_batch.testing.memory import MemoryModel

VERSION = "0.33.0"

WINDOWS = {"gemma3": 1024}
"""How far back most layers of a family look, in tokens, where a FakeModel does not say."""

CELLS = 256
"""llama.cpp reserves contexts in steps of so many tokens."""


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model the fake server has.

    `digest` defaults to the SHA-256 of the name. `context_length` is the trained maximum in tokens,
    `num_ctx` the Modelfile's own default, if it has one. `rendered` chooses which of Ollama's two chat
    paths the model takes: they differ in what happens to prompts that are too long. `gpu_share` below
    1.0 shows in `/api/ps` as a model partly in host memory. Sizes are bytes. `vocabulary` is how many tokens
    it has, where `/api/show` says so. `sliding_window` is how far back, in tokens, its layers look, but for
    each `global_every`-th, which sees the whole context: None is 1,024 of the family gemma3, and no window
    of others; 0 is none.
    """

    name: str
    digest: str = ""
    context_length: int = field(default=131_072, kw_only=True)
    num_ctx: int | None = field(default=None, kw_only=True)
    thinking: bool = field(default=False, kw_only=True)
    tools: bool = field(default=True, kw_only=True)
    vision: bool = field(default=False, kw_only=True)
    rendered: bool = field(default=True, kw_only=True)
    family: str = field(default="toy", kw_only=True)
    size: int = field(default=1_000_000_000, kw_only=True)
    layers: int = field(default=2, kw_only=True)
    kv_heads: int = field(default=2, kw_only=True)
    head_dim: int = field(default=64, kw_only=True)
    gpu_share: float = field(default=1.0, kw_only=True)
    vocabulary: int | None = field(default=None, kw_only=True)
    sliding_window: int | None = field(default=None, kw_only=True)
    global_every: int = field(default=6, kw_only=True)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("FakeModel.name is empty: give the model a name such as 'toy:1b'")
        object.__setattr__(self, "name", full_name(self.name))
        if not self.digest:
            object.__setattr__(self, "digest", sha256(self.name.encode()).hexdigest())
        if self.sliding_window is None:
            object.__setattr__(self, "sliding_window", WINDOWS.get(self.family))
        if (self.sliding_window or 0) < 0 or self.global_every < 1:
            raise ValueError(
                f"FakeModel(sliding_window={self.sliding_window}, global_every={self.global_every}): "
                "give a window of 0 or more tokens, and a global_every of 1 or more"
            )

    @property
    def capabilities(self) -> list[str]:
        """What `/api/show` says this model can do."""
        able = {"tools": self.tools, "vision": self.vision, "thinking": self.thinking}
        return ["completion", *(name for name, yes in able.items() if yes)]

    def loaded_bytes(self, num_ctx: int, slots: int, num_batch: int | None = None) -> int:
        """Bytes of the loaded model: weights, and f16 K and V of every slot's whole context.

        A layer with a window keeps that, and a batch of `num_batch` tokens more (None: Ollama's choice).
        """
        per_cell = self.kv_heads * self.head_dim * 2 * 2
        window = self.sliding_window
        local = self.layers - self.layers // self.global_every if window else 0
        kept = (window or 0) + (usual_batch(num_ctx, slots) if num_batch is None else num_batch)
        cells = (self.layers - local) * _cells(num_ctx) + local * _cells(min(num_ctx, kept))
        return self.size + slots * cells * per_cell


def usual_batch(num_ctx: int, slots: int) -> int:
    """The num_batch that Ollama takes where a request names none (its server/sched.go)."""
    for batch, most in ((512, 4096), (1024, 32_768)):
        if num_ctx * slots <= most:
            return batch
    return 2048


def _cells(tokens: int) -> int:
    return (tokens + CELLS - 1) // CELLS * CELLS


def full_name(name: str) -> str:
    """`name` with the tag that Ollama adds where there is none."""
    return name if ":" in name else f"{name}:latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """How long the fake engine takes, in seconds and tokens per second; what is None takes no time.

    `prefill_tps` counts only prompt tokens that are not in the slot's prefix cache; `decode_tps` is per
    slot. `latency_s` is added to every completion, and so is an even share of 0 to `jitter_s` chosen by the
    server's seed; `load_s` to every (re)load. All of it is slept
    `time_scale` times as long, and reported as slept: 0.1 runs ten times as fast.
    """

    prefill_tps: float | None = None
    decode_tps: float | None = None
    latency_s: float = 0.0
    jitter_s: float = 0.0
    load_s: float = 0.0
    prefix_cache: bool = True
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prefill_tps", "decode_tps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"CostModel.{name} is {value}: it must be positive, or None for no cost")
        for name in ("latency_s", "jitter_s", "load_s", "time_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"CostModel.{name} is {getattr(self, name)}: it must not be negative")

    def prefill_s(self, tokens: int) -> float:
        """Seconds slept to evaluate `tokens` new prompt tokens."""
        return 0.0 if self.prefill_tps is None else tokens / self.prefill_tps * self.time_scale

    def decode_s(self, tokens: int) -> float:
        """Seconds slept to generate `tokens` tokens."""
        return 0.0 if self.decode_tps is None else tokens / self.decode_tps * self.time_scale


@dataclass(frozen=True, slots=True)
class FakeReply:
    """An answer prepared by a test; what is None is made up as for any other request.

    `body` replaces the whole response body (an object is sent as JSON, text as it is), with `status`.
    `done_reason` "" leaves the field out. `delay_s` is waited before the answer is sent.

    Each of `tool_calls` is `{"name": "add", "arguments": {"a": 1}}`, or as OpenAI has it: `{"id": "call_7",
    "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}`, where `id` and `type` may be
    left out and the arguments may be an object. They are kept in the first form, and each route answers
    them in its own. Raises ValueError for anything else.
    """

    text: str | None = None
    thinking: str | None = field(default=None, kw_only=True)
    tool_calls: Sequence[Mapping[str, Any]] = field(default=(), kw_only=True)
    done_reason: str | None = field(default=None, kw_only=True)
    done: bool = field(default=True, kw_only=True)
    prompt_tokens: int | None = field(default=None, kw_only=True)
    completion_tokens: int | None = field(default=None, kw_only=True)
    cached_tokens: int | None = field(default=None, kw_only=True)
    delay_s: float = field(default=0.0, kw_only=True)
    body: str | Mapping[str, Any] | None = field(default=None, kw_only=True)
    status: int = field(default=200, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", checked_calls(self.tool_calls))


Reply: TypeAlias = FakeReply | Callable[[Mapping[str, Any]], "str | FakeReply | None"]
"""A fixed answer, or a function of the request body; a function that returns None leaves it to the fake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    """Everything a fake server is told when it starts.

    `slots` answers are made at once where a `speed` is set. `num_ctx` is the server's default context
    length in tokens (`OLLAMA_CONTEXT_LENGTH`), `max_queue` how many requests may wait for a load.
    `tokenizer` says what a token is: "chars", four characters of the prompt, or "words".
    `reports_cached` adds the cached-token counts of newer releases to answers. `memory` gives the server a
    card that can be full. `start_s` is how many seconds pass, at every start, before it listens; how long
    loading takes after that is the `speed`'s to say.
    """

    models: tuple[FakeModel, ...] = (FakeModel("toy:1b"),)
    slots: int = 4
    seed: int = 0
    speed: CostModel | None = None
    memory: MemoryModel | None = None
    faults: tuple[Fault, ...] = ()
    reply: Reply | None = None
    num_ctx: int = 4096
    max_queue: int = 512
    reports_cached: bool = False
    tokenizer: Literal["chars", "words"] = "chars"
    version: str = VERSION
    api_key: str | None = None
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if self.start_s < 0:
            raise ValueError(f"FakeOllama(start_s={self.start_s}): it must not be negative")
        if self.slots < 1:
            raise ValueError(f"FakeOllama(slots={self.slots}): there must be at least one slot")
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"FakeOllama(models=...): a name appears twice in {names}")

    def to_json(self) -> dict[str, Any]:
        """This as plain JSON data, for a server in another process.

        Raises TypeError for a `reply` function which that process could not import.
        """
        data = asdict(self) if not callable(self.reply) else asdict(_without_reply(self))
        if callable(self.reply):
            module, name = self.reply.__module__, self.reply.__qualname__
            if "<" in name or module == "__main__":
                raise TypeError(
                    f"reply={module}.{name} cannot be imported by another process: "
                    "use a function at the top of a module, or a FakeReply"
                )
            data["reply"] = f"{module}:{name}"
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FakeConfig:
        """The settings that `to_json` gave."""
        values = dict(data)
        values["models"] = tuple(FakeModel(**model) for model in values["models"])
        values["faults"] = tuple(Fault.from_json(fault) for fault in values["faults"])
        if values["speed"] is not None:
            values["speed"] = CostModel(**values["speed"])
        if values["memory"] is not None:
            values["memory"] = MemoryModel(**values["memory"])
        reply = values["reply"]
        if isinstance(reply, str):
            module, _, name = reply.partition(":")
            values["reply"] = getattr(import_module(module), name)
        elif reply is not None:
            values["reply"] = FakeReply(**reply)
        return cls(**values)


def _without_reply(config: FakeConfig) -> FakeConfig:
    values = {name: getattr(config, name) for name in config.__slots__}
    return FakeConfig(**{**values, "reply": None})
