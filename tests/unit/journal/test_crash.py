"""Kills at every point of the journal's write path; the oracle is what the killed process had told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from journal_support import ROWS, is_flawed, kill_at, points_reached, work
from ollama_batch import journal as journal_package
from ollama_batch._points import POINTS
from ollama_batch.journal import RunJournal

SOURCE = "".join(file.read_text() for file in Path(journal_package.__file__).parent.glob("*.py"))
# Journals are set aside by a runner that begins anew, whose tests kill it there.
JOURNAL_POINTS = [
    name for name in POINTS if f'reached("{name}")' in SOURCE and not name.startswith(("aside.", "upgrade."))
]
# The moments a point is reached again: amid the results, in the second session, in the second export.
LATER = [
    ("result.after_insert", 7),
    ("result.after_commit", 9),
    ("note.after_insert", 3),
    ("file.before_rename", 3),
    ("file.after_rename", 3),
    ("meta.after_put", 7),
    ("meta.after_put", 8),
    ("meta.after_put", 9),
    ("partial.mend", 2),
    ("lock.before_release", 2),
]


def recorded(path: Path) -> dict[int, tuple[bool, bytes]]:
    with RunJournal.open_readonly(path) as journal:
        return {row.index: (record.ok, record.line) for row, record in journal.results()}


def test_work_reaches_every_point_of_the_journal(tmp_path: Path) -> None:
    assert set(JOURNAL_POINTS) <= set(points_reached(tmp_path))


@pytest.mark.parametrize(
    ("point", "nth"), [*((name, 1) for name in JOURNAL_POINTS), *LATER], ids=lambda value: str(value)
)
def test_a_kill_loses_and_doubles_nothing(tmp_path: Path, point: str, nth: int) -> None:
    told = kill_at(tmp_path, point, nth)
    path = tmp_path / "out.jsonl.run.db"
    kept: dict[int, dict[str, Any]] = {}
    for fact in told:
        if "kept" in fact:
            kept[int(str(fact["kept"]))] = fact
    before = recorded(path) if path.exists() else {}
    for index, fact in kept.items():
        ok, line = before[index]
        if fact["ok"]:
            assert (ok, line) == (True, str(fact["line"]).encode())
        # A failed row may have been replaced by a commit that was not told any more.
        assert ok or line == str(fact["line"]).encode()

    again: list[dict[str, object]] = []
    asyncio.run(work(tmp_path, again.append))
    resent = {fact["sent"] for fact in again if "sent" in fact}
    assert not resent & {index for index, (ok, _) in before.items() if ok}

    after = recorded(path)
    assert sorted(after) == list(range(ROWS))
    assert all(ok for ok, _ in after.values())
    for index, (ok, line) in before.items():
        assert not ok or after[index][1] == line
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert lines == [after[index][1] for index in range(ROWS)]
    with closing(sqlite3.connect(path)) as con:
        assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert con.execute("PRAGMA foreign_key_check").fetchall() == []
        replaced = [index for (index,) in con.execute("SELECT DISTINCT idx FROM attempts ORDER BY idx")]
        assert replaced == [index for index in range(ROWS) if is_flawed(index)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.db"]
    assert [json.loads(line)["custom_id"] for line in lines] == [f"row-{n}" for n in range(ROWS)]


def make_older(path: Path) -> None:
    """Take from a journal what version 1 did not have."""
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        con.executescript("DROP TABLE turns; PRAGMA user_version = 1;")


def test_an_older_journal_has_results_without_lanes(tmp_path: Path) -> None:
    kill_at(tmp_path, "result.after_commit", 9)
    path = tmp_path / "out.jsonl.run.db"
    with RunJournal.open_readonly(path) as journal:
        before = [(row.index, row.lane) for row, _ in journal.results()]
    make_older(path)
    with RunJournal.open_readonly(path) as journal:
        after = [(row.index, row.lane) for row, _ in journal.results()]
    assert len(before) >= 9
    assert all(lane is not None for _, lane in before)
    assert after == [(index, None) for index, _ in before]


@pytest.mark.parametrize("point", ["upgrade.before_commit", "upgrade.after_commit"])
def test_a_kill_while_an_older_journal_is_upgraded_loses_nothing(tmp_path: Path, point: str) -> None:
    kill_at(tmp_path, "result.after_commit", 9)
    path = tmp_path / "out.jsonl.run.db"
    make_older(path)
    before = recorded(path)
    assert kill_at(tmp_path, point) == []
    with closing(sqlite3.connect(path)) as con:
        version = con.execute("PRAGMA user_version").fetchone()[0]
        turns = con.execute("SELECT count(*) FROM sqlite_master WHERE name = 'turns'").fetchone()[0]
    assert (version, turns) == ((1, 0) if point == "upgrade.before_commit" else (2, 1))
    asyncio.run(work(tmp_path, lambda _: None))
    after = recorded(path)
    assert sorted(after) == list(range(ROWS))
    assert all(after[index] == found for index, found in before.items() if found[0])
