"""How a diagnosis looks in a terminal, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_batch._doctor_command import colours
from ollama_batch.doctor import Diagnosis, Finding
from ollama_batch.doctor.examine import folder_of
from ollama_batch.doctor.page import page
from ollama_batch.doctor.run_line import RunLine

LONG = "a sentence that goes on and on " * 6
COMMAND = "printf '" + "x" * 120 + "'"
FOUND = Diagnosis(
    "http://gpu-box:11434",
    "m:1b",
    (
        Finding(check="server", level="ok", seen="it answers"),
        Finding(
            check="slots",
            level="problem",
            seen=LONG,
            costs="time",
            mend=(COMMAND, "second"),
            on="gpu-box",
            assumed=("this", "that"),
        ),
        Finding(check="card", level="unknown", seen="nobody knows"),
        Finding(check="ram", level="warning", seen="\x1b[2J\u202ebad"),
        Finding(check="disk", level="note", seen=""),
    ),
)


def test_no_line_is_wider_than_80_columns_but_a_command_which_is_never_broken() -> None:
    lines = page(FOUND).splitlines()
    wide = [line.strip() for line in lines if len(line) > 80]
    assert wide == [COMMAND]
    assert "problem  slots    a sentence" in page(FOUND)
    assert "mend (on gpu-box):" in page(FOUND)
    assert "assumed: this; that" in page(FOUND)
    assert lines[-1] == "1 problem, 1 warning, 1 unknown"


def test_colour_is_on_the_level_alone_and_only_where_it_is_wanted() -> None:
    assert "\x1b" not in page(FOUND)
    coloured = page(FOUND, colour=True)
    assert "\x1b[1;31mproblem \x1b[0m slots" in coloured
    for code in ("\x1b[1;31m", "\x1b[32m", "\x1b[33m", "\x1b[35m", "\x1b[36m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == page(FOUND)  # and nothing that a server said reaches the terminal as it is


def test_nothing_wrong_is_said_so() -> None:
    fine = Diagnosis("http://a", None, (Finding(check="server", level="ok", seen="it answers"),))
    assert page(fine).splitlines()[-1] == "nothing is wrong, as far as was looked"
    assert fine.ok
    assert not FOUND.ok


def test_the_data_is_json_and_counts_the_levels() -> None:
    data = json.loads(json.dumps(FOUND.to_dict()))
    assert data["counts"] == {"ok": 1, "note": 1, "unknown": 1, "warning": 1, "problem": 1}
    assert data["ok"] is False
    assert data["findings"][1]["mend"] == [COMMAND, "second"]
    assert [each.check for each in FOUND.on("slots")] == ["slots"]


@pytest.mark.parametrize(
    ("terminal", "environment", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals_and_for_who_did_not_refuse_it(
    terminal: bool, environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert colours() is wanted


def test_the_folder_of_an_output_is_where_its_journal_will_be(tmp_path: Path) -> None:
    assert folder_of(Path("out.jsonl")) == Path()
    assert folder_of(Path("deep/out.jsonl")) == Path("deep")
    assert folder_of(tmp_path) == tmp_path


def test_the_line_of_the_run_is_whole_as_far_as_it_is_known() -> None:
    assert RunLine().adding("--limit", "10") == "ollama-batch run IN -o OUT --limit 10"
    known = RunLine(["my rows.jsonl"], "out.jsonl", ["--model", "m"])
    assert known.adding() == "ollama-batch run 'my rows.jsonl' -o out.jsonl --model m"
