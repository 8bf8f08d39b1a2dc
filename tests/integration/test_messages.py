"""What a user is told when something is in the way: which file, which line, what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRunner, RunJournal
from ollama_batch.cli import main
from ollama_batch.errors import JournalMismatchError
from ollama_batch.events import RowFinished
from ollama_batch.testing import FakeOllama
from runner_support import line, names, rows_file, runner_on, write_lines


def test_a_changed_line_is_named_by_its_file_and_what_to_do(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner = runner_on(fake_ollama)
    runner.run(source, output=output)
    write_lines(source, [line(name) for name in ("r0", "r1", "new", "r3", "r4")])
    with pytest.raises(JournalMismatchError) as caught:
        runner.run(source, output=output)
    said = str(caught.value)
    assert f"{source} line 3 has changed since this run began (it was 'r2', is 'new'): restore it" in said
    assert "which keeps the old journal as out.jsonl.run.db.old1" in said
    write_lines(source, [line(name, "longer" if name == "r2" else None) for name in names(5)])
    with pytest.raises(JournalMismatchError, match=r"line 3 has changed .*\('r2' has other content\)"):
        runner.run(source, output=output)
    runner.run(source, output=output, overwrite=True)
    assert (tmp_path / "out.jsonl.run.db.old1").exists()
    assert fake_ollama.ledger.count() == 10


def test_a_changed_item_is_named_by_its_number(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    runner_on(fake_ollama).run(["a", "b"], output=output)
    with pytest.raises(JournalMismatchError, match=r"item 2 of <list> has changed .* give the same items"):
        runner_on(fake_ollama).run(["a", "c"], output=output)


def test_rows_without_an_id_are_named_by_their_place(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    runner = runner_on(fake_ollama)
    report = runner.run(["a", "", "b"], on_invalid="skip")
    assert [tuple(example.custom_ids) for example in report.error_examples] == [("item 2",)]
    one, two = (write_lines(tmp_path / name, [line("a"), "{"]) for name in ("one", "two"))
    report = runner.run([one, two], on_invalid="skip")
    (example,) = report.error_examples
    assert (example.valid, tuple(example.custom_ids)) == (False, (f"{one} line 2", f"{two} line 2"))


def test_row_models_may_be_ignored_in_streams_as_well(fake_ollama: FakeOllama) -> None:
    requests = [line("a", model="gpt-4o"), line("b")]
    assert runner_on(fake_ollama, row_models="ignore").run(requests).ok
    assert {record.model for record in fake_ollama.ledger.completions()} == {"toy:1b"}


def test_status_says_why_a_run_is_paused_and_that_it_is_not_any_more(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.run.db"

    class PausesOnce:
        seen = 0

        def on_event(self, event: Any) -> None:
            if isinstance(event, RowFinished):
                self.seen += 1
                if self.seen == 2:
                    run.pause()

    def noted(value: dict[str, str] | None) -> bool:
        until = time.monotonic() + 10
        with RunJournal.open_readonly(journal) as reader:
            while not (same := told(reader.get("activity")) == value) and time.monotonic() < until:
                time.sleep(0.01)  # written by another thread, which tells nobody
            return same

    def told(activity: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if activity is None else {name: activity[name] for name in ("reason", "message")}

    fake_ollama.hold()
    runner: BatchRunner = runner_on(fake_ollama, concurrency=1, hooks=[PausesOnce()])
    run = runner.start(rows_file(tmp_path / "in.jsonl", 8), output=output)
    fake_ollama.release()
    fake_ollama.wait_until(lambda ledger: ledger.count() >= 2)
    assert noted({"reason": "user", "message": "paused"})
    assert main(["status", str(journal)]) == 0
    (paused,) = (line for line in capsys.readouterr().out.splitlines() if "paused: since " in line)
    assert paused.endswith(": by the program that runs it; it waits until it is told to go on")
    run.resume()
    assert run.wait(30).ok
    assert noted(None)
    assert main(["status", str(journal)]) == 0
    assert "paused" not in capsys.readouterr().out
