"""Whether the engine still has the model after a connection broke, and when that is believed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ollama_batch._check import HEALTH_S, EngineCheck
from ollama_batch._portal import AddressLimit
from ollama_batch._settings import SendSettings
from ollama_batch.errors import EngineConnectionError, EngineStoppedError
from ollama_batch.types import EngineInfo, LoadedModel
from trouble_support import completion
from virtual_time import run_on, virtual_loop


class Lister:
    """An engine that lists its model as `there` says, which may be an error; a question loads the model if
    `loads`.
    """

    address = "scripted"

    def __init__(self, there: Any, *, well: bool = True, loads: bool = True) -> None:
        self.there = there
        self.well = well
        self.loads = loads
        self.questions = 0

    async def healthy(self) -> bool:
        return self.well

    async def load(self, model: str, *, num_ctx: int | None, deadline: float) -> EngineInfo:
        return EngineInfo("scripted", self.address, None, model)

    async def release(self, model: str, *, num_ctx: int | None, unload: bool = False) -> None:
        self.there = False

    async def complete(self, request: Any, *, deadline: float) -> Any:
        self.questions += 1
        self.there = self.loads
        return completion()

    async def loaded(self, model: str) -> LoadedModel | None:
        if isinstance(self.there, BaseException):
            raise self.there
        return LoadedModel(model, None, None) if self.there else None

    async def metadata(self, model: str) -> dict[str, Any]:
        return {}


def check_of(engine: Any) -> EngineCheck:
    settings = SendSettings(
        model="toy:1b",
        defaults={},
        max_tokens=8,
        num_ctx=None,
        think=False,
        timeout_s=5.0,
        on_length="fail",
        patience_s=60.0,
    )
    return EngineCheck(engine, settings=settings, limit=AddressLimit())


async def kept(check: EngineCheck, row: int = 1) -> bool:
    return await check.kept(row, suspected=False, within_s=5.0) is not False


async def test_a_suspect_is_cleared_where_the_model_is_still_there_and_not_where_that_is_unknown() -> None:
    for there, told in ((True, True), (EngineConnectionError("broke"), None)):
        check = check_of(Lister(there))
        for _ in range(2):
            assert await check.kept(1, suspected=True, within_s=5.0) is told
        assert await check.kept(2, suspected=False, within_s=5.0) is None


async def test_a_model_that_is_gone_means_a_death_once_it_is_seen_that_the_engine_lists_it() -> None:
    engine = Lister(there=False)
    check = check_of(engine)
    assert not await kept(check)
    assert engine.questions == 1
    engine.there = False
    assert not await kept(check)
    assert engine.questions == 1


async def test_an_engine_that_is_not_well_is_asked_no_more() -> None:
    engine = Lister(there=True, well=False)
    assert not await kept(check_of(engine))
    assert engine.questions == 0


async def test_an_engine_that_never_lists_the_model_tells_nothing_by_that() -> None:
    """One that runs it elsewhere, or unloads it after each answer."""
    check = check_of(Lister(there=False, loads=False))
    assert await kept(check)
    assert await kept(check)


@pytest.mark.parametrize("there", [True, EngineConnectionError("broke")])
async def test_a_connection_that_broke_with_the_model_still_there_makes_later_ones_tell_nothing(
    there: Any,
) -> None:
    engine = Lister(there)
    check = check_of(engine)
    assert await kept(check)
    engine.there = False
    assert await kept(check, 2)


async def test_a_row_that_is_answered_after_all_makes_later_ones_tell_nothing() -> None:
    engine = Lister(there=False)
    check = check_of(engine)
    assert not await kept(check, 1)
    check.answered(7)  # another one
    engine.there = False
    assert not await kept(check, 1)
    check.answered(1)
    engine.there = False
    assert await kept(check, 2)


async def test_an_engine_that_does_not_tell_what_is_loaded_is_taken_at_its_word() -> None:
    class Silent:
        address = "scripted"

    assert await kept(check_of(Silent()))


async def test_an_engine_that_has_ended_says_so() -> None:
    with pytest.raises(EngineStoppedError):
        await kept(check_of(Lister(EngineStoppedError("closed"))))


class Silent:
    """An engine that takes a question about its health and never answers it."""

    address = "silent"

    async def healthy(self) -> bool:
        await asyncio.Event().wait()
        return True


async def seconds(check: EngineCheck) -> float:
    """How long its health is waited for, in vain."""
    began = asyncio.get_running_loop().time()
    assert not await check.healthy()
    return round(asyncio.get_running_loop().time() - began, 3)


def test_health_is_waited_for_less_long_once_two_rows_had_no_answer_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows have 5 s. Twice as long after each check in vain; an answer makes it what it was."""

    async def scene() -> None:
        check = check_of(Silent())
        check.timed_out()
        assert await seconds(check) == HEALTH_S == 30
        check.timed_out()
        assert [await seconds(check) for _ in range(4)] == [5, 10, 20, 30]
        check.answered(1)
        assert await seconds(check) == 30
        check.timed_out()
        assert await seconds(check) == 30
        check.timed_out()
        assert await seconds(check) == 5

    with virtual_loop(monkeypatch) as loop:
        run_on(loop, scene())


@pytest.mark.parametrize(("second_s", "ends_s"), [(1.0, 5.0), (12.0, 12.0)])
def test_a_check_that_is_under_way_ends_sooner_as_well(
    monkeypatch: pytest.MonkeyPatch, second_s: float, ends_s: float
) -> None:
    async def scene() -> float:
        check = check_of(Silent())
        check.timed_out()
        asyncio.get_running_loop().call_later(second_s, check.timed_out)
        return await seconds(check)

    with virtual_loop(monkeypatch) as loop:
        assert run_on(loop, scene()) == ends_s


def test_a_row_that_times_out_as_the_check_ends_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the turn of the loop in which the check's time is over, and it has not been told."""
    broke: list[dict[str, Any]] = []

    async def scene() -> float:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: broke.append(context))
        check = check_of(Silent())
        check.timed_out()
        asked = asyncio.create_task(seconds(check))
        await asyncio.sleep(0)
        loop.call_at(loop.time() + HEALTH_S + loop_tick(loop), check.timed_out)
        return await asked

    def loop_tick(loop: Any) -> float:
        return float(loop._clock_resolution) / 2  # both are due in one turn, the check's end first

    with virtual_loop(monkeypatch) as loop:
        loop._clock_resolution = 1e-6  # type: ignore[attr-defined]  # beyond what floats lose
        assert run_on(loop, scene()) == HEALTH_S
    assert broke == []
