"""`verify` finds every planted fault, and nothing where there is none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ollama_batch.errors import OutputError
from ollama_batch.journal import Found, verify


def write(path: Path, ids: list[str]) -> Path:
    path.write_text("".join(json.dumps({"custom_id": name, "response": None}) + "\n" for name in ids))
    return path


def test_a_complete_output_is_ok(tmp_path: Path) -> None:
    ids = [f"é-{n}" for n in range(2500)]
    output = write(tmp_path / "out.jsonl", [name for n, name in enumerate(ids) if n % 10])
    errors = write(tmp_path / "errors.jsonl", ids[::10])
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
    report = verify(ids, write(tmp_path / "out.jsonl", lines), write(tmp_path / "errors.jsonl", both))
    assert report.missing == Found(10, tuple(sorted(missing)))
    assert report.extra == Found(7, tuple(extra))
    assert report.doubled == Found(20, tuple(sorted(doubled + both)[:10]))
    assert not report.ok
    assert "doubled: 20 (" in str(report)
    assert "and 10 more" in str(report)


def test_lines_that_are_no_results_are_named(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    bad = [b"{", b"[]", b'{"custom_id": 1}', b"\xff", b'{"custom_id": "\\ud800"}', b"[" * 100000]
    output.write_bytes(b'{"custom_id": "a"}\n\n' + b"\n".join(bad))
    report = verify(["a"], output, tmp_path / "absent.jsonl")
    assert report.unreadable == Found(6, tuple(f"{output}:{n}" for n in range(3, 9)))
    assert (report.missing, report.extra, report.lines) == (Found(), Found(), 7)


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
    errors.write_text('{"custom_id": null}\n')
    assert verify(["a", None], output, errors).ok
    assert verify(["a"], output, errors).unreadable == Found(1, (f"{errors}:1",))
    short = verify(["a", None, None], output, errors)
    assert short.missing.count == 1
    assert "without a custom_id" in str(short)
