"""A run that gets no answers says so in the log: soon, then ever more rarely, and once when it is over."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ollama_batch._meeting import once_free
from ollama_batch._outage import Outage, due_s, line
from ollama_batch._width import RunWidth
from ollama_batch.errors import (
    EngineBusyError,
    EngineError,
    EngineLoadingError,
    EngineServerError,
    EngineUnreachableError,
    RunCancelledError,
)
from ollama_batch.testing import FakeOllama, Fault
from ollama_batch.types import ChatRequest, Completion
from virtual_time import SlotEngine, VirtualRun, run_on, virtual_loop

BOOM = EngineServerError("boom (HTTP 500)", status=500)
BUSY = EngineBusyError("server busy (HTTP 503)", status=503)
AWAY = EngineUnreachableError("nobody listens at http://127.0.0.1:9")
LOADING = EngineLoadingError("the model is being loaded (HTTP 503)", status=503)


class Lines(logging.Handler):
    """What the log of runs is told, with the time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((time.monotonic(), record.getMessage()))

    def starting(self, words: str) -> list[tuple[float, str]]:
        return [each for each in self.told if each[1].startswith(words)]


@contextmanager
def log_lines() -> Iterator[Lines]:
    log, lines = logging.getLogger("ollama_batch.run"), Lines()
    log.addHandler(lines)
    try:
        yield lines
    finally:
        log.removeHandler(lines)


class FailingEngine(SlotEngine):
    """Raises `error`, when there is one, at every request, the run's own questions as well or not."""

    error: EngineError | None = None
    questions_too = True

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        if self.error is not None and (self.questions_too or request.custom_id.isdigit()):
            raise self.error
        return await super().complete(request, deadline=deadline)


async def trouble(engine: FailingEngine, error: EngineError, lasts_s: float) -> tuple[float, VirtualRun]:
    """A run that goes well for a minute, then meets `error` for `lasts_s` seconds; when that began."""
    run = VirtualRun(engine, RunWidth(4))
    work = asyncio.create_task(run.pool.run())
    await asyncio.sleep(60)
    began = time.monotonic()
    engine.error = error
    await asyncio.sleep(lasts_s)
    engine.error = None
    await asyncio.sleep(120)
    run.stop.now(RunCancelledError("end"))
    await asyncio.gather(work, return_exceptions=True)
    return began, run


@pytest.mark.parametrize(
    ("error", "stops_s"), [(BOOM, 900), (AWAY, 900), (BUSY, 900), (LOADING, 1800)], ids=lambda each: str(each)
)
def test_silence_is_told_after_5_15_45_and_135_seconds_and_then_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch, error: EngineError, stops_s: int
) -> None:
    random.seed(3)
    engine = FailingEngine(slots=4, service_s=1.0)
    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        began, _ = run_on(loop, trouble(engine, error, 300))
    told = lines.starting("no row has been answered for ")
    since = [at - began for at, _ in told]
    # It begins when the first trouble that is the engine's is known: with the third 500, by then in 4 s.
    assert since == pytest.approx([5, 15, 45, 135], abs=5)
    steps = [later - sooner for sooner, later in itertools.pairwise(since)]
    assert steps == pytest.approx([10, 30, 90])
    for _, text in told:
        assert f": {error}. The run asks again and goes on as soon as the engine answers" in text
    option = "load_timeout" if error is LOADING else "recover_timeout"
    for (_, text), silent_s in zip(told, (5, 15, 45, 135), strict=True):
        left = re.search(rf"the run stops in (\d+)m(\d\d)s \({option}\) and can be resumed", text)
        assert left is not None, text
        assert 60 * int(left[1]) + int(left[2]) == pytest.approx(stops_s - silent_s, abs=5)
    ((over_at, text),) = lines.starting("the engine answers again, after ")
    assert over_at >= began + 300
    assert re.search(r"after [56]m\d\ds$", text)


def test_what_is_over_in_five_seconds_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FailingEngine(slots=4, service_s=1.0)
    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        run_on(loop, trouble(engine, AWAY, 2.5))
    assert lines.told == []


def test_a_run_that_stops_for_it_has_said_so_five_times_before(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FailingEngine(slots=4, service_s=1.0)
    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        _, run = run_on(loop, trouble(engine, BOOM, 2000))
    assert "did not come back within 900 s" in str(run.stop.reason)
    assert len(lines.starting("no row has been answered for ")) == 5
    assert len(lines.told) == 6, "and then why it stops"


def test_an_engine_that_answers_questions_and_no_row_is_one_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause ends, and the next begins with the rows: the lines go on where they were."""
    engine = FailingEngine(slots=4, service_s=1.0)
    engine.questions_too = False
    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        began, _ = run_on(loop, trouble(engine, BOOM, 600))
    told = lines.starting("no row has been answered for ")
    assert 3 <= len(told) <= 6
    assert told[0][0] - began < 30
    assert len(lines.starting("the engine answers again")) == 1


def test_a_busy_engine_that_answers_others_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the requests are refused for ten minutes; the others are answered, each after half a minute."""

    class Choosy(SlotEngine):
        choosy = False

        async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
            if self.choosy and random.random() < 0.5:
                self.refused.append(time.monotonic())
                raise BUSY
            return await super().complete(request, deadline=deadline)

    async def scene() -> None:
        run = VirtualRun(engine, RunWidth(8))
        work = asyncio.create_task(run.pool.run())
        await asyncio.sleep(100)
        engine.choosy = True
        await asyncio.sleep(600)
        run.stop.now(RunCancelledError("end"))
        await asyncio.gather(work, return_exceptions=True)

    random.seed(1)
    engine = Choosy(slots=4, service_s=30.0)
    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        run_on(loop, scene())
    assert len(engine.served) > 40
    assert len(engine.refused) > 20
    assert lines.told == []


def test_a_server_that_is_busy_at_the_start_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> str:
        if time.monotonic() < free_at:
            raise BUSY
        return "here"

    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        free_at = loop.time() + 60
        assert run_on(loop, once_free(ask, sleep=asyncio.sleep, patience_s=900)) == "here"
        assert len(lines.starting("no row has been answered for ")) == 3
        assert lines.told[-1][1].startswith("the engine answers again, after 1m")
        run_on(loop, asyncio.sleep(1000))
    assert len(lines.told) == 4, "nothing is told of it any more"


def test_an_answer_during_a_pause_begins_the_silence_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        outage = Outage(900)
        began = time.monotonic()
        outage.met(AWAY, at=began)
        await asyncio.sleep(4)
        outage.over()
        await asyncio.sleep(2)
        outage.met(AWAY, at=began)  # a probe of the same pause
        await asyncio.sleep(4)
        outage.rest()

    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        run_on(loop, scene())
    ((_, text),) = lines.told
    assert text.startswith("no row has been answered for 5.0s: nobody listens")
    assert "stops in 14m51s" in text, "the pause is as old as it was"


def test_a_silence_that_is_met_late_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        await asyncio.sleep(100)
        outage = Outage(900)
        outage.met(AWAY, at=time.monotonic() - 30)
        await asyncio.sleep(10)
        outage.rest()

    with virtual_loop(monkeypatch) as loop, log_lines() as lines:
        run_on(loop, scene())
    ((_, text),) = lines.told
    assert text.startswith("no row has been answered for 30s")


def test_the_lines_are_few_however_long_it_lasts() -> None:
    assert [due_s(n) for n in range(5)] == [5, 15, 45, 135, 405]
    assert sum(1 for n in range(100) if due_s(n) < 7 * 24 * 3600) == 11


def test_a_line_shows_no_more_of_an_error_than_fits_and_nothing_that_a_terminal_obeys() -> None:
    text = line(EngineServerError("x\x1b[31m\n" * 500), silent_s=5, left_s=895, option="recover_timeout")
    assert len(text) < 700
    assert text.isprintable()


CHILD = """
import sys
from ollama_batch import _outage
from ollama_batch.cli import main
_outage.FIRST_S = 0.1
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_line_says_it_without_any_progress_on_standard_error(
    fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    fake = fake_ollama_factory(faults=[Fault("status", status=500, text="boom", count=4)])
    body = {"model": "toy:1b", "messages": [{"role": "user", "content": "hello"}]}
    request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps({"custom_id": str(n), **request}) for n in range(1)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    line = ["run", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--base-url", fake.url]
    child = [sys.executable, "-c", CHILD, *line, "--progress", "none", "--num-ctx", "2048"]
    told = subprocess.run(child, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    first, *rest, last = told.stderr.splitlines()
    head = r"\d\d:\d\d:\d\d WARNING ollama_batch.run: "
    assert re.match(rf"{head}no row has been answered for [\d.]+s: boom \(HTTP 500\). The run", first)
    assert "(--recover-timeout) and can be resumed" in first
    assert len(rest) <= 4
    assert re.match(rf"{head}the engine answers again, after ", last)
