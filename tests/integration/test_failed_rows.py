"""Failed rows, taken out as they were given and run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_batch import ConfigError, InputError, JournalError, export_failed
from ollama_batch.cli import main
from ollama_batch.errors import OutputError
from ollama_batch.testing import FakeOllama, Fault
from runner_support import ids, line, runner_on, write_lines

Factory = Callable[..., FakeOllama]


@pytest.fixture
def source(fake_ollama: FakeOllama, tmp_path: Path) -> Path:
    """An input of which two rows failed and one line was no request; odd spaces are part of it."""
    lines = [line("r0"), '  {"custom_id" :  "bad\\u0031", ' + json.dumps(line("x"))[19:], line("r2"), "[]"]
    path = write_lines(tmp_path / "in.jsonl", [*lines, line("r4", "cut")])
    fake_ollama.inject(Fault("status", status=400, match="x"))
    fake_ollama.inject(Fault("length", match="r4"))
    runner_on(fake_ollama).run(path, output=tmp_path / "out.jsonl", on_invalid="skip")
    assert ids(tmp_path / "out.errors.jsonl") == ["bad1", None, "r4"]
    return path


def test_failed_rows_are_written_byte_for_byte_and_can_be_run(
    fake_ollama: FakeOllama, source: Path, tmp_path: Path
) -> None:
    written = export_failed(tmp_path / "out.jsonl.run.db", tmp_path / "again.jsonl")
    assert (written.output, written.rows, written.invalid) == (tmp_path / "again.jsonl", 2, 1)
    given = source.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "again.jsonl").read_bytes() == given[1] + given[4]
    fake_ollama.clear_faults()
    assert runner_on(fake_ollama).run(tmp_path / "again.jsonl", output=tmp_path / "more.jsonl").counts.ok == 2
    assert ids(tmp_path / "more.jsonl") == ["bad1", "r4"]


def test_rows_are_chosen_by_the_code_they_failed_with(source: Path, tmp_path: Path) -> None:
    written = export_failed(tmp_path, tmp_path / "cut.jsonl", codes=["output_truncated"])
    assert (written.rows, written.invalid) == (1, 0)
    assert ids(tmp_path / "cut.jsonl") == ["r4"]
    assert export_failed(tmp_path, tmp_path / "none.jsonl", codes={"no_such_code"}).rows == 0
    assert not (tmp_path / "none.jsonl").exists(), "an empty file is no input"
    with pytest.raises(ConfigError, match="must be a list"):
        export_failed(tmp_path, tmp_path / "none.jsonl", codes="output_truncated")


def test_nothing_is_overwritten_unasked_and_never_the_input(source: Path, tmp_path: Path) -> None:
    taken = tmp_path / "mine.txt"
    taken.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_failed(tmp_path, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(OutputError, match="an input of this run"):
        export_failed(tmp_path, source, overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        export_failed(tmp_path, tmp_path)
    export_failed(tmp_path, taken, overwrite=True)
    assert ids(taken) == ["bad1", "r4"]


def test_a_row_that_is_no_longer_there_is_not_made_up(source: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes().replace(b"r4", b"rX"))
    with pytest.raises(InputError, match="has changed"):
        export_failed(tmp_path, tmp_path / "again.jsonl")
    assert sorted(path.name for path in tmp_path.glob("*again*")) == [], "not even a part of it"


KILLED = """
import os, signal, sys
from ollama_batch import _points, export_failed

def die(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

_points.listen(die)
export_failed(sys.argv[1], sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("point", ["failed.begin", "file.before_sync", "file.before_rename"])
def test_a_kill_leaves_the_file_that_was_there(source: Path, tmp_path: Path, point: str) -> None:
    place = tmp_path / "again.jsonl"
    place.write_text("before")
    child = [sys.executable, "-c", KILLED, str(tmp_path), str(place), point]
    assert subprocess.run(child, check=False, timeout=30).returncode == -signal.SIGKILL
    assert place.read_text() == "before"
    assert export_failed(tmp_path, place, overwrite=True).rows == 2
    assert ids(place) == ["bad1", "r4"]


def test_what_has_no_lines_says_what_to_do(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    fake_ollama.inject(Fault("status", status=400, match="a"))
    runner_on(fake_ollama).run(["a", "b"], output=tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match=r"<list>.*retry_failed=True"):
        export_failed(tmp_path, tmp_path / "again.jsonl")
    (tmp_path / "two.run.db").write_bytes((tmp_path / "out.jsonl.run.db").read_bytes())
    with pytest.raises(ConfigError, match=r"out\.jsonl\.run\.db, two\.run\.db"):
        export_failed(tmp_path, tmp_path / "again.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no journal"):
        export_failed(tmp_path / "empty", tmp_path / "again.jsonl")
    with pytest.raises(JournalError, match="there is no journal"):
        export_failed(tmp_path / "absent.db", tmp_path / "again.jsonl")


def test_two_inputs_with_a_failed_row_of_one_name_are_not_mixed(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    one = write_lines(tmp_path / "one.jsonl", [line("a", "bad"), line("b", "bad")])
    two = write_lines(tmp_path / "two.jsonl", [line("c", "bad"), line("a", "cut")])
    (tmp_path / "out").mkdir()
    fake_ollama.inject(Fault("status", status=400, match="bad"))
    fake_ollama.inject(Fault("length", match="cut"))
    runner_on(fake_ollama).run([one, two], output=tmp_path / "out")
    with pytest.raises(ConfigError, match="two inputs have a failed row 'a'"):
        export_failed(tmp_path / "out", tmp_path / "again.jsonl")
    export_failed(tmp_path / "out", tmp_path / "again.jsonl", codes=["request_rejected"])
    assert ids(tmp_path / "again.jsonl") == ["a", "b", "c"]


def test_the_command_line_writes_them_and_says_how_many(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "again.jsonl"
    assert main(["export-failed", str(tmp_path / "out.jsonl.run.db"), "-o", str(place)]) == 0
    assert ids(place) == ["bad1", "r4"]
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{place}: 2 failed rows, as they were given",
        "1 line that was no valid request is left out",
    ]
    assert main(["export-failed", str(tmp_path), "-o", str(place)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    words = ["export-failed", str(tmp_path), "-o", str(place), "--overwrite", "--code", "output_truncated"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{place}: 1 failed row, as it was given\n"
    assert main(["export-failed", str(tmp_path), "-o", str(tmp_path / "no.jsonl"), "--code", "x"]) == 0
    assert capsys.readouterr().out == "no failed rows: nothing was written\n"
