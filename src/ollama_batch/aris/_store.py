"""Evaluations by id, on disk, for as long as an export is being written."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

from ollama_batch.errors import InputError, OutputError


class Left(enum.IntEnum):
    """Why a candidate gets no evaluation."""

    FAILED = 1
    UNPARSED = 2
    MISSING = 3
    REPEATED = 4
    PENDING = 5
    NAMELESS = 6


class Taken(NamedTuple):
    """What there is for a candidate: an evaluation as JSON, or else why there is none.

    `why` is the code and the message of a row that failed.
    """

    evaluation: bytes | None
    left: Left | None = None
    why: tuple[str, str] = ("", "")


class EvaluationStore:
    """Takes an evaluation or a reason for each id, then gives each once; a byte a row in memory.

    In a private temporary database of SQLite, which its process takes with it. Raises OutputError where that
    cannot be kept.
    """

    def __init__(self) -> None:
        self._con = sqlite3.connect("", isolation_level=None)
        self._used = bytearray(1)
        with _named():
            for pragma in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -16384"):
                self._con.execute(f"PRAGMA {pragma}")
            self._con.execute("CREATE TABLE found (id BLOB NOT NULL UNIQUE, value BLOB, reason INTEGER)")
            self._con.execute("BEGIN")

    def add(self, custom_id: str, value: bytes | Left, *why: str) -> None:
        """Keep an evaluation as JSON, or why there is none (of a failure its code and message); an evaluation
        counts more than a failure.

        Raises InputError for an id that has another evaluation already.
        """
        key = _key(custom_id)
        row = (
            ("\0".join(why).encode("utf-8", "backslashreplace"), int(value))
            if isinstance(value, Left)
            else (value, None)
        )
        with _named():
            new = self._con.execute("INSERT OR IGNORE INTO found VALUES (?, ?, ?)", (key, *row)).rowcount
            if new:
                self._used.append(0)
                return
            if isinstance(value, Left):
                return
            query = "SELECT value, reason FROM found WHERE id = ?"
            before, reason = self._con.execute(query, (key,)).fetchone()
            if reason is not None:
                self._con.execute("UPDATE found SET value = ?, reason = NULL WHERE id = ?", (value, key))
                return
        if before != value:
            raise InputError(
                f"the results have two different evaluations of {custom_id!r}: give one run's, or one of them"
            )

    def take(self, key: bytes) -> Taken:
        """The evaluation of the candidate whose id is `key`, the first time it is asked for."""
        with _named():
            row = self._con.execute("SELECT rowid, value, reason FROM found WHERE id = ?", (key,)).fetchone()
        if row is None:
            return Taken(None, Left.MISSING)
        number, value, reason = row
        repeated = self._used[number]
        self._used[number] = 1
        if reason is not None:
            code, _, message = bytes(value).decode().partition("\0")
            return Taken(None, Left(reason), (code, message))
        return Taken(None, Left.REPEATED) if repeated else Taken(bytes(value))

    def untaken(self, first: int) -> tuple[int, list[str]]:
        """How many evaluations nobody asked for, and the ids of the `first` of them."""
        count = 0
        ids: list[str] = []
        with _named():
            for number, key in self._con.execute(
                "SELECT rowid, id FROM found WHERE reason IS NULL ORDER BY rowid"
            ):
                if not self._used[number]:
                    count += 1
                    if len(ids) < first:
                        ids.append(bytes(key).decode("utf-8", "backslashreplace"))
        return count, ids

    def __enter__(self) -> EvaluationStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._con.close()


def _key(custom_id: str) -> bytes:
    return custom_id.encode("utf-8", "surrogatepass")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise OutputError(
            f"the evaluations cannot be kept in a temporary file ({exc}): make room, or set SQLITE_TMPDIR to "
            "a folder that has some"
        ) from exc
