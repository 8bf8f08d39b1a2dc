"""Torn logs, flipped bits and files that are no journals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from journal_support import IDENTITY, result, row
from ollama_batch.errors import JournalCorruptError, JournalError, JournalVersionError
from ollama_batch.journal import RunJournal

SEED = 20261107
COMMITS = 12
FRAME = 24 + 4096  # frame header and page: sqlite.org/fileformat2.html, section 4


def recover(folder: Path, database: bytes, log: bytes) -> list[int]:
    """The rows with results that a journal with this log has after it was opened."""
    path = folder / "run.db"
    path.write_bytes(database)
    path.with_name("run.db-wal").write_bytes(log)
    with RunJournal.open(path, identity=IDENTITY) as journal:
        found = [record.index for _, record in journal.results()]
        counts = journal.counts()
        assert counts.ok == len(found)
        assert counts.rows in (0, COMMITS)
        assert counts.rows >= len(found)
    return found


async def torn_journal(folder: Path) -> tuple[bytes, bytes]:
    """Database and log of a journal with one commit a row, as they are before anything is folded in."""
    with RunJournal.open(folder / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(COMMITS)])
        for n in range(COMMITS):
            await journal.commit(result(n, text="x" * 3000))
        return (folder / "run.db").read_bytes(), (folder / "run.db-wal").read_bytes()


def test_a_log_cut_anywhere_is_a_prefix_of_the_commits(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    database, log = asyncio.run(torn_journal(tmp_path / "first"))
    frames, rest = divmod(len(log) - 32, FRAME)
    assert rest == 0
    assert frames > COMMITS
    rng = random.Random(SEED)
    cuts = {
        *(32 + n * FRAME for n in range(frames + 1)),
        *(rng.randrange(len(log)) for _ in range(200)),
        0,
        31,
    }
    kept = 0
    for n, cut in enumerate(sorted(cuts)):
        folder = tmp_path / str(n)
        folder.mkdir()
        found = recover(folder, database, log[:cut])
        assert found == list(range(len(found))), f"cut at {cut}"
        assert len(found) >= kept, f"cut at {cut}: a longer log has fewer commits"
        kept = len(found)
        shutil.rmtree(folder)
    assert kept == COMMITS


def test_a_log_with_a_damaged_frame_ends_before_it(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    database, log = asyncio.run(torn_journal(tmp_path / "first"))
    rng = random.Random(SEED)
    for n in range(40):
        torn = bytearray(log)
        torn[rng.randrange(32, len(log))] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(n)
        folder.mkdir()
        found = recover(folder, database, bytes(torn))
        assert found == list(range(len(found)))
        assert len(found) < COMMITS  # the last commit needs every frame before it


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    async def run() -> None:
        with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
            await journal.add_rows([row(n) for n in range(60)])
            for n in range(60):
                await journal.commit(
                    result(n, code="bad" if n == 7 else None, text=f"<{n}>" + "y" * (n * 150))
                )

    asyncio.run(run())
    return tmp_path / "run.db"


@pytest.mark.parametrize("index", [0, 7, 31, 59])
def test_a_flipped_bit_in_an_answer_is_found_and_named(
    finished: Path, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(finished.read_bytes())
    place = data.index(f"<{index}>".encode()) + 1
    data[place] ^= 1
    finished.write_bytes(data)
    with RunJournal.open(finished, identity=IDENTITY) as journal:
        with pytest.raises(JournalCorruptError, match=rf"the result of row {index} \(row-{index}, source 0"):
            list(journal.results())
        with pytest.raises(JournalCorruptError):
            journal.export(0, finished.with_name("out.jsonl"))
        assert not finished.with_name("out.jsonl").exists()
    damaged: list[int] = []
    with caplog.at_level(logging.WARNING), RunJournal.open_readonly(finished) as reader:
        intact = [record.index for _, record in reader.results(strict=False, damaged=damaged)]
    assert damaged == [index]
    assert intact == [n for n in range(60) if n != index]
    assert f"row {index} is damaged" in caplog.text


def test_no_mutation_of_the_file_ever_changes_an_answer_unseen(finished: Path, tmp_path: Path) -> None:
    whole = finished.read_bytes()
    truth = {n: result(n, code="bad" if n == 7 else None, text=f"<{n}>" + "y" * (n * 150)) for n in range(60)}
    rng = random.Random(SEED)
    named = 0
    for n in range(200):
        data = bytearray(whole)
        kind = n % 4
        at = rng.randrange(len(data))
        if kind < 2:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            page = at // 4096 * 4096
            data[page : page + 4096] = bytes(4096)
        else:
            del data[at:]
        copy = tmp_path / f"copy{n}.db"
        copy.write_bytes(data)
        try:
            with RunJournal.open_readonly(copy) as reader:
                for _, record in reader.results():
                    assert record == truth[record.index]
        except JournalError:
            named += 1
        with contextlib.suppress(JournalError), RunJournal.open_readonly(copy) as reader:
            for _, record in reader.results(strict=False):
                assert record == truth[record.index]
        with contextlib.suppress(JournalError):
            RunJournal.open(copy, identity=IDENTITY).close()
    assert named > 20


def test_rows_beside_a_zeroed_page_are_salvaged(finished: Path) -> None:
    data = bytearray(finished.read_bytes())
    page = data.index(b"<40>") // 4096 * 4096
    data[page : page + 4096] = bytes(4096)
    finished.write_bytes(data)
    damaged: list[int] = []
    with RunJournal.open_readonly(finished) as reader:
        with pytest.raises(JournalCorruptError):
            list(reader.results())
        intact = [record.index for _, record in reader.results(strict=False, damaged=damaged)]
    assert 40 in damaged
    assert sorted(intact + damaged) == list(range(60))
    assert len(intact) > 55


def test_lanes_that_cannot_be_read_cost_no_result(finished: Path) -> None:
    async def assign() -> None:
        with RunJournal.open(finished, identity=IDENTITY) as journal:
            await journal.turns.assign(2)

    asyncio.run(assign())
    with closing(sqlite3.connect(finished)) as con:
        page = con.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns'").fetchone()[0]
    data = bytearray(finished.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = bytes(4096)
    finished.write_bytes(data)
    damaged: list[int] = []
    with RunJournal.open_readonly(finished) as reader:
        found = [record.index for _, record in reader.results(strict=False, damaged=damaged)]
    assert (found, damaged) == (list(range(60)), [])


def plant_directory(path: Path) -> None:
    path.mkdir()


def plant_symlink(path: Path) -> None:
    RunJournal.open(path.with_name("real.db"), identity=IDENTITY).close()
    path.symlink_to(path.with_name("real.db"))


def plant_dangling_symlink(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.db"))


def plant_log_symlink(path: Path) -> None:
    path.with_name(path.name + "-wal").symlink_to(path.with_name("nowhere"))


def plant_lock_symlink(path: Path) -> None:
    path.with_name(path.name + ".lock").symlink_to(path.with_name("nowhere"))


def plant_empty(path: Path) -> None:
    path.touch()


def plant_text(path: Path) -> None:
    path.write_text('{"custom_id": "a"}\n' * 300)


def plant_short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def plant_foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE meta (key, value)")


def change(path: Path, statement: str) -> None:
    RunJournal.open(path, identity=IDENTITY).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        con.execute(statement)


def plant_newer(path: Path) -> None:
    change(path, "PRAGMA user_version = 99")


def plant_no_version(path: Path) -> None:
    change(path, "PRAGMA user_version = 0")


def plant_missing_table(path: Path) -> None:
    change(path, "DROP TABLE notes")


def plant_missing_identity(path: Path) -> None:
    change(path, "DELETE FROM meta")


def plant_damaged_header(path: Path) -> None:
    RunJournal.open(path, identity=IDENTITY).close()
    data = bytearray(path.read_bytes())
    data[:16] = bytes(16)
    path.write_bytes(data)


def plant_damaged_page_size(path: Path) -> None:
    RunJournal.open(path, identity=IDENTITY).close()
    data = bytearray(path.read_bytes())
    data[16:18] = b"\x12\x34"
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("plant", "error", "text"),
    [
        (plant_directory, JournalError, "is a directory"),
        (plant_symlink, JournalError, "is a symbolic link"),
        (plant_dangling_symlink, JournalError, "is a symbolic link"),
        (plant_log_symlink, JournalError, "is a symbolic link"),
        (plant_lock_symlink, JournalError, "is a symbolic link"),
        (plant_empty, JournalCorruptError, "is empty"),
        (plant_text, JournalCorruptError, "is not a journal"),
        (plant_short, JournalCorruptError, "is not a journal|another program"),
        (plant_foreign_database, JournalCorruptError, "another program"),
        (plant_newer, JournalVersionError, "newer release .schema 99"),
        (plant_no_version, JournalCorruptError, "schema version 0"),
        (plant_missing_table, JournalCorruptError, "notes missing"),
        (plant_missing_identity, JournalCorruptError, "settings are missing"),
        (plant_damaged_header, JournalCorruptError, "not a journal, or its header is damaged"),
        (plant_damaged_page_size, JournalCorruptError, "not a journal, or its header is damaged"),
    ],
)
def test_what_is_no_journal_is_refused_by_name_and_left_alone(
    tmp_path: Path, plant: Callable[[Path], None], error: type[JournalError], text: str
) -> None:
    path = tmp_path / "run.db"
    plant(path)
    before = path.read_bytes() if path.is_file() else None
    names = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(error, match=text) as caught:
        RunJournal.open(path, identity=IDENTITY)
    assert type(caught.value) is error
    assert str(tmp_path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_a_missing_folder_or_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="does not exist: create"):
        RunJournal.open(tmp_path / "absent" / "run.db", identity=IDENTITY)
    with pytest.raises(JournalError, match="there is no journal"):
        RunJournal.open_readonly(tmp_path / "run.db")
