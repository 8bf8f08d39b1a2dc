"""What `ollama-batch status` and `watch` say of a run that has ended early: why, and how it goes on."""

from __future__ import annotations

import datetime as dt
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import RunJournal
from ollama_batch._ending import ENDING, UNSAID
from ollama_batch._spelling import as_options
from ollama_batch.cli import main
from ollama_batch.errors import (
    DeadlineReachedError,
    EngineDownError,
    InputError,
    JournalError,
    JournalMismatchError,
    OutputError,
    RunCancelledError,
)
from ollama_batch.events import Event, RowFinished
from ollama_batch.testing import FakeOllama, Fault
from ollama_batch.types import ChatRequest
from runner_support import rows_file
from trouble_support import ScriptedEngine, name, quick_ladder, quick_runner, rows

PROMPT = "a prompt that is nobody's business"


def told(journal: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines about the end, which `status` and `watch` have alike."""
    said = []
    for each in ("status", "watch"):
        capsys.readouterr()
        assert main([each, str(journal)]) == 0
        lines = capsys.readouterr().out.splitlines()
        ours = ("  reason: ", "  next: ", "  last call: ")
        said.append([line.strip() for line in lines if line.startswith(ours)])
    assert said[0] == said[1]
    return said[0]


class StopsAfter:
    """A hook that cancels its run after so many rows."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.run: Any = None

    def on_event(self, event: Event) -> None:
        if isinstance(event, RowFinished):
            self.left -= 1
            if self.left == 0:
                self.run.cancel()


def stopped(fake: FakeOllama, requests: Any, output: Path, *, after: int = 2, **arguments: Any) -> None:
    """A run of which some rows are done when it is cancelled."""
    hook = StopsAfter(after)
    runner = quick_runner(fake, concurrency=1, hooks=[hook])
    fake.hold()
    hook.run = runner.start(requests, output=output, **arguments)
    fake.release()
    with pytest.raises(RunCancelledError):
        hook.run.wait(30)


def test_a_cancelled_run_says_so_and_what_the_same_command_does(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(fake_ollama, rows_file(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl")
    left = 9 - fake_ollama.ledger.answered()
    assert told(tmp_path / "out.jsonl.run.db", capsys) == [
        "reason: cancelled; run again to go on",
        f"next: run the same command again: it sends the {left} rows left, nothing done is sent again",
    ]


def test_a_run_says_the_reason_and_the_steps_of_its_report(
    fake_ollama: FakeOllama,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick_ladder(monkeypatch)
    output = tmp_path / "out.jsonl"
    source = rows_file(tmp_path / "in.jsonl", 9)
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    with pytest.raises(DeadlineReachedError) as late:
        quick_runner(fake_ollama).run(source, output=output, deadline=past)
    reason, step = told(tmp_path / "out.jsonl.run.db", capsys)
    assert late.value.report is not None
    assert reason == f"reason: {late.value.report.reason}" == f"reason: {late.value}"
    assert step.startswith("next: with a later --deadline, run the same command again")
    fake_ollama.inject(Fault("status", status=500, text="all is lost"))
    with pytest.raises(EngineDownError) as down:
        quick_runner(fake_ollama, recover_timeout=0.3).run(source, output=output)
    reason, step = told(tmp_path / "out.jsonl.run.db", capsys)
    assert "all is lost" in str(down.value)
    assert "all is lost" in reason
    assert "deadline" not in reason
    assert step.startswith("next: mend what the reason says of the engine, then run the same command again")


def test_a_bad_item_of_a_generator_is_named_with_what_to_mend(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def items() -> Iterator[Any]:
        yield from rows(4)
        fake_ollama.wait_until(lambda ledger: ledger.answered() == 4)
        yield {"custom_id": "odd", "messages": PROMPT}

    with pytest.raises(InputError) as bad:
        quick_runner(fake_ollama).run(items(), output=tmp_path / "out.jsonl")
    reason, step = told(tmp_path / "out.jsonl.run.db", capsys)
    assert reason == as_options(f"reason: {' '.join(str(bad.value).split())}")
    assert step.startswith("next: mend the input where the reason says (or say --on-invalid skip)")
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert PROMPT not in str(journal.get(ENDING))


def test_a_reason_is_that_of_the_last_session_or_none(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.run.db"
    stopped(fake_ollama, source, output)
    assert told(journal, capsys)[0] == "reason: cancelled; run again to go on"
    left = 6 - fake_ollama.ledger.answered()
    fake_ollama.hold()
    command = ("run", source, "-o", output, "--model", "toy:1b", "--base-url", fake_ollama.url)
    sent = fake_ollama.ledger.count()
    with subprocess.Popen(
        [sys.executable, "-m", "ollama_batch.cli", *map(str, command), "--num-ctx", "2048"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        fake_ollama.wait_until(lambda ledger: ledger.count() > sent)
        assert main(["status", str(journal)]) == 0
        out = capsys.readouterr().out
        assert "running: " in out
        assert "reason" not in out
        child.kill()
    fake_ollama.release()
    assert told(journal, capsys) == [
        f"reason: {UNSAID}",
        f"next: run the same command again: it sends the {left} rows left, nothing done is sent again",
    ]
    assert quick_runner(fake_ollama).run(source, output=output).ok
    assert told(journal, capsys) == []


def test_a_finished_run_says_how_the_sending_of_its_failed_rows_was_stopped(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    fake_ollama.inject(Fault("status", status=400, match="r"))
    assert quick_runner(fake_ollama).run(source, output=output).counts.failed == 6
    assert told(tmp_path / "out.jsonl.run.db", capsys) == []
    fake_ollama.clear_faults()
    stopped(fake_ollama, source, output, retry_failed=True)
    assert told(tmp_path / "out.jsonl.run.db", capsys)[:2] == [
        "last call: cancelled; run again to go on",
        "next: run the same command again: nothing done is sent again",
    ]


def test_a_call_that_is_refused_is_told_without_the_settings_that_it_had(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.run.db"
    stopped(fake_ollama, source, output)
    rows_file(source, 6, max_tokens=7)
    with pytest.raises(JournalMismatchError):
        quick_runner(fake_ollama).run(source, output=output)
    reason, step = told(journal, capsys)
    assert reason.startswith("reason: the last call was refused: it has other settings or rows")
    assert step.endswith("or begin a new one (another output=, or --overwrite)".replace("output=", "-o"))
    rows_file(source, 6)
    output.write_text("of somebody else\n")
    with pytest.raises(OutputError):
        quick_runner(fake_ollama).run(source, output=output)
    assert "out.jsonl" in told(journal, capsys)[0]


def test_of_an_error_in_code_of_others_only_the_kind_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Exception):
        pass

    def answer(request: ChatRequest) -> Any:
        if request.custom_id == name(5):
            raise Broken(PROMPT)

    runner = quick_runner(engine=ScriptedEngine(answer), concurrency=1)
    with pytest.raises(Broken):
        runner.run(rows(9), output=tmp_path / "out.jsonl")
    assert told(tmp_path / "out.jsonl.run.db", capsys) == [
        "reason: it broke off with Broken",
        "next: run the same command again: it sends the rest, nothing done is sent again",
    ]


def test_a_run_that_cannot_note_why_it_ends_ends_as_it_would(
    fake_ollama: FakeOllama,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = RunJournal.put

    def no_room(self: RunJournal, key: str, value: Any) -> None:
        if key == ENDING:
            raise JournalError("no room", None)
        put(self, key, value)

    monkeypatch.setattr(RunJournal, "put", no_room)
    stopped(fake_ollama, rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl")
    assert told(tmp_path / "out.jsonl.run.db", capsys)[0] == f"reason: {UNSAID}"


IN_A_TERMINAL = """
import os, sys
terminal = os.open(sys.argv.pop(1), os.O_RDWR)  # that of the session, as it has none yet
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, "-m", "ollama_batch.cli", *sys.argv[1:]])
"""


def test_a_terminal_that_is_closed_stops_the_run_resumably(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    words = ("run", source, "-o", output, "--model", "toy:1b", "--base-url", fake_ollama.url)
    terminal, end = pty.openpty()
    fake_ollama.hold()
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, os.ttyname(end), *map(str, words), "--concurrency", "2"],
        start_new_session=True,
    ) as child:
        try:
            fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
            os.close(end)
            os.close(terminal)
            fake_ollama.release()
            assert child.wait(30) == 3
        finally:
            child.kill()
    assert told(tmp_path / "out.jsonl.run.db", capsys)[0] == "reason: stopped by SIGHUP; run again to go on"
