"""`ollama-batch analyze` and `compare`: what they print, write and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis_support import HOSTILE, chat_line, error_line, prepared, write_files, write_journal, write_lines
from ollama_batch.cli import main


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_files(tmp_path, prepared(200))


def test_analyze_prints_figures_and_writes_what_was_asked_for(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {option: str(tmp_path / f"r.{option}") for option in ("csv", "parquet", "html")}
    options = [word for option, place in places.items() for word in (f"--{option}", place)]
    code = main(["analyze", str(results), "--field", "recommendation", "--score", "score", *options])
    printed = capsys.readouterr().out
    assert code == 0
    assert "200 finished" in printed
    assert "field: recommendation" in printed
    assert printed.splitlines()[-3:] == list(places.values())
    assert all(Path(place).stat().st_size > 1000 for place in places.values())


def test_a_journal_and_several_files_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepared(200)
    assert main(["analyze", str(write_journal(tmp_path / "x.run.db", rows))]) == 0
    assert "latency    not recorded" not in capsys.readouterr().out
    output = write_files(tmp_path, rows)
    assert main(["analyze", str(output), str(tmp_path / "results.errors.jsonl"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["failed"]) == (200, sum(not row.ok for row in rows))
    assert main(["analyze", str(output), "--errors", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 0


def test_in_a_pipe_no_line_is_broken_or_padded(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = " ".join(f"word{'x' * n}" for n in range(14))
    other = write_lines(
        tmp_path / "other.jsonl",
        [*(error_line(f"r{n}", 400, "bad", long) for n in range(3)), chat_line("r", "x")],
    )
    for line in (["analyze", str(other)], ["compare", str(results), str(other), "--field", long]):
        assert main(line) == 0
        printed = capsys.readouterr().out
        assert long in printed or f"{long[:57]}..." in printed
        assert [each for each in printed.splitlines() if each != each.rstrip()] == []
    assert f"{long} (as in r0, r1, r2)" in str(analyze_out(other, capsys))


def analyze_out(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    main(["analyze", str(path)])
    return capsys.readouterr().out


@pytest.mark.parametrize("option", ["--field", "--score"])
def test_an_empty_path_is_refused_by_its_option(
    option: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["analyze", str(results), option, ""])
    assert ended.value.code == 2
    assert f"argument {option}: must be a path of the answer" in capsys.readouterr().err


def test_compare_prints_agreement_and_writes_the_changes(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_files(tmp_path, prepared(200, seed=8), name="other.jsonl")
    sheet, page = tmp_path / "changes.csv", tmp_path / "changes.html"
    line = ["compare", str(results), str(other), "--field", "recommendation", "--csv", str(sheet)]
    assert main([*line, "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "agreement" in printed
    assert "kappa" in printed
    assert sheet.read_text(encoding="utf-8-sig").startswith(
        "custom_id,changed,ok_a,ok_b,answer.recommendation_a"
    )
    assert "What changed between two runs" in page.read_text()
    assert main([*line, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["both"] == 200


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (["analyze", "none.jsonl"], "none.jsonl cannot be read"),
        (["analyze", "RESULTS", "--csv", "RESULTS"], "is what is analysed"),
        (["analyze", "RESULTS", "--html", "THERE"], "exists: give another name, or say --overwrite"),
        (["compare", "RESULTS", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_the_reason(
    line: list[str], why: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    names = {"RESULTS": str(results), "THERE": str(there)}
    assert main([names.get(word, word) for word in line]) == 2
    assert why in capsys.readouterr().err
    assert there.read_text() == "mine"


def test_a_terminal_gets_nothing_to_obey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line(text, text) for text in HOSTILE])
    assert main(["analyze", str(path), "--field", "\x1b[31mx"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
