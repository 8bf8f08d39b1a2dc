"""What of a model decides how much memory it takes, read from the metadata that the engine tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import TypeIs

from ollama_batch.engines.base import ONE_SLOT
from ollama_batch.errors import MemoryUnknownError

GLOBAL_EVERY: Final = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gptoss": 2, "gpt-oss": 2}
"""Which layer of how many sees the whole context, for models whose files do not say (llama.cpp has the same
numbers in its source).
"""

LARGE_VOCABULARY: Final = 262_144
"""Taken for a vocabulary that is not told: Gemma's, the largest in common use."""

BITS: Final = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.6,
    "Q5_1": 6.0, "Q5_0": 5.5, "Q4_K_M": 4.9, "Q4_K_S": 4.6, "Q4_1": 5.0, "Q4_0": 4.5, "IQ4_XS": 4.3,
    "MXFP4": 4.3, "Q3_K_M": 3.9, "Q2_K": 3.0,
}  # fmt: skip
"""Bits of a weight, scales included, for files whose size is not told."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of a token: so many heads, each with a key and a value of so many elements.

    `window` is how far back it looks, in tokens (None: over the whole context). 0 heads: it keeps nothing.
    """

    kv_heads: int
    key_length: int
    value_length: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes.

    `weights_bytes` are its files, `state_bytes` what its recurrent layers keep per slot whatever the
    context is. `context_length` is the longest it was trained for, `one_slot` that Ollama gives it one slot
    only. `notes` say what was assumed: an assumption makes a plan too large rather than too small.
    """

    model: str
    architecture: str
    weights_bytes: int
    layers: tuple[Layer, ...]
    vocabulary: int
    state_bytes: int = 0
    context_length: int | None = None
    digest: str | None = None
    one_slot: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def from_metadata(cls, model: str, metadata: Mapping[str, Any]) -> ModelShape:
        """The shape of `model`, from what `MemoryReporting.metadata` gave: `/api/show`, with `size` and
        `digest`.

        Raises MemoryUnknownError if it does not say how many layers there are or how large the weights are.
        """
        return _Reader(model, metadata).shape()


class _Reader:
    """Reads one model's metadata, and notes what it does not say."""

    def __init__(self, model: str, metadata: Mapping[str, Any]) -> None:
        self._model = model
        self._metadata = metadata
        info = metadata.get("model_info")
        self._info: Mapping[str, Any] = info if isinstance(info, Mapping) else {}
        self._architecture = str(self._info.get("general.architecture") or "")
        self._notes: list[str] = []

    def shape(self) -> ModelShape:
        count = self._number("block_count")
        if not count:
            raise MemoryUnknownError(f"the metadata of {self._model} do not say how many layers it has")
        digest = self._metadata.get("digest")
        return ModelShape(
            self._model,
            self._architecture,
            self._weights(),
            self._layers(count),
            self._vocabulary(),
            self._state(count),
            self._number("context_length"),
            digest if isinstance(digest, str) else None,
            self._architecture in ONE_SLOT,
            tuple(self._notes),
        )

    def _get(self, name: str) -> Any:
        return self._info.get(f"{self._architecture}.{name}")

    def _number(self, name: str) -> int | None:
        """A whole number; of a list, which some models have one of, the largest."""
        value = self._get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = max((each for each in value if _whole(each)), default=None)
        return value if _whole(value) else None

    def _layers(self, count: int) -> tuple[Layer, ...]:
        heads = self._kv_heads(count)
        width = self._head_width()
        key = self._number("attention.key_length") or width
        value = self._number("attention.value_length") or width
        if not key or not value:
            raise MemoryUnknownError(f"the metadata of {self._model} do not say how long its keys are")
        if self._number("attention.key_length_mla") and self._number("attention.value_length_mla"):
            # One compressed vector for all heads, from which llama.cpp takes keys and values alike.
            value = 0
        window = self._number("attention.sliding_window")
        local = self._local(count) if window else [False] * count
        short_key = self._number("attention.key_length_swa") or key
        short_value = self._number("attention.value_length_swa") or value
        return tuple(
            Layer(heads[i], short_key, short_value, window) if local[i] else Layer(heads[i], key, value)
            for i in range(count)
        )

    def _head_width(self) -> int | None:
        embedding, heads = self._number("embedding_length"), self._number("attention.head_count")
        return embedding // heads if embedding and heads else None

    def _kv_heads(self, count: int) -> list[int]:
        told = self._get("attention.head_count_kv")
        if isinstance(told, list) and len(told) == count and all(map(_whole, told)):
            heads = list(told)
        elif _whole(told):
            heads = [told] * count
        else:
            most = self._number("attention.head_count")
            if not most:
                raise MemoryUnknownError(f"the metadata of {self._model} do not say how many heads it has")
            self._notes.append(f"key-value heads are not told: {most}, as many as heads, are taken")
            heads = [most] * count
        shared = self._number("attention.shared_kv_layers") or 0
        every = self._number("full_attention_interval")
        if every:
            heads = [each if (i + 1) % every == 0 else 0 for i, each in enumerate(heads)]
        elif self._number("ssm.state_size") and all(heads):
            self._notes.append("which layers are recurrent is not told: all are taken to keep the context")
        # The last ones use what earlier ones keep.
        return [each if i < count - shared else 0 for i, each in enumerate(heads)]

    def _local(self, count: int) -> list[bool]:
        """Which layers look back over a window only."""
        pattern = self._get("attention.sliding_window_pattern")
        if isinstance(pattern, list) and pattern:
            return [bool(pattern[i % len(pattern)]) for i in range(count)]
        every = pattern if _whole(pattern) else GLOBAL_EVERY.get(self._architecture)
        if every is None:
            self._notes.append("which layers have a sliding window is not told: none is taken to have one")
            return [False] * count
        return [every == 0 or i % every < every - 1 for i in range(count)]

    def _vocabulary(self) -> int:
        tokens = self._info.get("tokenizer.ggml.tokens")
        size = len(tokens) if isinstance(tokens, list) else tokens
        size = size or self._get("vocab_size")
        if size and _whole(size):
            return size
        # Gemma's files do not tell, and it is Gemma's that is taken.
        if not self._architecture.startswith("gemma"):
            self._notes.append(f"the vocabulary is not told: {LARGE_VOCABULARY:,} tokens are taken")
        return LARGE_VOCABULARY

    def _weights(self) -> int:
        size = self._metadata.get("size")
        if size and _whole(size):
            return size
        details = self._metadata.get("details")
        kind = details.get("quantization_level") if isinstance(details, Mapping) else None
        parameters, bits = self._info.get("general.parameter_count"), BITS.get(str(kind).upper())
        if not _whole(parameters) or not parameters or bits is None:
            raise MemoryUnknownError(f"the size of the weights of {self._model} is not told")
        self._notes.append(f"the size of the weights is reckoned from {parameters:,} parameters in {kind}")
        return round(parameters * bits / 8)

    def _state(self, count: int) -> int:
        """Bytes that recurrent layers keep per slot: the last inputs of the convolution, and the state, in
        f32. Taken for every layer that keeps no context, or for all where that is not told.
        """
        size, inner = self._number("ssm.state_size"), self._number("ssm.inner_size")
        if not size or not inner:
            return 0
        groups, kernel = self._number("ssm.group_count") or 0, self._number("ssm.conv_kernel") or 1
        every = self._number("full_attention_interval")
        told = self._get("attention.head_count_kv")
        recurrent = count
        if every:
            recurrent = count - count // every
        elif isinstance(told, list) and len(told) == count:
            recurrent = sum(1 for each in told if each == 0)
        return 4 * recurrent * ((kernel - 1) * (inner + 2 * groups * size) + size * inner)


def _whole(value: object) -> TypeIs[int]:
    return type(value) is int and value >= 0
