"""What is told of a model that the engine does not finish to unload, and of a load that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ollama_batch import _outage, _stuck
from ollama_batch._stuck import stuck, told_while_loading
from ollama_batch.errors import EngineServerError, EngineTimeoutError
from ollama_batch.types import LoadedModel
from trouble_support import ScriptedEngine

MODEL = "m:1b"


class Telling(ScriptedEngine):
    """An engine that says of its model what `said` is."""

    def __init__(self, said: LoadedModel | Exception | None) -> None:
        super().__init__(lambda _: None)
        self.said = said

    async def loaded(self, model: str) -> LoadedModel | None:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    async def metadata(self, model: str) -> Mapping[str, Any]:
        return {}


def loaded(overdue_s: float | None) -> LoadedModel:
    return LoadedModel(MODEL, 1, 1, overdue_s=overdue_s)


STUCK = Telling(loaded(75.0))


@pytest.mark.parametrize(
    "engine",
    [
        ScriptedEngine(lambda _: None),
        Telling(None),
        Telling(loaded(None)),
        Telling(loaded(1.0)),
        Telling(EngineServerError("busy")),
        Telling(ZeroDivisionError("somebody's own")),
    ],
    ids=["tells nothing", "not loaded", "may stay", "on its way out", "does not answer", "broken"],
)
async def test_nothing_is_said_of_a_model_that_is_not_known_to_be_stuck(engine: ScriptedEngine) -> None:
    assert await stuck(engine, MODEL) is None


async def test_a_stuck_model_is_said_to_be_with_what_helps() -> None:
    assert await stuck(STUCK, MODEL) == (
        'm:1b should have been unloaded 1m15s ago and is still there ("Stopping..." in ollama ps), so that '
        "its requests wait; if it stays so, restart the engine"
    )


async def load(seconds: float, error: Exception | None = None) -> str:
    await asyncio.sleep(seconds)
    if error is not None:
        raise error
    return "loaded"


@pytest.mark.parametrize(
    ("engine", "long_s", "told"),
    [(STUCK, 30.0, "after 0.01s: m:1b should"), (Telling(None), 0.005, "after 0.01s; the run waits")],
)
async def test_a_load_is_told_of_when_it_is_stuck_or_long(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    engine: Telling,
    long_s: float,
    told: str,
) -> None:
    monkeypatch.setattr(_outage, "FIRST_S", 0.01)
    monkeypatch.setattr(_stuck, "LONG_S", long_s)

    async def until_told() -> str:
        async with asyncio.timeout(10):
            while not caplog.records:
                await asyncio.sleep(0.005)
        return "loaded"

    assert await told_while_loading(until_told(), engine, MODEL, patience_s=60.0) == "loaded"
    lines = [record.message for record in caplog.records]
    assert lines[0].startswith(f"m:1b is not loaded yet, {told}")
    assert lines[0].endswith("gives up in 1m00s (load_timeout)")


async def test_a_usual_load_is_nothing_to_speak_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_outage, "FIRST_S", 0.01)
    assert await told_while_loading(load(0.05), Telling(None), MODEL, patience_s=60.0) == "loaded"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (STUCK, "too long: m:1b should have been unloaded"),
        (Telling(None), "too long: m:1b is not loaded yet, and the run waits no longer (load_timeout)"),
    ],
)
async def test_a_load_that_takes_too_long_says_why_if_that_is_known(engine: Telling, why: str) -> None:
    with pytest.raises(EngineTimeoutError) as caught:
        await told_while_loading(load(0, EngineTimeoutError("too long")), engine, MODEL, patience_s=1.0)
    assert caught.value.message.startswith(why)
