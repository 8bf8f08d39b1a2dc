"""`verify` finds every planted fault, and nothing where there is none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ollama_batch.errors import OutputError
from ollama_batch.journal import Found, verify

ANSWER: dict[str, Any] = {"response": {"status_code": 200, "request_id": "r", "body": {}}, "error": None}
LOST: dict[str, Any] = {"response": None, "error": {"code": "connection_lost", "message": "gone"}}
REJECTED: dict[str, Any] = {"response": {"status_code": 400, "body": {"error": {}}}, "error": None}
CUT: dict[str, Any] = {"response": {"status_code": 200, "body": {}}, "error": {"code": "output_truncated"}}


def write(path: Path, ids: list[str], result: dict[str, Any] = ANSWER) -> Path:
    return write_lines(path, [{"custom_id": name, **result} for name in ids])


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_complete_output_is_ok(tmp_path: Path) -> None:
    ids = [f"é-{n}" for n in range(2500)]
    output = write(tmp_path / "out.jsonl", [name for n, name in enumerate(ids) if n % 10])
    errors = write(tmp_path / "errors.jsonl", ids[::10], LOST)
    report = verify(iter(ids), output, errors)
    assert report.ok
    assert (report.rows, report.lines, report.failed) == (2500, 2500, 250)
    assert str(report) == "2500 rows, 2500 lines (2250 ok, 250 failed): every row has exactly one"


@pytest.mark.parametrize("seed", range(5))
def test_every_planted_fault_is_found(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"id-{n}" for n in range(400)]
    chosen = rng.sample(ids, 30)
    missing, doubled, both = chosen[:10], chosen[10:20], chosen[20:]
    extra = [f"extra-{n}" for n in range(7)]
    lines = [name for name in ids if name not in missing] + doubled + extra
    rng.shuffle(lines)
    output, errors = write(tmp_path / "out.jsonl", lines), write(tmp_path / "errors.jsonl", both, LOST)
    report = verify(ids, output, errors)
    assert report.missing == Found(10, tuple(sorted(missing)))
    assert report.extra == Found(7, tuple(extra))
    assert report.doubled == Found(20, tuple(sorted(doubled + both)[:10]))
    assert not report.ok
    assert "doubled: 20 (" in str(report)
    assert "and 10 more" in str(report)


def test_lines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    bad = [b"{", b"[]", b'{"custom_id": 1}', b"\xff", b'{"custom_id": "\\ud800"}', b"[" * 100000]
    write(output, ["a"])
    output.write_bytes(output.read_bytes() + b"\n" + b"\n".join(bad))
    report = verify(["a"], output, tmp_path / "absent.jsonl")
    assert report.unreadable == Found(6, tuple(f"{output}:{n}" for n in range(3, 9)))
    assert (report.missing, report.extra, report.lines) == (Found(), Found(), 7)
    assert str(report).startswith("1 rows, 7 lines (1 ok, 0 failed)\n")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}},
        {"response": None, "error": None},
        {"response": {}, "error": None},
        {"response": {"status_code": 200}, "error": None},
        {"response": {"status_code": "200", "body": {}}, "error": None},
        {"response": {"status_code": True, "body": {}}, "error": None},
        {"response": "200", "error": None},
        {"response": [200]},
        {"response": {"status_code": 200, "body": {}}, "error": "none"},
    ],
)
def test_a_line_that_is_no_result_is_named_in_either_file_and_leaves_its_row_missing(
    tmp_path: Path, line: dict[str, Any]
) -> None:
    output = write_lines(tmp_path / "out.jsonl", [{"custom_id": "a", **ANSWER}, {"custom_id": "b", **line}])
    errors = write_lines(tmp_path / "errors.jsonl", [{"custom_id": None, **line}, {"custom_id": "c", **LOST}])
    report = verify(["a", "b", "c"], output, errors)
    assert report.no_result == Found(2, (f"{output}:2 b", f"{errors}:1"))
    assert (report.missing, report.misplaced, report.unreadable) == (Found(1, ("b",)), Found(), Found())
    assert not report.ok
    assert str(report).startswith("3 rows, 4 lines (1 ok, 1 failed)\n")
    assert f"no result: 2 ({output}:2 b, {errors}:1)" in str(report)


@pytest.mark.parametrize("failed", [LOST, REJECTED, CUT, {"response": {"status_code": 500}}])
def test_a_failed_row_belongs_into_the_error_file_and_an_answer_into_the_output(
    tmp_path: Path, failed: dict[str, Any]
) -> None:
    good, bad = write(tmp_path / "good.jsonl", ["a"]), write(tmp_path / "bad.jsonl", ["b"], failed)
    report = verify(["a", "b"], good, bad)
    assert (report.ok, report.failed) == (True, 1)
    report = verify(["a", "b"], bad, good)
    assert report.misplaced == Found(2, (f"{bad}:1 b", f"{good}:1 a"))
    assert (report.ok, report.failed, report.missing) == (False, 1, Found())
    assert "2 lines (1 ok, 1 failed)\nin the wrong file (failed rows in the output" in str(report)


def test_an_answer_may_leave_out_that_there_is_no_error(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", ["a"], {"response": ANSWER["response"]})
    assert verify(["a"], output).ok


def test_an_absent_output_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out\.jsonl cannot be read"):
        verify([], tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("lines", "missing", "doubled"),
    [
        (["a", "b", "a"], (), ()),
        (["a", "b"], ("a",), ()),
        (["a", "b", "a", "a"], (), ("a",)),
        (["b"], ("a",), ()),
    ],
)
def test_an_id_that_the_input_has_twice_has_two_lines(
    tmp_path: Path, lines: list[str], missing: tuple[str, ...], doubled: tuple[str, ...]
) -> None:
    report = verify(["a", "b", "a"], write(tmp_path / "out.jsonl", lines))
    assert (report.missing.first, report.doubled.first, report.extra.count) == (missing, doubled, 0)


def test_a_row_without_an_id_has_a_line_without_one(tmp_path: Path) -> None:
    output = write(tmp_path / "out.jsonl", ["a"])
    errors = tmp_path / "errors.jsonl"
    write_lines(errors, [{"custom_id": None, **LOST}])
    assert verify(["a", None], output, errors).ok
    assert verify(["a"], output, errors).unreadable == Found(1, (f"{errors}:1",))
    short = verify(["a", None, None], output, errors)
    assert short.missing.count == 1
    assert "without a custom_id" in str(short)
