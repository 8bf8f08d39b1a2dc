"""An engine that takes requests and answers nothing: when the run pauses, why, and whose fault it is.

In time that passes at once; rows have ten minutes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ollama_batch._check import HEALTH_S
from ollama_batch._width import RunWidth
from ollama_batch.errors import EngineTimeoutError, RunCancelledError
from ollama_batch.events import Decision, RowFinished, RunPaused, RunResumed
from ollama_batch.types import ChatRequest, Completion
from trouble_support import completion
from virtual_time import VirtualRun, run_on, virtual_loop

TIMEOUT_S = 600.0


class Hanging:
    """Answers in a second, until it hangs: then it answers nothing, not even about its health.

    `killer` has it hang, each time, until its health was asked for twice. `health_s`: for how long it thinks
    about its health while it is well and requests are not answered.
    """

    address = "hanging"

    def __init__(self, *, killer: str | None = None, health_s: float | None = None) -> None:
        self.hangs = False
        self.deaf = False
        """Requests are not answered."""
        self.given_up: list[float] = []
        """When requests were, by the clock of the loop."""
        self._killer = killer
        self._health_s = health_s
        self._asked = 0

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        if request.custom_id == self._killer:
            self.hangs, self._asked = True, 0
        loop = asyncio.get_running_loop()
        if not (self.hangs or self.deaf):
            await asyncio.sleep(1.0)
        if self.hangs or self.deaf:
            await asyncio.sleep(deadline - loop.time())
            self.given_up.append(loop.time())
            raise EngineTimeoutError("no answer in time")
        return completion()

    async def healthy(self) -> bool:
        if self.hangs:
            self._asked += 1
            if self._killer is not None and self._asked > 2:
                self.hangs = False
                return True
            await asyncio.Event().wait()
        if self.deaf and self._health_s is not None:
            await asyncio.sleep(self._health_s)
        return True


async def end(run: VirtualRun, work: asyncio.Task[Any]) -> None:
    run.stop.now(RunCancelledError("end"))
    await asyncio.gather(work, return_exceptions=True)


def pauses(run: VirtualRun) -> list[str]:
    return [type(each).__name__ for each in run.events if isinstance(each, RunPaused | RunResumed)]


@pytest.mark.parametrize("steered", [True, False], ids=["auto", "fixed"])
def test_a_run_pauses_a_quarter_of_a_second_after_its_last_request_was_given_up_and_says_why(
    monkeypatch: pytest.MonkeyPatch, steered: bool
) -> None:
    engine = Hanging()
    width = RunWidth(4, steered=True, lowest=4, highest=4) if steered else RunWidth(4)

    async def scene() -> VirtualRun:
        run = VirtualRun(engine, width)
        work = asyncio.create_task(run.pool.run())
        await asyncio.sleep(20.5)
        engine.hangs = True
        await asyncio.sleep(TIMEOUT_S - 2)
        assert engine.given_up == []
        while len(engine.given_up) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert pauses(run) == []
        await asyncio.sleep(0.1)
        assert pauses(run) == ["RunPaused"]
        await asyncio.sleep(HEALTH_S)  # the check has failed: a crash, and no further pause
        assert pauses(run) == ["RunPaused"]
        engine.hangs = False
        await asyncio.sleep(2 * HEALTH_S)
        assert pauses(run) == ["RunPaused", "RunResumed"]
        await end(run, work)
        return run

    with virtual_loop(monkeypatch) as loop:
        run = run_on(loop, scene())
    decided = [each for each in run.events if isinstance(each, Decision)]
    (paused,) = (each for each in decided if each.kind == "recovery")
    assert paused.data["reason"] == "the engine does not answer"
    whys = [each.data["why"] for each in decided if each.kind == "concurrency"]
    assert "the engine did not answer" in whys
    assert "the engine crashed" not in whys


@pytest.mark.parametrize(("health_s", "told"), [(0.2, []), (3.0, ["RunPaused", "RunResumed"])])
def test_an_engine_that_is_well_is_paused_for_only_while_it_thinks_about_it(
    monkeypatch: pytest.MonkeyPatch, health_s: float, told: list[str]
) -> None:
    engine = Hanging(health_s=health_s)

    async def scene() -> VirtualRun:
        run = VirtualRun(engine, RunWidth(1))
        work = asyncio.create_task(run.pool.run())
        await asyncio.sleep(5.5)
        engine.deaf = True
        while not engine.given_up:
            await asyncio.sleep(0.5)
        await asyncio.sleep(health_s + 1)
        engine.deaf = False
        await asyncio.sleep(2)
        await end(run, work)
        return run

    with virtual_loop(monkeypatch) as loop:
        run = run_on(loop, scene())
    assert pauses(run) == told


def test_a_row_with_which_the_engine_hangs_three_times_fails_by_that_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Hanging(killer="13")

    async def scene() -> VirtualRun:
        run = VirtualRun(engine, RunWidth(2))
        work = asyncio.create_task(run.pool.run())
        async with asyncio.timeout(20 * TIMEOUT_S):
            while not any("quarantined" in each.message for each in caplog.records):
                await asyncio.sleep(10)
        await asyncio.sleep(HEALTH_S + 10)
        await end(run, work)
        return run

    with virtual_loop(monkeypatch) as loop, caplog.at_level(logging.WARNING):
        run = run_on(loop, scene())
    ended = [each.result for each in run.events if isinstance(each, RowFinished)]
    (failed,) = (each for each in ended if not each.ok)
    assert (failed.custom_id, failed.attempts) == ("13", 3)
    assert failed.error is not None
    says = "the engine has stopped answering 3 times with this row, the last time with it alone"
    assert says in failed.error.message
    (told,) = (each.message for each in caplog.records if "quarantined" in each.message)
    assert told.startswith(
        "row 13 (virtual:14) is quarantined: the engine has stopped answering 3 times with it, "
    )
    assert any(each.index > 13 for each in ended), "others go on"
