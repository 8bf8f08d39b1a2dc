"""Runs on the real llama.cpp server, and what becomes of them when it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from ollama_batch import RunJournal
from ollama_batch.engines.embedded import EmbeddedEngine
from ollama_batch.errors import EngineDownError
from ollama_batch.events import RowFinished
from trouble_support import Recorder, quick_runner, rows

COUNT = 60


def test_a_killed_engine_stops_the_run_and_a_new_one_finishes_it(tmp_path: Path) -> None:
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
    runner = quick_runner(engine=engine, hooks=[recorder], **options)
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


def _close(engine: EmbeddedEngine) -> None:
    from ollama_batch._portal import portal

    portal().call(engine.aclose())
