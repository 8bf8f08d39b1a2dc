"""How much memory a model will take: predicted from its shape, for a context length, slots and KV type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ollama_batch.errors import ConfigError
from ollama_batch.memory.amounts import GIB, MIB, show
from ollama_batch.memory.shape import Layer, ModelShape

KV_BYTES: Final = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of one element of a key or value: blocks of 32 elements and their scales (ggml-common.h)."""

OVERHEAD_BYTES: Final = round(0.4 * GIB)
"""What a process that uses CUDA takes before anything is loaded; `/api/ps` does not count it."""

CELLS: Final = 256
"""The context is reserved in steps of so many tokens."""

SMALL_BATCH: Final = 512


def automatic_batch(num_ctx: int, slots: int) -> int:
    """The num_batch that Ollama takes by itself, before it looks whether that fits."""
    tokens = num_ctx * slots
    return 512 if tokens <= 4096 else 1024 if tokens <= 32768 else 2048


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What `model` will take of a card, in bytes, loaded with these settings.

    `kv_bytes` is the context of all slots, `state_bytes` that of recurrent layers, `compute_bytes` the
    buffers of a batch of `num_batch` tokens, `overhead_bytes` what the driver takes for a process. Predicted
    parts are multiplied by `correction`: what the engine was seen to take, by what was predicted (1.0: not
    seen yet). `measured`: it was seen with exactly these settings. `notes` say what was assumed.
    """

    model: str
    num_ctx: int
    slots: int
    kv_type: str
    num_batch: int
    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    overhead_bytes: int = OVERHEAD_BYTES
    correction: float = 1.0
    measured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def predicted_bytes(self) -> int:
        """What the model's shape says that the engine takes, uncorrected."""
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes

    @property
    def engine_bytes(self) -> int:
        """What the engine will report as its size (Ollama: `size` in `/api/ps`)."""
        return round(self.predicted_bytes * self.correction)

    @property
    def total_bytes(self) -> int:
        """What will be missing on the card."""
        return self.engine_bytes + self.overhead_bytes

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which `ollama serve` has to be started for this plan."""
        lines = {
            "OLLAMA_NUM_PARALLEL": str(self.slots),
            "OLLAMA_CONTEXT_LENGTH": str(self.num_ctx),
            "OLLAMA_KV_CACHE_TYPE": self.kv_type,
        }
        if self.kv_type not in ("f32", "f16", "bf16"):
            # A quantized cache of values needs it.
            lines["OLLAMA_FLASH_ATTENTION"] = "1"
        return lines

    @property
    def options(self) -> dict[str, int]:
        """The load options of this plan, for `OllamaEngine(options=...)`."""
        return {"num_batch": self.num_batch}

    def corrected(self, correction: float, *, measured: bool = False) -> MemoryPlan:
        """This plan with what was learned."""
        return replace(self, correction=correction, measured=measured)

    def __str__(self) -> str:
        source = "measured" if self.measured else "predicted" if self.correction == 1.0 else "corrected"
        return (
            f"{self.model}: num_ctx {self.num_ctx:,} x {self.slots}, {self.kv_type}, batch {self.num_batch}:"
            f" {show(self.total_bytes)} {source} (weights {show(self.weights_bytes)},"
            f" context {show(self.kv_bytes + self.state_bytes)}, compute {show(self.compute_bytes)})"
        )

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON data, with the sums, the environment and the options."""
        names = [name for name in self.__dataclass_fields__ if name != "notes"]
        return {
            **{name: getattr(self, name) for name in names},
            "engine_bytes": self.engine_bytes,
            "total_bytes": self.total_bytes,
            "environment": self.environment,
            "options": self.options,
            "notes": list(self.notes),
        }


def plan_memory(
    shape: ModelShape, *, num_ctx: int, slots: int = 1, kv_type: str = "f16", num_batch: int | None = None
) -> MemoryPlan:
    """What a model of `shape` will take with these settings; `num_batch` None is Ollama's own choice.

    A context longer than the model was trained for is cut to that, as Ollama does; a family that Ollama runs
    with one slot has one. Raises ConfigError for a wrong setting.
    """
    for name, value in (("num_ctx", num_ctx), ("slots", slots), ("num_batch", num_batch)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{name}={value!r}: give a whole number above 0")
    if kv_type not in KV_BYTES:
        raise ConfigError(f"kv_type={kv_type!r}: there are {', '.join(KV_BYTES)}")
    notes = list(shape.notes)
    if shape.context_length and num_ctx > shape.context_length:
        notes.append(f"num_ctx {num_ctx:,} is more than the {shape.context_length:,} it was trained for")
        num_ctx = shape.context_length
    if shape.one_slot and slots > 1:
        notes.append(f"Ollama runs {shape.architecture} models with one slot")
        slots = 1
    batch = automatic_batch(num_ctx, slots) if num_batch is None else num_batch
    element = KV_BYTES[kv_type]
    per_slot = sum(_elements(layer, num_ctx, batch) for layer in shape.layers) * element
    return MemoryPlan(
        shape.model,
        num_ctx,
        slots,
        kv_type,
        batch,
        shape.weights_bytes,
        round(per_slot * slots),
        shape.state_bytes * slots,
        _compute(shape.vocabulary, batch),
        notes=tuple(notes),
    )


def _elements(layer: Layer, num_ctx: int, batch: int) -> int:
    """How many elements a layer keeps for one slot. A window keeps a batch more, to move on in."""
    tokens = num_ctx if layer.window is None else min(num_ctx, layer.window + batch)
    cells = -(-tokens // CELLS) * CELLS
    return layer.kv_heads * (layer.key_length + layer.value_length) * cells


def _compute(vocabulary: int, batch: int) -> int:
    """Bytes of the buffers for a batch: the scores of all tokens of the vocabulary, and beyond a batch of
    512 what Ollama reckons with (its server/sched.go).
    """
    scores = 4 * vocabulary * min(batch, SMALL_BATCH)
    if batch <= SMALL_BATCH:
        return scores
    return scores + (768 * MIB if batch <= 1024 else 2 * GIB * -(-batch // 2048))
