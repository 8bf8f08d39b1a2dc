"""The journal of a run as its writer has it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ollama_batch._points import reached
from ollama_batch.errors import DiskFullError, JournalCorruptError, JournalError
from ollama_batch.journal import faults, meta, rows, schema
from ollama_batch.journal.data import ExportCounts, JournalCounts, Note
from ollama_batch.journal.export import matches, write_export
from ollama_batch.journal.identity import compare, normal
from ollama_batch.journal.lock import WriterLock
from ollama_batch.journal.partial import PartialPaths, partial_files
from ollama_batch.journal.place import check_place, remove_file, sync_folder
from ollama_batch.journal.readonly import ReadOnlyJournal, read_results
from ollama_batch.journal.results import Pair, Written, count, first_failed, iterate, write_results
from ollama_batch.journal.turns import Turns
from ollama_batch.journal.writer import Outcome, Writer
from ollama_batch.types import ResultRecord, RowRecord

T = TypeVar("T")


class RunJournal:
    """The durable record of one run: one writer, any number of readers.

    `commit` returns once a result is on the disk. Every row has at most one final result; a good one
    is never replaced. Open with `RunJournal.open`; may be used from any thread, not after a fork.
    """

    def __init__(
        self, path: Path | None, lock: WriterLock | None, partial: PartialPaths, *, resumed: bool
    ) -> None:
        self._path = path
        self._lock = lock
        self._resumed = resumed
        self._pid = os.getpid()
        self._closed = False
        self._closing = threading.Lock()
        self._partials = partial_files(partial)
        self._fresh_lines: dict[int, list[bytes]] = {}
        self._writer = Writer(self._connect, self._commit_group, self._append_partials)
        self._session = self._seq = self._rows = self._ok = 0
        self._codes: Counter[str] = Counter()
        self.turns = Turns(self._ask, lambda: self._session)
        self._run_id = ""
        self._created_at = 0.0

    @classmethod
    def open(
        cls, path: Path | None, *, identity: Mapping[str, Any], partial: PartialPaths = None
    ) -> RunJournal:
        """Create the journal `path`, or resume it; None makes a private, temporary one.

        `identity` is what changes answers, as JSON: on resume it must equal what was recorded, or
        JournalMismatchError says what differs. `partial` names the partial output of each source.
        Raises JournalLockedError if another runner has it, JournalCorruptError or JournalVersionError if
        the file is no journal of this release, JournalError if its place is not fit for one.
        """
        if path is None:
            journal = cls(None, None, partial, resumed=False)
            journal._begin(identity)
            return journal
        path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a symbolic link
        check_place(path)
        lock = WriterLock(path)
        lock.acquire()
        try:
            resumed = path.exists()
            if not resumed:
                try:
                    schema.create(path, meta.birth(identity))
                except OSError as exc:
                    if faults.is_disk_full(exc):
                        raise DiskFullError(
                            f"no room for the journal {path}: {exc.strerror}", str(path)
                        ) from exc
                    raise JournalError(
                        f"the journal {path} cannot be made: {exc.strerror}", str(path)
                    ) from exc
            journal = cls(path, lock, partial, resumed=resumed)
            journal._begin(identity)
        except BaseException:
            lock.release()
            raise
        return journal

    @classmethod
    def open_readonly(cls, path: Path | str) -> ReadOnlyJournal:
        """Read a journal, from any process, also while it is being written."""
        return ReadOnlyJournal(Path(path))

    # What it is

    @property
    def path(self) -> Path | None:
        """Where it is; None for a temporary one."""
        return self._path

    @property
    def run_id(self) -> str:
        """The run's id, 32 hexadecimal digits, the same after every resume."""
        return self._run_id

    @property
    def created_at(self) -> float:
        """When the run began, in seconds since the epoch."""
        return self._created_at

    @property
    def durable(self) -> bool:
        """Whether it outlives this process."""
        return self._path is not None

    @property
    def resumed(self) -> bool:
        """Whether it was there before."""
        return self._resumed

    @property
    def session(self) -> int:
        """How many times it has been opened for writing, from 1."""
        return self._session

    def counts(self) -> JournalCounts:
        """Rows and results so far; costs nothing."""
        codes = {code: n for code, n in sorted(self._codes.items()) if n}
        return JournalCounts(self._rows, self._ok, sum(codes.values()), codes)

    def free_bytes(self) -> int:
        """Bytes that can still be written where the journal is."""
        return faults.free_bytes(self._path)

    # Settings

    def get(self, key: str, default: Any = None) -> Any:
        """The JSON value last put under `key`."""
        return self._call(lambda con: meta.get(con, key, default))

    def put(self, key: str, value: Any) -> None:
        """Record a JSON value that may change from one resume to the next; durable on return."""
        self._call(lambda con: meta.put(con, key, value))

    def pin(self, key: str, value: Any) -> None:
        """Make `value` part of the identity: recorded the first time, compared ever after.

        Raises JournalMismatchError if it is not what was recorded.
        """

        def compare_or_record(con: sqlite3.Connection) -> None:
            pins: dict[str, Any] = meta.get(con, meta.PINS, {})
            if key in pins:
                compare({key: pins[key]}, {key: value}, self._path)
            else:
                meta.put(con, meta.PINS, {**pins, key: normal(value)})

        self._call(compare_or_record)

    @property
    def identity(self) -> dict[str, Any]:
        """What was recorded as changing answers, pins included."""
        return self._call(lambda con: {**meta.get(con, meta.IDENTITY, {}), **meta.get(con, meta.PINS, {})})

    # Rows

    async def add_rows(self, new: Sequence[RowRecord]) -> list[tuple[RowRecord, RowRecord]]:
        """Store rows; returns those whose id another row of their source has, each with that row.

        A row that is stored already is left as it is. Raises JournalMismatchError if it is another
        request than the one stored at its index.
        """
        return await self._ask(lambda con: self._insert(con, new))

    async def pending(self, *, after: int = -1, limit: int, retry: rows.Retry = None) -> list[RowRecord]:
        """At most `limit` rows without a result whose index is above `after`, in input order.

        With `retry`, rows that failed (with one of the codes, or all with True) are pending too, until
        they have a result of this session.
        """
        return await self._ask(
            lambda con: rows.select_pending(con, after=after, limit=limit, retry=retry, session=self._session)
        )

    async def pending_alike(
        self, prefix: bytes, *, after: tuple[bytes, int], limit: int, retry: rows.Retry = None
    ) -> list[RowRecord]:
        """`pending` among rows whose order key begins with `prefix`, by that key, above (key, index)."""
        now = self._session
        return await self._ask(lambda con: rows.select_pending_alike(con, prefix, after, limit, retry, now))

    async def pending_groups(self, sizes: tuple[int, int], retry: rows.Retry = None) -> dict[bytes, int]:
        """How many pending rows begin alike, see `rows.select_groups`."""
        return await self._ask(lambda con: rows.select_groups(con, sizes, retry, self._session))

    def count_again(self, retry: rows.Retry) -> int:
        """How many rows that failed in earlier sessions `pending` gives with `retry`."""
        return self._call(lambda con: rows.count_again(con, retry=retry, session=self._session))

    # Results

    async def commit(self, record: ResultRecord) -> None:
        """Return once `record` is committed and, in a durable journal, synced.

        Raises DiskFullError if there is no room, after which the same record can be committed again, and
        JournalError if the row is not known or has a good result. Cancelling the wait does not
        cancel the commit.
        """
        self._check()
        await self._writer.commit(record)

    async def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Keep a decision or a failed attempt, with the time; durable on return."""
        await asyncio.wrap_future(self._submit(lambda con: meta.add_note(con, kind, data)))

    def notes(self, kind: str | None = None) -> list[Note]:
        """The notes so far (of one kind), oldest first."""
        return meta.notes(self._read, kind)

    def results(
        self, *, ok: bool | None = None, source: int | None = None, strict: bool = True
    ) -> Iterator[Pair]:
        """Rows with their results in input order; memory is bounded, and the writer is not held up.

        Each is checked: a damaged one raises JournalCorruptError or, unless `strict`, is logged and left out.
        """
        if self._path is None:
            return iterate(self._read, ok=ok, source=source, path=None, damaged=None if strict else [])
        self._check()
        return read_results(self._path, ok=ok, source=source, damaged=None if strict else [])

    def fresh_results(self) -> Iterator[Pair]:
        """`results` of this session alone."""
        self._check()
        return iterate(self._read, ok=None, source=None, path=self._path, damaged=None, session=self._session)

    def first_failed(self, code: str, *, count: int) -> list[Pair]:
        """The first `count` rows in input order that failed with `code`, in whichever session."""
        with faults.named(self._path):
            return first_failed(self._read, code, count, self._path)

    def export(self, source: int, output: Path, errors: Path | None = None) -> ExportCounts:
        """Write the output file of `source` and, if rows failed, its error file; atomic, in input order.

        Removes the partial file. Overwrites what is there: ask `owns` before. Blocks; raises
        DiskFullError or OutputError and leaves the old files as they were.
        """
        counts = write_export(
            self.results(source=source),
            Path(os.path.abspath(output)),  # noqa: PTH100 - resolve() would follow a symbolic link
            None if errors is None else Path(os.path.abspath(errors)),  # noqa: PTH100 - as above
            tag=self._run_id[:8],
            announce=lambda marks: self._call(lambda con: meta.announce_export(con, source, marks)),
            owns=self.owns,
        )
        self._call(lambda con: meta.settle_export(con, source))
        partial = self._partials.get(source)
        if partial is not None:
            self._call(lambda _con: partial.remove())
        return counts

    def owns(self, path: Path) -> bool:
        """Whether the file `path` is, unchanged, an export of this journal."""
        return matches(path, self._call(meta.marks))

    # Its end

    def close(self) -> None:
        """Finish what was handed over, fold in the log, release the lock; may be called again."""
        self._end()

    def discard(self) -> bool:
        """Close the journal, and remove it unless it has results by then; True if it is gone."""
        return self._end(keep_empty=False)

    def _end(self, *, keep_empty: bool = True) -> bool:
        with self._closing:
            if self._closed or os.getpid() != self._pid:
                return False
            self._closed = True
            reached("close.begin")
            self._writer.stop()
            for partial in self._partials.values():
                partial.close()
            removed = not (keep_empty or self._ok or self._codes.total())  # counted by the writer to its end
            if removed and self._path is not None:
                _remove_files(self._path)
            if self._lock is not None:
                self._lock.release()
            return removed

    def __enter__(self) -> RunJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # In the writer thread

    def _connect(self) -> sqlite3.Connection:
        with faults.named(self._path):
            con = schema.connect(self._path)
            try:
                if self._path is not None:
                    schema.check(con, self._path)
                schema.prepare(con, durable=self._path is not None)
            except BaseException:
                con.close()
                raise
        return con

    def _start(self, con: sqlite3.Connection, identity: Mapping[str, Any]) -> None:
        if self._path is None:
            schema.create_tables(con, meta.birth(identity))
        recorded = meta.get(con, meta.IDENTITY)
        if not isinstance(recorded, dict):
            raise JournalCorruptError(f"{self._path} is damaged: its settings are missing", str(self._path))
        if self._resumed:
            compare(recorded, identity, self._path)
        self._run_id = meta.get(con, meta.RUN_ID)
        self._created_at = meta.get(con, meta.CREATED_AT)
        self._session = meta.get(con, meta.SESSION, 0) + 1
        meta.put(con, meta.SESSION, self._session)
        counts = count(con)
        self._rows, self._ok = counts.rows, counts.ok
        self._codes.update(counts.codes)
        self._seq = (con.execute("SELECT max(seq) FROM results").fetchone()[0] or 0) + 1

    def _insert(self, con: sqlite3.Connection, new: Sequence[RowRecord]) -> list[tuple[RowRecord, RowRecord]]:
        stored, taken = rows.insert_rows(con, new, self._path)
        self._rows += stored
        return taken

    def _commit_group(self, con: sqlite3.Connection, records: Sequence[ResultRecord]) -> Sequence[Outcome]:
        with faults.named(self._path):
            outcomes = write_results(con, records, session=self._session, seq=self._seq, path=self._path)
        self._seq += len(records)
        told: list[Outcome] = []
        for outcome in outcomes:
            if not isinstance(outcome, Written):
                told.append(outcome)
                continue
            told.append(None)
            if outcome.replaced is not None:
                self._codes[outcome.replaced] -= 1
            if outcome.record.code is None:
                self._ok += 1
            else:
                self._codes[outcome.record.code] += 1
            if outcome.source in self._partials:
                self._fresh_lines.setdefault(outcome.source, []).append(outcome.record.line)
        return told

    def _append_partials(self, con: sqlite3.Connection) -> None:
        fresh, self._fresh_lines = self._fresh_lines, {}
        for source, lines in fresh.items():
            self._partials[source].append(con, lines)

    # Between the threads

    def _begin(self, identity: Mapping[str, Any]) -> None:
        self._writer.start()
        try:
            self._call(lambda con: self._start(con, identity))
        except BaseException:
            self._writer.stop()
            raise

    def _check(self) -> None:
        where = None if self._path is None else str(self._path)
        if os.getpid() != self._pid:
            raise JournalError(
                f"this journal was opened by process {self._pid}: a forked process must open its own", where
            )
        if self._closed:
            raise JournalError("the journal is closed: open it again", where)

    def _submit(self, run: Callable[[sqlite3.Connection], T]) -> Any:
        self._check()

        def named(con: sqlite3.Connection) -> T:
            with faults.named(self._path):
                return run(con)

        return self._writer.submit(named)

    async def _ask(self, run: Callable[[sqlite3.Connection], T]) -> T:
        result: T = await asyncio.wrap_future(self._submit(run))
        return result

    def _call(self, run: Callable[[sqlite3.Connection], T]) -> T:
        result: T = self._submit(run).result()
        return result

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._call(lambda con: con.execute(query, values).fetchall())


def _remove_files(path: Path) -> None:
    # The file itself first: a log without it is removed by the next creation, the reverse would lose results.
    for tail in ("", "-wal", "-shm"):
        remove_file(path.with_name(path.name + tail))
    sync_folder(path.parent)
