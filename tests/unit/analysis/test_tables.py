"""Tables read back as they were, and a spreadsheet opens them without harm."""

from __future__ import annotations

import csv
import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest

from analysis_support import HOSTILE, LABELS, chat_line, prepared, write_files, write_journal, write_lines
from ollama_batch import ConfigError
from ollama_batch.analysis import Analysis, analyze, read_csv
from ollama_batch.errors import OutputError

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture
def found(tmp_path: Path) -> Analysis:
    path = write_journal(tmp_path / "run.db", prepared(300))
    return analyze(path, fields={"recommendation": LABELS, "analysis": None}, score="score")


def test_csv_and_parquet_read_back_as_the_dataframe(found: Analysis, tmp_path: Path) -> None:
    frame = found.to_pandas()
    assert len(frame) == 300
    pd.testing.assert_frame_equal(read_csv(found.to_csv(tmp_path / "t.csv")), frame)
    again = pd.read_parquet(found.to_parquet(tmp_path / "t.parquet"))
    for name, kind in frame.dtypes.items():
        if kind.kind == "O" and kind.name == "object":
            # pandas has a text type of its own by now, with another word for nothing.
            assert [None if pd.isna(value) else value for value in again[name]] == list(frame[name])
        else:
            pd.testing.assert_series_equal(again[name].astype(kind), frame[name])


def test_the_dataframe_holds_what_the_rows_hold(tmp_path: Path) -> None:
    rows = prepared(300)
    frame = analyze(write_journal(tmp_path / "run.db", rows), score="score").to_pandas()
    assert list(frame["custom_id"]) == [row.custom_id for row in rows]
    assert list(frame["output"]) == [row.text for row in rows]
    assert list(frame["ok"]) == [row.ok for row in rows]
    assert list(frame["error_code"]) == [row.code for row in rows]
    assert frame["prompt_tokens"].sum() == sum(row.prompt for row in rows)
    assert frame["prompt_tokens"].isna().sum() == sum(not row.prompt for row in rows)
    assert math.isclose(frame["latency_s"].sum(), sum(row.latency_s or 0 for row in rows))
    assert frame["finished_at"].dt.tz is not None
    assert frame["parsed"].isna().sum() == sum(not row.ok for row in rows)


def test_columns_are_there_even_if_nothing_is_in_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", None)])
    table = analyze(path, fields="x").to_pandas()
    assert {"latency_s", "reasoning", "parsed", "answer.x"} <= set(table.columns)
    assert table.loc[0, "output"] is None
    pd.testing.assert_frame_equal(read_csv(analyze(path, fields="x").to_csv(tmp_path / "t.csv")), table)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_can_be_taken_for_a_formula(text: str, tmp_path: Path) -> None:
    line = chat_line(text, json.dumps({"r": text}), model=text)
    found = analyze(write_lines(tmp_path / "o.jsonl", [line, chat_line("b", text)]), fields="r")
    path = found.to_csv(tmp_path / "t.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]
    assert not [cell for cell in cells if cell.startswith(("\t", "\r", "\n"))]
    again = read_csv(path)
    assert (again.loc[0, "custom_id"], again.loc[0, "answer.r"], again.loc[1, "output"]) == (text, text, text)


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", '{"s": -3.5}')])
    text = analyze(path, score="s").to_csv(tmp_path / "t.csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[1].endswith(",-3.5")


def test_a_long_answer_and_odd_characters_survive(tmp_path: Path) -> None:
    odd = 'line\r\nbreak, "quoted"\x00\x1b[31m ' + "ab " * 100_000 + "\U0001f600 \u202e"
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", odd)])
    found = analyze(path)
    assert read_csv(found.to_csv(tmp_path / "t.csv")).loc[0, "output"] == odd
    assert pd.read_parquet(found.to_parquet(tmp_path / "t.parquet")).loc[0, "output"] == odd


@pytest.mark.parametrize("how", ["to_csv", "to_parquet", "to_html"])
def test_a_file_that_is_there_is_replaced_only_where_asked(how: str, found: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        getattr(found, how)(path)
    assert path.read_text() == "mine"
    getattr(found, how)(path, overwrite=True)
    assert path.read_bytes() != b"mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="is what is analysed"):
        getattr(found, how)(found.source.files[0], overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        getattr(found, how)(tmp_path)
    with pytest.raises(OutputError, match="cannot be written: there is no folder"):
        getattr(found, how)(tmp_path / "none" / "t")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_table_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def score(said: Any) -> float:
        if said["n"] == 1:
            raise ValueError("bad")
        return 1.0

    path = write_lines(tmp_path / "o.jsonl", [chat_line(str(n), json.dumps({"n": n})) for n in (0, 2)])
    found = analyze(path, score=score)
    write_lines(path, [chat_line(str(n), json.dumps({"n": n})) for n in (0, 1)])
    with pytest.raises(ConfigError, match="row '1'"):
        found.to_csv(tmp_path / "t.csv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["o.jsonl"]


def test_another_csv_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "x.csv"
    other.write_text("ok\nmaybe\n")
    with pytest.raises(ConfigError, match="is no table"):
        read_csv(other)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")


def test_files_of_the_run_read_back_the_same(tmp_path: Path) -> None:
    found = analyze(write_files(tmp_path, prepared(100)))
    pd.testing.assert_frame_equal(read_csv(found.to_csv(tmp_path / "t.csv")), found.to_pandas())
