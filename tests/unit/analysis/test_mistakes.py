"""What a user is told who asks for the wrong thing: another path, another file, another kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis_support import chat_line, write_lines
from ollama_batch import ConfigError
from ollama_batch.analysis import analyze, compare
from ollama_batch.cli import main
from ollama_batch.errors import JournalCorruptError
from ollama_batch.journal import RunJournal

REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "Fit?"}]},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lines = [chat_line(f"row-{n}", json.dumps({"recommendation": "Yes", "score": n})) for n in range(40)]
    return write_lines(tmp_path / "out.jsonl", lines)


def test_a_mistyped_score_is_told_as_a_mistyped_field_is(results: Path) -> None:
    found = analyze(results, score="recomendation")
    assert "No answer has a number at 'recomendation': is that the path of the score?" in found.notes
    assert found.score is not None
    assert found.score.missing == 40
    changes = compare(results, results, score="recomendation")
    assert "No row has a number in both runs at 'recomendation': is that its path?" in changes.notes
    assert "recomendation" not in " ".join(analyze(results, score="score").notes)
    assert "its path" not in " ".join(compare(results, results, score="score").notes)


def test_a_score_of_ones_own_is_not_called_a_path(results: Path) -> None:
    assert "No answer has a score." in analyze(results, score=lambda _: None).notes


def test_kappa_is_said_to_be_undefined_for_the_reason_there_is(results: Path) -> None:
    none = compare(results, results, fields="recomendation")
    assert none.fields[0].undefined == "no answer has it in both"
    assert "one label alone" not in str(none) + none.html()
    one = compare(results, results, fields="recommendation")
    assert "undefined: one label alone" in str(one)
    many = compare(results, results, fields="score")
    assert (many.fields[0].undefined, many.fields[0].kappa) == (None, 1.0)


@pytest.mark.parametrize("request_line", [REQUEST, REQUEST["body"]], ids=["batch", "body"])
def test_requests_are_no_results(tmp_path: Path, results: Path, request_line: Any) -> None:
    requests = write_lines(tmp_path / "batch.jsonl", [request_line] * 3)
    for call in (
        lambda: analyze(requests),
        lambda: compare(requests, results),
        lambda: compare(results, requests),
        lambda: analyze([results, requests]),
    ):
        with pytest.raises(ConfigError, match=r"batch\.jsonl holds requests, no results: give what a run"):
            call()


def test_requests_given_to_the_command_are_wrong_usage(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = write_lines(tmp_path / "batch.jsonl", [REQUEST])
    assert main(["analyze", str(requests)]) == 2
    assert main(["compare", str(results), str(requests)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("holds requests") == 2


def test_a_request_among_results_is_a_line_that_is_none(tmp_path: Path) -> None:
    mixed = write_lines(tmp_path / "mixed.jsonl", [chat_line("a", "{}"), REQUEST])
    found = analyze(mixed)
    assert (found.rows, found.unreadable) == (1, 1)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial.jsonl"])
def test_the_output_of_a_run_is_no_journal_and_its_own_is_named(tmp_path: Path, name: str) -> None:
    given = write_lines(tmp_path / name, [chat_line(f"row-{n}", "{}") for n in range(40)])
    with pytest.raises(JournalCorruptError, match="choose another name, or restore a copy"):
        RunJournal.open_readonly(given)
    journal = tmp_path / "out.jsonl.run.db"
    RunJournal.open(journal, identity={"model": "m"}).close()
    with pytest.raises(JournalCorruptError, match=r"that wrote it is .*out\.jsonl\.run\.db, give that"):
        RunJournal.open_readonly(given)


def test_a_missing_file_is_told_in_the_words_of_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", "m"])
    told = capsys.readouterr().err
    assert code == 2
    assert "none.jsonl" in told
    assert "does not exist" in told
    assert "[prompt]" not in told
