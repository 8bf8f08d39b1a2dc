"""The tables of a journal, and how one is made and opened.

    meta      key, value            JSON: identity, pins, settings, what was exported
    rows      one per input row     position, id and fingerprint; never the content
    results   one per finished row  narrow, so that counting and resuming read little
    answers   one per result        the line for the output or error file, and what it has no place for
    attempts  replaced results of rows that were retried
    turns     one per row of a conversation: its lane, its place there, what it was sent behind
    notes     decisions and failed attempts, with their time

A journal is made under another name, complete with its identity, and then renamed: a journal that
exists is a whole one.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollama_batch._points import reached
from ollama_batch.errors import JournalCorruptError, JournalVersionError
from ollama_batch.journal.faults import named
from ollama_batch.journal.place import create_private, put_in_place, remove_file, sync_file
from ollama_batch.journal.turns import TABLE as TURNS

APPLICATION_ID = 0x4F6C4261
"""The four bytes "OlBa" in SQLite's header say that a file is one of ours."""

SCHEMA_VERSION = 2
"""2 has the turns of conversations; a journal of version 1 gets them when it is next written to."""

_OBJECTS = frozenset(
    {"meta", "rows", "rows_custom_id", "rows_ord", "results", "answers", "attempts", "notes"}
    | {"results_ok_stays", "results_stay"}
)
_SINCE_2 = frozenset({"turns", "turns_lane", "turns_turn"})

_BUSY_TIMEOUT_S = 10.0

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    idx INTEGER PRIMARY KEY, source INTEGER NOT NULL, line INTEGER NOT NULL, custom_id TEXT,
    fingerprint BLOB NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, ord BLOB NOT NULL
);
CREATE INDEX rows_ord ON rows (ord, idx);
CREATE UNIQUE INDEX rows_custom_id ON rows (custom_id, source);
CREATE TABLE results (
    idx INTEGER PRIMARY KEY REFERENCES rows (idx), ok INTEGER NOT NULL, code TEXT, attempts INTEGER NOT NULL,
    session INTEGER NOT NULL, seq INTEGER NOT NULL, size INTEGER NOT NULL, at REAL NOT NULL,
    checksum BLOB NOT NULL,
    CHECK (ok = (code IS NULL))
);
CREATE TABLE answers (idx INTEGER PRIMARY KEY REFERENCES rows (idx), line BLOB NOT NULL, info BLOB NOT NULL);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, idx INTEGER NOT NULL REFERENCES rows (idx), code TEXT, attempts INTEGER NOT NULL,
    at REAL NOT NULL, line BLOB NOT NULL, info BLOB NOT NULL
);
CREATE TABLE notes (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE TRIGGER results_ok_stays BEFORE UPDATE ON results WHEN OLD.ok
    BEGIN SELECT RAISE (ABORT, 'a good result is never replaced'); END;
CREATE TRIGGER results_stay BEFORE DELETE ON results
    BEGIN SELECT RAISE (ABORT, 'a result is never removed'); END;
"""


def connect(path: Path | None, *, across_threads: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode to a file that exists; None: to a private temporary database."""
    return sqlite3.connect(
        "" if path is None else f"{path.as_uri()}?mode=rw",
        uri=path is not None,
        isolation_level=None,
        timeout=_BUSY_TIMEOUT_S,
        check_same_thread=not across_threads,
    )


def _upgrade(con: sqlite3.Connection) -> None:
    """Bring a checked journal of an earlier version to this one, whole or not at all."""
    if con.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        reached("upgrade.before_commit")
        con.executescript(f"BEGIN IMMEDIATE; {TURNS} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        reached("upgrade.after_commit")


def prepare(con: sqlite3.Connection, *, durable: bool) -> None:
    """Settings of the writing connection: a commit returns once it is on the disk, where `durable`."""
    # The write-ahead log was switched on when the file was made and stays on.
    con.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
    if durable:
        _upgrade(con)
    con.execute("PRAGMA foreign_keys = ON")
    con.execute("PRAGMA cache_size = -4000")  # KiB: the inner pages of the id index of a million rows fit
    con.execute(
        "PRAGMA wal_autocheckpoint = 4000"
    )  # pages: fewer, larger moves from the log (16 MiB) to the file


def create_tables(con: sqlite3.Connection, meta: Mapping[str, Any]) -> None:
    """Tables and first `meta` in one transaction."""
    reached("create.before_commit")
    con.executescript(f"BEGIN IMMEDIATE; {_TABLES}{TURNS}")
    con.executemany(
        "INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in meta.items()]
    )
    con.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    con.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    con.execute("COMMIT")
    reached("create.after_commit")


def create(path: Path, meta: Mapping[str, Any]) -> None:
    """Make the journal `path`, whole or not at all; the caller holds its lock and nothing is at `path`."""
    fresh = path.with_name(path.name + ".new")
    # A log left without its journal would be replayed into the new one.
    for name in (path.name, fresh.name):
        for tail in ("-wal", "-shm", "-journal"):
            remove_file(path.with_name(name + tail))
    remove_file(fresh)
    reached("create.begin")
    fd = create_private(fresh)
    try:
        with named(path):
            con = connect(fresh)
            try:
                con.execute("PRAGMA synchronous = FULL")
                create_tables(con, meta)
                con.execute("PRAGMA journal_mode = WAL")
            finally:
                con.close()
        sync_file(fd)
    finally:
        os.close(fd)  # after SQLite is done: closing any descriptor of a file drops the locks of all of them
    put_in_place(fresh, path)


def check(con: sqlite3.Connection, path: Path) -> None:
    """Make sure that the open database `path` is a journal this release can read; cheap at any size.

    Asks SQLite and not the file: closing a descriptor of one's own would drop the locks that other
    connections of this process hold. Raises JournalCorruptError if it is not a journal or is visibly
    damaged, JournalVersionError if a newer release wrote it.
    """
    if path.stat().st_size == 0:
        raise JournalCorruptError(
            f"{path} is empty, which no journal ever is: remove it to start anew", str(path)
        )
    try:
        application = con.execute("PRAGMA application_id").fetchone()[0]
        version = con.execute("PRAGMA user_version").fetchone()[0]
        found = {name for (name,) in con.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as exc:
        if getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
            own = path.with_name(f"{path.name.removesuffix('.partial.jsonl')}.run.db")
            text = f"{path} is not a journal, or its header is damaged: "
            if own.exists():
                text += f"the journal of the run that wrote it is {own}, give that"
            else:
                text += "choose another name, or restore a copy"
            raise JournalCorruptError(text, str(path)) from exc
        raise
    if application != APPLICATION_ID:
        raise JournalCorruptError(f"{path} is a database of another program: choose another name", str(path))
    if version > SCHEMA_VERSION:
        raise JournalVersionError(
            f"{path} was written by a newer release (schema {version}, this one knows {SCHEMA_VERSION}): "
            f"upgrade ollama-batch, or start again with another output",
            str(path),
        )
    missing = (_OBJECTS if version < 2 else _OBJECTS | _SINCE_2) - found
    if version < 1 or missing:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"schema version {version}"
        raise JournalCorruptError(f"{path} is damaged ({what}): restore it from a copy", str(path))
