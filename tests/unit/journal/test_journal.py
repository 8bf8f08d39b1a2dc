"""What a run records, resumes, refuses and gives back."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from journal_support import IDENTITY, result, row
from ollama_batch import journal as public
from ollama_batch.errors import JournalError, JournalLockedError, JournalMismatchError, OutputError
from ollama_batch.journal import JournalCounts, RunJournal
from ollama_batch.journal.results import iterate
from ollama_batch.types import RowRecord


@pytest.fixture(params=["file", "temporary"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / "run.db" if request.param == "file" else None
    with RunJournal.open(path, identity=IDENTITY) as opened:
        yield opened


def read(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


async def test_results_come_back_in_input_order(journal: RunJournal) -> None:
    await journal.add_rows([row(n) for n in range(200)])
    order = [*range(150, 200), *range(149, -1, -1)]
    await asyncio.gather(*(journal.commit(result(n, code="busy" if n % 10 == 0 else None)) for n in order))
    assert [found.index for found, _ in journal.results()] == list(range(200))
    assert [found.index for found, _ in journal.results(ok=False)] == list(range(0, 200, 10))
    assert [record for _, record in journal.results(ok=True)][3] == result(4)
    assert journal.counts() == JournalCounts(200, 180, 20, {"busy": 20})


async def test_counts_after_a_resume_are_those_before(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(9)])
        for n, code in enumerate([None, "a", "b", "a", None]):
            await journal.commit(result(n, code=code))
        counts, run_id, created = journal.counts(), journal.run_id, journal.created_at
        assert counts == JournalCounts(9, 2, 3, {"a": 2, "b": 1})
        assert (journal.resumed, journal.session, journal.durable) == (False, 1, True)
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        assert (journal.resumed, journal.session) == (True, 2)
        assert (journal.counts(), journal.run_id, journal.created_at) == (counts, run_id, created)


async def test_pending_rows_are_those_without_a_result(journal: RunJournal) -> None:
    await journal.add_rows([row(n) for n in range(10)])
    for n in (0, 3, 4):
        await journal.commit(result(n, code="a" if n == 3 else None))
    assert [found.index for found in await journal.pending(after=-1, limit=3)] == [1, 2, 5]
    assert await journal.pending(after=5, limit=2) == [row(6), row(7)]
    assert await journal.pending(after=9, limit=5) == []


async def test_failed_rows_are_pending_again_once_a_session(tmp_path: Path) -> None:
    codes = {1: "a", 2: "b", 4: "a"}
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(5)])
        for n in range(5):
            await journal.commit(result(n, code=codes.get(n)))
        assert await journal.pending(after=-1, limit=9, retry=True) == []  # they failed in this session
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        only_a = frozenset({"a"})
        assert [r.index for r in await journal.pending(after=-1, limit=9)] == []
        assert [r.index for r in await journal.pending(after=-1, limit=9, retry=only_a)] == [1, 4]
        assert [r.index for r in await journal.pending(after=-1, limit=9, retry=frozenset())] == []
        await journal.commit(result(1, text="second", attempts=3))
        await journal.commit(result(4, code="c", attempts=3))
        assert [r.index for r in await journal.pending(after=-1, limit=9, retry=True)] == [2]
        assert journal.counts() == JournalCounts(5, 3, 2, {"b": 1, "c": 1})
    with closing(sqlite3.connect(tmp_path / "run.db")) as con:
        assert con.execute("SELECT idx, code FROM attempts ORDER BY idx").fetchall() == [(1, "a"), (4, "a")]
        assert con.execute("SELECT count(*) FROM results").fetchone() == (5,)


async def test_a_good_result_is_never_replaced(journal: RunJournal) -> None:
    await journal.add_rows([row(0), row(1)])
    await journal.commit(result(0, text="first"))
    outcomes = await asyncio.gather(
        journal.commit(result(0, text="other")), journal.commit(result(1)), return_exceptions=True
    )
    assert isinstance(outcomes[0], JournalError)
    assert "row 0 (row-0) has a good result" in str(outcomes[0])
    assert outcomes[1] is None
    assert [record for _, record in journal.results()] == [result(0, text="first"), result(1)]


async def test_not_even_sql_replaces_a_good_result(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
    with closing(sqlite3.connect(tmp_path / "run.db")) as con:
        for statement in ("UPDATE results SET ok = 0, code = 'x'", "DELETE FROM results"):
            with pytest.raises(sqlite3.IntegrityError):
                con.execute(statement)


async def test_a_result_without_its_row_is_refused(journal: RunJournal) -> None:
    with pytest.raises(JournalError, match="row 7 is not in the journal"):
        await journal.commit(result(7))
    assert journal.counts() == JournalCounts()


async def test_a_taken_custom_id_is_reported_with_its_first_holder(journal: RunJournal) -> None:
    assert await journal.add_rows([row(0, "a"), row(1, "b"), row(2, "a")]) == [(row(2, "a"), row(0, "a"))]
    assert await journal.add_rows([row(3, "b", text="x")]) == [(row(3, "b", text="x"), row(1, "b"))]
    assert await journal.add_rows([row(4, "a", source=1)]) == []  # ids are unique within a source
    assert [found.index for found in await journal.pending(after=-1, limit=9)] == [0, 1, 4]


async def test_rows_that_are_no_requests_have_no_id_and_do_not_collide(journal: RunJournal) -> None:
    bad = [RowRecord(n, 0, n + 1, None, bytes(16)) for n in range(3)]
    assert await journal.add_rows(bad) == []
    assert await journal.add_rows(bad) == []
    await journal.commit(result(1, code="invalid_json"))
    assert [found for found, _ in journal.results()] == [bad[1]]
    assert journal.counts().rows == 3


async def test_the_same_rows_again_are_fine_and_others_are_refused(journal: RunJournal) -> None:
    rows = [row(n) for n in range(4)]
    await journal.add_rows(rows)
    assert await journal.add_rows(rows) == []
    with pytest.raises(JournalMismatchError, match="source 0, line 3: the request 'row-2' is not the one"):
        await journal.add_rows([row(1), row(2, text="changed"), row(4)])
    with pytest.raises(JournalMismatchError, match="line 4: the request is 'new', not 'row-3'"):
        await journal.add_rows([row(3, "new")])
    assert journal.counts().rows == 4  # a refused batch leaves nothing behind


@pytest.mark.parametrize(
    ("present", "differences", "text"),
    [
        ({**IDENTITY, "num_ctx": 8192}, {"num_ctx": (4096, 8192)}, "num_ctx was 4096, is 8192"),
        (
            {**IDENTITY, "sampling": {"temperature": 1}},
            {"sampling.temperature": (0, 1)},
            "sampling.temperature was 0, is 1",
        ),
        (
            {**IDENTITY, "sampling": {}},
            {"sampling.temperature": (0, None)},
            "sampling.temperature was 0, is not set",
        ),
        ({**IDENTITY, "schema": "s"}, {"schema": (None, "s")}, 'schema was not set, is "s"'),
        ({**IDENTITY, "num_ctx": "4096"}, {"num_ctx": (4096, "4096")}, 'was 4096, is "4096"'),
        ({**IDENTITY, "sampling": {"temperature": False}}, {"sampling.temperature": (0, False)}, "is false"),
    ],
)
def test_another_identity_is_refused_with_the_difference(
    tmp_path: Path, present: Mapping[str, Any], differences: dict[str, Any], text: str
) -> None:
    RunJournal.open(tmp_path / "run.db", identity=IDENTITY).close()
    with pytest.raises(JournalMismatchError) as caught:
        RunJournal.open(tmp_path / "run.db", identity=present)
    assert caught.value.differences == differences
    assert text in str(caught.value)
    RunJournal.open(tmp_path / "run.db", identity=IDENTITY).close()  # the refusal let the lock go


def test_what_is_pinned_is_part_of_the_identity(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        journal.pin("digest", "one")
        journal.pin("digest", "one")
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        assert journal.identity == {**IDENTITY, "digest": "one"}
        with pytest.raises(JournalMismatchError, match='digest was "one", is "two"') as caught:
            journal.pin("digest", "two")
        assert caught.value.differences == {"digest": ("one", "two")}


def test_settings_that_may_change_are_put_and_got(journal: RunJournal) -> None:
    assert journal.get("concurrency") is None
    assert journal.get("concurrency", 4) == 4
    journal.put("concurrency", 8)
    journal.put("concurrency", {"now": [1, None]})
    assert journal.get("concurrency") == {"now": [1, None]}


async def test_notes_keep_their_order_and_kind(journal: RunJournal) -> None:
    await journal.note("attempt", {"index": 1})
    await journal.note("decision", {"num_ctx": 2048})
    await journal.note("attempt", {"index": 2})
    assert [(note.kind, dict(note.data)) for note in journal.notes()] == [
        ("attempt", {"index": 1}),
        ("decision", {"num_ctx": 2048}),
        ("attempt", {"index": 2}),
    ]
    assert [note.data["index"] for note in journal.notes("attempt")] == [1, 2]


async def test_an_export_splits_good_and_failed_rows_in_input_order(
    journal: RunJournal, tmp_path: Path
) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    await journal.add_rows([row(n, source=n // 4) for n in range(8)])
    for n in reversed(range(8)):
        await journal.commit(result(n, code="bad" if n in (1, 6) else None))
    counts = journal.export(0, output, errors)
    assert (counts.ok, counts.failed, counts.errors) == (3, 1, errors)
    assert (read(output), read(errors)) == (["row-0", "row-2", "row-3"], ["row-1"])
    second = journal.export(1, tmp_path / "second.jsonl")
    assert (second.ok, second.failed, second.errors) == (3, 1, None)
    assert read(tmp_path / "second.jsonl") == ["row-4", "row-5", "row-7"]
    assert journal.owns(output)
    assert journal.owns(errors)


async def test_an_export_removes_its_own_stale_error_file_and_no_other(tmp_path: Path) -> None:
    output, errors, foreign = (tmp_path / name for name in ("out.jsonl", "errors.jsonl", "foreign.jsonl"))
    foreign.write_text("mine\n")
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0, code="bad"))
        journal.export(0, output, errors)
        assert (output.read_bytes(), read(errors)) == (b"", ["row-0"])
        await journal.commit(result(0))
        assert journal.export(0, output, errors).errors is None
        assert read(output) == ["row-0"]
        assert not errors.exists()
        journal.export(0, output, foreign)
        assert foreign.read_text() == "mine\n"


async def test_an_edited_or_foreign_file_is_not_owned_and_a_copy_is(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
        journal.export(0, output)
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        assert journal.owns(output)
        data = output.read_bytes()
        copy = tmp_path / "copy.jsonl"
        copy.write_bytes(data)
        assert journal.owns(copy)
        copy.write_bytes(data.replace(b"answer", b"ANSWER"))
        assert not journal.owns(copy)
        assert not journal.owns(tmp_path / "absent.jsonl")


async def test_an_export_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
        journal.export(0, output)
        before = output.read_bytes()
        await journal.add_rows([row(1)])
        await journal.commit(result(1))

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OutputError, match="Input/output error"):
                journal.export(0, output)
        assert output.read_bytes() == before
        assert journal.owns(output)
        assert [file.name for file in tmp_path.iterdir() if file.suffix == ".tmp"] == []


async def test_the_partial_file_grows_in_completion_order_and_goes_with_the_export(tmp_path: Path) -> None:
    partial = tmp_path / "out.jsonl.partial.jsonl"
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY, partial=[None, partial]) as journal:
        await journal.add_rows([row(n, source=n % 2) for n in range(8)])
        for n in (5, 0, 1, 7):
            await journal.commit(result(n))
        journal.put("now", 1)  # by the same thread, so that the append is done
        assert read(partial) == ["row-5", "row-1", "row-7"]
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
        journal.export(1, tmp_path / "out.jsonl")
        assert not partial.exists()


@pytest.mark.parametrize("tear", ["nothing", "torn", "lost", "foreign", "removed"])
async def test_a_resumed_partial_file_equals_what_is_committed(tmp_path: Path, tear: str) -> None:
    partial = tmp_path / "partial.jsonl"
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY, partial=partial) as journal:
        await journal.add_rows([row(n) for n in range(6)])
        for n in (4, 2, 0):
            await journal.commit(result(n, code="bad" if n == 2 else None))
    data = partial.read_bytes()
    if tear == "removed":
        partial.unlink()
    else:
        torn = {"nothing": data, "torn": data[:-5], "lost": b"", "foreign": data.replace(b"row", b"ROW")}
        partial.write_bytes(torn[tear])
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY, partial=partial) as journal:
        await journal.commit(result(1))
        await journal.commit(result(2, text="second"))
    assert read(partial) == ["row-4", "row-2", "row-0", "row-1", "row-2"]
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY, partial=partial) as journal:
        await journal.commit(result(5))
    assert read(partial) == ["row-4", "row-0", "row-1", "row-2", "row-5"]  # one final result a row


async def test_a_partial_file_that_cannot_be_written_fails_no_row(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY, partial=tmp_path / "folder") as journal:
        await journal.add_rows([row(0), row(1)])
        await journal.commit(result(0))
        await journal.commit(result(1))
        assert journal.counts().ok == 2


async def test_a_temporary_journal_is_not_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunJournal.open(None, identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
        assert (journal.durable, journal.path, journal.counts().ok) == (False, None, 1)
        assert journal.free_bytes() > 0
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = RunJournal.open(tmp_path / "run.db", identity=IDENTITY)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        await journal.commit(result(0))
    with pytest.raises(JournalError, match="closed"):
        journal.get("x")
    assert [file.name for file in tmp_path.iterdir()] == ["run.db"]


async def test_cancelling_the_wait_does_not_cancel_the_commit(tmp_path: Path) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        task = asyncio.ensure_future(journal.commit(result(0)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        journal.put("now", 1)
        assert journal.counts().ok == 1


async def test_only_a_journal_without_results_is_discarded(tmp_path: Path) -> None:
    journal = RunJournal.open(tmp_path / "run.db", identity=IDENTITY)
    await journal.add_rows([row(0)])
    assert journal.discard()
    assert list(tmp_path.iterdir()) == []
    assert not journal.discard(), "there is nothing any more"


async def test_results_handed_over_before_a_journal_is_discarded_are_kept(tmp_path: Path) -> None:
    journal = RunJournal.open(tmp_path / "run.db", identity=IDENTITY)
    await journal.add_rows([row(0)])
    begun, go_on = threading.Event(), threading.Event()

    def hold(_con: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(10)

    held = journal._writer.submit(hold)
    begun.wait(10)
    waiting = asyncio.ensure_future(journal.commit(result(0)))
    await asyncio.sleep(0)
    assert journal.counts().done == 0
    threading.Timer(0, go_on.set).start()
    assert not await asyncio.to_thread(journal.discard)
    await waiting
    held.result(10)
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as resumed:
        assert resumed.counts().ok == 1


async def test_a_journal_set_aside_keeps_its_results_under_the_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    for n in (1, 2):
        with RunJournal.open(path, identity=IDENTITY) as journal:
            await journal.add_rows([row(0)])
            await journal.commit(result(0, text=f"answer {n}"))
            with pytest.raises(JournalError, match="in use"):
                public.set_aside(path)
        assert public.set_aside(path) == tmp_path / f"run.db.old{n}"
    assert public.set_aside(path) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.db.old1", "run.db.old2"]
    for n in (1, 2):
        with RunJournal.open_readonly(tmp_path / f"run.db.old{n}") as old:
            assert [record.line for _, record in old.results()] == [result(0, text=f"answer {n}").line]


async def test_a_journal_comes_back_only_to_a_free_place(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunJournal.open(path, identity=IDENTITY) as journal:
        await journal.add_rows([row(0)])
        await journal.commit(result(0))
        run_id = journal.run_id
    old = public.set_aside(path)
    assert old is not None
    with RunJournal.open(path, identity=IDENTITY), pytest.raises(JournalLockedError):
        public.put_back(old, path)
    assert not public.put_back(old, path), "another is there"
    path.unlink()
    assert public.put_back(old, path)
    assert not public.put_back(old, path), "there is none any more"
    assert [file.name for file in tmp_path.iterdir()] == ["run.db"]
    with RunJournal.open_readonly(path) as found:
        assert (found.run_id, found.counts().ok) == (run_id, 1)


async def test_a_result_comes_with_the_lane_of_its_row(journal: RunJournal) -> None:
    await journal.add_rows([row(n) for n in range(6)])
    await asyncio.gather(*(journal.commit(result(n, code="busy" if n == 4 else None)) for n in range(5)))
    assert [found.lane for found, _ in journal.results()] == [None] * 5
    await journal.turns.assign(3)
    lanes = await journal.turns.lanes_of(0, 5)
    assert [found.lane for found, _ in journal.results()] == [lanes[n] for n in range(5)]
    assert {found.lane for found, _ in journal.results(ok=True)} == {0, 1, 2}
    assert [found.lane for found, _ in journal.first_failed("busy", count=1)] == [lanes[4]]
    assert [found.lane for found, _ in journal.fresh_results()] == [lanes[n] for n in range(5)]


@pytest.mark.parametrize("lanes", [0, 2])
async def test_independent_rows_are_read_without_a_look_at_lanes(tmp_path: Path, lanes: int) -> None:
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        await journal.add_rows([row(n) for n in range(200)])
        await asyncio.gather(*(journal.commit(result(n)) for n in range(200)))
        if lanes:
            await journal.turns.assign(lanes)
    asked: list[str] = []
    with closing(sqlite3.connect(tmp_path / "run.db")) as con:

        def read(query: str, values: Sequence[Any]) -> list[Any]:
            asked.append(query)
            return con.execute(query, values).fetchall()

        found = list(iterate(read, ok=None, source=None, path=None, damaged=None))
    assert len(found) == 200
    pages = [query for query in asked if "FROM results" in query]
    assert len(pages) == 4
    assert [query for query in pages if "turns" in query] == (pages if lanes else [])
    assert len(asked) == len(pages) + 2, "and two questions once, whatever the number of rows"


def test_a_log_without_its_journal_is_not_replayed_into_a_new_one(tmp_path: Path) -> None:
    old = RunJournal.open(tmp_path / "run.db", identity=IDENTITY)
    old.put("old", True)
    log = (tmp_path / "run.db-wal").read_bytes()
    old.close()
    (tmp_path / "run.db").unlink()
    (tmp_path / "run.db-wal").write_bytes(log)
    with RunJournal.open(tmp_path / "run.db", identity=IDENTITY) as journal:
        assert (journal.resumed, journal.get("old")) == (False, None)


def test_the_public_names_exist() -> None:
    assert all(hasattr(public, name) for name in public.__all__)


async def test_rows_without_a_result_are_named_in_input_order(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunJournal.open(path, identity=IDENTITY) as journal:
        await journal.add_rows([row(n, f"id-{n}") for n in range(2_500)])
        for n in (0, 1_200, 2_499):
            await journal.commit(result(n, code="busy" if n else None))
    with RunJournal.open_readonly(path) as found:
        named = list(found.pending())
        assert named == [f"id-{n}" for n in range(2_500) if n not in (0, 1_200, 2_499)]
        assert len(named) == found.counts().pending
