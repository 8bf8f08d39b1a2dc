"""Watches a run from the side: its deadline, and silence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ollama_batch._gate import Gate
from ollama_batch._stop import Stop
from ollama_batch._workers import WorkerPool
from ollama_batch.engines.base import Engine, Probed
from ollama_batch.errors import DeadlineReachedError, EngineError, EngineUnreachableError
from ollama_batch.events import Event, RunStalled

log = logging.getLogger("ollama_batch.run")

TICK_S = 1.0
STALL_S = 120.0
"""Silence of all workers together that is worth a word: any usable card answers in less."""


@asynccontextmanager
async def watched(
    pool: WorkerPool,
    *,
    engine: Engine,
    gate: Gate,
    stop: Stop,
    emit: Callable[[Event], None],
    seconds_left: float | None,
    stall_s: float = STALL_S,
) -> AsyncIterator[None]:
    """Watch `pool` during the block: drain the run at its deadline; when nothing finishes for `stall_s`
    seconds although requests are out, say so and doubt the engine.
    """
    task = asyncio.create_task(_watch(pool, engine, gate, stop, emit, seconds_left, stall_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gate.close()


async def _watch(
    pool: WorkerPool,
    engine: Engine,
    gate: Gate,
    stop: Stop,
    emit: Callable[[Event], None],
    seconds_left: float | None,
    stall_s: float,
) -> None:
    ends = None if seconds_left is None else time.monotonic() + seconds_left
    told_for = -1.0
    while True:
        if ends is not None and time.monotonic() >= ends:
            stop.drain(DeadlineReachedError("the deadline of the run has passed; run again to go on"))
            ends = None
        silent_s = time.monotonic() - pool.last_finished
        stalled = silent_s > stall_s and pool.in_flight > 0 and gate.open
        if stalled and told_for != pool.last_finished:
            told_for = pool.last_finished
            log.warning("no row has finished for %.0f s, %d requests are out", silent_s, pool.in_flight)
            emit(RunStalled(silent_s=silent_s, in_flight=pool.in_flight))
            await _doubt(engine, gate)
        await asyncio.sleep(TICK_S)


async def _doubt(engine: Engine, gate: Gate) -> None:
    if not isinstance(engine, Probed):
        return
    try:
        if not await engine.healthy():
            gate.engine_trouble(EngineUnreachableError("the engine does not answer health checks"))
    except EngineError as error:
        gate.engine_trouble(error)
