"""What a run learns of the memory that its model takes, for the plans of later ones."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from ollama_batch.engines.base import BatchSized, Engine, MemoryReporting
from ollama_batch.memory import LearnedMemory, ModelShape
from ollama_batch.types import EngineInfo, LoadedModel

log = logging.getLogger("ollama_batch.run")

ASK_S: Final = 5.0
"""Rows wait meanwhile: an engine that takes longer to tell is not asked again."""


async def learn_memory(engine: Engine, info: EngineInfo, *, folder: Path | None) -> LoadedModel | None:
    """Keep in `folder` what the engine says the model takes that it has just loaded, and return that; None if
    it does not say, or without a `folder`, when it is not asked.

    Costs the run nothing that matters: an engine that does not tell, and a file that cannot be read or
    written, leave it unlearned.
    """
    if folder is None or not isinstance(engine, MemoryReporting):
        return None
    loaded: LoadedModel | None = None
    try:
        async with asyncio.timeout(ASK_S):
            loaded = await engine.loaded(info.model)
            if loaded is None or loaded.size_bytes is None:
                return loaded
            shape = ModelShape.from_metadata(info.model, await engine.metadata(info.model))
        num_batch = engine.num_batch if isinstance(engine, BatchSized) else None
        await asyncio.to_thread(_keep, shape, loaded, info, num_batch=num_batch, folder=folder)
    except Exception as error:  # whatever an engine tells, and whosever it is: no run ends for that
        log.debug("what %s takes was not learned: %s: %s", info.model, type(error).__name__, error)
    return loaded


def _keep(
    shape: ModelShape, loaded: LoadedModel, info: EngineInfo, *, num_batch: int | None, folder: Path
) -> None:
    if shape.digest is None:
        return
    learned = LearnedMemory(shape.digest, folder=folder)
    kind = str(info.details.get("kv_cache_type", "f16"))
    if learned.learn(shape, loaded, slots=info.slots, kv_type=kind, num_batch=num_batch):
        learned.save()
