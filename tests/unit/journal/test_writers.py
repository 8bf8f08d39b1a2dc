"""One writer, its lock, its permissions and its place; readers beside it; a full disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import journal_support
from journal_support import IDENTITY, racers, result, row, run_child
from ollama_batch.errors import DiskFullError, JournalError, JournalLockedError, OutputError
from ollama_batch.journal import JournalCounts, RunJournal


def test_a_second_writer_in_this_process_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunJournal.open(path, identity=IDENTITY) as journal:
        with pytest.raises(JournalLockedError, match=rf"run\.db is in use .*process {os.getpid()}"):
            RunJournal.open(path, identity=IDENTITY)
        journal.put("still", "ours")
    RunJournal.open(path, identity=IDENTITY).close()


def test_of_racing_processes_exactly_one_wins(tmp_path: Path) -> None:
    with racers(3) as group:
        for n in range(20):
            # Each journal is raced for twice: while it does not exist yet, and when it does.
            fared = group.race(tmp_path / f"run{n // 2}.db")
            assert sorted(fared) == ["JournalLockedError", "JournalLockedError", "won"], f"race {n}"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"run{n}.db" for n in range(10))


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    child = subprocess.Popen(
        [sys.executable, journal_support.__file__, "race"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write(f"{path}\n")
    child.stdin.flush()
    assert child.stdout.readline() == "won\n"
    with pytest.raises(JournalLockedError, match=f"process {child.pid}"):
        RunJournal.open(path, identity=IDENTITY)
    with RunJournal.open_readonly(path) as reader:
        assert reader.state == "running"
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        assert reader.state == "stopped"
    RunJournal.open(path, identity=IDENTITY).close()
    assert [file.name for file in tmp_path.iterdir()] == ["run.db"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused_and_its_parent_goes_on(tmp_path: Path) -> None:
    child = run_child("fork", tmp_path)
    assert json.loads(child.stdout) == {"child": 0, "parent": 2}, child.stderr


@pytest.mark.parametrize("mask", [0o000, 0o077])
async def test_every_file_is_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with RunJournal.open(
            tmp_path / "run.db", identity=IDENTITY, partial=tmp_path / "partial.jsonl"
        ) as journal:
            await journal.add_rows([row(0), row(1)])
            await journal.commit(result(0))
            await journal.commit(result(1, code="bad"))
            journal.put("now", 1)
            names = {file.name for file in tmp_path.iterdir()}
            assert names == {"run.db", "run.db-wal", "run.db-shm", "run.db.lock", "partial.jsonl"}
            for file in tmp_path.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
            journal.export(0, tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
        assert {file.name for file in tmp_path.iterdir()} == {"run.db", "out.jsonl", "errors.jsonl"}
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "SMB3"])
def test_a_network_file_system_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    parts = [
        SimpleNamespace(mountpoint="/", fstype="ext4", opts=""),
        SimpleNamespace(mountpoint=str(tmp_path), fstype=kind, opts=""),
        SimpleNamespace(mountpoint=str(tmp_path / "local"), fstype="xfs", opts=""),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: parts)  # noqa: A006 - psutil's own name
    (tmp_path / "local").mkdir()
    (tmp_path / "locale").mkdir()
    for folder in (tmp_path, tmp_path / "locale"):
        with pytest.raises(JournalError, match=rf"network file system \({kind}\).*put it on a local disk"):
            RunJournal.open(folder / "run.db", identity=IDENTITY)
    RunJournal.open(tmp_path / "local" / "run.db", identity=IDENTITY).close()


async def test_a_full_disk_refuses_whole_groups_and_the_same_records_fit_later(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(40)])
        pages = journal._call(lambda con: con.execute("PRAGMA page_count").fetchone()[0])
        journal._call(lambda con: con.execute(f"PRAGMA max_page_count = {pages + 10}"))
        records = [result(n, text="x" * 3000) for n in range(40)]
        told: list[int] = []

        async def commit(n: int) -> None:
            await journal.commit(records[n])
            told.append(n)

        outcomes = await asyncio.gather(*(commit(n) for n in range(20)), return_exceptions=True)
        for n in range(20, 40):
            outcomes += await asyncio.gather(commit(n), return_exceptions=True)
        refused = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        assert refused
        assert all(isinstance(outcome, DiskFullError) for outcome in outcomes if outcome is not None)
        assert "make room" in str(outcomes[refused[0]])
        assert [record.index for _, record in journal.results()] == sorted(told)
        assert journal.counts() == JournalCounts(40, len(told), 0, {})
        journal._call(lambda con: con.execute("PRAGMA max_page_count = 1000000"))
        for n in refused:
            await commit(n)
        assert [record for _, record in journal.results()] == records


def test_a_limit_on_file_size_loses_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    child = run_child("full", tmp_path)
    told = [json.loads(line) for line in child.stdout.splitlines()]
    assert told[-1] == {"refused": 1}, child.stderr
    with RunJournal.open_readonly(tmp_path / "run.db") as reader:
        found = [{"kept": record.index, "line": record.line.decode()} for _, record in reader.results()]
    assert found == told[:-1]
    assert len(found) == 400


async def test_readers_beside_the_writer_see_only_whole_commits(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    total = 300
    with RunJournal.open(path, identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(total)])

        def watch() -> list[int]:
            seen = [-1]
            with RunJournal.open_readonly(path) as reader:
                while seen[-1] < total:
                    assert reader.state == "running"
                    before = reader.counts().ok
                    found = [record.index for _, record in reader.results()]
                    assert before <= len(found)
                    assert found == list(range(len(found)))
                    seen.append(before)
            return seen

        watchers = [asyncio.create_task(asyncio.to_thread(watch)) for _ in range(2)]
        for n in range(total):
            await journal.commit(result(n))
        for seen in await asyncio.gather(*watchers):
            assert seen == sorted(seen)
            assert seen[-1] == total


async def test_a_reader_tells_settings_notes_and_state(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunJournal.open(path, identity=IDENTITY) as journal:
        journal.pin("digest", "one")
        await journal.add_rows([row(0), row(1)])
        await journal.commit(result(0))
        await journal.note("decision", {"num_ctx": 2048})
        run_id = journal.run_id
        with RunJournal.open_readonly(path) as reader:
            assert (reader.state, reader.run_id) == ("running", run_id)
    before = path.read_bytes()
    with RunJournal.open_readonly(path) as reader:
        assert (reader.state, reader.run_id, reader.created_at > 0) == ("stopped", run_id, True)
        assert reader.identity == {**IDENTITY, "digest": "one"}
        assert reader.counts() == JournalCounts(2, 1, 0, {})
        assert [dict(note.data) for note in reader.notes("decision")] == [{"num_ctx": 2048}]
        assert reader.export(0, tmp_path / "now.jsonl").ok == 1
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"run.db", "now.jsonl"}
    with RunJournal.open(path, identity=IDENTITY) as journal:
        await journal.commit(result(1))
        journal.put("state", "finished")
    with RunJournal.open_readonly(path) as reader:
        assert reader.state == "finished"
    with pytest.raises(JournalError, match="closed"):
        reader.counts()


async def test_a_reader_does_not_overwrite_a_foreign_file_unasked(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with RunJournal.open_readonly(tmp_path / "run.db") as reader:
        with pytest.raises(OutputError, match="not an export of this run"):
            reader.export(0, tmp_path / "mine.jsonl")
        assert (tmp_path / "mine.jsonl").read_text() == "mine\n"
        assert reader.export(0, tmp_path / "mine.jsonl", overwrite=True).ok == 1


async def test_a_killed_run_can_be_read_before_it_is_resumed(tmp_path: Path) -> None:
    told = journal_support.kill_at(tmp_path, "result.after_commit", 5)
    kept = {fact["kept"] for fact in told if "kept" in fact}
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as reader:
        assert reader.state == "stopped"
        assert kept <= {record.index for _, record in reader.results()}
