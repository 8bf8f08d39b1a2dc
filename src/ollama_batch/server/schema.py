"""The tables of a server's database."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from ollama_batch._points import reached
from ollama_batch.errors import JournalVersionError
from ollama_batch.journal import faults
from ollama_batch.journal.place import create_private

VERSION = 1

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, filename TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, deleted_at INTEGER
);
CREATE INDEX files_of_owner ON files (owner, seq);
CREATE INDEX files_deleted ON files (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL AND deleted_at IS NULL;
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_file_id TEXT NOT NULL, completion_window TEXT NOT NULL,
    status TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    in_progress_at INTEGER, finalizing_at INTEGER, completed_at INTEGER, failed_at INTEGER,
    expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER,
    total INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL, metadata TEXT, errors TEXT,
    usage TEXT, models TEXT NOT NULL, needs INTEGER, num_ctx INTEGER, output_file_id TEXT, error_file_id TEXT,
    output_expires_s INTEGER, body_hash TEXT NOT NULL
);
CREATE INDEX batches_of_owner ON batches (owner, seq);
CREATE INDEX batches_open ON batches (seq)
    WHERE status NOT IN ('failed', 'completed', 'expired', 'cancelled');
CREATE TABLE idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, body_hash TEXT NOT NULL, batch_id TEXT NOT NULL,
    created_at INTEGER NOT NULL, PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);
CREATE TABLE uploads (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, purpose TEXT NOT NULL, filename TEXT NOT NULL,
    bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, status TEXT NOT NULL,
    file_id TEXT, file_expires_s INTEGER
);
CREATE TABLE parts (
    id TEXT PRIMARY KEY, upload_id TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
);
CREATE INDEX parts_of_upload ON parts (upload_id);
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection for any thread, one at a time; commits are synced. Raises a JournalError."""
    with faults.named(path):
        con = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("PRAGMA synchronous = FULL")
        con.execute("PRAGMA secure_delete = ON")
    return con


def prepare(path: Path) -> None:
    """Make the database if it is not there, and check that it is one of this release."""
    if not path.exists():
        os.close(create_private(path))
    con = connect(path)
    try:
        with faults.named(path):
            version = con.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                reached("server.before_tables")
                con.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {VERSION};COMMIT;")
            elif version != VERSION:
                raise JournalVersionError(
                    f"{path} was written by another release (version {version}, this one knows {VERSION}): "
                    "use that release, or another data folder",
                    str(path),
                )
    finally:
        con.close()
