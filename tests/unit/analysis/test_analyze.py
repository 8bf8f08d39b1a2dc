"""The figures of an analysis are those that a count by hand, or by other code, gives."""

from __future__ import annotations

import json
import math
import sqlite3
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis_support import (
    BEGAN,
    LABELS,
    RATINGS,
    Row,
    answer,
    chat_line,
    error_line,
    prepared,
    write_files,
    write_journal,
    write_lines,
)
from memory_support import GIB
from ollama_batch import BatchMetrics, BatchRunner, ConfigError
from ollama_batch._load_note import load_note
from ollama_batch.analysis import Analysis, analyze, compare
from ollama_batch.errors import JournalCorruptError
from ollama_batch.events import MemoryMeasured
from ollama_batch.testing import FakeModel, FakeOllama
from trouble_support import Recorder

FIELDS = {"recommendation": LABELS, "analysis.trajectory.rating": RATINGS}


def by_hand(*, score: bool = True) -> list[Row]:
    """Eight rows whose figures can be had in the head."""
    told = [("Yes", "Good", 4.0), ("Yes", "Great", 5.0), ("No", "Weak", 1.0), ("Maybe", "Good", 2.0)]
    rows = [
        Row(
            custom_id=f"a{n}",
            text=json.dumps(answer(label, rating, number)),
            prompt=100 + n,
            completion=10 * (n + 1),
            cached=50,
            latency_s=float(n + 1),
            at=10.0 * (n + 1),
        )
        for n, (label, rating, number) in enumerate(told)
    ]
    return [
        *rows,
        Row(custom_id="b", text="No object at all.", prompt=100, completion=5, latency_s=9.0, at=50.0),
        Row(
            custom_id="c",
            text='```json\n{"recommendation": null}\n```',
            repaired=True,
            latency_s=2.0,
            at=60.0,
        ),
        Row(custom_id="d", code="engine_error", status=500, message="signal 9", attempts=3, at=70.0),
        Row(custom_id="e", code="engine_error", status=500, message="signal 11", attempts=3, at=80.0),
    ]


@pytest.fixture
def small(tmp_path: Path) -> Analysis:
    return analyze(write_journal(tmp_path / "run.db", by_hand()), fields=FIELDS, score="score")


def test_rows_answers_and_attempts_are_counted(small: Analysis) -> None:
    assert (small.rows, small.ok, small.failed) == (8, 6, 2)
    assert (small.parsed, small.unparsed, small.repaired, small.empty) == (5, 1, 1, 0)
    assert (small.retried, small.attempts) == (2, 12)
    assert small.models == {"gemma3:12b": 6}
    assert small.finish_reasons == {"stop": 6}


def test_labels_stand_in_the_order_that_was_asked_for(small: Analysis) -> None:
    field = small.field("recommendation")
    assert list(field.labels.items()) == [
        ("Strong Yes", 0),
        ("Yes", 2),
        ("Maybe", 1),
        ("No", 1),
        ("Strong No", 0),
    ]
    assert (field.present, field.null, field.absent) == (4, 1, 0)
    rating = small.field("analysis.trajectory.rating")
    assert (rating.present, rating.null, rating.absent) == (4, 0, 1)
    assert rating.labels["Good"] == 2
    with pytest.raises(KeyError, match="was not asked for"):
        small.field("other")


def test_scores_are_summed_up(small: Analysis) -> None:
    assert small.score is not None
    numbers = small.score.numbers
    assert numbers is not None
    assert (numbers.count, numbers.mean, numbers.low, numbers.median, numbers.high) == (4, 3.0, 1, 3.0, 5)
    assert numbers.sd == pytest.approx(math.sqrt((1 + 4 + 4 + 1) / 3))
    assert small.score.missing == 1


def test_tokens_are_those_of_the_rows_that_told(small: Analysis) -> None:
    tokens = small.tokens
    assert (tokens.reported, tokens.prompt, tokens.completion) == (5, 506, 105)
    assert (tokens.cached, tokens.cached_reported, tokens.cached_of) == (200, 4, 406)
    assert tokens.cached_share == pytest.approx(200 / 406)
    assert tokens.reasoning is None, "nobody told: not 0"


def test_latency_is_of_answered_rows(small: Analysis) -> None:
    assert small.latency is not None
    assert (small.latency.count, small.latency.low, small.latency.high) == (6, 1, 9)
    assert small.latency.median == 2.5  # of 1, 2, 2, 3, 4, 9


def test_errors_are_grouped_by_code_and_by_message_numbers_aside(small: Analysis) -> None:
    (group,) = small.errors
    assert (group.code, group.count, group.others) == ("engine_error", 2, 0)
    (kind,) = group.kinds
    assert (kind.message, kind.count, kind.custom_ids) == ("signal 9", 2, ("d", "e"))


SEVEN = [
    "verdict: Input should be 'Yes' or 'No' (row {name})",
    "score: {n} is above 10",
    "request 8f14e45f-{n:04x} was lost",
    "field 'a' is missing",
    "field 'b' is missing",
    "field 'c' is missing",
    "",
]


def test_every_message_of_a_code_is_counted_or_said_to_be_left_out(tmp_path: Path) -> None:
    """Seven messages, of 8, 7 ... 2 rows; numbers and ids in them are those of the rows."""
    lines = []
    for kind, message in enumerate(SEVEN):
        for n in range(8 - kind):
            name = f"row-{'abcdefgh'[kind]}{'abcdefgh'[n]}"
            lines.append(error_line(name, 400, "bad", message.format(n=1000 * n + 11, name=name)))
    found = analyze(write_lines(tmp_path / "o.jsonl", lines))
    (group,) = found.errors
    assert [kind.count for kind in group.kinds] == [8, 7, 6, 5, 4, 3, 2]
    assert group.kinds[0].custom_ids == ("row-aa", "row-ab", "row-ac")
    assert group.kinds[2].message == "request 8f14e45f-000b was lost"
    text = str(found)
    assert "8  verdict: Input should be 'Yes' or 'No' (row row-aa) (as in row-aa, row-ab, row-ac)" in text
    assert "4  field 'b' is missing (as in row-ea, row-eb, row-ec)" in text
    assert "field 'c'" not in text
    assert "and 2 other messages, in 5 rows" in text


def test_messages_beyond_those_that_are_told_apart_are_counted(tmp_path: Path) -> None:
    words = [f"{a}{b}" for a in "abcde" for b in "vwxyz"]
    lines = [error_line(word, 400, "bad", f"no {word * 3}") for word in [words[0], *words]]
    found = analyze(write_lines(tmp_path / "o.jsonl", lines))
    assert (len(found.errors[0].kinds), found.errors[0].others) == (20, 5)
    assert "and 15 other messages or more, in 20 rows" in str(found)


def test_examples_name_the_rows(small: Analysis) -> None:
    assert [(each.custom_id, each.text) for each in small.examples["unparsed"]] == [
        ("b", "No object at all.")
    ]
    assert [each.custom_id for each in small.examples["repaired"]] == ["c"]
    assert small.examples["slowest"][0].custom_id == "b"
    assert [each.custom_id for each in small.examples["highest score"]] == ["a1", "a0", "a3", "a2"]
    assert small.examples["lowest score"][0].custom_id == "a2"


def test_a_prepared_run_of_5000_rows_has_the_figures_that_other_code_counts(tmp_path: Path) -> None:
    rows = prepared(5000)
    found = analyze(write_files(tmp_path, rows), fields=FIELDS, score="score")
    ok = [row for row in rows if row.ok]
    answers = []
    for row in ok:
        assert row.text is not None
        text = row.text.removeprefix("```json\n").removesuffix("\n```")
        if text.startswith("{"):
            answers.append(json.loads(text))
    scores = [each["score"] for each in answers if each["score"] is not None]
    assert (found.rows, found.ok, found.failed) == (5000, len(ok), 5000 - len(ok))
    assert (found.parsed, found.unparsed) == (len(answers), len(ok) - len(answers))
    labels = Counter(each["recommendation"] for each in answers)
    assert found.field("recommendation").labels == {label: labels[label] for label in LABELS}
    ratings = Counter(each["analysis"]["trajectory"]["rating"] for each in answers)
    assert found.field("analysis.trajectory.rating").labels == {label: ratings[label] for label in RATINGS}
    assert found.score is not None
    numbers = found.score.numbers
    assert numbers is not None
    assert numbers.mean == pytest.approx(statistics.fmean(scores))
    assert numbers.sd == pytest.approx(statistics.stdev(scores))
    assert numbers.median == statistics.median(scores)
    cuts = statistics.quantiles(scores, n=20, method="inclusive")
    assert (numbers.p5, numbers.p25, numbers.p95) == pytest.approx((cuts[0], cuts[4], cuts[18]))
    assert sum(bar.count for bar in numbers.bars) == len(scores)
    for bar in numbers.bars:
        assert bar.high is not None
        assert bar.count == sum(bar.low <= score < bar.high for score in scores)
    assert found.tokens.prompt == sum(row.prompt for row in rows)
    assert found.tokens.completion == sum(row.completion for row in rows)
    assert {group.code: group.count for group in found.errors} == Counter(
        row.code for row in rows if row.code
    )


# Time


def test_a_run_is_laid_out_over_its_working_time(tmp_path: Path) -> None:
    rows = [
        Row(custom_id=f"r{n}", text="ok", at=10.0 + n, latency_s=2.0, prompt=100, completion=50)
        for n in range(40)
    ]
    rows += [
        Row(custom_id=f"s{n}", text="ok", at=5000.0 + n, latency_s=4.0, prompt=200, completion=50, session=2)
        for n in range(40)
    ]
    found = analyze(write_journal(tmp_path / "run.db", rows, memory=False))
    timeline = found.timeline
    assert timeline is not None
    assert timeline.started_at == BEGAN + 8  # sent two seconds before it was answered
    # 8 to 49, and 4,996 to 5,039.
    assert timeline.length_s == pytest.approx(41 + 43)
    assert [(each.offset_s, each.length_s, each.stopped_s) for each in timeline.stretches] == [
        pytest.approx((0, 41, 0)),
        pytest.approx((41, 43, 4947)),
    ]
    assert len(timeline.spans) == 10
    assert sum(span.rows for span in timeline.spans) == 80
    assert sum(span.rows_per_s * 8.4 for span in timeline.spans) == pytest.approx(80)
    first, last = timeline.spans[0], timeline.spans[-1]
    assert (first.latency_median_s, last.latency_median_s) == (2, 4)
    assert (first.context_high, last.context_median) == (150, 250)
    assert last.completion_tokens_per_s == pytest.approx(last.rows * 50 / 8.4)
    assert timeline.clock == "journal"
    assert "stopped once" in found.notes[0]


def test_memory_over_time_is_what_the_journal_noted(tmp_path: Path) -> None:
    rows = [Row(custom_id=str(n), text="x", at=float(n), latency_s=0.5) for n in range(100)]
    found = analyze(write_journal(tmp_path / "run.db", rows))
    assert found.timeline is not None
    assert [each.used_bytes for each in found.timeline.memory] == [
        10_200_000_000,
        10_206_000_000,
        10_212_000_000,
        10_218_000_000,
    ]
    assert {each.total_bytes for each in found.timeline.memory} == {16 * 2**30}
    assert [each.at_s for each in found.timeline.memory] == pytest.approx([0.5, 30.5, 60.5, 90.5])


def with_load(path: Path, *sessions: BatchMetrics) -> Path:
    """The same journal, in which these sessions have noted their ends."""
    con = sqlite3.connect(path)
    values = [(BEGAN, "load", json.dumps(load_note(each))) for each in sessions]
    con.executemany("INSERT INTO notes (at, kind, data) VALUES (?, ?, ?)", values)
    con.commit()
    con.close()
    return path


QUIET = BatchMetrics(
    sent=1,
    queue_mean_s=0.25,
    engine_idle_share=0.012,
    vram_peak_bytes=13 * GIB,
    vram_total_bytes=16 * GIB,
    ram_peak_bytes=9 * GIB,
    gpu_share_mean=0.95,
    gpu_share_p5=0.88,
    unmeasured={},
)
FAR = BatchMetrics(
    sent=1,
    recoveries=2,
    restarts=1,
    lost_s=65.0,
    vram_peak_bytes=14 * GIB,
    unmeasured={"gpu_share": "the engine is on another machine", "ram_used_bytes": "hidden"},
)


def test_what_sessions_noted_of_load_and_trouble_adds_up(tmp_path: Path) -> None:
    rows = [Row(custom_id="a", text="x", at=1.0, latency_s=0.5)]
    silent = analyze(write_journal(tmp_path / "silent.db", rows))
    assert silent.load is None
    assert "GPU use, waits and trouble" in silent.html()
    one = analyze(with_load(write_journal(tmp_path / "one.db", rows), QUIET))
    text = str(one)
    assert "  GPU        busy 95.0% of the time, 88.0% in its worst 5 %\n" in text
    assert "  RAM        at most 9.0 GiB of the machine that ran it\n" in text
    assert "  waits      0.25s for a slot on average; engine idle 1.2%" in text
    assert "trouble" not in text
    assert "  VRAM       at most 13.0 GiB\n" in text
    assert "of 16.0 GiB; 9.0 GiB RAM" in one.html()
    hidden = replace(FAR, vram_peak_bytes=None, unmeasured={"vram_used_bytes": "no driver"})
    path = with_load(write_journal(tmp_path / "hidden.db", rows, memory=False), hidden)
    assert "  VRAM       unknown: no driver\n  GPU        unknown: not measured\n" in str(analyze(path))
    both = analyze(with_load(write_journal(tmp_path / "both.db", rows), replace(QUIET, lost_s=5.0), FAR))
    load = both.load
    assert load is not None
    assert (load.sessions, load.recoveries, load.restarts, load.lost_s) == (2, 2, 1, 70.0)
    assert (load.vram_peak_bytes, load.vram_total_bytes) == (14 * GIB, 16 * GIB)
    assert (load.ram_peak_bytes, load.gpu_share_mean) == (9 * GIB, None)
    text = str(both)
    assert "  GPU        unknown: the engine is on another machine (last session)\n" in text
    assert "  trouble    2 recoveries, 1 restart; 1m10s lost" in text
    assert both.to_dict()["load"]["gpu_share_mean"] is None
    page = both.html()
    assert "2 recoveries, 1 restart" in page
    assert "GPU use, waits and trouble" not in page


def test_a_real_run_notes_its_memory_and_when_its_rows_finished(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    recorder = Recorder()
    runner = BatchRunner(model="toy:1b", base_url=fake_ollama.url, progress="none", hooks=[recorder])
    fake_ollama.hold()
    run = runner.start([f"Say {n}" for n in range(20)], output=tmp_path / "out.jsonl")
    recorder.wait_for(MemoryMeasured)
    fake_ollama.release()
    report = run.wait(30)
    found = analyze(tmp_path / "out.jsonl.run.db")
    notes = [note for note in found.source.notes if note.kind == "memory"]
    assert len(notes) == 1, "one in 30 seconds"
    assert notes[0].data["ram_used_bytes"] > 0
    assert (found.rows, found.ok, found.source.state) == (20, 20, "finished")
    assert found.latency is not None
    assert found.latency.count == 20
    assert found.timeline is not None
    assert found.timeline.started_at == pytest.approx(report.started_at.timestamp(), abs=10)
    assert found.tokens.prompt == report.metrics.prompt_tokens
    assert analyze(report).tokens == found.tokens
    load, m = found.load, report.metrics
    assert load is not None
    assert (load.sessions, load.recoveries, load.lost_s) == (1, 0, 0.0)
    assert load.engine_idle_share == m.engine_idle_share
    assert (load.queue_mean_s, load.ram_peak_bytes) == (m.queue_mean_s, m.ram_peak_bytes)
    assert load.gpu_share_mean is None or "gpu_share" not in load.unmeasured


def test_a_report_in_memory_is_analysed_too(fake_ollama_factory: Any) -> None:
    fake = fake_ollama_factory(models=(FakeModel("toy:1b", context_length=8192),))
    report = BatchRunner(model="toy:1b", base_url=fake.url, progress="none").run(["one", "two"])
    found = analyze(report)
    assert (found.rows, found.ok, found.source.kind, found.timeline) == (2, 2, "memory", None)
    assert found.load is not None
    assert found.load.engine_idle_share == report.metrics.engine_idle_share
    assert "When rows finished is not recorded." in found.notes


# Files


def test_a_journal_and_its_files_tell_the_same(tmp_path: Path) -> None:
    rows = prepared(400)
    journal = analyze(write_journal(tmp_path / "results.jsonl.run.db", rows), fields=FIELDS, score="score")
    files = analyze(write_files(tmp_path, rows), fields=FIELDS, score="score")
    for name in ("rows", "ok", "failed", "parsed", "unparsed", "fields", "score", "finish_reasons"):
        assert getattr(journal, name) == getattr(files, name), name
    assert {(group.code, group.count) for group in journal.errors} == {
        (group.code, group.count) for group in files.errors
    }
    assert journal.tokens == files.tokens
    assert (journal.latency is not None, files.latency) == (True, None)
    assert (files.repaired, files.attempts) == (None, None), "a result file does not tell"
    assert any("Latency is not recorded" in note for note in files.notes)


def test_the_error_file_beside_a_result_file_counts_unless_it_is_not_wanted(tmp_path: Path) -> None:
    output = write_files(tmp_path, prepared(400))
    assert analyze(output).failed > 0
    assert analyze(output, errors=None).failed == 0
    elsewhere = (tmp_path / "results.errors.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert analyze(output).failed == 0
    assert analyze(output, errors=elsewhere).failed > 0
    assert analyze([output, elsewhere]).failed > 0
    absent = analyze(output, errors=tmp_path / "none.jsonl")
    assert absent.failed == 0
    assert "none.jsonl is not there: no failed rows are counted from it." in absent.notes


def test_a_stop_in_a_result_file_is_a_long_silence(tmp_path: Path) -> None:
    lines = [chat_line(str(n), "x", created=1_790_000_000 + n + (3600 if n > 20 else 0)) for n in range(40)]
    timeline = analyze(write_lines(tmp_path / "o.jsonl", lines)).timeline
    assert timeline is not None
    assert timeline.clock == "answers"
    assert [each.stopped_s for each in timeline.stretches] == [0, 3601]
    assert timeline.length_s == 38


FOREIGN: dict[str, tuple[Any, dict[str, Any]]] = {
    "an answer": (chat_line("a", "{}"), {"ok": 1, "failed": 0, "parsed": 1}),
    "no choices": (
        {**chat_line("a", ""), "response": {"status_code": 200, "body": {"id": "x"}}},
        {"empty": 1},
    ),
    "text of a completion": (
        {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [{"text": "{}"}]}}},
        {"ok": 1, "parsed": 1, "empty": 0},
    ),
    "parts instead of text": (chat_line("a", [{"type": "text", "text": "{}"}]), {"ok": 1, "unparsed": 1}),
    "usage of its own": (chat_line("a", "{}", usage={"prompt_tokens": "many"}), {"ok": 1}),
    "usage that is no object": (chat_line("a", "{}", usage=[1]), {"ok": 1}),
    "a clock of milliseconds": (chat_line("a", "{}", created=1_790_000_000_000), {"ok": 1, "timeline": None}),
    "no clock": (chat_line("a", "{}", created=0), {"ok": 1, "timeline": None}),
    "rejected": (error_line("a", 400, "invalid_value", "no"), {"ok": 0, "failed": 1}),
    "rejected without a code": (error_line("a", 429, None, "slow down"), {"failed": 1}),
    "an error beside": (
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "late"}},
        {"failed": 1},
    ),
    "an error that is text": ({"custom_id": "a", "response": None, "error": "oh"}, {"failed": 1}),
    "no response at all": ({"custom_id": "a", "response": None, "error": None}, {"failed": 1}),
    "no id": ({**chat_line("a", "{}"), "custom_id": None}, {"ok": 1}),
    "not JSON": ("{nothing", {"rows": 0, "unreadable": 1}),
    "a list": ([1, 2], {"rows": 0, "unreadable": 1}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_lines_of_other_servers_are_read_as_they_come(name: str, tmp_path: Path) -> None:
    line, told = FOREIGN[name]
    found = analyze(write_lines(tmp_path / "o.jsonl", [line]), fields="recommendation")
    assert {key: getattr(found, key) for key in told} == told
    assert str(found)


def test_codes_of_other_servers_are_what_comes_nearest(tmp_path: Path) -> None:
    lines = [FOREIGN[name][0] for name in ("rejected", "rejected without a code", "an error beside")]
    lines += [FOREIGN["an error that is text"][0], FOREIGN["no response at all"][0]]
    groups = analyze(write_lines(tmp_path / "o.jsonl", lines)).errors
    assert {(group.code, kind.message) for group in groups for kind in group.kinds} == {
        ("invalid_value", "no"),
        ("invalid_request_error", "slow down"),
        ("batch_expired", "late"),
        ("unknown", "oh"),
        ("unknown", ""),
    }
    assert sum(group.count for group in groups) == 5


def test_lines_that_are_none_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", "{}"), "", "{", chat_line("b", "{}")])
    found = analyze(path)
    assert (found.rows, found.unreadable, found.source.unreadable_at) == (2, 1, ["o.jsonl:3"])
    assert "1 line is none of a result file and left out (o.jsonl:3)." in found.notes


def test_nothing_is_unparsed_where_no_field_was_asked_for(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", "plain prose")])
    found = analyze(path)
    assert (found.ok, found.parsed, found.unparsed) == (1, None, None)
    assert analyze(path, fields="x").unparsed == 1
    assert analyze(path, score=lambda _: 1.0).unparsed == 1


def test_what_a_repaired_answer_was_repaired_to_counts(tmp_path: Path) -> None:
    line = chat_line("a", '{"recommendation": "Yes",')
    line["ollama_batch"] = {"parsed": {"recommendation": "Yes"}}
    found = analyze(write_lines(tmp_path / "o.jsonl", [line]), fields="recommendation")
    assert (found.parsed, found.repaired, found.field("recommendation").labels) == (1, 1, {"Yes": 1})


def test_an_answer_behind_thinking_that_a_server_left_in_the_text_is_read(tmp_path: Path) -> None:
    text = '<think>{"recommendation": "No"}</think>\n{"recommendation": "Yes"}'
    found = analyze(write_lines(tmp_path / "o.jsonl", [chat_line("a", text)]), fields="recommendation")
    assert (found.unparsed, found.field("recommendation").labels) == (0, {"Yes": 1})


def test_a_field_that_no_answer_has_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", '{"recommendation": "Yes"}')])
    note = "No answer has 'recomendation': is that the path of the field?"
    assert note in analyze(path, fields="recomendation").notes
    assert note in compare(path, path, fields="recomendation").notes
    assert note not in analyze(path, fields="recommendation").notes
    assert note not in compare(path, path, fields="recommendation").notes


# Fields and scores


@pytest.mark.parametrize(
    ("said", "path", "labels"),
    [
        ({"a": {"b": "x"}}, "a.b", {"x": 1}),
        ({"a.b": "flat", "a": {"b": "deep"}}, "a.b", {"flat": 1}),
        ({"a": [{"b": 1}, {"b": 2}]}, "a.1.b", {"2": 1}),
        ({"a": [1]}, "a.5", {}),
        ({"a": [1]}, "a.b", {}),
        ({"a": "text"}, "a.b", {}),
        ({"a": True}, "a", {"true": 1}),
        ({"a": 5.0}, "a", {"5": 1}),
        ({"a": {"z": 1, "y": None}}, "a", {'{"y": null, "z": 1}': 1}),
        ({"a": "x" * 300}, "a", {"x" * 197 + "...": 1}),
    ],
    ids=str,
)
def test_a_path_finds_what_stands_there(
    said: dict[str, Any], path: str, labels: dict[str, int], tmp_path: Path
) -> None:
    found = analyze(write_lines(tmp_path / "o.jsonl", [chat_line("a", json.dumps(said))]), fields=path)
    assert found.field(path).labels == labels


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (3, 3.0),
        ("4.5", 4.5),
        (" -2 ", -2.0),
        (True, None),
        ("4/5", None),
        ("nan", None),
        (None, None),
        ([3], None),
    ],
    ids=str,
)
def test_a_score_is_a_number_or_text_that_is_one(said: Any, score: float | None, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", json.dumps({"s": said}))])
    found = analyze(path, score="s").score
    assert found is not None
    assert (found.numbers.mean if found.numbers else None) == score
    assert found.missing == (score is None)


def test_a_function_makes_a_score_and_its_fault_names_the_row(tmp_path: Path) -> None:
    def points(said: Any) -> float | None:
        return {"Yes": 1.0, "No": 0.0}.get(said["recommendation"])

    path = write_lines(
        tmp_path / "o.jsonl", [chat_line("a", '{"recommendation": "Yes"}'), chat_line("b", "{}")]
    )
    with pytest.raises(ConfigError, match=r"score=points failed at the answer of row 'b': KeyError"):
        analyze(path, score=points)
    found = analyze(path, score=lambda said: 2 * len(said)).score
    assert found is not None
    assert found.name == "score"
    assert found.numbers is not None
    assert found.numbers.mean == 1.0


def test_labels_beyond_a_thousand_are_counted_together(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "o.jsonl", [chat_line(str(n), json.dumps({"a": f"t{n}"})) for n in range(1200)]
    )
    field = analyze(path, fields="a").field("a")
    assert (len(field.labels), field.other_labels, field.present) == (1000, 200, 1200)


@pytest.mark.parametrize(
    "asked",
    [{"fields": ""}, {"fields": [3]}, {"fields": {"a": "Yes"}}, {"score": ""}, {"score": 3}],
    ids=str,
)
def test_arguments_without_sense_are_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "o.jsonl", [chat_line("a", "{}")])
    with pytest.raises(ConfigError, match="must be a"):
        analyze(path, **asked)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read: No such file"):
        analyze(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no result file"):
        analyze([])
    journal = write_journal(tmp_path / "run.db", by_hand())
    with pytest.raises(ConfigError, match=r"run\.db is a journal.*give it alone"):
        analyze([journal, write_files(tmp_path, by_hand())])
    with pytest.raises(ConfigError, match=r"errors=.*run\.db is a journal"):
        analyze(tmp_path / "results.jsonl", errors=journal)
    (tmp_path / "broken.db").write_bytes(journal.read_bytes()[:5000])
    with pytest.raises(JournalCorruptError):
        analyze(tmp_path / "broken.db")


def test_a_file_without_rows_has_an_analysis_too(tmp_path: Path) -> None:
    found = analyze(write_lines(tmp_path / "o.jsonl", []), fields="a", score="b")
    assert (found.rows, found.latency, found.timeline, found.tokens.total) == (0, None, None, 0)
    assert "0 finished" in str(found)
    assert "0 of 0 rows ok" in found.html()
    assert found.to_pandas().empty


def test_every_figure_is_json(tmp_path: Path) -> None:
    found = analyze(write_journal(tmp_path / "run.db", by_hand()), fields=FIELDS, score="score")
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (again["ok"], again["fields"][0]["labels"]["Yes"], again["score"]["numbers"]["mean"]) == (
        6,
        2,
        3.0,
    )
    assert again["kind"] == "journal"
