"""A run that goes on, goes on as what it was; and one that cannot says what differs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import (
    AggressiveTrim,
    BatchReport,
    HybridTrim,
    OpenAIEngine,
    RetryPolicy,
    SlidingWindowTrim,
    _points,
)
from ollama_batch.errors import (
    EngineError,
    InputError,
    JournalMismatchError,
    RunCancelledError,
    TooManyFailuresError,
)
from ollama_batch.journal import RunJournal, set_aside
from ollama_batch.testing import FakeModel, FakeOllama, Fault
from runner_support import Events, files_in, ids, line, names, rows_file, runner_on, write_lines

Factory = Callable[..., FakeOllama]
BEGUN: dict[str, Any] = {"defaults": {"temperature": 0.5, "stop": ["x"]}, "max_tokens": 100, "think": False}


@pytest.fixture
def fake(fake_ollama: FakeOllama) -> FakeOllama:
    return fake_ollama


@pytest.fixture
def begun(fake: FakeOllama, tmp_path: Path) -> dict[str, Path]:
    """A run of 8 rows that was stopped after 3."""
    places = {"requests": rows_file(tmp_path / "in.jsonl", 8), "output": tmp_path / "out.jsonl"}
    fake.inject(Fault("hang", when=4))
    run = runner_on(fake, concurrency=1, **BEGUN).start(**places)
    fake.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(timeout=10)
    fake.clear_faults()
    return places


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"model": "other:1b"}, "model"),
        ({"defaults": {"temperature": 0.6, "stop": ["x"]}}, "defaults.temperature"),
        ({"defaults": {"temperature": 0.5, "stop": ["y"]}}, "defaults.stop"),
        ({"defaults": {"temperature": 0.5}}, "defaults.stop"),
        ({"defaults": {"temperature": 0.5, "stop": ["x"], "seed": 1}}, "defaults.seed"),
        ({"defaults": None}, "defaults"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"think": True}, "think"),
        ({"think": "low"}, "think"),
        ({"on_length": "keep"}, "on_length"),
        ({"num_ctx": 8192}, "num_ctx"),
    ],
)
def test_what_changes_answers_is_refused_and_named(
    fake: FakeOllama, begun: dict[str, Path], changed: dict[str, Any], difference: str
) -> None:
    with pytest.raises(JournalMismatchError) as caught:
        runner_on(fake, **{**BEGUN, **changed}).run(**begun)
    assert difference in " ".join(caught.value.differences)
    assert difference in str(caught.value)
    assert fake.ledger.count() == 4
    assert runner_on(fake, **BEGUN).run(**begun).counts.resumed == 3  # and nothing was spoilt by it


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"trim": HybridTrim()}, "trim was not set, is HybridTrim."),
        ({"trim": SlidingWindowTrim()}, {"trim": HybridTrim()}, "trim was SlidingWindowTrim, is HybridTrim."),
        (
            {"trim": AggressiveTrim(share=0.5)},
            {"trim": AggressiveTrim(share=0.6)},
            "trim.share was 0.5, is 0.6.",
        ),
        ({"defaults": {}}, {"defaults": {"seed": 1}}, "defaults.seed was not set, is 1."),
    ],
    ids=["added", "another", "a field", "a default"],
)
def test_a_difference_is_named_as_a_user_would(
    fake: FakeOllama, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    runner_on(fake, **before).run(source, output=output)
    with pytest.raises(JournalMismatchError) as caught:
        runner_on(fake, **now).run(source, output=output)
    assert f"would not go together: {said} Use the settings" in str(caught.value)
    assert len(caught.value.differences) == 1


def test_another_mode_is_named_with_what_it_brings(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    runner_on(fake).run(source, output=output)
    with pytest.raises(JournalMismatchError) as caught:
        runner_on(fake, mode="conversation").run(source, output=output)
    assert sorted(caught.value.differences) == ["conversation", "mode", "trim"]
    assert "conversation was not set, is ConversationPolicy; mode was" in str(caught.value)


def test_what_does_not_change_answers_may_change(
    fake: FakeOllama, fake_ollama_factory: Factory, begun: dict[str, Path]
) -> None:
    elsewhere = fake_ollama_factory()
    report = runner_on(
        elsewhere,
        **BEGUN,
        concurrency=3,
        timeout=30,
        load_timeout=31,
        recover_timeout=32,
        retry=RetryPolicy(server=1),
        hooks=[Events()],
        keep_alive="10m",
        allow_models=["another:1b"],
        unload_after=True,
    ).run(**begun, max_failures=5, deadline=60, on_invalid="skip", retry_failed=True, partial=False)
    assert (report.ok, report.counts.resumed, report.counts.sent) == (True, 3, 5)
    assert elsewhere.ledger.keys() == set(names(8)[3:])
    assert ids(begun["output"]) == names(8)


def test_other_weights_are_refused_before_anything_is_sent(
    fake_ollama_factory: Factory, begun: dict[str, Path]
) -> None:
    newer = fake_ollama_factory(models=[FakeModel("toy:1b", "f" * 64)])
    with pytest.raises(JournalMismatchError, match=r'digest of toy:1b was ".*, is "ffff') as refused:
        runner_on(newer, **BEGUN).run(**begun)
    said = str(refused.value)
    assert said.startswith("the model was exchanged since this run began")
    assert "ollama cp" in said
    assert "settings" not in said
    assert newer.ledger.count() == newer.ledger.loads == 0


def test_another_kind_of_engine_or_other_fields_of_it_are_refused(fake: FakeOllama, tmp_path: Path) -> None:
    places = {"requests": rows_file(tmp_path / "in.jsonl", 3), "output": tmp_path / "out.jsonl"}

    def run(top_k: int, **options: Any) -> BatchReport:
        engine = OpenAIEngine(fake.url, extra_body={"top_k": top_k})
        try:
            return runner_on(fake, engine=engine).run(**places, **options)
        finally:
            asyncio.run(engine.aclose())

    run(5, limit=1)
    with pytest.raises(JournalMismatchError, match=r"extra_body.top_k was 5, is 6"):
        run(6)
    with pytest.raises(JournalMismatchError, match='engine was "openai", is "ollama"'):
        runner_on(fake).run(**places)
    assert run(5).counts.sent == 2


def test_auto_num_ctx_stays_what_it_was(fake: FakeOllama, tmp_path: Path) -> None:
    lines = [line("small"), line("large", "x" * 30_000)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    runner = runner_on(fake)
    assert runner.run(source, output=output, limit=1).num_ctx == 4096
    fake.inject(Fault("context", match="large"))
    assert runner.run(source, output=output).num_ctx == 4096
    assert {load["num_ctx"] for load in fake.ledger.load_settings()} == {4096}


@pytest.mark.parametrize("began", [4096, "auto"])
def test_another_num_ctx_is_refused_of_a_finished_run_too(
    fake: FakeOllama, tmp_path: Path, began: Any
) -> None:
    """Rule: what changes answers is compared however much is left to send."""
    source, output = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    runner_on(fake, num_ctx=began).run(source, output=output)
    asked = len(list(fake.ledger.records()))
    with pytest.raises(JournalMismatchError, match="num_ctx was 4096, is 8192") as caught:
        runner_on(fake, num_ctx=8192).run(source, output=output)
    assert caught.value.differences == {"num_ctx": (4096, 8192)}
    for same in (began, "auto", 4096):
        assert runner_on(fake, num_ctx=same).run(source, output=output).counts.sent == 0
    assert len(list(fake.ledger.records())) == asked, "none of it needs the engine"
    anew = runner_on(fake, num_ctx=8192).run(source, output=output, overwrite=True)
    assert (anew.num_ctx, anew.counts.sent) == (8192, 3)


@pytest.mark.parametrize("limit", [2, None], ids=["unfinished", "finished"])
def test_what_was_told_of_a_server_is_compared_as_well(
    fake: FakeOllama, tmp_path: Path, limit: int | None
) -> None:
    """Of a server that sets its own context, num_ctx= decides which rows fit and how they are trimmed."""
    source = rows_file(tmp_path / "in.jsonl", 4)

    def run(began: str, num_ctx: Any, top_k: int = 5, **options: Any) -> BatchReport:
        engine = OpenAIEngine(fake.url, extra_body={"top_k": top_k})
        try:
            runner = runner_on(fake, engine=engine, num_ctx=num_ctx)
            return runner.run(source, output=tmp_path / f"{began}.jsonl", **options)
        finally:
            asyncio.run(engine.aclose())

    run("told", 4096, limit=limit)
    run("auto", "auto", limit=limit)
    with pytest.raises(JournalMismatchError, match="told num_ctx was 4096, is 2048"):
        run("told", 2048)
    with pytest.raises(JournalMismatchError, match='told num_ctx was "auto", is 2048'):
        run("auto", 2048)
    with pytest.raises(JournalMismatchError, match=r"extra_body.top_k was 5, is 6"):
        run("told", 4096, top_k=6)
    assert run("auto", "auto").counts.ok == 4
    report = run("told", "auto")
    assert (report.counts.ok, report.context, report.context_by) == (4, 4096, "told")


def test_what_a_hopeless_run_advises_is_not_refused_when_it_is_done(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(name, "word " * 6000) for name in names(60)])
    output = tmp_path / "out.jsonl"
    with pytest.raises(TooManyFailuresError, match="raise num_ctx") as stopped:
        runner_on(fake, num_ctx=4096, state_dir=None).run(source, output=output)
    advised = "a new run (another output=, or overwrite=True)"
    assert str(stopped.value).endswith(f"mend that and begin {advised}")
    assert f"{advised} with a larger num_ctx= or with trim=" in str(stopped.value.report)
    with pytest.raises(JournalMismatchError):
        runner_on(fake, num_ctx=16_384, state_dir=None).run(source, output=output)
    again = runner_on(fake, num_ctx=16_384, state_dir=None).run(source, output=output, overwrite=True)
    assert (again.counts.ok, again.counts.resumed) == (60, 0)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_finished_run_is_told_again_without_the_engine(
    fake: FakeOllama, tmp_path: Path, as_file: bool
) -> None:
    fake.inject(Fault("status", status=400, match="r1"))
    lines = [line(name) for name in names(5)]
    source: Any = write_lines(tmp_path / "in.jsonl", lines) if as_file else lines
    output = tmp_path / "out.jsonl"
    first = runner_on(fake).run(source, output=output)
    made, asked = output.read_bytes(), len(list(fake.ledger.records()))
    fake.stop()
    events = Events()
    report = runner_on(fake, hooks=[events]).run(source, output=output)
    assert len(list(fake.ledger.records())) == asked
    assert (report.counts.total, report.counts.ok, report.counts.failed) == (5, 4, 1)
    assert (report.counts.sent, report.counts.resumed) == (0, 5)
    assert "0 sent, 5 from the journal" in str(report)
    assert [(e.code, e.count, e.custom_ids) for e in report.error_examples] == [
        ("request_rejected", 1, ("r1",))
    ]
    assert report.error_examples == first.error_examples
    assert (report.run_id, report.num_ctx, report.outcome) == (first.run_id, first.num_ctx, "completed")
    assert report.engine is not None
    assert report.engine.digest == FakeModel("toy:1b").digest
    assert output.read_bytes() == made
    assert (events.kinds()[0], events.kinds()[-1]) == ("RunStarted", "RunFinished")
    assert report.metrics.completed == 5


def test_only_failed_rows_are_sent_again_and_only_when_asked(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 10), tmp_path / "out.jsonl"
    errors = tmp_path / "out.errors.jsonl"
    for match, fault in (("r2", {"status": 400}), ("r5", {"status": 400})):
        fake.inject(Fault("status", match=match, **fault))
    fake.inject(Fault("empty", match="r7"))
    runner = runner_on(fake)
    assert runner.run(source, output=output).counts.failed == 3
    assert ids(errors) == ["r2", "r5", "r7"]
    assert runner.run(source, output=output).counts.sent == 0
    fake.clear_faults()
    report = runner.run(source, output=output, retry_failed={"output_empty", "no_such_code"})
    assert (report.counts.sent, report.counts.ok, report.counts.failed) == (1, 8, 2)
    assert ids(output) == [name for name in names(10) if name not in ("r2", "r5")]
    assert ids(errors) == ["r2", "r5"]
    fake.inject(Fault("status", status=400, match="r5"))
    events = Events()
    report = runner_on(fake, hooks=[events]).run(source, output=output, retry_failed=True)
    assert (report.counts.sent, report.counts.ok, report.counts.failed) == (2, 9, 1)
    assert (report.metrics.completed, report.metrics.ok, report.metrics.failed) == (10, 9, 1)
    fake.clear_faults()
    assert runner.run(source, output=output, retry_failed=True).ok
    assert ids(output) == names(10)
    assert not errors.exists()
    sent = fake.ledger.counts()
    assert {name: n for name, n in sent.items() if n > 1} == {"r2": 2, "r5": 3, "r7": 2}
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        kept = journal._read("SELECT code FROM attempts ORDER BY id", [])
    assert sorted(code for (code,) in kept) == [
        "output_empty",
        "request_rejected",
        "request_rejected",
        "request_rejected",
    ]


def test_examples_of_errors_are_bounded_and_of_all_sessions(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 12), tmp_path / "out.jsonl"
    fake.inject(Fault("status", status=400, text="too odd", when=list(range(1, 7))))
    runner = runner_on(fake, concurrency=1)
    runner.run(source, output=output, limit=6)
    fake.inject(Fault("empty", when=list(range(1, 3))))
    report = runner.run(source, output=output)
    first, second = report.error_examples
    assert (first.code, first.count, first.custom_ids) == ("request_rejected", 6, ("r0", "r1", "r2"))
    assert "too odd" in first.message
    assert (second.code, second.count, second.custom_ids) == ("output_empty", 2, ("r6", "r7"))


@pytest.mark.parametrize("other", ["settings", "rows", "weights", "damage"])
def test_overwrite_begins_anew_and_keeps_the_old_journal(
    fake: FakeOllama, fake_ollama_factory: Factory, tmp_path: Path, other: str
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.run.db"
    runner_on(fake).run(source, output=output)
    options: dict[str, Any] = {}
    match other:
        case "settings":
            options["max_tokens"] = 999
        case "rows":
            rows_file(source, 4, "new")
        case "weights":
            rows_file(source, 6)  # the finished run would not ask
            fake = fake_ollama_factory(models=[FakeModel("toy:1b", "f" * 64)])
        case _:
            journal.write_bytes(b"no journal")
    if other != "damage":
        with pytest.raises(JournalMismatchError, match=r"overwrite|another output"):
            runner_on(fake, **options).run(source, output=output)
    report = runner_on(fake, **options).run(source, output=output, overwrite=True)
    rows = [json.loads(text)["custom_id"] for text in source.read_text().splitlines()]
    assert (report.counts.sent, report.counts.resumed, report.ok) == (len(rows), 0, True)
    assert ids(output) == rows
    old = tmp_path / "out.jsonl.run.db.old1"
    if other == "damage":
        assert old.read_bytes() == b"no journal"
    else:
        with RunJournal.open_readonly(old) as kept:
            assert kept.counts().ok == 4
    assert files_in(tmp_path) == ["in.jsonl", "out.jsonl", journal.name, old.name]


def test_overwrite_begins_a_finished_run_anew_and_keeps_its_journal(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    first = runner_on(fake).run(source, output=output)
    assert runner_on(fake).run(source, output=output).counts.sent == 0
    again = runner_on(fake).run(source, output=output, overwrite=True)
    assert (again.counts.sent, again.counts.resumed) == (4, 0)
    assert again.run_id != first.run_id
    assert fake.ledger.counts() == {f"r{n}": 2 for n in range(4)}
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db.old1") as old:
        assert (old.run_id, old.counts().ok) == (first.run_id, 4)
    assert files_in(tmp_path) == ["in.jsonl", "out.jsonl", "out.jsonl.run.db", "out.jsonl.run.db.old1"]


def test_overwrite_goes_on_with_an_unfinished_run_of_the_same_settings(
    fake: FakeOllama, begun: dict[str, Path], tmp_path: Path
) -> None:
    report = runner_on(fake, **BEGUN).run(**begun, overwrite=True)
    assert (report.counts.resumed, report.counts.sent) == (3, 5)
    assert not (tmp_path / "out.jsonl.run.db.old1").exists()


@pytest.mark.parametrize("why", ["a bad row", "no engine"])
def test_the_journal_of_a_finished_run_comes_back_if_nothing_was_done_in_its_place(
    fake: FakeOllama, fake_ollama_factory: Factory, tmp_path: Path, why: str
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    first = runner_on(fake).run(source, output=output)
    before = files_in(tmp_path)
    written = output.read_bytes()
    gone = fake_ollama_factory()
    if why == "a bad row":
        good = source.read_text()
        source.write_text(good + "{\n")
        with pytest.raises(InputError):
            runner_on(fake).run(source, output=output, overwrite=True)
        source.write_text(good)
    else:
        gone.close()
        with pytest.raises(EngineError):
            runner_on(gone).run(source, output=output, overwrite=True)
    assert files_in(tmp_path) == before
    report = runner_on(fake).run(source, output=output)
    assert (report.run_id, report.counts.sent, report.counts.ok) == (first.run_id, 0, 3)
    assert output.read_bytes() == written


def test_overwrite_begins_a_stream_anew_only_if_its_run_has_finished(
    fake: FakeOllama, tmp_path: Path
) -> None:
    runner, output = runner_on(fake), tmp_path / "out.jsonl"
    runner.run(["a", "b"], output=output)
    assert runner.run(["a", "c"], output=output, overwrite=True).counts.sent == 2
    fake.inject(Fault("hang", match="e"))
    run = runner.start(["d", "e"], output=tmp_path / "two.jsonl")
    fake.wait_until(lambda ledger: ledger.count("e") >= 1)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(30)
    with pytest.raises(JournalMismatchError):
        runner.run(["d", "f"], output=tmp_path / "two.jsonl", overwrite=True)
    assert (tmp_path / "two.jsonl.run.db").exists()


OVERWRITE = """
import os, signal, sys
from ollama_batch import BatchRunner, _points

def die(name):
    if name == "aside.before_rename":
        os.kill(os.getpid(), signal.SIGKILL)

_points.listen(die)
runner = BatchRunner(model="toy:1b", base_url=sys.argv[1], max_tokens=999, progress="none")
runner.run(sys.argv[2], output=sys.argv[3], overwrite=True)
"""


def test_a_kill_before_a_journal_is_set_aside_loses_nothing_of_it(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner_on(fake).run(source, output=output)
    child = [sys.executable, "-c", OVERWRITE, fake.url, str(source), str(output)]
    assert subprocess.run(child, check=False, timeout=30).returncode == -signal.SIGKILL
    assert runner_on(fake).run(source, output=output).counts.sent == 0  # as if nothing had been
    assert runner_on(fake, max_tokens=999).run(source, output=output, overwrite=True).counts.sent == 5
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db.old1") as kept:
        assert len(list(kept.results())) == 5


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("point", ["aside.before_rename", "aside.before_return", "create.begin"])
def test_a_kill_while_a_finished_run_makes_room_loses_nothing_of_it(
    fake: FakeOllama, tmp_path: Path, point: str
) -> None:
    """The new run has no engine, so that what was renamed is named back as well."""
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner_on(fake).run(source, output=output)
    code = OVERWRITE.replace("aside.before_rename", point).replace("max_tokens=999, ", "")
    child = [sys.executable, "-c", code, "http://127.0.0.1:9", str(source), str(output)]
    assert subprocess.run(child, check=False, timeout=30).returncode == -signal.SIGKILL
    whole = [path for path in tmp_path.glob("out.jsonl.run.db*") if path.suffix in (".db", ".old1")]
    kept = []
    for path in whole:
        with RunJournal.open_readonly(path) as journal:
            kept.append(len(list(journal.results())))
    assert kept == [5]
    assert ids(output) == names(5)
    assert runner_on(fake).run(source, output=output, overwrite=True).counts.ok == 5


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_journal_and_its_log_come_together_again_after_a_kill_between_the_two(
    fake: FakeOllama, tmp_path: Path, nth: int
) -> None:
    """What a run killed long ago left is a file and a log, and the log has the results."""
    live, left = tmp_path / "out.jsonl.run.db", tmp_path / "left.db"
    fake.inject(Fault("hang", when=6))
    run = runner_on(fake, concurrency=1).start(
        rows_file(tmp_path / "in.jsonl", 9), output=tmp_path / "out.jsonl"
    )
    fake.wait_until(lambda ledger: ledger.count() == 6)
    for tail in ("", "-wal", "-shm"):
        left.with_name(left.name + tail).write_bytes(live.with_name(live.name + tail).read_bytes())
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(timeout=10)

    reached = iter(range(1, nth + 1))

    def die(name: str) -> None:
        if name == "aside.before_rename" and next(reached) == nth:
            raise Died

    _points.listen(die)
    try:
        with pytest.raises(Died):
            set_aside(left)
    finally:
        _points.listen(None)
    assert set_aside(left) == tmp_path / "left.db.old1"
    assert [name for name in files_in(tmp_path) if name.startswith("left")] == [
        f"left.db.old1{tail}" for tail in ("", "-shm", "-wal")
    ]
    with RunJournal.open_readonly(tmp_path / "left.db.old1") as kept:
        assert [row.custom_id for row, _ in kept.results()] == names(5)


def test_rows_of_a_run_that_goes_on_are_counted_once(fake: FakeOllama, begun: dict[str, Path]) -> None:
    events = Events()
    report = runner_on(fake, hooks=[events], **BEGUN).run(**begun)
    counts, metrics = report.counts, report.metrics
    assert (counts.total, counts.ok, counts.resumed, counts.sent) == (8, 8, 3, 5)
    assert (metrics.total, metrics.completed, metrics.resumed, metrics.sent) == (8, 8, 3, 5)
    assert fake.ledger.counts() == {**dict.fromkeys(names(8), 1), "r3": 2}
    assert [r.custom_id for r in report.results()] == names(8)
    assert all(r.attempts == 1 for r in report.results())
