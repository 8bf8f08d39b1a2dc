"""What a run takes its requests from, and what it refuses before anything is sent."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRequest, OpenAIEngine
from ollama_batch.errors import (
    ConfigError,
    InputChangedError,
    InputError,
    JournalMismatchError,
    ModelNotFoundError,
)
from ollama_batch.events import RowSent
from ollama_batch.journal import RunJournal, verify
from ollama_batch.testing import FakeModel, FakeOllama, Fault
from runner_support import files_in, ids, line, names, read_lines, rows_file, runner_on, write_lines

Factory = Callable[..., FakeOllama]


@pytest.fixture
def fake(fake_ollama: FakeOllama) -> FakeOllama:
    return fake_ollama


def test_every_source_is_run_whole_and_in_order(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    path = rows_file(tmp_path / "in.jsonl", 3)
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    runner = runner_on(fake)

    def run(source: Any) -> list[str]:
        before = fake.ledger.count()
        report = runner.run(source)
        assert report.ok
        assert fake.ledger.count() - before == report.counts.total
        return [result.custom_id for result in report.results()]

    for source in (
        path,
        str(path),
        "in.jsonl",
        "i*.jsonl",
        [path],
        io.StringIO(text),
        io.BytesIO(text.encode()),
    ):
        assert run(source) == names(3)
    with path.open() as file, path.open("rb") as binary:
        assert run(file) == names(3)
        assert run(binary) == names(3)
    prompts = ["one", "two", "three"]
    requests = [BatchRequest.chat(prompt) for prompt in prompts]
    dicts = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    generator: Iterator[str] = (prompt for prompt in prompts)
    for unnamed in (prompts, requests, dicts, generator, iter(requests), pd.Series(prompts, index=[7, 8, 9])):
        assert run(unnamed) == ["0", "1", "2"]
    assert run([line("a"), "b", BatchRequest.chat("c", custom_id="c")]) == ["a", "1", "c"]
    assert fake.ledger.counts()["one"] == 6


def test_several_files_are_one_load_one_journal_and_one_output_each(fake: FakeOllama, tmp_path: Path) -> None:
    files = [rows_file(tmp_path / f"{name}.jsonl", 5, name) for name in "ab"]
    (tmp_path / "out").mkdir()
    report = runner_on(fake).run(files, output=tmp_path / "out")
    assert report.counts.total == 10
    assert files_in(tmp_path / "out") == ["a.results.jsonl", "b.results.jsonl", "batch.run.db"]
    for name in "ab":
        assert ids(tmp_path / "out" / f"{name}.results.jsonl") == names(5, name)
    assert fake.ledger.loads == 1
    assert [each.output for each in report.files] == [
        str(tmp_path / "out" / f"{n}.results.jsonl") for n in "ab"
    ]
    again = runner_on(fake).run(str(tmp_path / "?.jsonl"), output=tmp_path / "out")
    assert (again.counts.sent, again.counts.resumed) == (0, 10)


def test_equal_ids_in_two_files_are_two_rows(fake: FakeOllama, tmp_path: Path) -> None:
    files = [rows_file(tmp_path / f"{name}.jsonl", 3) for name in "ab"]
    outputs = [tmp_path / "x.jsonl", tmp_path / "y.jsonl"]
    assert runner_on(fake).run(files, output=outputs).counts.ok == 6
    assert ids(outputs[0]) == ids(outputs[1]) == names(3)
    assert set(fake.ledger.counts().values()) == {2}


def test_a_pipe_is_a_stream_and_goes_with_no_file(fake: FakeOllama, tmp_path: Path) -> None:
    source, pipe = rows_file(tmp_path / "in.jsonl", 2), tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="files and pipes"):
        runner_on(fake).run([source, pipe])
    run = runner_on(fake).start(pipe)
    pipe.write_text(source.read_text())
    assert run.wait(timeout=10).counts.ok == 2


def test_a_source_is_read_only_as_far_as_it_is_needed(fake: FakeOllama) -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield f"q{pulled}"

    report = runner_on(fake, concurrency=2).run(endless(), limit=30)
    assert report.counts.total == 30
    assert pulled <= 31
    assert fake.ledger.count() == 30


def test_a_limit_is_raised_later(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    runner = runner_on(fake)
    assert runner.run(source, output=output, limit=5).counts.total == 5
    assert ids(output) == names(5)
    assert runner.run(source, output=output, limit=8).counts.sent == 3
    with pytest.raises(JournalMismatchError, match="begun with 8 rows, now there are 5"):
        runner.run(source, output=output, limit=5)
    report = runner.run(source, output=output)
    assert (report.counts.total, report.counts.sent) == (20, 12)
    assert ids(output) == names(20)
    assert set(fake.ledger.counts().values()) == {1}


def test_a_limit_over_two_files_counts_their_rows_together(fake: FakeOllama, tmp_path: Path) -> None:
    files = [rows_file(tmp_path / f"{name}.jsonl", 4, name) for name in "ab"]
    assert runner_on(fake).run(files, limit=6).counts.total == 6
    assert fake.ledger.keys() == {*names(4, "a"), *names(2, "b")}
    assert runner_on(fake).run(files, limit=2).counts.total == 2


BAD = [
    "not json",
    {"custom_id": "x"},
    line("n", n=2),
    line("ok0"),
    line("ok0"),
    line("other", model="another:1b"),
    line("t", temperature="hot"),
    "[]",
]


def test_invalid_rows_refuse_the_whole_run_and_leave_nothing(fake: FakeOllama, tmp_path: Path) -> None:
    lines = [line("first"), *BAD, *(line(f"b{n}", n=2) for n in range(150)), line("last")]
    source = write_lines(tmp_path / "in.jsonl", lines)
    with pytest.raises(InputError) as caught:
        runner_on(fake).run(source, output=tmp_path / "out.jsonl")
    error = caught.value
    assert error.count == 157
    assert len(error.invalid) == 100
    assert [row.line for row in error.invalid] == [2, 3, 4, 6, 7, 8, 9, *range(10, 103)]
    assert "157 of 160 rows are invalid; nothing was sent" in str(error)
    assert "... and 57 more" in str(error)
    assert f"{source}:6 [ok0] custom_id: line 5 has this custom_id already" in str(error)
    assert list(fake.ledger.records()) == []
    assert files_in(tmp_path) == ["in.jsonl"]


def test_skipped_rows_are_in_the_error_file_each_once(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line("first"), *BAD, line("last")])
    output, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    report = runner_on(fake).run(source, output=output, on_invalid="skip")
    assert (report.counts.total, report.counts.ok, report.counts.failed) == (10, 3, 7)
    assert ids(output) == ["first", "ok0", "last"]
    assert ids(errors) == [None, "x", "n", "ok0", "other", "t", None]
    codes = [each["response"]["body"]["error"]["code"] for each in read_lines(errors)]
    assert codes[3] == "duplicate_custom_id"
    assert fake.ledger.keys() == {"first", "ok0", "last"}
    assert [r.custom_id for r in report.results()] == [
        "first",
        "",
        "x",
        "n",
        "ok0",
        "ok0",
        "other",
        "t",
        "",
        "last",
    ]
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        assert (journal.counts().ok, journal.counts().failed, journal.counts().pending) == (3, 7, 0)
        assert journal.state == "finished"
    checked = verify(["first", "x", "n", "ok0", "other", "t", "last"], output, errors)
    assert (checked.missing.count, checked.extra.count) == (0, 0)
    assert (checked.doubled.first, checked.unreadable.count) == (("ok0",), 2)
    again = runner_on(fake).run(source, output=output, on_invalid="skip", retry_failed=True)
    assert (again.counts.sent, again.counts.failed, again.counts.resumed) == (0, 7, 10)
    assert fake.ledger.count() == 3


def test_skipped_rows_are_the_same_rows_under_another_path(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line("a"), "no", line("a")])
    runner = runner_on(fake)
    runner.run(source, output=tmp_path / "out.jsonl", on_invalid="skip")
    monkeypatch.chdir(tmp_path)
    report = runner.run("in.jsonl", output="out.jsonl", on_invalid="skip")
    assert (report.counts.failed, report.counts.sent) == (2, 0)


def test_an_invalid_item_of_a_stream_ends_it_and_keeps_what_is_done(fake: FakeOllama, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    runner = runner_on(fake, concurrency=2)

    def requests(middle: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from (line(f"r{n}") for n in range(40))
        fake.wait_until(lambda ledger: ledger.answered() >= 30)
        yield middle
        yield line("end")

    with pytest.raises(InputError, match="item 41 is invalid") as caught:
        runner.run(requests(line("bad", n=2)), output=output)
    assert [row.custom_id for row in caught.value.invalid] == ["bad"]
    done = fake.ledger.answered()
    assert done >= 30
    assert runner.run(requests(line("good")), output=output).counts.total == 42
    assert ids(output) == [*names(40), "good", "end"]
    assert set(fake.ledger.counts().values()) == {1}


def test_what_stood_behind_an_invalid_item_may_move_up(fake: FakeOllama, tmp_path: Path) -> None:
    """Rows behind it that were looked at already are not the run's, so that it may also be left out."""
    output = tmp_path / "out.jsonl"
    before, behind = [line(each) for each in names(40)], [line(f"e{n}") for n in range(100)]
    with pytest.raises(InputError, match="item 41 is invalid; what the rows before it were answered is kept"):
        runner_on(fake).run([*before, line("bad", n=2), *behind], output=output)
    report = runner_on(fake).run([*before, *behind], output=output)
    assert (report.counts.resumed, report.counts.sent, report.counts.total) == (40, 100, 140)
    assert set(fake.ledger.counts().values()) == {1}


def test_what_was_answered_before_an_invalid_item_is_with_the_error(fake: FakeOllama) -> None:
    items = [*(line(each) for each in names(40)), {"no": "request"}]
    with pytest.raises(InputError, match="the rows before it are answered; mend it, or") as caught:
        runner_on(fake, state_dir=None).run(iter(items))
    assert {result.custom_id for result in caught.value.report.results()} == set(names(40))


def test_an_invalid_first_item_leaves_nothing_behind(fake: FakeOllama, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="item 2 is invalid; nothing was sent; mend it, or say on_inv"):
        runner_on(fake).run([line("a"), {"messages": []}], output=tmp_path / "out.jsonl")
    assert files_in(tmp_path) == []
    assert list(fake.ledger.records()) == []


def test_an_iterable_that_fails_stops_the_run_and_keeps_what_is_done(
    fake: FakeOllama, tmp_path: Path
) -> None:
    async def requests(broken: bool) -> AsyncIterator[str]:
        for n in range(20):
            yield f"q{n}"
        if broken:
            await asyncio.to_thread(fake.wait_until, lambda ledger: ledger.answered() == 20)
            raise OSError("the database went away")

    with pytest.raises(InputError, match=r"item 21 .* the database went away"):
        runner_on(fake).run(requests(True), output=tmp_path / "out.jsonl")
    report = runner_on(fake).run(requests(False), output=tmp_path / "out.jsonl")
    assert (report.counts.resumed, report.counts.sent) == (20, 0)


def test_a_stream_that_comes_again_shorter_or_different_is_refused(fake: FakeOllama, tmp_path: Path) -> None:
    runner, output = runner_on(fake), tmp_path / "out.jsonl"
    fake.inject(Fault("status", status=401, when=3))
    with pytest.raises(Exception, match=r"401|auth"):
        runner.run(iter(["a", "b", "c", "d"]), output=output)
    fake.clear_faults()
    with pytest.raises(JournalMismatchError, match="begun with 4 rows, now there are 2"):
        runner.run(iter(["a", "b"]), output=output)
    with pytest.raises(JournalMismatchError, match=r"item 2 of <list_iterator> has changed .* other content"):
        runner.run(iter(["a", "B", "c", "d"]), output=output)
    assert not output.exists()
    assert runner.run(iter(["a", "b", "c", "d"]), output=output).ok
    assert ids(output) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("what", ["content", "size", "time", "gone"])
def test_a_file_that_changes_under_the_run_stops_it_resumably(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("ollama_batch._file_feed.FILE_ROWS", 4)
    source, output = rows_file(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    before, stat = source.read_text(), source.stat()
    fake.hold()
    run = runner_on(fake, concurrency=1).start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count() == 1)
    if what == "content":
        source.write_text(before.replace("r19", "x19"))
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif what == "size":
        source.write_text(before + json.dumps(line("more")) + "\n")
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif what == "time":
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    else:
        source.unlink()
    fake.release()
    with pytest.raises(InputChangedError, match=r"in\.jsonl(:20)? has changed since it was validated"):
        run.wait(timeout=10)
    kept = fake.ledger.answered()
    assert kept == (16 if what == "content" else 4)
    if what != "time":
        source.write_text(before)
    report = runner_on(fake).run(source, output=output)  # touched but equal goes on
    assert (report.counts.resumed, report.counts.ok) == (kept, 20)
    assert set(fake.ledger.counts().values()) == {1}
    assert ids(output) == names(20)


def test_a_file_with_more_rows_goes_on_with_them_and_another_is_refused(
    fake: FakeOllama, tmp_path: Path
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner = runner_on(fake)
    runner.run(source, output=output)
    assert runner.run(rows_file(source, 7), output=output).counts.sent == 2
    with pytest.raises(JournalMismatchError, match="begun with 7 rows, now there are 6"):
        runner.run(rows_file(source, 6), output=output)
    with pytest.raises(JournalMismatchError, match=r"in\.jsonl line 1 has changed .* other content"):
        runner.run(rows_file(source, 7, temperature=0.5), output=output)
    with pytest.raises(JournalMismatchError, match="begun with 1 inputs, now there are 2"):
        runner.run([source, rows_file(tmp_path / "b.jsonl", 1)], output=[output, tmp_path / "b.out"])
    assert ids(output) == names(7)
    assert fake.ledger.count() == 7


def test_rows_that_came_with_an_invalid_one_are_missed_when_they_are_taken_back(
    fake: FakeOllama, tmp_path: Path
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner = runner_on(fake)
    runner.run(source, output=output)
    before, stat = source.read_text(), source.stat()
    with pytest.raises(InputError, match="1 of 7 rows"):
        runner.run(write_lines(source, [*before.splitlines(), line("r5"), line("r6", n=2)]), output=output)
    source.write_text(before)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(JournalMismatchError, match="begun with 6 rows, now there are 5"):
        runner.run(source, output=output)
    assert runner.run(rows_file(source, 7), output=output).counts.sent == 2
    assert ids(output) == names(7)


def test_rows_larger_than_the_read_ahead_are_read_one_by_one(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ollama_batch._file_feed.FILE_BYTES", 500)
    source = write_lines(tmp_path / "in.jsonl", [line(f"r{n}", "x" * 300 * (n % 3)) for n in range(12)])
    assert runner_on(fake).run(source).counts.ok == 12
    assert set(fake.ledger.counts().values()) == {1}


def test_a_rows_own_fields_win_over_the_defaults(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            line("plain"),
            line("own", temperature=0.9, max_tokens=7, top_logprobs=3),
            line("newer", max_completion_tokens=9, temperature=None),
            line("effort", reasoning_effort="none"),
        ],
    )
    runner = runner_on(fake, defaults={"temperature": 0, "seed": 5, "logprobs": True}, max_tokens=50)
    report = runner.run(source, on_invalid="fail")
    assert report.counts.total == 4
    sent = {record.key: record.sent for record in fake.ledger.completions()}
    options = {name: each["options"] for name, each in sent.items()}
    assert [options[name]["num_predict"] for name in ("plain", "own", "newer")] == [50, 7, 9]
    assert options["plain"]["temperature"] == 0
    assert options["own"]["temperature"] == 0.9
    assert "temperature" not in options["newer"]
    assert all(each["seed"] == 5 for each in options.values())
    assert sent["own"]["top_logprobs"] == 3  # needs logprobs, which the defaults have
    assert sent["effort"]["think"] is False


def test_metadata_is_carried_to_the_result_and_never_sent(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", [line("a", metadata={"page": "7"}), line("b", n=2, metadata={"page": "8"})]
    )
    report = runner_on(fake).run(source, output=tmp_path / "out.jsonl", on_invalid="skip")
    assert next(dict(r.metadata) for r in report.results()) == {"page": "7"}
    assert all("metadata" not in record.sent for record in fake.ledger.completions())


def test_models_run_one_after_another_each_loaded_once(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    fake = fake_ollama_factory(models=[FakeModel("toy:1b"), FakeModel("big:9b"), FakeModel("mid:3b")])
    wanted = [None, "big:9b", "toy:1b", "mid:3b"] * 5
    lines = [line(f"r{n}", **({} if m is None else {"model": m})) for n, m in enumerate(wanted)]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="names 'big:9b', the run is for 'toy:1b'"):
        runner_on(fake).run(source)
    runner = runner_on(fake, allow_models=["big:9b", "mid:3b"])
    report = runner.run(source, output=output)
    assert report.counts.ok == 20
    asked = [record.model for record in fake.ledger.completions()]
    assert asked == ["toy:1b"] * 10 + ["big:9b"] * 5 + ["mid:3b"] * 5
    assert [load["model"] for load in fake.ledger.load_settings()] == ["toy:1b", "big:9b", "mid:3b"]
    assert ids(output) == names(20)
    digests = {result.model_digest for result in report.results()}
    assert digests == {FakeModel(name).digest for name in ("toy:1b", "big:9b", "mid:3b")}
    with pytest.raises(ConfigError, match="allow_models= needs files"):
        runner.run(["x"])


def test_a_model_whose_rows_are_done_is_not_loaded_again(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(models=[FakeModel("toy:1b"), FakeModel("big:9b")])
    lines = [line("a"), line("b", model="big:9b"), line("c")]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    fake.inject(Fault("status", status=400, match="b"))
    runner = runner_on(fake, allow_models=["big:9b"])
    runner.run(source, output=output)
    fake.clear_faults()
    fake.restart()  # which has lost its models
    before = fake.ledger.loads
    assert runner.run(source, output=output, retry_failed=True).ok
    assert [load["model"] for load in fake.ledger.load_settings()[before:]] == ["big:9b"]


def test_a_missing_second_model_is_found_before_anything_is_sent(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line("a"), line("b", model="gone:1b")])
    with pytest.raises(ModelNotFoundError, match="ollama pull gone:1b"):
        runner_on(fake, allow_models=["gone:1b"]).run(source, output=tmp_path / "out.jsonl")
    assert fake.ledger.count() == fake.ledger.loads == 0
    assert files_in(tmp_path) == ["in.jsonl"]


def test_a_model_that_cannot_think_is_refused_once(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    fake = fake_ollama_factory(models=[FakeModel("toy:1b"), FakeModel("deep:1b", thinking=True)])
    source = rows_file(tmp_path / "in.jsonl", 10)
    with pytest.raises(ConfigError, match="think=True: toy:1b cannot think"):
        runner_on(fake, think=True).run(source, output=tmp_path / "out.jsonl")
    assert fake.ledger.count() == fake.ledger.loads == 0
    assert files_in(tmp_path) == ["in.jsonl"]
    assert runner_on(fake, model="deep:1b", think="low").run(source).ok
    assert {record.sent["think"] for record in fake.ledger.completions()} == {"low"}


@pytest.mark.parametrize(
    ("chars", "max_tokens", "trained", "num_ctx"),
    [
        (100, 1024, 131_072, 4096),
        (8_000, 1024, 131_072, 4096),
        (12_000, 1024, 131_072, 8192),
        (30_000, 1024, 131_072, 16_384),
        (30_000, 1024, 10_000, 10_000),
        (100, 6_000, 131_072, 8192),
    ],
)
def test_auto_num_ctx_is_the_smallest_that_holds_the_largest_row(
    fake_ollama_factory: Factory, tmp_path: Path, chars: int, max_tokens: int, trained: int, num_ctx: int
) -> None:
    fake = fake_ollama_factory(models=[FakeModel("toy:1b", context_length=trained)])
    source = write_lines(tmp_path / "in.jsonl", [line("small"), line("large", "x" * chars)])
    report = runner_on(fake, max_tokens=max_tokens).run(source)
    assert report.num_ctx == num_ctx
    assert [load["num_ctx"] for load in fake.ledger.load_settings()] == [num_ctx]
    assert {record.sent["options"]["num_ctx"] for record in fake.ledger.completions()} == {num_ctx}


def test_auto_num_ctx_of_a_stream_and_an_explicit_one(fake: FakeOllama) -> None:
    assert runner_on(fake).run(["x"]).num_ctx == 4096
    assert runner_on(fake, num_ctx=2048).run(["x"]).num_ctx == 2048
    assert [load["num_ctx"] for load in fake.ledger.load_settings()] == [4096, 2048]


def test_auto_num_ctx_of_a_stream_that_goes_on_is_one_size_more_than_its_first_rows_need(
    fake: FakeOllama,
) -> None:
    sent = threading.Event()

    class FirstSent:
        def on_event(self, event: Any) -> None:
            if isinstance(event, RowSent):
                sent.set()

    def slow() -> Iterator[str]:
        yield "x" * 12_000  # about 3,700 tokens, and an answer of 1,024
        assert sent.wait(30), "a row waited for rows that had not come yet"
        yield "the last"

    report = runner_on(fake, hooks=[FirstSent()]).run(slow())
    assert report.ok
    assert report.num_ctx == 16_384
    assert fake.ledger.loads == 1


def test_auto_num_ctx_leaves_out_one_row_in_a_thousand_and_names_it(fake: FakeOllama, tmp_path: Path) -> None:
    lines = [line(f"r{n}", "short") for n in range(1999)]
    lines.insert(700, line("long", "a sure number of words " * 4_000))
    source = write_lines(tmp_path / "in.jsonl", lines)
    report = runner_on(fake, max_tokens=256).run(source)
    assert report.num_ctx == 4096
    assert any(
        "1 of 2,000 rows may need more than num_ctx 4,096: long (up to" in note for note in report.notes
    )
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.custom_id == "long"
    assert failed.error is not None
    assert failed.error.code == "context_length_exceeded"
    assert failed.attempts == fake.ledger.count("long") == 0


def test_an_openai_server_runs_the_same_file(fake: FakeOllama, tmp_path: Path) -> None:
    engine = OpenAIEngine(fake.url)
    report = runner_on(fake, engine=engine).run(rows_file(tmp_path / "in.jsonl", 5), output=tmp_path / "out")
    asyncio.run(engine.aclose())
    assert report.ok
    assert report.num_ctx is None
    assert any("OllamaEngine" in note for note in report.notes)
    assert {record.route for record in fake.ledger.completions()} == {"/v1/chat/completions"}
