"""What a run writes, where, and what it never writes over."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ollama_batch import _opening
from ollama_batch.errors import ConfigError, DiskFullError, JournalError, JournalLockedError, OutputError
from ollama_batch.journal import RunJournal
from ollama_batch.journal.run import RunJournal as Journal
from ollama_batch.testing import FakeOllama, Fault
from runner_support import files_in, ids, line, names, read_lines, rows_file, runner_on, write_lines


@pytest.fixture
def fake(fake_ollama: FakeOllama) -> FakeOllama:
    return fake_ollama


def test_output_and_errors_are_in_input_order_and_private(fake: FakeOllama, tmp_path: Path) -> None:
    fake.inject(Fault("status", status=400, match="bad"))
    wanted = [f"{'bad' if n % 3 == 1 else 'ok'}{n}" for n in range(12)]
    source = write_lines(tmp_path / "in.jsonl", [line(name) for name in wanted])
    output = tmp_path / "out.jsonl"
    report = runner_on(fake).run(source, output=output)
    assert files_in(tmp_path) == ["in.jsonl", "out.errors.jsonl", "out.jsonl", "out.jsonl.run.db"]
    assert ids(output) == [name for name in wanted if name.startswith("ok")]
    assert ids(tmp_path / "out.errors.jsonl") == [name for name in wanted if name.startswith("bad")]
    for each in read_lines(output):
        assert set(each) == {"id", "custom_id", "response", "error"}
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        assert each["response"]["body"]["object"] == "chat.completion"
    for name in ("out.jsonl", "out.errors.jsonl", "out.jsonl.run.db"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert report.files[0].errors == str(tmp_path / "out.errors.jsonl")


def test_no_error_file_is_made_where_no_row_failed(fake: FakeOllama, tmp_path: Path) -> None:
    report = runner_on(fake).run(rows_file(tmp_path / "in.jsonl", 2), output=tmp_path / "out.jsonl")
    assert files_in(tmp_path) == ["in.jsonl", "out.jsonl", "out.jsonl.run.db"]
    assert report.files[0].errors is None


def test_the_partial_file_grows_while_the_run_goes_and_is_gone_after_it(
    fake: FakeOllama, tmp_path: Path
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial.jsonl"
    fake.inject(Fault("hang", when=4))
    runner = runner_on(fake, concurrency=1)
    run = runner.start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel(now=True)
    with pytest.raises(Exception, match="cancelled"):
        run.wait(timeout=10)
    assert ids(partial) == names(3)
    assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert not output.exists()
    assert runner.run(source, output=output).ok
    assert not partial.exists()
    assert ids(output) == names(6)


def test_the_partial_file_can_be_turned_off(fake: FakeOllama, tmp_path: Path) -> None:
    fake.inject(Fault("hang", when=2))
    run = runner_on(fake, concurrency=1).start(
        rows_file(tmp_path / "in.jsonl", 3), output=tmp_path / "out.jsonl", partial=False
    )
    fake.wait_until(lambda ledger: ledger.count() == 2)
    assert not any("partial" in name for name in files_in(tmp_path))
    run.cancel(now=True)
    with pytest.raises(Exception, match="cancelled"):
        run.wait(timeout=10)


@pytest.mark.parametrize("what", ["out.jsonl", "out.errors.jsonl", "out.jsonl.partial.jsonl"])
def test_a_file_that_is_not_this_runs_is_replaced_only_when_asked(
    fake: FakeOllama, tmp_path: Path, what: str
) -> None:
    source, output, foreign = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl", tmp_path / what
    foreign.write_text("precious\n")
    fake.inject(Fault("status", status=400, match="r1"))
    with pytest.raises(OutputError, match=f"{what} exists"):
        runner_on(fake).run(source, output=output)
    assert foreign.read_text() == "precious\n"
    assert files_in(tmp_path) == sorted(["in.jsonl", what])
    assert list(fake.ledger.records()) == []
    assert runner_on(fake).run(source, output=output, overwrite=True).counts.ok == 2
    assert ids(output) == ["r0", "r2"]
    assert ids(tmp_path / "out.errors.jsonl") == ["r1"]


def test_a_link_in_the_place_of_the_output_is_not_followed(fake: FakeOllama, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"out\.jsonl exists"):
        runner_on(fake).run(["x"], output=tmp_path / "out.jsonl")


def test_an_output_that_was_edited_is_not_written_over(fake: FakeOllama, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    runner = runner_on(fake)
    runner.run(source, output=output)
    made = output.read_text()
    output.write_text(made + "my notes\n")
    with pytest.raises(OutputError, match="exists and is not what this run wrote"):
        runner.run(source, output=output)
    assert output.read_text() == made + "my notes\n"
    output.unlink()
    assert runner.run(source, output=output).counts.sent == 0
    assert output.read_text() == made


@pytest.mark.parametrize("link", ["same", "dots", "symlink"])
@pytest.mark.parametrize("option", ["output", "errors", "journal"])
def test_the_input_is_never_a_place_to_write(
    fake: FakeOllama, tmp_path: Path, option: str, link: str
) -> None:
    source = rows_file(tmp_path / "in.jsonl", 2)
    before = source.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(source)
    path = {"same": source, "dots": tmp_path / "sub" / ".." / "in.jsonl", "symlink": tmp_path / "link"}[link]
    places = {"output": tmp_path / "out.jsonl", option: path}
    with pytest.raises(OutputError, match="is an input of this run"):
        runner_on(fake).run(source, overwrite=True, **places)
    with source.open() as file, pytest.raises(OutputError, match="is an input of this run"):
        runner_on(fake).run(file, overwrite=True, **places)
    assert source.read_bytes() == before
    assert files_in(tmp_path) == ["in.jsonl", "link", "sub"]


def test_an_input_that_is_the_partial_file_is_not_written_over(fake: FakeOllama, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "out.jsonl.partial.jsonl", 2)
    before = source.read_bytes()
    with pytest.raises(OutputError, match="is an input of this run"):
        runner_on(fake).run(source, output=tmp_path / "out.jsonl", overwrite=True)
    assert source.read_bytes() == before


def test_places_where_nothing_can_be_written_are_found_before_anything_is_sent(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, runner = rows_file(tmp_path / "in.jsonl", 2), runner_on(fake)
    (tmp_path / "folder.errors.jsonl").mkdir()
    with pytest.raises(OutputError, match="nowhere does not exist"):
        runner.run(source, output=tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(OutputError, match="nowhere does not exist"):
        runner.run(source, output=f"{tmp_path}/nowhere/")
    with pytest.raises(OutputError, match="is a folder"):
        runner.run(source, output=tmp_path / "folder.jsonl")
    with pytest.raises(OutputError, match="nowhere does not exist"):
        runner.run(source, output=tmp_path / "out.jsonl", errors=tmp_path / "nowhere" / "errors.jsonl")
    with pytest.raises(JournalError, match="folder of the journal"):
        runner.run(source, output=tmp_path / "out.jsonl", journal=tmp_path / "nowhere" / "run.db")
    monkeypatch.setattr(_opening.os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(OutputError, match="permission denied"):
        runner.run(source, output=tmp_path / "out.jsonl")
    assert list(fake.ledger.records()) == []
    assert files_in(tmp_path) == ["folder.errors.jsonl", "in.jsonl"]


def test_a_disk_without_room_is_found_before_anything_is_sent(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "free_bytes", lambda journal: 10 * 2**20)
    source = rows_file(tmp_path / "in.jsonl", 2)
    with pytest.raises(DiskFullError, match=r"10 MiB are free .* 64 MiB are needed"):
        runner_on(fake).run(source, output=tmp_path / "out.jsonl")
    assert files_in(tmp_path) == ["in.jsonl"]
    assert runner_on(fake).run(source).ok  # in memory there is nothing to run out of


def test_an_export_that_fails_leaves_the_run_to_be_finished(
    fake: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:

        def full(*arguments: object, **named: object) -> None:
            raise DiskFullError("no room", str(output))

        patch.setattr("ollama_batch.journal.run.write_export", full)
        with pytest.raises(DiskFullError):
            runner_on(fake).run(source, output=output)
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        assert journal.state == "stopped"
    report = runner_on(fake).run(source, output=output)
    assert (report.counts.sent, report.counts.resumed) == (0, 4)
    assert ids(output) == names(4)


def test_errors_and_journal_go_where_they_are_told(fake: FakeOllama, tmp_path: Path) -> None:
    fake.inject(Fault("status", status=400, match="r1"))
    for folder in ("out", "bad", "runs"):
        (tmp_path / folder).mkdir()
    places = {
        "output": tmp_path / "out" / "o.jsonl",
        "errors": tmp_path / "bad" / "e.jsonl",
        "journal": tmp_path / "runs" / "run.db",
    }
    report = runner_on(fake).run(rows_file(tmp_path / "in.jsonl", 3), **places)
    assert [files_in(tmp_path / folder) for folder in ("out", "bad", "runs")] == [
        ["o.jsonl"],
        ["e.jsonl"],
        ["run.db"],
    ]
    assert report.journal == str(places["journal"])


def test_a_journal_without_an_output_is_durable(fake: FakeOllama, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "in.jsonl", 3)
    report = runner_on(fake).run(source, journal=tmp_path / "run.db")
    assert (report.durable, files_in(tmp_path)) == (True, ["in.jsonl", "run.db"])
    assert runner_on(fake).run(source, journal=tmp_path / "run.db").counts.sent == 0


def test_an_output_without_a_journal_is_written_and_said_not_to_be_durable(
    fake: FakeOllama, tmp_path: Path
) -> None:
    report = runner_on(fake).run(["x", "y"], output=tmp_path / "out.jsonl", journal=None)
    assert (report.durable, report.journal) == (False, None)
    assert files_in(tmp_path) == ["out.jsonl"]
    assert "not durable" in str(report)


def test_a_folder_takes_the_output_of_one_input_as_well(fake: FakeOllama, tmp_path: Path) -> None:
    runner_on(fake).run(["x"], output=tmp_path)
    assert files_in(tmp_path) == ["batch.run.db", "list.results.jsonl"]


def test_runs_with_one_journal_and_two_outputs_do_not_forget_the_first_on_a_refusal(
    fake: FakeOllama, tmp_path: Path
) -> None:
    journal, source = tmp_path / "run.db", rows_file(tmp_path / "in.jsonl", 2)
    runner = runner_on(fake)
    runner.run(source, output=tmp_path / "a.jsonl", journal=journal)
    (tmp_path / "b.jsonl").write_text("precious")
    with pytest.raises(OutputError):
        runner.run(source, output=tmp_path / "b.jsonl", journal=journal)
    with RunJournal.open_readonly(journal) as kept:
        assert kept.get("places")[0]["output"] == str(tmp_path / "a.jsonl")


def test_paths_that_meet_are_refused(fake: FakeOllama, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for places in (
        {"output": out, "journal": out},
        {"output": out, "errors": out},
        {"output": out, "errors": tmp_path / "x" / ".." / "out.jsonl"},
        {"output": out, "errors": tmp_path / "out.jsonl.run.db"},
        {"output": out, "journal": tmp_path / "out.jsonl.partial.jsonl"},
    ):
        with pytest.raises(ConfigError, match="same file twice"):
            runner_on(fake).run(["x"], overwrite=True, **places)


def test_what_is_in_use_is_not_set_aside(fake: FakeOllama, tmp_path: Path) -> None:
    fake.hold()
    first = runner_on(fake).start(["x"], output=tmp_path / "out.jsonl")
    fake.wait_until(lambda ledger: ledger.count() == 1)
    with pytest.raises(JournalLockedError):
        runner_on(fake, max_tokens=7).run(["x"], output=tmp_path / "out.jsonl", overwrite=True)
    fake.release()
    assert first.wait(timeout=10).ok
