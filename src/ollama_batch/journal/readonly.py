"""A journal as everybody but its writer sees it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ollama_batch.errors import ConfigError, JournalError, OutputError
from ollama_batch.journal import faults, meta, schema
from ollama_batch.journal.data import ExportCounts, JournalCounts, Moment, Note, Pace, TrimCounts
from ollama_batch.journal.export import Mark, matches, write_export
from ollama_batch.journal.lock import is_held
from ollama_batch.journal.place import check_regular
from ollama_batch.journal.results import Pair, count, count_trims, iterate
from ollama_batch.types import ResultRecord

_PAGE = 1000


class ReadOnlyJournal:
    """Counts, settings, notes and results of a journal; changes nothing and waits for nobody.

    Sees what was committed when it asks. Works beside the writer, from any process or thread.
    Raises JournalError if there is none, JournalCorruptError or JournalVersionError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a symbolic link
        self._con: sqlite3.Connection | None = _open(self._path)

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return self._path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.get(meta.RUN_ID))

    @property
    def created_at(self) -> float:
        """When the run began, in seconds since the epoch."""
        return float(self.get(meta.CREATED_AT))

    @property
    def session(self) -> int:
        """How many times it has been opened for writing."""
        return int(self.get(meta.SESSION, 0))

    @property
    def identity(self) -> dict[str, Any]:
        """What was recorded as changing answers, pins included."""
        return {**self.get(meta.IDENTITY, {}), **self.get(meta.PINS, {})}

    @property
    def state(self) -> Literal["running", "finished", "stopped"]:
        """Whether a writer has it ("running"), and if not, whether its last word was "finished"."""
        if is_held(self._path):
            return "running"
        return "finished" if self.get("state") == "finished" and not self.counts().pending else "stopped"

    def counts(self) -> JournalCounts:
        """Rows and results as committed."""
        with faults.named(self._path):
            return count(self._connection())

    def pace(self, seconds: float = 60.0) -> Pace:
        """When the last result was committed, and how many were in the last `seconds`."""
        with faults.named(self._path):
            query = "SELECT max(at), ifnull(sum(at > ?), 0) FROM results"
            return Pace(*self._connection().execute(query, (time.time() - seconds,)).fetchone())

    def moments(self) -> Iterator[Moment]:
        """When each result was committed, in input order; a run that goes on may add some meanwhile."""
        after = -1
        query = f"SELECT idx, at, session FROM results WHERE idx > ? ORDER BY idx LIMIT {_PAGE}"  # noqa: S608 - a constant
        while True:
            with faults.named(self._path):
                page = self._read(query, [after])
            yield from (Moment(*columns) for columns in page)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def trims(self) -> TrimCounts:
        """Rows that were trimmed, as committed; where that cannot be, nothing is read."""
        if self.identity.get("trim") is None:
            return TrimCounts()
        with faults.named(self._path):
            return count_trims(self._connection())

    def get(self, key: str, default: Any = None) -> Any:
        """The JSON value last put under `key`."""
        with faults.named(self._path):
            return meta.get(self._connection(), key, default)

    def notes(self, kind: str | None = None) -> list[Note]:
        """The notes so far (of one kind), oldest first."""
        with faults.named(self._path):
            return meta.notes(self._read, kind)

    def results(
        self,
        *,
        ok: bool | None = None,
        source: int | None = None,
        strict: bool = True,
        damaged: list[int] | None = None,
    ) -> Iterator[Pair]:
        """Rows with their results, as `RunJournal.results`; `damaged` collects what is left out."""
        return read_results(
            self._path, ok=ok, source=source, damaged=None if strict else [] if damaged is None else damaged
        )

    def pending(self) -> Iterator[str | None]:
        """The `custom_id` of each row without a result, in input order; a run may go on meanwhile."""
        after = -1
        query = (
            "SELECT idx, custom_id FROM rows WHERE idx > ? AND idx NOT IN (SELECT idx FROM results) "  # noqa: S608 - a constant
            f"ORDER BY idx LIMIT {_PAGE}"
        )
        while True:
            with faults.named(self._path):
                page = self._read(query, [after])
            yield from (custom_id for _, custom_id in page)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def replaced(self) -> Iterator[ResultRecord]:
        """The failed results that were replaced when their rows were sent again, in the order of the rows,
        those of a row in theirs; a run that goes on may add some meanwhile.
        """
        after = (-1, -1)
        query = (
            "SELECT idx, id, code, attempts, line, info FROM attempts WHERE (idx, id) > (?, ?) "  # noqa: S608 - a constant
            f"ORDER BY idx, id LIMIT {_PAGE}"
        )
        while True:
            with faults.named(self._path):
                page = self._read(query, after)
            for index, _, code, attempts, line, info in page:
                yield ResultRecord(index, False, code, attempts, line, info)
            if len(page) < _PAGE:
                return
            after = page[-1][:2]

    def export(
        self,
        source: int,
        output: Path,
        errors: Path | None = None,
        *,
        strict: bool = True,
        overwrite: bool = False,
    ) -> ExportCounts:
        """Write what is finished so far, as `RunJournal.export` does.

        Raises OutputError if a file is there that no export of this run made, unless `overwrite`, and
        ConfigError, whatever `overwrite` says, for an output or error file of the run itself as long as it
        has not finished, or rows that it sends again have not: the run would not know what is there then,
        and not go on; and for the journal itself. Nothing is written in both cases.
        """
        output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow a symbolic link
        errors = None if errors is None else Path(os.path.abspath(errors))  # noqa: PTH100 - as above
        if _place(self._path) in {_place(file) for file in (output, errors) if file is not None}:
            raise ConfigError(f"{self._path} is the journal of the run: give another name as output=")
        own = {_place(file) for file in self._own_files()}
        taken = {
            file: option
            for file, option in ((output, "output"), (errors, "errors"))
            if file is not None and _place(file) in own
        }
        if taken and self.state != "finished":
            raise _in_the_way(f"the run has not finished ({self.state})", *next(iter(taken.items())))
        for file in (output, errors):
            if not overwrite and file is not None and os.path.lexists(file) and not self.owns(file):
                raise OutputError(
                    f"{file} exists and is not an export of this run: give another name, or "
                    "say overwrite=True"
                )

        def check(marks: Sequence[Mark]) -> None:
            """Refuse to put another file in place of one of the run's own, which it would not know."""
            known = {mark["sha256"] for mark in self._marks()}
            for file, mark in zip((output, errors), marks, strict=False):
                if file is not None and file in taken and strict and mark["sha256"] not in known:
                    raise _in_the_way("the run has not finished sending rows again", file, taken[file])

        return write_export(
            self.results(source=source, strict=strict),
            output,
            errors,
            tag=f"{self.run_id[:8]}.{os.getpid()}",
            announce=check,
            owns=self.owns,
        )

    def owns(self, path: Path) -> bool:
        """Whether the file `path` is, unchanged, an export of this run by its writer."""
        return matches(path, self._marks())

    def close(self) -> None:
        """Let go of the file; may be called again."""
        if self._con is not None:
            self._con.close()
        self._con = None

    def __enter__(self) -> ReadOnlyJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _marks(self) -> list[Mark]:
        with faults.named(self._path):
            return meta.marks(self._connection())

    def _own_files(self) -> Iterator[Path]:
        """Where the run itself writes its outputs and error files."""
        for place in self.get("places") or []:
            for name in (place.get("output"), place.get("errors")):
                if name is None:
                    continue
                # The folder may have been moved, and its files are in it as they were.
                yield Path(name) if Path(name).parent.exists() else self._path.with_name(Path(name).name)

    def _connection(self) -> sqlite3.Connection:
        if self._con is None:
            raise JournalError("the journal is closed: open it again", str(self._path))
        return self._con

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._connection().execute(query, values).fetchall()


def read_results(
    path: Path, *, ok: bool | None, source: int | None, damaged: list[int] | None
) -> Iterator[Pair]:
    """Results of the journal `path` from a connection of their own."""
    con = _open(path)
    try:
        yield from iterate(
            lambda query, values: con.execute(query, values).fetchall(),
            ok=ok,
            source=source,
            path=path,
            damaged=damaged,
        )
    finally:
        con.close()


def _place(file: Path) -> Path:
    """Where a file of this name is made. A link at its end is not followed: an export replaces it."""
    return Path(os.path.realpath(file.parent)) / file.name  # resolve() raises where links go in a circle


def _in_the_way(why: str, file: Path, option: str) -> ConfigError:
    what = "output" if option == "output" else "failed rows"
    return ConfigError(
        f"{why}, and {file} is where it writes its own {what} at its end: another file there would be in its "
        f"way. Give another name as {option}="
    )


def _open(path: Path) -> sqlite3.Connection:
    if not check_regular(path, path):
        raise JournalError(f"there is no journal {path}", str(path))
    with faults.named(path):
        # Not SQLite's read-only mode, which leaves an empty log behind: the last to close removes it here.
        con = schema.connect(path, across_threads=True)
        try:
            con.execute("PRAGMA query_only = ON")
            schema.check(con, path)
        except BaseException:
            con.close()
            raise
    return con
