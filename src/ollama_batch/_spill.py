"""Says once that a part of the model did not fit on the GPU: nothing fails of it, every answer is slow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ollama_batch._summary import NEW_RUN
from ollama_batch._text import share
from ollama_batch.errors import JournalError
from ollama_batch.memory import MemorySample
from ollama_batch.memory.amounts import show
from ollama_batch.types import LoadedModel

KIND: Final = "spilled"
"""The kind of its event, and of its note in the journal."""


class Spill:
    """Looks at what the engine says the model takes, as it was loaded and in every sample; tells the first
    spill of a phase to `noticed` (log, hooks, report) and keeps it with `note`.
    """

    def __init__(
        self,
        model: str,
        *,
        num_ctx: int | None,
        note: Callable[[str, dict[str, Any]], Awaitable[None]],
        noticed: Callable[..., None],
    ) -> None:
        self._model = model
        self._num_ctx = num_ctx
        self._note = note
        self._noticed = noticed
        self._told = False

    async def see_loaded(self, loaded: LoadedModel | None) -> None:
        """Look at what the engine said after the load; None: it did not."""
        if loaded is not None and loaded.size_bytes is not None and loaded.vram_bytes is not None:
            await self._see(loaded.size_bytes, loaded.vram_bytes)

    async def see(self, sample: MemorySample) -> None:
        """Look at a sample: the model may have been loaded anew, with less room."""
        engine = sample.engine
        if engine is not None and engine.size.value is not None and engine.vram.value is not None:
            await self._see(engine.size.value, engine.vram.value)

    async def _see(self, size: int, vram: int) -> None:
        spilled = size - vram
        if self._told or spilled <= 0:
            return
        self._told = True
        data = {"model": self._model, "spilled_bytes": spilled, "size_bytes": size}
        message = spilled_in_words(self._model, spilled, size, num_ctx=self._num_ctx)
        self._noticed(KIND, message, **data)
        try:
            await self._note(KIND, {**data, "message": message})
        except JournalError:
            pass  # no room, say: results have their own way to meet that


def spilled_in_words(model: str, spilled: int, size: int, *, num_ctx: int | None) -> str:
    """How much of a model is on the CPU, what that costs and what helps."""
    smaller = "" if num_ctx is None else f", or begin {NEW_RUN} with a smaller num_ctx= than {num_ctx:,}"
    if spilled >= size:
        what = f"none of {model} ({show(size)}) is on a GPU: the CPU computes all of it, which is far slower"
        way = "If this machine has a GPU that should do it"
    else:
        what = (
            f"{show(spilled)} ({share(spilled / size)}) of the {show(size)} of {model} did not fit on the "
            "GPU: the CPU computes that part, and the GPU waits for it at every token, which is far slower"
        )
        way = "To have all of it on the GPU"
    return (
        f"{what}. {way}, free memory there, start Ollama with fewer slots (OLLAMA_NUM_PARALLEL) or "
        f"OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE=q8_0{smaller}, or take a smaller model; "
        "ollama-batch doctor says what fits"
    )
