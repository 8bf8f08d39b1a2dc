"""What is known of the weights that answer, between one look and the next."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ollama_batch._stop import Abandoned, Stop
from ollama_batch._weights import KEPT, Weights
from ollama_batch.errors import DiskFullError, ModelChangedError
from ollama_batch.types import Completion, EngineInfo, Timings
from trouble_support import ScriptedEngine, completion

A, B = "sha256:" + "a" * 64, "b" * 64
INFO = EngineInfo("scripted", "scripted", None, "m:1b", digest=A)
LOADED = replace(completion(), timings=Timings(load_s=3.0))


class Named(ScriptedEngine):
    """An engine that says what `says` is for a digest, once it may."""

    def __init__(self, says: str | None = A) -> None:
        super().__init__(lambda _: None)
        self.says = says
        self.questions = 0
        self.may_say = asyncio.Event()
        self.may_say.set()

    async def digest(self, model: str) -> str | None:
        self.questions += 1
        said = self.says
        await self.may_say.wait()
        return said


class Setting:
    """Weights with a stop, an engine and what they decided."""

    def __init__(self, *, info: EngineInfo = INFO, engine: Any = None, full: bool = False) -> None:
        self.engine = Named() if engine is None else engine
        self.stop = Stop()
        self.decided: list[dict[str, Any]] = []
        self._full = full
        self.weights = Weights(self.engine, info=info, stop=self.stop, decide=self._decide)

    async def _decide(self, kind: str, message: str, **data: Any) -> None:
        if self._full:
            raise DiskFullError("no room")
        self.decided.append({"kind": kind, "message": message, **data})

    async def answered(self, custom_id: str, answer: Completion | None = None) -> None:
        await self.weights.confirm(custom_id, completion() if answer is None else answer)


async def test_an_answer_that_came_while_it_was_asked_is_not_vouched_for_by_what_is_said() -> None:
    at = Setting()
    await at.answered("before")
    at.engine.may_say.clear()
    looking = asyncio.create_task(at.weights.look())
    await asyncio.sleep(0)
    await at.answered("meanwhile")
    at.engine.may_say.set()
    await looking
    at.engine.says = B
    await at.weights.look()
    (told,) = at.decided
    assert (told["before"], told["after"]) == (A, B)
    assert (told["unsure"], told["unsure_count"]) == (["meanwhile"], 1)
    assert isinstance(at.stop.reason, ModelChangedError)
    assert at.stop.stopping.is_set()
    assert f"stood for {'a' * 12} and stands for {'b' * 12}" in at.stop.reason.message
    assert "(1 since the last look may be of either: meanwhile)" in at.stop.reason.message


async def test_those_who_wait_for_a_look_share_the_next_one() -> None:
    at = Setting()
    at.engine.may_say.clear()
    first = asyncio.create_task(at.weights.look())
    await asyncio.sleep(0)
    others = [asyncio.create_task(at.answered(str(n), LOADED)) for n in range(50)]
    await asyncio.sleep(0)
    at.engine.says = B  # the first look was asked before
    at.engine.may_say.set()
    await first
    assert {type(each) for each in await asyncio.gather(*others, return_exceptions=True)} == {Abandoned}
    assert at.engine.questions == 2
    assert at.decided[0]["unsure"] == []


async def test_no_answer_counts_any_more_once_it_is_known() -> None:
    at = Setting()
    at.engine.says = B
    await at.weights.look()
    with pytest.raises(Abandoned):
        await at.answered("late")
    await at.weights.look()
    assert (at.engine.questions, len(at.decided)) == (1, 1)


async def test_an_engine_that_says_nothing_leaves_all_in_doubt_and_only_so_many_are_named() -> None:
    at = Setting()
    at.engine.says = None
    for n in range(KEPT + 10):
        await at.answered(str(n))
    await at.weights.look()
    assert at.stop.reason is None
    at.engine.says = B
    await at.weights.look()
    (told,) = at.decided
    assert told["unsure_count"] == KEPT + 10
    assert told["unsure"] == [str(n) for n in range(10, KEPT + 10)]


async def test_a_full_disk_does_not_keep_the_run_from_ending() -> None:
    at = Setting(full=True)
    at.engine.says = B
    await at.weights.look()
    assert isinstance(at.stop.reason, ModelChangedError)


@pytest.mark.parametrize("asks", [True, False])
async def test_where_no_digest_was_met_or_none_can_be_asked_nothing_is_looked_at(asks: bool) -> None:
    engine = Named(B) if asks else ScriptedEngine(lambda _: None)
    at = Setting(info=replace(INFO, digest=None) if asks else INFO, engine=engine)
    async with at.weights.watched():
        await at.answered("one", LOADED)
    assert at.stop.reason is None
    assert getattr(engine, "questions", 0) == 0
