"""Runs on the real llama.cpp server, and what becomes of them when it is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("xllamacpp")

from ollama_batch import RunJournal, Supervisor
from ollama_batch.engines.embedded import EmbeddedEngine
from ollama_batch.errors import EngineDownError
from ollama_batch.events import EngineRestarted, MemoryMeasured, RowFinished
from trouble_support import Recorder, quick_runner, rows

COUNT = 60


def test_a_killed_engine_that_must_not_be_restarted_stops_the_run_and_a_new_one_finishes_it(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"

    def kill(event: object) -> None:
        if isinstance(event, RowFinished) and len(recorder.all(RowFinished)) == 20:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)

    recorder = Recorder(kill)
    engine = EmbeddedEngine.toy(num_ctx=512)
    options: dict[str, Any] = {
        "model": "toy",
        "num_ctx": 512,
        "max_tokens": 8,
        "on_length": "keep",
        "concurrency": 4,
    }
    runner = quick_runner(engine=engine, hooks=[recorder], supervisor=Supervisor(most=0), **options)
    try:
        with pytest.raises(EngineDownError, match=r"SIGKILL|signal 9") as stopped:
            runner.run(rows(COUNT), output=output)
        # The engine does not come back: the next session refuses at its start, and loses nothing.
        with pytest.raises(Exception, match=r"SIGKILL|signal 9"):
            runner.run(rows(COUNT), output=output)
    finally:
        _close(engine)
    told = {event.result.custom_id for event in recorder.all(RowFinished)}
    assert recorder.check_balance() <= 4
    assert stopped.value.report.counts.failed == 0
    with RunJournal.open_readonly(output.with_name("out.jsonl.run.db")) as journal:
        kept = {row.custom_id: record.line for row, record in journal.results()}
    assert kept.keys() == told
    assert 20 <= len(kept) < COUNT

    with_new = EmbeddedEngine.toy(num_ctx=512)
    again = Recorder()
    try:
        report = quick_runner(engine=with_new, hooks=[again], **options).run(rows(COUNT), output=output)
    finally:
        _close(with_new)
    assert (report.counts.ok, report.counts.failed) == (COUNT, 0)
    assert {event.result.custom_id for event in again.all(RowFinished)}.isdisjoint(kept)
    lines = output.read_bytes().splitlines()
    assert len(lines) == COUNT
    assert set(kept.values()) <= set(lines)


@pytest.mark.parametrize("mode", ["independent", "conversation"])
def test_an_engine_killed_again_and_again_is_restarted_and_every_row_is_ok(tmp_path: Path, mode: str) -> None:
    output = tmp_path / "out.jsonl"
    killed: list[int] = []

    def kill(event: object) -> None:
        done = len(recorder.all(RowFinished))
        if isinstance(event, RowFinished) and done in (10, 25, 40):
            assert engine.pid is not None
            killed.append(engine.pid)
            os.kill(engine.pid, signal.SIGKILL)

    recorder = Recorder(kill)
    engine = EmbeddedEngine.toy(num_ctx=512)
    runner = quick_runner(
        engine=engine,
        hooks=[recorder],
        model="toy",
        num_ctx=512,
        max_tokens=8,
        on_length="keep",
        mode=mode,
        concurrency=4,
    )
    try:
        report = runner.run(rows(COUNT), output=output)
        pid = engine.pid
    finally:
        _close(engine)
    assert len({*killed, pid}) == 4, "each time another process"
    assert [event.outcome for event in recorder.all(EngineRestarted)] == ["ok"] * 3
    assert (report.counts.ok, report.counts.failed) == (COUNT, 0)
    assert any("restarted 3 times (3 ok)" in note for note in report.notes)
    finished = [event.result.custom_id for event in recorder.all(RowFinished)]
    assert sorted(finished) == sorted(row.custom_id or "" for row in rows(COUNT))
    ids = [json.loads(line)["custom_id"] for line in output.read_text().splitlines()]
    assert ids == [row.custom_id for row in rows(COUNT)]
    with RunJournal.open_readonly(output.with_name("out.jsonl.run.db")) as journal:
        notes = journal.notes("restart")
    assert [note.data["outcome"] for note in notes] == ["ok"] * 3
    assert all("SIGKILL" in note.data["reason"] and note.data["duration_s"] > 0 for note in notes)


def test_an_engine_that_died_between_two_runs_is_restarted_by_the_second() -> None:
    engine = EmbeddedEngine.toy(num_ctx=512)
    runner = quick_runner(engine=engine, model="toy", num_ctx=512, max_tokens=8, on_length="keep")
    try:
        assert runner.run(rows(2)).ok
        assert engine.pid is not None
        dead = engine.pid
        os.kill(dead, signal.SIGKILL)
        report = runner.run(rows(2))
        assert report.ok
        assert engine.pid != dead
    finally:
        _close(engine)
    assert any("restarted once (1 ok)" in note for note in report.notes)


def test_the_engines_memory_is_that_of_its_own_server(tmp_path: Path) -> None:
    recorder = Recorder()
    engine = EmbeddedEngine.toy(num_ctx=512)
    options: dict[str, Any] = {"model": "toy", "num_ctx": 512, "max_tokens": 8, "on_length": "keep"}
    try:
        quick_runner(engine=engine, hooks=[recorder], **options).run(rows(40), output=tmp_path / "out.jsonl")
        samples = [event.sample for event in recorder.all(MemoryMeasured)]
        assert engine.pid is not None
        resident = psutil.Process(engine.pid).memory_info().rss
    finally:
        _close(engine)
    assert samples
    for sample in samples:
        assert sample.host.engine.get() == pytest.approx(resident, rel=0.5)


def _close(engine: EmbeddedEngine) -> None:
    from ollama_batch._portal import portal

    portal().call(engine.aclose())
