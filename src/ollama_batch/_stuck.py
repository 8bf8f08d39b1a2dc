"""What keeps an engine from answering although it is well, as far as it tells: a model that does not go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Final, TypeVar

from ollama_batch._outage import due_s
from ollama_batch._text import duration
from ollama_batch.engines.base import Engine, MemoryReporting
from ollama_batch.errors import EngineError, EngineTimeoutError

T = TypeVar("T")

log = logging.getLogger("ollama_batch.run")

ASK_S: Final = 5.0
OVERDUE_S: Final = 3.0
"""A model that is unloaded in this time was on its way out, not stuck."""

LONG_S: Final = 30.0
"""Loads of this length are nothing to speak of."""


async def stuck(engine: Engine, model: str) -> str | None:
    """What to know of `model` if the engine should have unloaded it and has not; None if it is not so, or
    not told.
    """
    if not isinstance(engine, MemoryReporting):
        return None
    try:
        async with asyncio.timeout(ASK_S):
            loaded = await engine.loaded(model)
    except (EngineError, TimeoutError):
        return None
    except Exception:  # an engine of somebody's own; what was wrong before is what is told
        log.exception("the engine could not be asked for %s", model)
        return None
    if loaded is None or loaded.overdue_s is None or loaded.overdue_s < OVERDUE_S:
        return None
    return (
        f"{model} should have been unloaded {duration(loaded.overdue_s)} ago and is still there "
        '("Stopping..." in ollama ps), so that its requests wait; if it stays so, restart the engine'
    )


async def told_while_loading(load: Awaitable[T], engine: Engine, model: str, *, patience_s: float) -> T:
    """The result of `load`, which has `patience_s` seconds; while it takes long, the log says so ever more
    rarely, and what it waits for. One that takes too long says that in its error.
    """
    telling = asyncio.create_task(_tell(engine, model, patience_s))
    try:
        return await load
    except EngineTimeoutError as error:
        why = await stuck(engine, model)
        if why is None:
            why = f"{model} is not loaded yet, and the run waits no longer (load_timeout)"
        raise EngineTimeoutError(f"{error.message}: {why}") from error
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(engine: Engine, model: str, patience_s: float) -> None:
    waited_s, told = 0.0, 0
    while True:
        await asyncio.sleep(due_s(told) - waited_s)
        waited_s, told = due_s(told), told + 1
        why = await stuck(engine, model)
        if why is not None or waited_s > LONG_S:
            log.warning(
                "%s is not loaded yet, after %s%s; the run waits, and gives up in %s (load_timeout)",
                model,
                duration(waited_s),
                "" if why is None else f": {why}",
                duration(max(0.0, patience_s - waited_s)),
            )
