"""What people see of an analysis: in a terminal, and as a page that obeys nothing a model has said."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis_support import (
    HOSTILE,
    LABELS,
    Row,
    chat_line,
    error_line,
    prepared,
    write_files,
    write_journal,
    write_lines,
)
from ollama_batch._text import duration
from ollama_batch.analysis import Analysis, Comparison, analyze, compare
from ollama_batch.analysis.numbers import distribution_of, edges, figure, nice_step, quantile, signed
from ollama_batch.analysis.page import show_analysis, show_comparison
from ollama_batch.analysis.plots import number, time_ticks
from ollama_batch.errors import MissingExtraError
from ollama_batch.journal import RunJournal
from ollama_batch.records import encode_result
from ollama_batch.types import RowRecord

pytest.importorskip("jinja2")


class Page(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A file in which everything that a model, a server or an input says is hostile."""
    lines = [
        chat_line(f"{n} {text}", json.dumps({"r": text, "s": n}), model=text)
        for n, text in enumerate(HOSTILE)
    ]
    lines += [chat_line(text, text) for text in HOSTILE]
    lines += [error_line(text, 400, text, text) for text in HOSTILE]
    lines[0]["response"]["body"]["choices"][0]["finish_reason"] = HOSTILE[0]
    return write_lines(tmp_path / "hostile.jsonl", lines)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    lines = [
        chat_line(f"{n} {text}", json.dumps({"r": text[::-1], "s": 1}), model=text)
        for n, text in enumerate(HOSTILE)
    ]
    return write_lines(tmp_path / "other.jsonl", lines)


def pages(hostile: Path, other: Path) -> tuple[Analysis, Comparison]:
    path = f"r{HOSTILE[0]}"
    return (
        analyze(hostile, fields=["r", path], score="s"),
        compare(hostile, other, fields=["r", path], score="s"),
    )


def test_a_terminal_obeys_nothing_that_was_said(hostile: Path, other: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=120)
    found, changes = pages(hostile, other)
    show_analysis(found, console)
    show_comparison(changes, console)
    printed = file.getvalue()
    # What is left of escape sequences is colour, which is ours.
    assert set(re.findall(r"\x1b(?!\[[0-9;]*m)", printed)) == set()
    assert "\x1b[31m" not in printed, "the model's own red"
    for bad in ("\x07", "\u202e", "\r", "\x00"):
        assert bad not in printed
    assert r"\x1b[2J\x1b]0;owned\x07" in printed
    for text in (str(found), str(changes)):
        assert text.isprintable() or set(text) - {"\n"} <= {c for c in text if c.isprintable()}


def test_markup_of_a_model_is_text_in_a_terminal(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "o.jsonl", [chat_line("[bold]a[/bold]", '{"r": "[red]x[/red]"}'), chat_line("b", "[/]")]
    )
    text = str(analyze(path, fields="r"))
    assert "[red]x[/red]" in text
    assert "b: [/]" in text


def test_a_page_has_no_tag_that_was_said_and_names_no_address(hostile: Path, other: Path) -> None:
    for found in pages(hostile, other):
        html = found.html()
        page = Page(html)
        assert set(page.tags) & {"script", "img", "iframe", "object", "embed", "form", "base", "a"} == set()
        names = {name for name, _ in page.attributes}
        assert not {name for name in names if name.startswith("on") or name in ("src", "srcdoc", "action")}
        assert [value for name, value in page.attributes if name == "href"] == ["data:,"]
        assert "url(" not in html
        assert "@import" not in html
        assert page.text.count("broken") >= 1
        assert '<script>document.title = "owned"</script>' in page.text
        assert "{{ 7 * 7 }}" in page.text
        assert "\x1b" not in html
        assert "\u202e" not in html


def test_a_page_carries_the_rule_that_nothing_in_it_may_load_or_run(hostile: Path) -> None:
    html = analyze(hostile).html()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert html.index("Content-Security-Policy") < html.index("<title>")


def test_a_notebook_shows_the_page_in_a_frame_that_runs_nothing(hostile: Path) -> None:
    shown = analyze(hostile)._repr_html_()
    page = Page(shown)
    assert page.tags == ["iframe"]
    assert ("sandbox", None) in page.attributes
    inside = dict(page.attributes)["srcdoc"]
    assert inside is not None
    assert inside.startswith("<!DOCTYPE html>")


def test_without_the_extra_what_needs_it_says_so_and_the_rest_works(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jinja2", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    found = analyze(hostile, fields="r")
    with pytest.raises(MissingExtraError, match=r'the HTML report needs jinja2.*"\.\[report\]"'):
        found.to_html(tmp_path / "r.html")
    with pytest.raises(MissingExtraError, match="needs pandas"):
        found.to_pandas()
    with pytest.raises(MissingExtraError, match="needs pyarrow"):
        found.to_parquet(tmp_path / "r.parquet")
    assert found._repr_html_().startswith("<pre>\nhostile.jsonl")
    assert "<script" not in found._repr_html_()
    assert found.to_csv(tmp_path / "r.csv").exists()
    assert "rows" in str(found)


def test_a_page_of_5000_rows_is_small(tmp_path: Path) -> None:
    files = write_files(tmp_path, prepared(5000))
    found = analyze(files, fields={"recommendation": LABELS, "reasoning": None}, score="score")
    assert len(found.html().encode()) < 400_000
    changes = compare(files, files, fields="recommendation", score="score")
    assert len(changes.html().encode()) < 400_000


def test_a_page_says_what_was_not_recorded(tmp_path: Path) -> None:
    page = Page(analyze(write_lines(tmp_path / "o.jsonl", [chat_line("a", "x")])).html())
    said = " ".join(page.text.split())
    gpu = "GPU memory over time; GPU use, waits and trouble."
    assert f"Not recorded: throughput, latency and context over time; {gpu}" in said
    assert "Latency is not recorded" in said
    files = Page(analyze(write_files(tmp_path, prepared(200))).html())
    assert f"Not recorded: latency over time; {gpu}" in " ".join(files.text.split())


def test_a_page_shows_the_figures_that_the_analysis_has(tmp_path: Path) -> None:
    found = analyze(
        write_journal(tmp_path / "run.db", prepared(400)), fields={"recommendation": LABELS}, score="score"
    )
    text = " ".join(Page(found.html()).text.split())
    assert f"{found.ok} of {found.rows} rows ok" in text
    for label, count in found.field("recommendation").labels.items():
        assert f"{label}{count}" in text.replace(" ", "").replace("StrongYes", "Strong Yes").replace(
            "StrongNo", "Strong No"
        )
    for group in found.errors:
        assert group.code in text
    assert f"{found.tokens.prompt - (found.tokens.cached or 0):,}" in text


def test_a_page_says_how_many_answers_were_repaired_and_asked_for_again(tmp_path: Path) -> None:
    told = {"parsed": {"r": "Yes"}, "asked_again": 2}
    lines = [chat_line(f"r{n}", "{'r': 'Yes'}") for n in range(3)]
    lines[0]["ollama_batch"], lines[1]["ollama_batch"] = told, {"asked_again": 1}
    found = analyze(write_lines(tmp_path / "o.jsonl", lines), fields="r")
    assert (found.repaired, found.asked_again) == (1, 3)
    assert "1 repaired, 3 asked again" in str(found)
    assert "Repaired13 asked again" in "".join(Page(found.html()).text.split("\n"))
    none = analyze(write_lines(tmp_path / "p.jsonl", [chat_line("a", "x")]))
    assert (none.repaired, none.asked_again) == (None, None), "another server's file has no word for it"
    assert "repaired" not in str(none)


def test_a_run_with_a_response_model_says_so_of_none_too(tmp_path: Path) -> None:
    async def fill(path: Path, **form: Any) -> None:
        with RunJournal.open(path, identity={"model": "m", **form}) as journal:
            await journal.add_rows([RowRecord(0, 0, 1, "a", bytes(16))])
            await journal.commit(encode_result(Row(custom_id="a", text="{}").result(0)))

    asyncio.run(fill(tmp_path / "free.db"))
    asyncio.run(fill(tmp_path / "form.db", response_model={"name": "Verdict"}))
    assert "repaired" not in str(analyze(tmp_path / "free.db"))
    assert "0 repaired, 0 asked again" in str(analyze(tmp_path / "form.db"))


# Numbers and axes


@pytest.mark.parametrize(
    ("least", "whole", "step"),
    [
        (0.7, False, 1),
        (1.2, False, 2),
        (2.2, False, 2.5),
        (2.2, True, 5),
        (0.02, True, 1),
        (30, True, 50),
        (0, False, 1),
    ],
)
def test_steps_are_round(least: float, whole: bool, step: float) -> None:
    assert nice_step(least, whole=whole) == step


def test_quantiles_are_those_of_the_standard_library() -> None:
    import statistics

    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    cuts = statistics.quantiles(values, n=4, method="inclusive")
    assert [quantile(sorted(values), share) for share in (0.25, 0.5, 0.75)] == pytest.approx(cuts)
    assert quantile([7.0], 0.9) == 7


@pytest.mark.parametrize(
    "values",
    [
        [5.0],
        [0.0, 0.0],
        [-3.0, -2.5, 4.0],
        [1, 2, 3, 4, 5],
        [0.1 * n for n in range(100)],
        [1e9, 1e9 + 1],
        [1e-9, 2e-9],
    ],
    ids=lambda values: f"{len(values)} from {values[0]}",
)
def test_every_value_is_in_one_bar(values: list[float]) -> None:
    found = distribution_of(values)
    assert found is not None
    assert sum(bar.count for bar in found.bars) == len(values)
    assert len(found.bars) <= 32
    for bar, following in zip(found.bars, found.bars[1:], strict=False):
        assert bar.high == following.low


def test_a_long_tail_has_one_bar_without_an_end() -> None:
    found = distribution_of([*map(float, range(1, 1000)), 50_000.0])
    assert found is not None
    assert (found.bars[-1].high, found.bars[-1].count) == (None, 1)
    assert found.high == 50_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1234, "1,234"),
        (12_345, "12.3k"),
        (999_999, "1M"),
        (6_612_118, "6.61M"),
        (2e9, "2B"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("length", "labels"),
    [
        (40, ["0", "10s", "20s", "30s", "40s"]),
        (741, ["0", "2m", "4m", "6m", "8m", "10m", "12m"]),
        (20_000, ["0", "1h", "2h", "3h", "4h", "5h"]),
        (400_000, ["0", "1d", "2d", "3d", "4d"]),
    ],
)
def test_times_on_an_axis_are_round(length: float, labels: list[str]) -> None:
    assert [tick.label for tick in time_ticks(length, duration)] == labels


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.1234, "0.123"),
        (99.96, "100"),
        (1140, "1,140"),
        (1180.4, "1,180"),
        (2500.5, "2,500"),
        (9999.6, "10,000"),
        (12_345, "12.3k"),
        (123_456, "123k"),
        (5e12, "5,000B"),
        (-1180.4, "-1,180"),
    ],
)
def test_a_number_on_an_axis_has_one_form(value: float, said: str) -> None:
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0.5, "0.5"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (9999.9, "10,000"),
        (1e7, "10,000,000"),
    ],
)
def test_a_figure_has_no_exponent_and_its_thousands_apart(value: float | None, said: str) -> None:
    assert figure(value) == said
    assert value is None or signed(value) == f"+{said}"


def test_bars_and_spans_have_ends_that_read_apart() -> None:
    assert edges([0, 1, 2], number) == ["0", "1", "2"]
    assert edges([1.1, 1.12, 1.14], duration, "s") == ["1.10s", "1.12s", "1.14s"]
    assert edges([12_340, 12_345, 12_350], number) == ["12,340", "12,345", "12,350"]
    assert edges([0, 1.5, 1.525], duration, "s") == ["0.000s", "1.500s", "1.525s"]
    assert edges([3.0], number) == ["3"]


def test_no_bar_of_a_page_ends_where_it_begins(tmp_path: Path) -> None:
    rows = [
        Row(custom_id=f"r{n}", text="{}", prompt=9, completion=9, latency_s=1.1 + n / 2000, at=n / 50)
        for n in range(200)
    ]
    html = analyze(write_journal(tmp_path / "out.run.db", rows)).html()
    spans = re.findall(r"([\d.,]+(?:s|m\d\ds)?) to ([\d.,]+(?:s|m\d\ds)?)", html)
    assert len(spans) > 20
    assert [span for span in spans if span[0] == span[1]] == []


def test_text_that_is_printed_breaks_no_line(tmp_path: Path) -> None:
    name = "a-rather-long-label-of-a-model-that-has-much-to-say"
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", json.dumps({"r": name})), chat_line("b", "no")])
    other = write_lines(tmp_path / "p.jsonl", [chat_line("a", '{"r": "x"}'), chat_line("c", "no")])
    told = f"r{'x' * 200}"
    text = str(compare(path, other, fields=["r", told]))
    assert f"No answer has '{told}': is that the path of the field?" in text.splitlines()[-1]
    assert max(map(len, text.splitlines())) > 200


def test_the_time_of_result_files_is_called_what_it_is(tmp_path: Path) -> None:
    rows = prepared(60)
    files, journal = write_files(tmp_path, rows), write_journal(tmp_path / "out.run.db", rows)
    assert "of work," in str(analyze(journal))
    assert " from first to last answer," in str(analyze(files))
    assert " of work" not in str(analyze(files)).split("notes")[0]
    assert "a stop of up to 10 minutes counts as work" in str(analyze(files))
