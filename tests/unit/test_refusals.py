"""A minute of refusals, in time that passes at once: how often the engine is asked, how soon all is over."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from ollama_batch._width import RunWidth
from ollama_batch.errors import RunCancelledError
from ollama_batch.events import RowFinished, RowSent
from virtual_time import SlotEngine, VirtualRun, run_on, virtual_loop

REFUSED_S = 60.0
BACK_S = 10.0
LOOKED_S = 20.0


@pytest.mark.parametrize("concurrency", ["auto", "fixed"])
@pytest.mark.parametrize(("slots", "service_s"), [(1, 1.0), (8, 0.2), (8, 1.0), (8, 5.0), (32, 1.0)])
@pytest.mark.parametrize("seed", range(2))
def test_a_minute_of_503_is_over_in_ten_seconds_and_one_row_asks_meanwhile(
    monkeypatch: pytest.MonkeyPatch, concurrency: str, slots: int, service_s: float, seed: int
) -> None:
    """With the waits that users have: nothing is scaled down. A slot that works is throughput."""
    random.seed(seed)  # waits are spread by chance
    auto = concurrency == "auto"
    width = RunWidth(4, steered=True, highest=256) if auto else RunWidth(2 * slots)
    engine = SlotEngine(slots=slots, service_s=service_s, seed=seed)

    async def scene() -> tuple[float, float, float, VirtualRun]:
        loop = asyncio.get_running_loop()
        run = VirtualRun(engine, width)
        work = asyncio.create_task(run.pool.run())
        await asyncio.sleep(60 + 20 * service_s)
        refused_from = loop.time()
        engine.refuses = True
        await asyncio.sleep(REFUSED_S)
        engine.refuses = False
        free_at = loop.time()
        await asyncio.sleep(BACK_S + LOOKED_S)
        end = loop.time()
        await asyncio.sleep(2 * service_s)  # what is in work then counts as well
        run.stop.now(RunCancelledError("end"))
        await asyncio.gather(work, return_exceptions=True)
        return refused_from, free_at, end, run

    with virtual_loop(monkeypatch) as loop:
        refused_from, free_at, end, run = run_on(loop, scene())
    before = engine.busy(refused_from - LOOKED_S, refused_from)
    assert before >= 0.95 * slots
    assert engine.busy(free_at + BACK_S, end) >= 0.9 * before
    assert engine.busy(free_at + BACK_S, free_at + BACK_S + 2) >= 0.85 * before  # and not only later
    # No storm: while requests from before are answered others follow them, and then one asks for all.
    assert len(engine.refused) <= 8 * slots + 40
    last = max([done for _, done in engine.served if done < free_at], default=refused_from)
    later = [at for at in engine.refused if at > last + 2]
    assert len(later) <= REFUSED_S / 3
    assert max(Counter(int(at) for at in later).values()) <= 3
    assert not any(isinstance(each, RowFinished) and not each.result.ok for each in run.events)
    asked = sum(isinstance(each, RowSent) for each in run.events)
    assert 0 <= asked - len(engine.refused) - len(engine.served) <= 2 * slots + 2  # given up at the end
