"""`ollama-batch aris-back`: evaluations back into the export, and a ranking, from a shell."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluations_support import answer
from ollama_batch.cli import main
from ollama_batch.errors import RunStoppedError
from ollama_batch.testing import FakeOllama, Fault
from runner_support import line, runner_on, write_lines

CANDIDATES = ("ann", "bob", "cleo")


def result(name: str, said: Any) -> str:
    message = {"role": "assistant", "content": said if isinstance(said, str) else json.dumps(said)}
    body = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    candidates = [{"aristotleId": name, "praxisData": None} for name in CANDIDATES]
    path = tmp_path / "export.json"
    path.write_text(json.dumps({"metadata": {}, "candidates": candidates}))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    low, high = answer("Maybe", "Great"), answer("Yes", "None")
    return write_lines(tmp_path / "results.jsonl", [result("ann", low), result("bob", high)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_evaluations_go_back_and_candidates_are_ranked(
    export: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, ranking, without = (tmp_path / name for name in ("out.json", "ranking.csv", "without.csv"))
    back = ["aris-back", str(export), str(results), "-o", str(out)]
    assert main([*back, "--ranking", str(ranking), "--without", str(without)]) == 0
    said = [each["praxisData"] for each in json.loads(out.read_text())["candidates"]]
    assert [each and each["recommendation"] for each in said] == ["Maybe", "Yes", None]
    assert [(row["rank"], row["custom_id"]) for row in rows(ranking)] == [("1", "bob"), ("2", "ann")]
    assert list(map(list, map(dict.values, rows(without)))) == [
        ["3", "cleo", "no_result", "the results have none of this candidate", "false"]
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 2 of 3 candidates evaluated",
        "  1 unchanged: there is no result: cleo",
        f"{ranking}: 2 candidates, the best first",
        f"{without}: 1 candidates without an evaluation, and why",
    ]


def test_the_weights_are_those_that_are_given(export: Path, results: Path, tmp_path: Path) -> None:
    back = ["aris-back", str(export), str(results), "-o", str(tmp_path / "out.json")]
    back += ["--ranking", str(tmp_path / "r.csv"), "--weights", "educational_pedigree=3, recommendation=1"]
    assert main(back) == 0
    assert [row["custom_id"] for row in rows(tmp_path / "r.csv")] == ["ann", "bob"]


@pytest.mark.parametrize(
    "more",
    [
        result("cleo", "Hire them."),
        result("dora", answer()),
        json.dumps({"custom_id": "cleo", "response": None, "error": {"code": "timeout", "message": "late"}}),
    ],
    ids=["no evaluation", "no candidate", "failed"],
)
def test_what_did_not_get_back_ends_with_1(export: Path, results: Path, tmp_path: Path, more: str) -> None:
    results.write_text(results.read_text() + more + "\n")
    assert main(["aris-back", str(export), str(results), "-o", str(tmp_path / "out.json")]) == 1
    assert "Yes" in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--ranking", "there.csv"], "there.csv exists: give another name, or say --overwrite"),
        (["--ranking", "new.json"], "-o, --ranking and --without must be different files"),
        (["--ranking", "r.csv", "--without", "./r.csv"], "-o, --ranking and --without must be different"),
        (["--ranking", "none/r.csv"], "there is no folder none"),
        (["--weights", "beauty=3"], "--weights names 'beauty': the names are recommendation,"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    export: Path,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    assert main(["aris-back", str(export), str(results), "-o", "new.json", *more]) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "results.jsonl", "there.csv"]
    assert Path("there.csv").read_text() == "mine"


def test_weights_that_are_no_numbers_are_wrong_usage(
    export: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = ["aris-back", str(export), str(results), "-o", "out.json", "--weights", "trajectory=much"]
    with pytest.raises(SystemExit, match="2"):
        main(back)
    assert "argument --weights: 'trajectory=much' is not of the form NAME=NUMBER" in capsys.readouterr().err


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("option", ["-o", "--ranking", "--without"])
@pytest.mark.parametrize("name", ["results.jsonl", "results.errors.jsonl", "export.json"])
def test_no_input_is_ever_replaced(
    export: Path,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    name: str,
    link: bool,
) -> None:
    write_lines(tmp_path / "results.errors.jsonl", [])
    victim = tmp_path / name
    out = tmp_path / "link" if link else victim
    if link:
        out.hardlink_to(victim)
    before, names = victim.read_bytes(), sorted(tmp_path.iterdir())
    places = {"-o": tmp_path / "out.json", option: out}
    places_given = [part for pair in places.items() for part in map(str, pair)]
    code = main(["aris-back", str(export), str(results), *places_given, "--overwrite"])
    if (option, name) == ("-o", "export.json"):
        assert code == 0, "the export with its evaluations may replace the export"
        assert json.loads(out.read_text())["candidates"][0]["praxisData"]
        assert not link or victim.read_bytes() == before
        return
    assert code == 2
    assert f"{out} is an input, and would be lost: give another name" in capsys.readouterr().err
    assert (victim.read_bytes(), sorted(tmp_path.iterdir())) == (before, names)


def test_a_run_that_has_not_finished_is_told_and_ends_with_1(
    fake_ollama_factory: Callable[..., FakeOllama],
    export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = fake_ollama_factory(reply=json.dumps(answer()))
    fake.inject(Fault("length"))
    requests = write_lines(tmp_path / "in.jsonl", map(line, CANDIDATES))
    with pytest.raises(RunStoppedError):
        runner_on(fake, concurrency=1).run(requests, output=tmp_path / "run.jsonl", max_failures=0)
    capsys.readouterr()
    out, ranking = tmp_path / "out.json", tmp_path / "ranking.csv"
    back = ["aris-back", str(export), f"{tmp_path / 'run.jsonl'}.run.db", "-o", str(out)]
    assert main([*back, "--ranking", str(ranking)]) == 1
    told = capsys.readouterr().out
    assert f"{out}: 0 of 3 candidates evaluated" in told
    assert "  2 unchanged: no result yet: the same `ollama-batch run` line goes on" in told
    assert (
        f"{ranking}: nobody, as there is no evaluation; rows without an evaluation: 1; "
        "rows without a result yet, as the run is not finished: 2"
    ) in told


def test_several_results_are_taken_together(export: Path, tmp_path: Path) -> None:
    parts = [
        write_lines(tmp_path / f"{name}.jsonl", [result(name, answer("Yes"))]) for name in ("ann", "cleo")
    ]
    out = tmp_path / "out.json"
    assert main(["aris-back", str(export), *map(str, parts), "-o", str(out)]) == 0
    given = [bool(each["praxisData"]) for each in json.loads(out.read_text())["candidates"]]
    assert given == [True, False, True]
