from __future__ import annotations

import builtins
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memory_support import GIB, device, engine, host, sample
from ollama_batch._error_groups import ErrorKind
from ollama_batch._next_steps import next_steps
from ollama_batch.errors import (
    DeadlineReachedError,
    EngineDownError,
    JournalError,
    MemoryShortError,
    MissingExtraError,
    ModelChangedError,
    OllamaBatchError,
    RunCancelledError,
    TooManyFailuresError,
)
from ollama_batch.events import Decision, EngineRestarted, MemoryMeasured, RunPaused, RunResumed
from ollama_batch.memory import MemorySample
from ollama_batch.metrics import BatchMetrics, MetricsHook
from ollama_batch.report import BatchReport, ErrorExample, RowCounts, SourceFiles
from ollama_batch.types import EngineInfo
from visible_support import HOSTILE, FakeClock, finished, hook, results, sent

ENGINE = EngineInfo("ollama", "http://127.0.0.1:11434", "0.14.2", "gemma3:12b", details={"flags": {"a", "b"}})


def measured(
    ok: int = 9,
    failed: int = 1,
    cached: int | None = 400,
    heads: Sequence[str] | None = None,
    **changed: Any,
) -> BatchMetrics:
    """A session of one row a second."""
    clock = FakeClock()
    metrics = hook(clock, **changed)
    for number in range(ok + failed):
        metrics.on_event(sent())
        clock.tick(1)
        metrics.on_event(
            finished(
                ok=number < ok,
                prompt=1000,
                completion=50,
                cached=cached,
                code="output_truncated",
                head=None if heads is None else heads[number % len(heads)],
            )
        )
    return metrics.snapshot()


@pytest.mark.parametrize(
    ("trims", "said"),
    [
        ([], None),
        ([{"why": "high"}, {"why": "every"}], "2 trims"),
        ([{"why": "high", "tokens_saved": 1234}], "1 trim saved 1,234 tokens"),
    ],
)
def test_unknown_savings_of_trims_are_not_told_as_none(trims: list[dict[str, Any]], said: str | None) -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished())
    for trim in trims:
        metrics.on_event(finished(trim=trim))
    (line,) = (each for each in str(report(metrics=metrics.snapshot())).splitlines() if "at most" in each)
    assert line.partition("at most")[2] == ("" if said is None else f"; {said}")


def with_heads(*heads: tuple[str, int, int | None]) -> str:
    """The line on heads of a report, from (name, rows, cached tokens of each row of 1,000 tokens)."""
    metrics = hook(FakeClock())
    for name, rows, cached in heads:
        for number in range(rows):
            metrics.on_event(
                finished(custom_id=f"{name}-{number}", prompt=1000, cached=cached, head=f"{name:>016}")
            )
    told = [line for line in str(report(metrics=metrics.snapshot())).splitlines() if "heads" in line]
    assert len(told) <= 1
    return told[0].removeprefix("  heads      ") if told else ""


MEMORY: dict[str, Any] = {
    "vram_peak_bytes": 14 * GIB,
    "ram_peak_bytes": 9 * GIB,
    "vram_total_bytes": None,
    "gpu_share_mean": None,
}


def report(**changed: Any) -> BatchReport[Any]:
    values: dict[str, Any] = {
        "outcome": "completed",
        "run_id": "3f2a",
        "model": "gemma3:12b",
        "engine": ENGINE,
        "counts": RowCounts(total=10, ok=10, failed=0, sent=10),
        "metrics": measured(10, 0),
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "duration_s": 12.0,
        "durable": True,
        "journal": "results.jsonl.run.db",
        "files": [SourceFiles(source="requests.jsonl", output="results.jsonl")],
        "concurrency": 4,
        "num_ctx": 8192,
        "max_tokens": 1024,
    }
    return BatchReport(**{**values, **changed})


def worst() -> BatchReport[Any]:
    """Everything a report can have, more of each than is shown."""
    return report(
        outcome="stopped",
        reason="because " * 100,
        counts=RowCounts(total=None, ok=9, failed=1, resumed=3, sent=10),
        metrics=replace(
            measured(9, 1, heads=("a" * 16, "b" * 16)),
            **MEMORY,
            queue_mean_s=1.0,
            queue_share=0.5,
            served_mean=2.0,
            recoveries=1_000,
            restarts=1_000,
            quarantined=1_000,
            lost_s=1e6,
            unmeasured={"vram_total_bytes": "v" * 500, "gpu_share": "v" * 500},
        ),
        files=[
            SourceFiles(source=f"{n}", output=f"o{n}", errors=f"e{n}", partial=f"p{n}") for n in range(50)
        ],
        notes=[f"note {n}" for n in range(50)],
        error_examples=[
            ErrorExample(code="output_truncated", count=60, custom_ids=["a", "b", "c"], message="m" * 1000),
            *[ErrorExample(code=f"code_{n}", count=n + 1, custom_ids=["x" * 500]) for n in range(50)],
        ],
    )


def test_a_completed_run_reads_like_this() -> None:
    assert str(report()) == (
        "Run 3f2a completed: 10 of 10 rows ok\n"
        "  rows       10 sent, 0 from the journal\n"
        "  model      gemma3:12b on ollama 0.14.2 at http://127.0.0.1:11434\n"
        "  settings   concurrency 4, num_ctx 8,192, max_tokens 1,024\n"
        "  time       12s in all, 10s sending, 1.00 requests/s while sending\n"
        "  memory     unknown: not measured (a run measures while it sends, if it has guards)\n"
        "  tokens     10,000 prompt (1,000 a row), 500 answer (50.0 a row), 50.0 answer tokens/s\n"
        "  cached     4,000 prompt tokens "
        "(40.0% of the prompts; without reuse they would be evaluated anew)\n"
        "  context    1,050 of 8,192 tokens at most\n"
        "  latency    mean 1.0s, p50 1.0s, p90 1.0s, p95 1.0s, p99 1.0s, max 1.0s; percentiles to 1 %\n"
        "  waits      for a slot: not reported by the engine; engine idle 0.0% of the time\n"
        "  output     results.jsonl\n"
        "  journal    results.jsonl.run.db"
    )


def test_a_partly_failed_run_says_which_rows_and_how_to_send_them_again() -> None:
    text = str(
        report(
            counts=RowCounts(total=10, ok=7, failed=3, sent=10),
            metrics=measured(7, 3, cached=None),
            files=[SourceFiles(source="r", output="results.jsonl", errors="results.errors.jsonl")],
            error_examples=[
                ErrorExample(
                    code="request_timeout", count=1, custom_ids=["r9"], message="no answer in 600 s"
                ),
                ErrorExample(code="output_truncated", count=2, custom_ids=["r1", "r2"], message="cut off"),
            ],
        )
    )
    assert text.startswith("Run 3f2a completed: 7 of 10 rows ok, 3 failed\n")
    assert text.endswith(
        "  failed     2 output_truncated (r1, r2): cut off\n"
        "             1 request_timeout (r9): no answer in 600 s\n"
        "  output     results.jsonl\n"
        "  errors     results.errors.jsonl\n"
        "  journal    results.jsonl.run.db\n"
        "  next       to send the failed row again: retry_failed=True\n"
        "             answers were cut off: a new run (another output=, or overwrite=True) with a larger "
        "max_tokens= helps"
    )
    assert "  cached     not reported by the engine\n" in text


def test_messages_of_a_code_have_lines_of_their_own_and_add_up() -> None:
    kinds = [
        ErrorKind(f"why {word}", n, (word,)) for word, n in (("a", 9), ("b", 5), ("c", 3), ("d", 2), ("e", 1))
    ]
    bad = ErrorExample(code="bad", count=21, custom_ids=("a",), message="why a", kinds=kinds)
    lost = ErrorExample(code="lost", count=1, custom_ids=("x",), message="gone")
    text = str(report(counts=RowCounts(total=30, ok=8, failed=22, sent=30), error_examples=[lost, bad]))
    assert (
        "  failed     9 bad (a, ...): why a\n"
        "             5 bad (b, ...): why b\n"
        "             3 bad (c, ...): why c\n"
        "             1 lost (x): gone\n"
        "             4 more with these codes\n"
    ) in text


@pytest.mark.parametrize("durable", [True, False])
def test_a_hopeless_run_has_one_next_step(durable: bool) -> None:
    counts = RowCounts(total=90, ok=0, failed=50, sent=50)
    cut = ErrorExample(code="output_truncated", count=50, custom_ids=("a",), message="cut off")
    text = str(report(outcome="stopped", hopeless=True, counts=counts, error_examples=[cut], durable=durable))
    steps = text[text.index("  next ") :]
    assert steps == (
        "  next       answers were cut off: a new run (another output=, or overwrite=True) with a larger "
        "max_tokens= helps"
    )
    odd = ErrorExample(code="request_rejected", count=50, custom_ids=("a",), message="no such field")
    text = str(report(outcome="stopped", hopeless=True, counts=counts, error_examples=[odd], durable=durable))
    assert text.endswith(
        "  next       mend what made them fail and begin a new run (another output=, or overwrite=True)"
    )
    assert "same call again" not in text


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (0, "max_tokens 1,024\n"),
        (1, "max_tokens 1,024 (1 row has its own)\n"),
        (4, "max_tokens 1,024 (4 rows have their own)\n"),
        (10, "max_tokens 1,024 (not used: every row has its own)\n"),
    ],
)
def test_the_limit_of_answers_is_that_of_the_run_only_where_rows_have_none(own: int, said: str) -> None:
    assert said in str(report(own_max_tokens=own))


def test_an_input_without_rows_is_said_to_be_one() -> None:
    assert "next       the input had no rows: an iterator" in str(
        report(counts=RowCounts(total=0, ok=0, failed=0))
    )


def test_lines_that_are_no_requests_are_not_offered_to_be_sent_again() -> None:
    broken = ErrorExample(code="invalid_json_line", count=2, custom_ids=["line 3", "line 9"], valid=False)
    timed_out = ErrorExample(code="request_timeout", count=1, custom_ids=["r1"])
    counts = RowCounts(total=10, ok=8, failed=2, sent=8)
    text = str(report(counts=counts, error_examples=[broken]))
    assert "retry" not in text
    assert "  failed     2 invalid_json_line (line 3, line 9)\n" in text
    assert text.splitlines()[-1].startswith("  next       2 rows are no valid requests: run the mended")
    counts = RowCounts(total=10, ok=7, failed=3, sent=8)
    text = str(report(counts=counts, error_examples=[broken, timed_out]))
    assert "to send the failed row again: retry_failed=True" in text
    assert "2 rows are no valid requests" in text


def test_a_pause_is_part_of_the_time_of_sending() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    metrics.on_event(RunPaused(reason="user", message="paused"))
    clock.tick(6)
    metrics.on_event(RunResumed(reason="user", paused_s=6.0))
    clock.tick(2)
    metrics.on_event(finished())
    text = str(report(metrics=metrics.snapshot(), duration_s=9.0))
    assert "9.0s in all, 8.0s sending, pauses of 6.0s included, 0.12 requests/s with them" in text


def line_of(label: str, metrics: MetricsHook) -> str:
    """The line of a report that has `label`; "" if there is none."""
    lines = str(report(metrics=metrics.snapshot())).splitlines()
    found = [line for line in lines if line[2:].startswith(label)]
    assert len(found) <= 1
    return found[0][13:] if found else ""


TOLD = "at most 5.5 GiB VRAM, 8.0 GiB RAM of this machine"
BUSY = "GPU busy 50.0% of the time, 50.0% in its worst 5 %"


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (
            [sample(0, device(4 * GIB), host=host(1 * GIB)), sample(1, device(5 * GIB), host=host(3 * GIB))],
            f"at most 12.0 of 16.0 GiB VRAM, 15.0 GiB RAM of this machine; {BUSY}",
        ),
        (
            [sample(0, engine=engine(5.5 * GIB))],
            f"{TOLD}; unknown: VRAM in all, GPU use (the engine is on another machine)",
        ),
        (
            [sample(0, engine=engine(5.5 * GIB, remote=False))],
            f"{TOLD}; unknown: VRAM in all, GPU use (no driver)",
        ),
        ([sample(0, host=host(None))], "unknown: VRAM, GPU use (no driver), RAM (the cable is out)"),
        (
            [sample(0, device(4 * GIB)), sample(1, device(None), host=host(None))],
            f"at most 12.0 of 16.0 GiB VRAM, 8.0 GiB RAM of this machine; {BUSY}",
        ),
    ],
)
def test_the_report_has_what_is_known_of_memory_and_why_the_rest_is_not(
    samples: list[MemorySample], said: str
) -> None:
    metrics = hook(FakeClock())
    for each in samples:
        metrics.on_event(MemoryMeasured(sample=each))
    assert line_of("memory", metrics) == said


def test_the_report_says_what_trouble_came_to_only_where_there_was_some() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    assert line_of("trouble", metrics) == ""
    metrics.on_event(Decision(kind="recovery", message="", data={"do": "pause", "quarantined": ["a"]}))
    metrics.on_event(RunPaused(reason="engine", message="died"))
    clock.tick(65)
    metrics.on_event(RunResumed(reason="engine", paused_s=65.0))
    metrics.on_event(Decision(kind="recovery", message="", data={"do": "pause"}))
    metrics.on_event(EngineRestarted(reason="crash", outcome="ok", message="", duration_s=3.0))
    assert line_of("trouble", metrics) == (
        "2 recoveries, 1 restart, 1 row quarantined; 1m05s lost, in which the engine kept the run from "
        "sending"
    )


def test_idle_time_of_the_engine_is_told_also_where_waits_are_not() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    clock.tick(10)
    metrics.on_event(replace(sent(), idle_s=2.5))
    metrics.on_event(finished())
    assert line_of("waits", metrics) == (
        "for a slot: not reported by the engine; engine idle 25.0% of the time"
    )


def test_a_stopped_run_says_why_and_how_to_go_on() -> None:
    text = str(
        report(
            outcome="stopped",
            reason="the engine did not come back within 300 s",
            counts=RowCounts(total=1000, ok=10, failed=0, sent=10),
            files=[SourceFiles(source="r", partial="results.jsonl.partial.jsonl")],
        )
    )
    assert text.startswith(
        "Run 3f2a stopped: 10 of 1,000 rows ok, 990 left\n"
        "  reason     the engine did not come back within 300 s\n"
    )
    assert text.endswith(
        "  partial    results.jsonl.partial.jsonl\n"
        "  journal    results.jsonl.run.db\n"
        "  next       run the same call again: it sends the 990 rows left, nothing done is sent again"
    )


def test_a_resumed_run_tells_this_session_from_the_earlier_ones() -> None:
    text = str(report(counts=RowCounts(total=110, ok=110, failed=0, resumed=100, sent=10)))
    assert "  rows       10 sent, 100 from the journal\n" in text
    assert "answer tokens/s (this session)\n" in text


def test_a_finished_run_that_is_run_again_sends_nothing() -> None:
    text = str(
        report(
            counts=RowCounts(total=200, ok=200, failed=0, resumed=200, sent=0),
            metrics=measured(0, 0, total=200, resumed=200),
            duration_s=0.04,
        )
    )
    assert text == (
        "Run 3f2a completed: 200 of 200 rows ok\n"
        "  rows       0 sent, 200 from the journal\n"
        "  model      gemma3:12b on ollama 0.14.2 at http://127.0.0.1:11434\n"
        "  settings   concurrency 4, num_ctx 8,192, max_tokens 1,024\n"
        "  time       0.04s in all\n"
        "  output     results.jsonl\n"
        "  journal    results.jsonl.run.db"
    )


def test_a_run_without_output_says_that_it_is_not_durable_once() -> None:
    text = str(report(durable=False, journal=None, files=[]))
    assert "  note       not durable: results are in memory only" in text
    told = str(report(durable=False, journal=None, notes=["not durable: no output was given"]))
    assert told.count("not durable") == 1
    stopped = str(report(outcome="stopped", durable=False, journal=None))
    assert "start over with output=" in stopped


def test_partly_reported_and_estimated_figures_are_labelled() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(prompt=100, cached=25))
    metrics.on_event(finished(prompt=100, source="estimate"))
    text = str(report(metrics=metrics.snapshot()))
    assert (
        "  cached     25 prompt tokens (25.0% of the prompts of the 1 of 2 answers that told; without" in text
    )
    assert "; 1 of 2 answers estimated" in text


def test_the_line_on_heads_names_the_largest_and_the_least_cached() -> None:
    assert with_heads(("a", 40, 710), ("b", 12, 655), ("c", 30, 700)) == (
        "3 heads; largest (of row a-0: 40 rows, 71.0% cached), "
        "least cached (of row b-0: 12 rows, 65.5% cached)"
    )
    assert with_heads(("a", 40, 600), ("b", 12, 655)) == (
        "2 heads; largest, and least cached (of row a-0: 40 rows, 60.0% cached)"
    )


@pytest.mark.parametrize(
    ("rows", "cached", "flagged"), [(30, 340, True), (30, 360, False), (19, 0, False), (20, 0, True)]
)
def test_a_head_of_many_rows_and_less_than_half_the_share_of_the_others_is_flagged(
    rows: int, cached: int, flagged: bool
) -> None:
    line = with_heads(("a", 40, 700), ("b", rows, cached), ("c", 40, 710))
    assert f"least cached (of row b-0: {rows} rows" in line
    assert line.endswith(", far below the others") == flagged


def test_heads_of_a_silent_engine_have_no_share() -> None:
    assert with_heads(("a", 40, None), ("b", 12, None)) == (
        "2 heads; largest (of row a-0: 40 rows, 40,000 prompt tokens)"
    )


def test_one_head_needs_no_line_and_many_are_named_by_the_ten_largest() -> None:
    assert with_heads(("a", 40, 10)) == ""
    assert with_heads(*[(f"h{n}", 12 - n, 10 * (n + 1)) for n in range(12)]) == (
        "12 heads; largest, and least cached of the 10 largest (of row h0-0: 12 rows, 1.0% cached)"
    )
    assert with_heads(*[(f"h{n}", 1, 0) for n in range(5)]) == "5 heads for 5 rows: each row has its own"
    assert with_heads(*[(f"h{n}", 2, 5) for n in range(1500)]).startswith("more than 1,000 heads; largest")


def test_where_the_engine_is_silent_the_report_says_so_and_marks_its_guess() -> None:
    metrics = hook(FakeClock())
    for number in range(40):
        metrics.on_event(finished(prompt=1000, prompt_s=1.0 if number < 10 else 0.2))
    text = str(report(metrics=metrics.snapshot()))
    assert "  cached     not reported by the engine; about 60% by prompt-evaluation time (estimate)\n" in text
    metrics.on_event(finished(prompt=1000, cached=100))
    text = str(report(metrics=metrics.snapshot()))
    assert "estimate" not in text
    assert "  cached     100 prompt tokens (10.0% of the prompts of the 1 of 41 answers that told;" in text


def test_the_text_never_exceeds_25_lines() -> None:
    text = str(worst())
    lines = text.splitlines()
    assert len(lines) == 25
    assert max(map(len, lines)) < 230
    assert "with 47 other codes" in text
    assert "  heads      2 heads; " in text
    assert "  note       50 in report.notes" in text


def test_what_to_do_first_has_its_line_however_much_there_is_to_say() -> None:
    fitting = [f"output_{word}" for word in ("truncated", "unparsed")]
    codes = [*fitting, "unsupported_parameter", "context_length_exceeded"]
    own = {"max_tokens": 1}
    examples = [ErrorExample(code=code, count=9, custom_ids=["a"], params=own) for code in codes]
    crowded = replace(worst(), error_examples=[*examples, ErrorExample(code="other", count=1)])
    lines = str(crowded).splitlines()
    assert len(lines) == 25
    assert "  note       50 in report.notes" in lines
    assert [line for line in lines if "run the same call again: it sends the rest" in line]


def test_the_text_has_no_line_that_ends_in_space_and_repr_is_short() -> None:
    assert not re.search(r" $", str(worst()), flags=re.MULTILINE)
    assert repr(worst()) == "<BatchReport 3f2a stopped: 9 of ? rows ok, 1 failed>"


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(text: str) -> None:
    hostile = report(
        outcome="stopped",
        reason=text,
        model=text,
        notes=[text],
        journal=text,
        files=[SourceFiles(source=text, output=text)],
        error_examples=[ErrorExample(code=text, count=1, custom_ids=[text], message=text)],
    )
    assert all(char.isprintable() for char in str(hostile).replace("\n", ""))
    page = hostile._repr_html_()
    assert all(char.isprintable() for char in page)
    cells = Cells()
    cells.feed(page)
    assert set(cells.tags) == {"table", "caption", "b", "tbody", "tr", "th", "td"}
    if text.isprintable():
        assert text in cells.texts


def test_html_has_the_lines_of_the_text_and_no_colours_of_its_own() -> None:
    cells = Cells()
    page = worst()._repr_html_()
    cells.feed(page)
    assert cells.tags.count("tr") == len(str(worst()).splitlines()) - 1
    assert set(re.findall(r"(?:color|background)[^;\"]*", page)) == {"color:inherit"}


def test_ok_means_complete_and_without_a_failed_row() -> None:
    assert report().ok
    assert not report(outcome="stopped").ok
    assert not report(counts=RowCounts(total=10, ok=9, failed=1)).ok


def test_a_report_is_plain_json() -> None:
    plain = worst().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["ok"] is False
    assert plain["started_at"] == "2026-01-02T03:04:05+00:00"
    assert plain["counts"] == {"total": None, "ok": 9, "failed": 1, "resumed": 3, "sent": 10}
    assert plain["engine"]["address"] == "http://127.0.0.1:11434"
    assert sorted(plain["engine"]["details"]["flags"]) == ["a", "b"]
    assert plain["metrics"]["prompt_tokens"] == 10_000
    assert plain["metrics"]["heads"][0] == {
        "head": "a" * 16,
        "custom_id": "row",
        "rows": 5,
        "prompt_tokens": 5000,
        "cached_tokens": 2000,
        "cached_reported": 5,
        "cached_share": 0.4,
    }
    assert "read_results" not in plain


def rows() -> Any:
    return results(
        finished(custom_id="a", output="yes", cached=0),
        finished(custom_id="b", ok=False, usage=False, latency_s=None),
    )


def test_results_are_read_lazily_and_as_often_as_asked(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    journal.touch()
    opened: list[str] = []

    def read() -> Any:
        opened.append("once")
        return rows()

    here = report(journal=str(journal), read_results=read)
    assert opened == []
    assert [result.custom_id for result in here.results()] == ["a", "b"]
    assert [result.ok for result in here.results()] == [True, False]
    assert len(opened) == 2


def test_results_of_a_journal_that_is_gone_are_refused_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.db")
    with pytest.raises(JournalError, match=r"gone\.db is gone") as caught:
        report(journal=path, read_results=rows).results()
    assert caught.value.path == path


def test_a_report_survives_pickling_without_its_results() -> None:
    original = report(journal=None, read_results=lambda: rows())
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original
    assert str(copy) == str(original)
    with pytest.raises(JournalError, match="no results to read"):
        copy.results()


def test_a_data_frame_has_one_row_each_and_keeps_unknown_apart_from_zero() -> None:
    pd = pytest.importorskip("pandas")
    frame = report(journal=None, read_results=rows).to_pandas()
    assert list(frame["custom_id"]) == ["a", "b"]
    assert frame["output"][0] == "yes"
    assert list(frame["output"].isna()) == [False, True]
    assert list(frame["error_code"].isna()) == [True, False]
    assert frame["cached_tokens"][0] == 0
    assert frame["cached_tokens"][1] is pd.NA
    assert str(frame["prompt_tokens"].dtype) == "Int64"
    empty = report(journal=None, read_results=lambda: iter(())).to_pandas()
    assert (len(empty), list(empty.columns)) == (0, list(frame.columns))


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install \"\.\[report\]\".*pip install pandas"):
        report(journal=None, read_results=rows).to_pandas()


def test_what_is_long_is_wrapped_to_its_last_word_where_there_is_room() -> None:
    why = "the engine did not come back " + "and was asked again " * 20 + "so look at its log"
    note = "it answers one request at a time; " + "several share each reading " * 9 + "restart it with 4"
    lines = str(report(outcome="stopped", reason=why, notes=[note])).splitlines()
    shown = " ".join(line.strip() for line in lines)
    assert why in shown
    assert note in shown
    assert max(map(len, lines)) <= 213
    assert 13 < len(lines) <= 25


def test_where_there_is_no_room_what_is_long_keeps_its_last_words() -> None:
    text = str(replace(worst(), reason="it broke " * 100 + "so mend it"))
    assert len(text.splitlines()) == 25
    (line,) = (line for line in text.splitlines() if "  reason " in line)
    assert " ... " in line
    assert line.endswith(" so mend it")


def test_the_report_says_what_a_guard_and_a_full_queue_have_cost() -> None:
    m = replace(
        measured(9, 0),
        memory_pauses=2,
        memory_paused_s=65.0,
        memory_pause_why="vram: 15.5 GiB of 16.0 GiB in use (gpu0, nvml), critical from 15.4 GiB on",
        refused=1_200,
        refused_s=90.0,
        spilled_bytes=3 * GIB,
        spilled_share=0.25,
    )
    text = str(report(metrics=m))
    assert (
        "  trouble    paused 2 times by a memory guard, 1m05s in all (the latest: vram: 15.5 GiB of 16.0 GiB "
        "in use (gpu0, nvml), critical from 15.4 GiB on)\n"
        "             1,200 requests refused, as the engine was busy (429, 503), after which nothing was "
        "answered for 1m30s: its queue was full."
    ) in text
    assert "; 3.0 GiB of the model (25.0%) on the CPU: slow\n" in text


@pytest.mark.parametrize(("alone", "says"), [(39, "fewer requests at a time"), (40, "OLLAMA_MAX_QUEUE")])
def test_fewer_at_a_time_is_no_advice_for_a_run_that_had_one_out(alone: int, says: str) -> None:
    text = str(report(metrics=replace(measured(9, 0), refused=40, refused_alone=alone, refused_s=90.0)))
    said = " ".join(text.split())
    assert says in said
    assert ("(concurrency=)" in said) == (alone < 40)
    assert ("busy with others" in said) == (alone == 40)


def test_time_lost_to_refusals_alone_is_said_without_counts_of_nothing() -> None:
    text = str(report(metrics=replace(measured(9, 0), refused=4, refused_s=40.0, lost_s=37.0)))
    lost = "37s lost, in which the engine kept the run from sending"
    assert f"  trouble    {lost}\n             4 requests refused" in text


PUT_BACK = (
    "put the model that the run began with back under its name (ollama cp, or ollama pull of the tag that "
    "has its digest)"
)
ANEW = "or begin a new run (another output=, or overwrite=True)"
AGAIN = "the same call again: it sends the 7 rows left, nothing done is sent again"


@pytest.mark.parametrize(
    ("error", "streams", "said"),
    [
        (
            ModelChangedError("x"),
            False,
            [
                f"{PUT_BACK} and run {AGAIN}",
                f"{ANEW} with the model as it is now: the same call is refused with that",
            ],
        ),
        (MemoryShortError("x"), False, [f"free memory, or give guards= other limits, then run {AGAIN}"]),
        (EngineDownError("x"), True, [f"mend what the reason says of the engine, then run {AGAIN}"]),
        (TooManyFailuresError("x"), True, [f"run {AGAIN}; a larger max_failures= bears more"]),
        (DeadlineReachedError("x"), True, [f"with a later deadline=, run {AGAIN}"]),
        (RunCancelledError("x"), True, [f"run {AGAIN}"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_stopped_run_says_what_comes_before_the_same_call(
    error: OllamaBatchError, streams: bool, said: list[str]
) -> None:
    steps = next_steps(error, left=7, streams=streams, deadline=datetime(2026, 1, 2, tzinfo=UTC))
    counts = RowCounts(total=17, ok=10, failed=0, sent=10)
    lines = str(report(outcome="stopped", reason="x", counts=counts, next_steps=steps)).splitlines()
    shown = [line[13:] for line in lines]
    assert shown[-len(said) :] == said
    assert lines[-len(said)].startswith("  next ")


def test_a_new_run_of_rows_that_are_read_only_once_is_one_with_another_output() -> None:
    steps = next_steps(ModelChangedError("x"), left=7, streams=True, deadline=None)
    assert "(another output=)" in steps[1]
    assert next_steps(DeadlineReachedError("x"), left=7, streams=True, deadline=30.0) == ()
