"""The memory of a fake server's card: what there is, what fills it, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

Wording: TypeAlias = Literal["ollama", "llama.cpp", "vllm"]

OOM_KINDS: Mapping[Wording, str] = {
    "ollama": "oom_runtime",
    "llama.cpp": "oom_llama_cpp",
    "vllm": "oom_vllm",
}
"""The kind of fault that says, in each server's words, that memory ran out at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """How much memory the card of a fake server has, what takes it, and what happens when it is full.

    A loaded model takes its weights (`FakeModel.size`), K and V for the whole context of every slot (of
    layers with a window, for that and a batch), and `overhead_bytes`, and `batch_bytes` (compute buffers)
    for each token of num_batch. Where a request does not say that, it is 512, 1,024 or 2,048, as Ollama has
    it for up to 4,096, 32,768 or more tokens in all slots. `card_bytes` is the card, None for one without
    limit; others than this server have `others_bytes` of it. A load that does not fit sends idle models away
    first; then `too_big="spill"` leaves the rest in host memory, which `/api/ps` shows as a `size_vram` below
    `size` (llama.cpp's automatic fit), and "oom" fails the load with Ollama's words for it.

    At work, `request_bytes` are taken by each completion that has a slot, and `growth_bytes` by each
    token of prompts and answers until the model is loaded anew, for engines whose memory grows with use.
    Memory runs out when these do not fit on the card, or when more than `max_in_flight` completions are
    worked on at once, the limit that nobody tells. Completions without a duration never meet: give the
    server a `speed`, and slots enough.

    `wording` is whose words say so, always with status 500 and to every completion of that model that was
    worked on: "ollama" ("an error was encountered while running the model: CUDA error: out of memory"; its
    runner is dead, and the next request loads the model again), "llama.cpp" ("failed to find free space in
    the KV cache") or "vllm" ("CUDA out of memory. Tried to allocate ..."), whose processes live on.
    """

    card_bytes: int | None = None
    others_bytes: int = 0
    overhead_bytes: int = 0
    batch_bytes: int = 0
    request_bytes: int = 0
    growth_bytes: int = 0
    max_in_flight: int | None = None
    too_big: Literal["spill", "oom"] = "spill"
    wording: Wording = "ollama"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"MemoryModel.{field.name} is {value}: it must not be negative")
        if self.max_in_flight == 0:
            raise ValueError("MemoryModel.max_in_flight is 0: not even one completion would fit")
        if self.too_big not in ("spill", "oom"):
            raise ValueError(f'MemoryModel.too_big is {self.too_big!r}: it must be "spill" or "oom"')
        if self.wording not in OOM_KINDS:
            raise ValueError(f"MemoryModel.wording is {self.wording!r}: it must be one of {list(OOM_KINDS)}")

    @property
    def room_bytes(self) -> int | None:
        """What the card has for this server, in bytes; None without limit."""
        return None if self.card_bytes is None else max(self.card_bytes - self.others_bytes, 0)
