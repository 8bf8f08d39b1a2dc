"""Evaluations into an export: which candidate gets what, which file results from it, what is told."""

from __future__ import annotations

import gzip
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from evaluations_support import answer, answered, failed, written
from ollama_batch import BatchRequest, BatchResult, ConfigError, InputError, RowError
from ollama_batch.aris import FailedEvaluation, UnevaluatedCandidate, rank, write_evaluations
from ollama_batch.errors import DiskFullError, JournalError, OutputError, RunStoppedError
from ollama_batch.testing import FakeOllama, Fault
from runner_support import line, runner_on, write_lines

YES, NO = answer("Yes", "None"), answer("No")

EXPORT = """\
{"metadata": {"exportedAt": "2026-01-01T00:00:00Z", "batchSize": 4},
 "candidates": [
  {"aristotleId": "a", "gemData": {"name": "\u540d", "praxisData": null}, "cvData": null, "praxisData": null},
  {"aristotleId": "b", "n": 1.50, "praxisData": {"recommendation": "Maybe"}},
  {"aristotleId": 3, "future": {"x": [1e400]}},
  {"aristotleId": "d", "praxisData": null}
 ]}
"""


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "export.json"
    path.write_text(EXPORT, encoding="utf-8")
    return path


def test_candidates_get_their_evaluations_and_all_else_stays(export: Path, tmp_path: Path) -> None:
    results = [answered("3", NO), answered("b", YES), answered("a", YES), failed("d")]
    done = write_evaluations(export, results, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == (
        EXPORT.replace('null, "praxisData": null', f'null, "praxisData": {written(YES)}')
        .replace('{"recommendation": "Maybe"}', written(YES))
        .replace("[1e400]}", f'[1e400]}}, "praxisData": {written(NO)}')
    )
    assert (done.candidates, done.written, done.replaced, done.failed) == (4, 3, 1, 1)
    assert done.failures == (FailedEvaluation("d", "output_truncated", "it was cut off"),)
    assert export.read_text(encoding="utf-8") == EXPORT


def test_an_indented_export_stays_indented(tmp_path: Path) -> None:
    text = json.dumps({"candidates": [{"aristotleId": "a", "cvData": None}]}, indent=2)
    (tmp_path / "export.json").write_text(text)
    write_evaluations(tmp_path / "export.json", [answered("a", YES)], tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == text.replace(
        '"cvData": null', f'"cvData": null,\n      "praxisData": {written(YES)}'
    )


def test_what_became_of_every_candidate_and_result_is_told(tmp_path: Path) -> None:
    lines = [
        *('{"aristotleId": "ok"}', '{"aristotleId": "ok", "n": 2}', '{"aristotleId": "failed"}'),
        *('{"aristotleId": "unparsed"}', '{"aristotleId": "missing"}', '{"n": 1}', '{"aristotleId": "cut'),
    ]
    (tmp_path / "export.jsonl").write_text("\n".join(lines))
    results = [
        *(answered("ok"), failed("failed"), answered("unparsed", {**answer(), "recommendation": "Perhaps"})),
        *(answered("gone"), failed("also gone"), answered("gone too")),
    ]
    done = write_evaluations(tmp_path / "export.jsonl", results, tmp_path / "out.jsonl")
    assert str(done).splitlines() == [
        f"{tmp_path / 'out.jsonl'}: 1 of 6 candidates evaluated",
        "  1 unchanged: the row failed",
        "  1 unchanged: the answer is no evaluation",
        "  1 unchanged: there is no result: missing",
        "  1 unchanged: a candidate before has the same id",
        "  1 unchanged: there is no id",
        "  1 unchanged: no candidate, a line that is no JSON object",
        "  2 without a candidate: gone, gone too",
    ]
    made = (tmp_path / "out.jsonl").read_text().split("\n")
    assert made[0] == f'{{"aristotleId": "ok","praxisData": {written(answer())}}}'
    assert made[1:] == lines[1:]
    assert [each.custom_id for each in done.failures] == ["failed", "unparsed", "also gone"]
    assert done.failures[1].code == "output_unparsed"
    assert "recommendation: Input should be 'Strong Yes'" in done.failures[1].message
    assert "Perhaps" not in done.failures[1].message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would say yes.",
        "{",
        json.dumps(answer())[:-1],
        json.dumps([answer()]),
        json.dumps({**answer(), "recommendation": None}),
        json.dumps(answer()).replace('"Good"', "null", 1),
        json.dumps(YES) + "\n" + json.dumps(NO),
        '{"recommendation": "\ud800"}',
        "null",
    ],
)
def test_a_text_that_is_no_evaluation_is_never_made_one(export: Path, tmp_path: Path, text: str) -> None:
    done = write_evaluations(export, [answered("a", text)], tmp_path / "out.json")
    assert (done.written, done.unparsed) == (0, 1)
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == EXPORT


def test_a_rating_none_does_not_become_null(export: Path, tmp_path: Path) -> None:
    write_evaluations(export, [answered("a", YES)], tmp_path / "out.json")
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["candidates"][0]["praxisData"]
    assert made == YES
    assert made["analysis"]["educational_pedigree"]["rating"] == "None"


def test_a_tool_call_is_no_evaluation(export: Path, tmp_path: Path) -> None:
    done = write_evaluations(export, [BatchResult(custom_id="a", ok=True)], tmp_path / "out.json")
    assert done.failures == (FailedEvaluation("a", "output_unparsed", "the answer has no text"),)


def test_answers_of_another_form_go_through_their_own_model(export: Path, tmp_path: Path) -> None:
    class Mine(BaseModel):
        grade: int

    results = [
        answered("a", {"grade": 3}),
        answered("b", answer()),
        answered("d", "{}", parsed=Mine(grade=4)),
    ]
    done = write_evaluations(export, results, tmp_path / "out.json", model=Mine)
    assert (done.written, done.unparsed) == (2, 1)
    made = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert 'null, "praxisData": {"grade":3}}' in made
    assert '"d", "praxisData": {"grade":4}}' in made


# Results that are told more than once


def test_a_row_that_failed_and_was_run_again_counts_as_answered(export: Path, tmp_path: Path) -> None:
    results = [failed("a"), answered("a", YES), failed("a"), answered("a", YES)]
    done = write_evaluations(export, results, tmp_path / "out.json")
    assert (done.written, done.failed) == (1, 0)


def test_two_different_evaluations_of_one_candidate_are_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two different evaluations of 'a'"):
        write_evaluations(export, [answered("a", YES), answered("a", NO)], tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == [export]


# Files


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def test_gzip_goes_in_and_out(export: Path, tmp_path: Path) -> None:
    write_evaluations(export, [answered("a", YES)], tmp_path / "plain.json")
    plain = (tmp_path / "plain.json").read_text(encoding="utf-8")
    (tmp_path / "export").write_bytes(packed(EXPORT))  # by content, not by name
    write_evaluations(tmp_path / "export", [answered("a", YES)], tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == plain
    for name in ("one.json.gz", "two.json.gz"):
        write_evaluations(export, [answered("a", YES)], tmp_path / name)
    assert unpacked(tmp_path / "one.json.gz") == plain
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_the_file_is_its_owners_alone(export: Path, tmp_path: Path) -> None:
    write_evaluations(export, [], tmp_path / "out.json")
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o600


def test_no_file_is_overwritten_unasked(export: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link", "export.json"):
        with pytest.raises(OutputError, match=f"{name} exists: give another name, or say overwrite=True"):
            write_evaluations(export, [answered("a")], tmp_path / name)
    with pytest.raises(OutputError, match="is a folder"):
        write_evaluations(export, [answered("a")], tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="there is no folder"):
        write_evaluations(export, [answered("a")], tmp_path / "no" / "out.json")
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "link", "mine"]


def test_an_export_can_be_filled_in_place_when_asked(export: Path) -> None:
    done = write_evaluations(export, [answered("a", YES)], export, overwrite=True)
    assert done.written == 1
    again = write_evaluations(export, [answered("a", NO)], export, overwrite=True)
    assert again.replaced == 1
    assert export.read_text(encoding="utf-8") == EXPORT.replace(
        'null, "praxisData": null', f'null, "praxisData": {written(NO)}'
    )


def test_a_file_that_appears_meanwhile_is_kept(export: Path, tmp_path: Path) -> None:
    place = tmp_path / "out.json"

    def results() -> Any:
        yield answered("a")
        place.write_text("mine")

    with pytest.raises(OutputError, match="exists"):
        write_evaluations(export, results(), place)
    assert place.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "out.json"]


@pytest.mark.parametrize("end", [200, len(EXPORT) - 5])
def test_a_broken_export_leaves_everything_as_it_was(export: Path, tmp_path: Path, end: int) -> None:
    (tmp_path / "out.json").write_text("before")
    export.write_text(EXPORT[:end], encoding="utf-8")
    with pytest.raises(InputError, match="was cut off"):
        write_evaluations(export, [answered("a")], tmp_path / "out.json", overwrite=True)
    assert (tmp_path / "out.json").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "out.json"]


def test_what_is_not_there_is_named(export: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json cannot be read: No such file"):
        write_evaluations(tmp_path / "no.json", [answered("a")], tmp_path / "out.json")
    with pytest.raises(InputError, match=r"no\.jsonl cannot be read: No such file"):
        write_evaluations(export, tmp_path / "no.jsonl", tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == [export]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_and_leaves_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from ollama_batch import _new_file as new_file

    monkeypatch.setattr(new_file, "create_private", lambda path: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(
        DiskFullError, match=r"out\.json cannot be written: No space left on device .* make room"
    ):
        write_evaluations(export, [answered("a")], tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == [export]


KILLED = """
import os, signal, sys
from ollama_batch import _points
from ollama_batch.aris import write_evaluations

def die(name):
    if name == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)

_points.listen(die)
write_evaluations(*sys.argv[1:4], overwrite=True)
"""


@pytest.mark.parametrize("point", ["new.begin", "file.before_sync", "file.before_rename"])
def test_a_kill_leaves_the_file_that_was_there(export: Path, tmp_path: Path, point: str) -> None:
    results = write_lines(tmp_path / "results.jsonl", [])
    (tmp_path / "out.json").write_text("before")
    child = [sys.executable, "-c", KILLED, str(export), str(results), str(tmp_path / "out.json"), point]
    assert subprocess.run(child, check=False, timeout=30).returncode == -signal.SIGKILL
    assert (tmp_path / "out.json").read_text() == "before"


# Where results come from


@pytest.fixture
def run(fake_ollama_factory: Callable[..., FakeOllama], export: Path, tmp_path: Path) -> Path:
    """The journal of a run over the candidates: a and b are answered, 3 says nothing of use, d is cut off."""

    def say(body: Any) -> str:
        said = {"a": json.dumps(YES), "b": json.dumps(NO)}
        return said.get(body["messages"][-1]["content"], "Hire them.")

    fake = fake_ollama_factory(reply=say)
    fake.inject(Fault("length", match="d"))
    requests = write_lines(tmp_path / "in.jsonl", [line("a"), line("b"), line("3"), line("d"), "[]"])
    runner_on(fake).run(requests, output=tmp_path / "results.jsonl", on_invalid="skip")
    return tmp_path / "results.jsonl.run.db"


def test_a_journal_and_its_files_give_the_same(run: Path, export: Path, tmp_path: Path) -> None:
    done = write_evaluations(export, run, tmp_path / "out.json")
    assert (done.written, done.unparsed, done.failed, done.unmatched) == (2, 1, 1, 0)
    assert [(each.custom_id, each.code) for each in done.failures] == [
        ("3", "output_unparsed"),
        ("d", "output_truncated"),
        (None, "invalid_json_line"),
    ]
    from_output = write_evaluations(export, tmp_path / "results.jsonl", tmp_path / "out2.json")
    assert (from_output.written, from_output.unparsed, from_output.failed) == (2, 1, 1)
    assert from_output.failures == done.failures, "the error file beside it is read as well"
    assert set(rank(tmp_path / "results.jsonl").failed) == set(done.failures)
    assert (tmp_path / "out2.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    from_errors = write_evaluations(export, tmp_path / "results.errors.jsonl", tmp_path / "out3.json")
    assert from_errors.failures == done.failures[1:]
    assert [(each.rank, each.custom_id) for each in rank(run).candidates] == [(1, "a"), (2, "b")]
    assert set(rank(run).failed) == set(done.failures)


def test_results_of_a_run_in_memory_are_taken(
    fake_ollama_factory: Callable[..., FakeOllama], export: Path, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply=json.dumps(YES))
    report = runner_on(fake).run([BatchRequest.chat("x", custom_id="a")])
    assert write_evaluations(export, report.results(), tmp_path / "out.json").written == 1


def openai_line(custom_id: str | None, text: str | None = None, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    response = {"status_code": 200, "request_id": "r", "body": {"choices": [{"message": message}]}}
    return {"id": "i", "custom_id": custom_id, "response": response, "error": None, **fields}


def test_result_files_of_others_are_taken(export: Path, tmp_path: Path) -> None:
    refused = {"status_code": 400, "body": {"error": {"message": "too long", "code": None, "type": "bad"}}}
    lines = [
        openai_line("a", json.dumps(YES)),
        openai_line("b", response=refused),
        openai_line("3", response=None, error="vLLM says a plain text"),
        openai_line("d", "```json {", ollama_batch={"parsed": NO}),
        openai_line("e", response={"status_code": 200, "body": {"choices": []}}),
        openai_line("f", response={"status_code": 503, "body": None}),
        openai_line(None, response=None, error={"code": "invalid_json_line", "message": "not JSON"}),
    ]
    results = write_lines(tmp_path / "results.jsonl", lines)
    done = write_evaluations(export, results, tmp_path / "out.json")
    assert (done.written, done.failed) == (2, 2)
    assert [(each.custom_id, each.code, each.message) for each in done.failures] == [
        ("b", "bad", "too long"),
        ("3", "failed", "vLLM says a plain text"),
        ("e", "output_unparsed", "the answer has no text"),
        ("f", "http_503", "the row failed and does not say why"),
        (None, "invalid_json_line", "not JSON"),
    ]


@pytest.mark.parametrize(
    "text", ['{"custom_id": "a", "url": "/v1"}', "[]", "{", '{"custom_id": null}', "a,b"]
)
def test_a_file_that_is_none_of_results_is_refused_with_its_line(
    export: Path, tmp_path: Path, text: str
) -> None:
    results = write_lines(tmp_path / "results.jsonl", [openai_line("a", json.dumps(YES)), text])
    with pytest.raises(
        InputError, match=r"results\.jsonl:2 is .*: give the journal of a run, or a file of results"
    ):
        write_evaluations(export, results, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_database_that_is_no_journal_is_refused(export: Path, tmp_path: Path) -> None:
    import sqlite3

    con = sqlite3.connect(tmp_path / "other.db")
    con.execute("CREATE TABLE t (a)")
    con.close()
    with pytest.raises(JournalError):
        write_evaluations(export, tmp_path / "other.db", tmp_path / "out.json")


def test_items_that_are_no_results_are_refused_by_their_kind(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="results= has a dict: must be"):
        write_evaluations(export, [answer()], tmp_path / "out.json")  # type: ignore[list-item]  # that is the point


def test_ids_of_any_text_find_their_candidate(tmp_path: Path) -> None:
    ids = ["\u00e9", "\U0001f600", "a\nb", "\ud800", "0" * 400, " a ", "3"]
    export = tmp_path / "export.json"
    export.write_text(json.dumps([{"aristotleId": each} for each in ids]))
    done = write_evaluations(export, [answered(each) for each in ids], tmp_path / "out.json")
    assert (done.written, done.missing, done.unmatched) == (len(ids), 0, 0)


def test_nothing_that_is_printed_obeys_a_terminal(export: Path, tmp_path: Path) -> None:
    results = [
        answered("\x1b[2J"),
        BatchResult(custom_id="a", ok=False, error=RowError("x", "\x1b]0;title\x07")),
    ]
    done = write_evaluations(export, results, tmp_path / "out.json")
    for text in (str(done).replace("\n", ""), str(done.failures[0])):
        assert text.isprintable()
        assert "\\x1b" in text


@pytest.fixture
def stopped(fake_ollama_factory: Callable[..., FakeOllama], export: Path, tmp_path: Path) -> Path:
    """The journal of a run that stopped at its second row of three; candidate b has no request in it."""
    fake = fake_ollama_factory(reply=json.dumps(YES))
    fake.inject(Fault("length", match="3"))
    requests = write_lines(tmp_path / "in.jsonl", [line("a"), line("3"), line("d")])
    with pytest.raises(RunStoppedError):
        runner_on(fake, concurrency=1, order="input").run(
            requests, output=tmp_path / "results.jsonl", max_failures=0
        )
    return tmp_path / "results.jsonl.run.db"


def test_every_candidate_without_an_evaluation_is_named_with_the_reason(
    stopped: Path, export: Path, tmp_path: Path
) -> None:
    left: list[UnevaluatedCandidate] = []
    done = write_evaluations(export, stopped, tmp_path / "out.json", unevaluated=left.append)
    told = {each.custom_id: each.code for each in left}
    assert told == {"b": "no_request", "3": "output_truncated", "d": "pending"}
    ids = [
        json.dumps(each["aristotleId"]).strip('"') for each in json.loads(export.read_text())["candidates"]
    ]
    assert [ids[each.position - 1] for each in left] == [each.custom_id for each in left]
    assert (done.written, done.failed, done.missing, done.missing_ids, done.pending) == (1, 1, 1, ("b",), 1)
    assert "  1 unchanged: no result yet: the same `ollama-batch run` line goes on" in str(done)
    ranking = rank(stopped)
    assert ranking.pending == 1
    assert str(ranking) == (
        "1 candidates, the best first; rows without an evaluation: 1; "
        "rows without a result yet, as the run is not finished: 1"
    )
    assert str(rank([])) == "nobody, as there is no evaluation"


def test_the_results_are_never_replaced_from_python(stopped: Path, export: Path, tmp_path: Path) -> None:
    before = stopped.read_bytes()
    for results in (stopped, [stopped]):
        with pytest.raises(OutputError, match="is an input, and would be lost"):
            write_evaluations(export, results, stopped, overwrite=True)
    with pytest.raises(OutputError, match="is an input, and would be lost"):
        rank(stopped).to_csv(tmp_path / "r.csv", failed=stopped, overwrite=True)
    with pytest.raises(OutputError, match="is to be both tables"):
        rank(stopped).to_csv(tmp_path / "r.csv", failed=tmp_path / "r.csv")
    assert stopped.read_bytes() == before
    assert not (tmp_path / "r.csv").exists()
