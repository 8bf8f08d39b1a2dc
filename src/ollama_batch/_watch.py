"""Watches a run from the side: its deadline, and silence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ollama_batch._check import HEALTH_S
from ollama_batch._gate import Gate
from ollama_batch._recovery import Recovery
from ollama_batch._stop import Stop
from ollama_batch._stuck import stuck
from ollama_batch._workers import WorkerPool
from ollama_batch.engines.base import Engine, Probed
from ollama_batch.errors import DeadlineReachedError, EngineError, EngineTimeoutError, EngineUnreachableError
from ollama_batch.events import Event, RunStalled

log = logging.getLogger("ollama_batch.run")

TICK_S = 1.0
STALL_S = 120.0
"""Silence of all workers together that is worth a word: any usable card answers in less."""


@contextmanager
def deadline(stop: Stop, seconds_left: float | None) -> Iterator[None]:
    """Drain the run once `seconds_left` have passed (None: never), whatever it does by then."""
    if seconds_left is None:
        yield
        return
    reached = DeadlineReachedError("the deadline of the run has passed; run again to go on")
    timer = asyncio.get_running_loop().call_later(seconds_left, stop.drain, reached)
    try:
        yield
    finally:
        timer.cancel()


@asynccontextmanager
async def watched(
    pool: WorkerPool,
    *,
    engine: Engine,
    model: str,
    gate: Gate,
    recovery: Recovery,
    emit: Callable[[Event], None],
    stall_s: float | None = None,
) -> AsyncIterator[None]:
    """Watch `pool` during the block: when nothing finishes for `stall_s` seconds (STALL_S) although requests
    are out, say so and doubt the engine. While the run is paused for the engine's sake it is said as well.
    """
    task = asyncio.create_task(
        _watch(pool, engine, model, gate, recovery, emit, STALL_S if stall_s is None else stall_s)
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await recovery.aclose()


async def _watch(
    pool: WorkerPool,
    engine: Engine,
    model: str,
    gate: Gate,
    recovery: Recovery,
    emit: Callable[[Event], None],
    stall_s: float,
) -> None:
    told_for = -1.0
    while True:
        # While something else than the engine held the gate there was nothing to finish.
        since = max(pool.last_finished, gate.opened_at, gate.resumed_at)
        silent_s = time.monotonic() - since
        doubted = gate.kept_by_engine  # then it is asked already, and the log says what of
        if silent_s > stall_s and told_for != since and (doubted or (pool.in_flight > 0 and gate.open)):
            told_for = since
            if not doubted:
                log.warning("no row has finished for %.0f s, %d requests are out", silent_s, pool.in_flight)
            emit(RunStalled(silent_s=silent_s, in_flight=pool.in_flight))
            if not doubted:
                await _doubt(engine, model, recovery, silent_s)
        await asyncio.sleep(min(TICK_S, stall_s))


async def _doubt(engine: Engine, model: str, recovery: Recovery, silent_s: float) -> None:
    if not isinstance(engine, Probed):
        return
    try:
        async with asyncio.timeout(HEALTH_S):
            healthy = await engine.healthy()
    except EngineError as error:
        recovery.doubt(error)
    except TimeoutError:
        recovery.doubt(_silent())
    except Exception:  # a bug of the engine; its requests have timeouts of their own
        log.exception("the engine's health check failed")
    else:
        if not healthy:
            recovery.doubt(_silent())
        elif await stuck(engine, model) is not None:
            recovery.doubt(EngineTimeoutError(f"no row has finished for {silent_s:.0f} s"))


def _silent() -> EngineUnreachableError:
    return EngineUnreachableError("the engine does not answer health checks")
