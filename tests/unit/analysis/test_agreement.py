"""What changed between two runs, and figures of agreement that others have published."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analysis_support import (
    LABELS,
    Row,
    answer,
    chat_line,
    error_line,
    prepared,
    write_files,
    write_journal,
    write_lines,
)
from ollama_batch import ConfigError
from ollama_batch.analysis import Comparison, compare
from ollama_batch.analysis.agreement import kappa


def counted(table: list[list[int]], names: str) -> Counter[tuple[str, str]]:
    return Counter({(names[i], names[j]): n for i, row in enumerate(table) for j, n in enumerate(row) if n})


@pytest.mark.parametrize(
    ("table", "value"),
    [
        # 50 grants, two readers: p_o 0.7, p_e 0.5 (the example of most textbooks).
        ([[20, 5], [10, 15]], 0.4),
        # Equal agreement and other margins: by hand 0.1304 and 0.2593.
        ([[45, 15], [25, 15]], (0.60 - 0.54) / (1 - 0.54)),
        ([[25, 35], [5, 35]], (0.60 - 0.46) / (1 - 0.46)),
        ([[10, 0], [0, 10]], 1.0),
        ([[0, 10], [10, 0]], -1.0),
        ([[5, 5], [5, 5]], 0.0),
    ],
)
def test_kappa_is_what_the_textbooks_have(table: list[list[int]], value: float) -> None:
    assert kappa(counted(table, "yn")) == pytest.approx(value)


def test_kappa_of_one_label_alone_is_undefined() -> None:
    assert kappa(counted([[10]], "y")) is None
    assert kappa(Counter()) is None


def test_weighted_kappa_counts_near_misses_for_less() -> None:
    near, far = (
        counted([[8, 2, 0], [0, 10, 0], [0, 0, 10]], "abc"),
        counted([[8, 0, 2], [0, 10, 0], [0, 0, 10]], "abc"),
    )
    assert kappa(near) == pytest.approx(kappa(far) or 0, abs=0.01)
    # Distances 0, 1, 2: observed 2/30; expected (10*12 + 10*10*2 + 10*8 + 10*10 + 10*8*2 + 10*12)/900.
    assert kappa(near, "abc") == pytest.approx(1 - (2 / 30) / ((120 + 200 + 80 + 100 + 160 + 120) / 900))
    assert (kappa(near, "abc") or 0) > (kappa(far, "abc") or 0)


def two_runs(folder: Path) -> tuple[Path, Path]:
    """Seven rows in each, six of them in both."""
    a = [
        chat_line("same", json.dumps({"r": "Yes", "s": 4})),
        chat_line("label", json.dumps({"r": "Yes", "s": 4})),
        chat_line("score", json.dumps({"r": "No", "s": 1})),
        chat_line("lost", json.dumps({"r": "No", "s": 2})),
        chat_line("null", json.dumps({"r": "No", "s": 2})),
        error_line("failed", 500, "engine_error", "x"),
        chat_line("only-a", "{}"),
    ]
    b = [
        error_line("failed", 500, "engine_error", "x"),
        chat_line("score", json.dumps({"r": "No", "s": 2.5})),
        chat_line("label", json.dumps({"r": "Maybe", "s": 4})),
        chat_line("same", json.dumps({"s": 4.0, "r": "Yes"})),
        chat_line("null", json.dumps({"r": None, "s": 2})),
        error_line("lost", 500, "engine_error", "x"),
        chat_line("only-b", "{}"),
    ]
    return write_lines(folder / "a.jsonl", a), write_lines(folder / "b.jsonl", b)


@pytest.fixture
def small(tmp_path: Path) -> Comparison:
    return compare(*two_runs(tmp_path), fields={"r": ["No", "Maybe", "Yes"]}, score="s")


def test_rows_are_matched_by_their_ids(small: Comparison) -> None:
    assert (small.rows_a, small.rows_b, small.both, small.only_a, small.only_b) == (7, 7, 6, 1, 1)
    assert (small.both_ok, small.ok_a, small.ok_b) == (4, 1, 0)
    assert small.same_text == 0


def test_what_changed_is_named_row_by_row(small: Comparison) -> None:
    assert {each.custom_id: each.what for each in small.examples} == {
        "label": ("r",),
        "score": ("score",),
        "lost": ("ok",),
        "null": ("r",),
    }
    assert small.changed == 4
    shown = {each.custom_id: (each.a, each.b) for each in small.examples}
    assert shown["label"] == ("Yes", "Maybe")
    assert shown["score"] == ("1", "2.5")
    assert shown["null"] == ("No", "-")
    assert shown["lost"][1] == "failed: engine_error"


def test_agreement_is_over_the_rows_that_have_the_field_in_both(small: Comparison) -> None:
    field = small.field("r")
    assert (field.count, field.agreed, field.only_a, field.only_b) == (3, 2, 1, 0)
    assert field.agreement == pytest.approx(2 / 3)
    # same Yes/Yes, label Yes/Maybe, score No/No: p_o 2/3, p_e (2*1 + 1*1)/9.
    assert field.kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert [(move.a, move.b, move.count) for move in field.moves] == [("Yes", "Maybe", 1)]
    assert field.labels == ("No", "Maybe", "Yes")
    assert field.weighted_kappa is not None
    assert any("1 row has it in one of the runs alone" in note for note in small.notes)


def test_scores_are_compared_by_their_differences(small: Comparison) -> None:
    score = small.score
    assert score is not None
    assert (score.count, score.up, score.down, score.same) == (4, 1, 0, 3)
    assert score.mean_a == pytest.approx((4 + 4 + 1 + 2) / 4)
    assert score.mean_change == pytest.approx(1.5 / 4)
    assert score.interval is None, "four rows are too few for it"


def test_the_spreadsheet_has_every_change_side_by_side(small: Comparison, tmp_path: Path) -> None:
    import pandas as pd

    from ollama_batch.analysis import read_csv

    frame = read_csv(small.to_csv(tmp_path / "changes.csv")).set_index("custom_id")
    pd.testing.assert_frame_equal(frame, small.to_pandas().set_index("custom_id"))
    assert list(frame.index) == ["score", "label", "null", "lost"]
    assert list(frame["changed"]) == ["score", "r", "r", "ok"]
    assert (frame.loc["label", "answer.r_a"], frame.loc["label", "answer.r_b"]) == ("Yes", "Maybe")
    assert frame.loc["score", "score_change"] == 1.5
    assert frame.loc["lost", "error_code_b"] == "engine_error"
    assert not frame.loc["lost", "ok_b"]
    assert json.loads(frame.loc["label", "output_b"]) == {"r": "Maybe", "s": 4}


def test_latency_is_compared_over_the_rows_that_were_answered_in_both(tmp_path: Path) -> None:
    """The slow rows, each answered in one run alone, would make either run look slower than the other."""

    def run(name: str, fast_s: float, slow: str, failed: str) -> Path:
        rows = [Row(custom_id=f"r{n}", text="x", latency_s=fast_s + n) for n in range(5)]
        rows.append(Row(custom_id=slow, text="x", latency_s=500.0))
        rows.append(Row(custom_id=failed, code="engine_error", message="x", latency_s=900.0))
        return write_journal(tmp_path / name, rows)

    a, b = run("a.db", 1.0, "s", "t"), run("b.db", 2.0, "t", "s")
    found = compare(a, b)
    assert found.latency_a is not None
    assert found.latency_b is not None
    assert (found.latency_a.count, found.latency_a.median, found.latency_a.high) == (5, 3.0, 5.0)
    assert (found.latency_b.count, found.latency_b.median, found.latency_b.high) == (5, 4.0, 6.0)
    assert "3.0s and 4.0s median" in str(found)
    assert "of the 5 rows answered in both" in str(found)
    files = compare(*two_runs(tmp_path))
    assert (files.latency_a, files.latency_b) == (None, None), "result files have none"
    assert "latency" not in str(files)


def test_labels_of_figures_are_whole(small: Comparison) -> None:
    lines = str(small).splitlines()
    for label in ("rows", "only in one", "ok in both", "ok in one", "difference"):
        assert any(line.startswith(f"  {label}  ") for line in lines), label


def test_where_nothing_is_asked_for_the_text_decides(tmp_path: Path) -> None:
    found = compare(*two_runs(tmp_path))
    assert found.changed == 5
    assert {each.what for each in found.examples} == {("text",), ("ok",)}
    same = compare(tmp_path / "a.jsonl", tmp_path / "a.jsonl")
    assert (same.changed, same.same_text, same.same_text_share) == (0, 6, 1.0)


def test_an_id_that_occurs_twice_is_matched_in_order(tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [chat_line("x", "1"), chat_line("x", "2")])
    b = write_lines(tmp_path / "b.jsonl", [chat_line("x", "1"), chat_line("x", "2"), chat_line("x", "3")])
    found = compare(a, b)
    assert (found.both, found.changed, found.only_b) == (2, 0, 1)


def test_runs_without_a_common_id_say_so(tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [chat_line("x", "1")])
    b = write_lines(tmp_path / "b.jsonl", [chat_line("y", "1")])
    found = compare(a, b)
    assert "no custom_id in common" in found.notes[0]
    assert (found.same_text_share, found.changed) == (None, 0)
    assert str(found)
    assert found.html()


def test_a_journal_compares_with_files_and_figures_are_those_of_other_code(tmp_path: Path) -> None:
    rows = prepared(600)
    other = []
    for n, row in enumerate(rows):
        if row.ok and row.text is not None and row.text.startswith("{") and n % 4 == 0:
            said: dict[str, Any] = json.loads(row.text)
            level = LABELS.index(said["recommendation"])
            text = json.dumps(
                answer(
                    LABELS[max(0, level - 1)],
                    "Good",
                    None if said["score"] is None else said["score"] + n % 3,
                )
            )
            other.append(dataclasses.replace(row, text=text))
        else:
            other.append(row)
    found = compare(
        write_journal(tmp_path / "a.run.db", rows),
        write_files(tmp_path, other, name="b.jsonl"),
        fields={"recommendation": LABELS},
        score="score",
    )

    def parsed(row: Row) -> dict[str, Any] | None:
        text = (row.text or "").removeprefix("```json\n").removesuffix("\n```")
        return json.loads(text) if row.ok and text.startswith("{") else None

    pairs = [(parsed(x), parsed(y)) for x, y in zip(rows, other, strict=True)]
    labels = [(x["recommendation"], y["recommendation"]) for x, y in pairs if x and y]
    field = found.field("recommendation")
    agreed = sum(x == y for x, y in labels)
    assert (field.count, field.agreed) == (len(labels), agreed)
    first, second = Counter(x for x, _ in labels), Counter(y for _, y in labels)
    chance = sum(first[label] * second[label] for label in LABELS) / len(labels) ** 2
    assert field.kappa == pytest.approx((agreed / len(labels) - chance) / (1 - chance))
    changes = [y["score"] - x["score"] for x, y in pairs if x and y and None not in (x["score"], y["score"])]
    score = found.score
    assert score is not None
    assert score.mean_change == pytest.approx(statistics.fmean(changes))
    assert score.sd == pytest.approx(statistics.stdev(changes))
    half = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(changes) / len(changes) ** 0.5
    assert score.interval == pytest.approx(
        (statistics.fmean(changes) - half, statistics.fmean(changes) + half)
    )
    assert (score.up, score.down) == (sum(c > 0 for c in changes), 0)


def test_every_figure_of_a_comparison_is_json(small: Comparison) -> None:
    again = json.loads(json.dumps(small.to_dict(), allow_nan=False))
    assert (again["changed"], again["fields"][0]["agreement"]) == (4, pytest.approx(2 / 3))
    with pytest.raises(KeyError, match="was not asked for"):
        small.field("x")
    with pytest.raises(ConfigError):
        compare("none.jsonl", "none.jsonl")
