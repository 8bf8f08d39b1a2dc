"""The database of a server: what there is, whose it is, and every change of state in one transaction."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from ollama_batch._points import reached
from ollama_batch.journal import faults
from ollama_batch.server import schema
from ollama_batch.server.objects import TERMINAL, Status, StoredBatch, StoredFile, StoredPart, StoredUpload

T = TypeVar("T", StoredFile, StoredBatch, StoredUpload, StoredPart)

_JSON: Final = frozenset({"metadata", "errors", "usage", "models"})
_OPEN: Final = "status NOT IN ('failed', 'completed', 'expired', 'cancelled')"
_REMEMBERED_S: Final = 86_400
"""For so long an Idempotency-Key, and the place of a deleted file in a listing, are known."""


class Use(NamedTuple):
    """What an owner has: files, their bytes, and batches that are not over."""

    files: int
    bytes: int
    open_batches: int


class Store:
    """Files, batches and uploads of every owner. Methods block for a moment; any thread may call them.

    One connection writes, one reads: reading never waits for a write to reach the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Invariants: one transaction at a time on each connection.
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None

    def open(self) -> None:
        """Make or open the database. Raises a JournalError."""
        schema.prepare(self.path)
        self._writer, self._reader = schema.connect(self.path), schema.connect(self.path)

    def close(self) -> None:
        """Let go of the file."""
        for con in (self._reader, self._writer):
            if con is not None:
                con.close()
        self._reader = self._writer = None

    def secret(self, name: str, made: bytes) -> bytes:
        """The bytes kept under `name`: `made` the first time, the same ever after."""
        with self._write() as con:
            con.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, made))
            return bytes(con.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()[0])

    # Files

    def add_file(self, file: StoredFile) -> None:
        """Record a file whose content is in its place."""
        with self._write() as con:
            _insert(con, "files", file)

    def file(self, file_id: str, owner: str, now: float) -> StoredFile | None:
        """A file of `owner` that is neither deleted nor expired."""
        query = f"SELECT {_columns(StoredFile)} FROM files WHERE id = ? AND owner = ? AND {_ALIVE}"
        return _one(StoredFile, self._read(query, (file_id, owner, now)))

    def files(
        self,
        owner: str,
        now: float,
        *,
        after: str | None,
        limit: int,
        order: Literal["asc", "desc"],
        purpose: str | None,
    ) -> list[StoredFile] | None:
        """At most `limit` files, in the order they were made; None if `after` is unknown."""
        where, values = f"owner = ? AND {_ALIVE}", [owner, now]
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        page = self._page("files", owner, after, where, values, limit, order, _columns(StoredFile))
        return None if page is None else [_made(StoredFile, row) for row in page]

    def delete_file(self, file_id: str, owner: str, now: float) -> bool:
        """Forget a file; only its place in listings is known for another day. False if there is none."""
        with self._write() as con:
            done = con.execute(
                "UPDATE files SET deleted_at = ?, filename = '' WHERE id = ? AND owner = ? AND "
                "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > ?)",
                (int(now), file_id, owner, now),
            )
        return done.rowcount > 0

    def expire_files(self, now: float) -> list[str]:
        """Forget files whose time is over; returns their ids. Their content is to be removed next."""
        old = int(now) - _REMEMBERED_S
        due = self._read(
            "SELECT EXISTS (SELECT 1 FROM files WHERE deleted_at IS NULL AND expires_at <= ?) "
            "OR EXISTS (SELECT 1 FROM files WHERE deleted_at < ?) "
            "OR EXISTS (SELECT 1 FROM idempotency WHERE created_at < ?)",
            (now, old, old),
        )
        if not due[0][0]:
            return []
        with self._write() as con:
            rows = con.execute(
                "UPDATE files SET deleted_at = ?, filename = '' WHERE deleted_at IS NULL AND expires_at <= ? "
                "RETURNING id",
                (int(now), now),
            ).fetchall()
            con.execute("DELETE FROM files WHERE deleted_at < ?", (old,))
            con.execute("DELETE FROM idempotency WHERE created_at < ?", (old,))
        return [row[0] for row in rows]

    def use(self, owner: str) -> Use:
        """What `owner` has."""
        files = self._read(
            "SELECT count(*), ifnull(sum(bytes), 0) FROM files WHERE owner = ? AND deleted_at IS NULL",
            (owner,),
        )[0]
        batches = self._read(f"SELECT count(*) FROM batches WHERE owner = ? AND {_OPEN}", (owner,))[0]
        return Use(files[0], files[1], batches[0])

    # Batches

    def add_batch(self, batch: StoredBatch, *, key: str | None = None) -> StoredBatch | None:
        """Record a batch, or return the one that was made with the same idempotency `key`."""
        with self._write() as con:
            if key is not None:
                made = con.execute(
                    "SELECT batch_id FROM idempotency WHERE owner = ? AND key = ?", (batch.owner, key)
                ).fetchone()
                if made is not None:
                    query = f"SELECT {_columns(StoredBatch)} FROM batches WHERE id = ?"
                    return _one(StoredBatch, con.execute(query, made).fetchall())
                con.execute(
                    "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)",
                    (batch.owner, key, batch.body_hash, batch.id, batch.created_at),
                )
            _insert(con, "batches", batch)
        return None

    def batch(self, batch_id: str, owner: str) -> StoredBatch | None:
        """A batch of `owner`."""
        query = f"SELECT {_columns(StoredBatch)} FROM batches WHERE id = ? AND owner = ?"
        return _one(StoredBatch, self._read(query, (batch_id, owner)))

    def batch_made_with(self, key: str, owner: str) -> StoredBatch | None:
        """The batch that was made with this idempotency key."""
        query = (
            f"SELECT {_columns(StoredBatch)} FROM batches WHERE id = "
            "(SELECT batch_id FROM idempotency WHERE owner = ? AND key = ?)"
        )
        return _one(StoredBatch, self._read(query, (owner, key)))

    def batch_like(self, body_hash: str, owner: str, since: float) -> StoredBatch | None:
        """The latest batch made of the same request since then."""
        query = (
            f"SELECT {_columns(StoredBatch)} FROM batches WHERE owner = ? AND body_hash = ? "
            "AND created_at >= ? ORDER BY seq DESC LIMIT 1"
        )
        return _one(StoredBatch, self._read(query, (owner, body_hash, since)))

    def batches(self, owner: str, *, after: str | None, limit: int) -> list[StoredBatch] | None:
        """At most `limit` batches, the newest first; None if `after` is unknown."""
        page = self._page("batches", owner, after, "owner = ?", [owner], limit, "desc", _columns(StoredBatch))
        return None if page is None else [_made(StoredBatch, row) for row in page]

    def open_batches(self) -> list[StoredBatch]:
        """Every batch that is not over, the oldest first."""
        query = f"SELECT {_columns(StoredBatch)} FROM batches WHERE {_OPEN} ORDER BY seq"
        return [_made(StoredBatch, row) for row in self._read(query, ())]

    def change(
        self,
        batch: StoredBatch,
        *,
        when: Sequence[Status],
        files: Sequence[StoredFile] = (),
        **values: Any,
    ) -> StoredBatch | None:
        """Change a batch whose status is one of `when`, and record `files`, in one transaction.

        Returns the batch as it is then; None, and nothing was done, if its status is another one by now.
        """
        sets = ", ".join(f"{name} = ?" for name in values)
        packed = [_packed(name, value) for name, value in values.items()]
        marks = ", ".join("?" * len(when))
        with self._write() as con:
            row = con.execute(
                f"UPDATE batches SET {sets} WHERE id = ? AND status IN ({marks}) "
                f"RETURNING {_columns(StoredBatch)}",
                (*packed, batch.id, *when),
            ).fetchone()
            if row is not None:
                for file in files:
                    _insert(con, "files", file)
        return None if row is None else _made(StoredBatch, row)

    # Uploads

    def add_upload(self, upload: StoredUpload) -> None:
        """Record an upload that is begun."""
        with self._write() as con:
            _insert(con, "uploads", upload)

    def upload(self, upload_id: str, owner: str) -> StoredUpload | None:
        """An upload of `owner`."""
        query = f"SELECT {_columns(StoredUpload)} FROM uploads WHERE id = ? AND owner = ?"
        return _one(StoredUpload, self._read(query, (upload_id, owner)))

    def add_part(self, part: StoredPart) -> bool:
        """Record a part whose content is in its place; False if its upload takes none any more."""
        with self._write() as con:
            found = con.execute(
                "SELECT 1 FROM uploads WHERE id = ? AND status = 'pending'", (part.upload_id,)
            ).fetchone()
            if found is not None:
                _insert(con, "parts", part)
        return found is not None

    def parts(self, upload_id: str) -> dict[str, StoredPart]:
        """The parts of an upload by their ids."""
        query = f"SELECT {_columns(StoredPart)} FROM parts WHERE upload_id = ?"
        return {row[0]: _made(StoredPart, row) for row in self._read(query, (upload_id,))}

    def end_upload(self, upload_id: str, status: str, file: StoredFile | None = None) -> bool:
        """Complete (with its `file`) or cancel a pending upload, and forget its parts; else False."""
        with self._write() as con:
            done = con.execute(
                "UPDATE uploads SET status = ?, file_id = ? WHERE id = ? AND status = 'pending'",
                (status, None if file is None else file.id, upload_id),
            )
            if done.rowcount:
                con.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))
                if file is not None:
                    _insert(con, "files", file)
        return done.rowcount > 0

    def expire_uploads(self, now: float) -> list[str]:
        """End uploads whose hour is over; the ids of their parts, whose content is to be removed next."""
        query = "SELECT EXISTS (SELECT 1 FROM uploads WHERE expires_at <= iif(status = 'pending', ?, ?))"
        if not self._read(query, (now, int(now) - _REMEMBERED_S))[0][0]:
            return []
        with self._write() as con:
            con.execute(
                "UPDATE uploads SET status = 'expired' WHERE status = 'pending' AND expires_at <= ?", (now,)
            )
            rows = con.execute(
                "DELETE FROM parts WHERE upload_id IN (SELECT id FROM uploads WHERE status <> 'pending') "
                "RETURNING id"
            ).fetchall()
            con.execute("DELETE FROM uploads WHERE expires_at <= ?", (int(now) - _REMEMBERED_S,))
        return [row[0] for row in rows]

    # What there is, for what lies on the disk

    def known(self) -> tuple[set[str], set[str], set[str]]:
        """The ids of all files, parts, and batches that are not over."""
        files = self._read("SELECT id FROM files WHERE deleted_at IS NULL", ())
        parts = self._read("SELECT id FROM parts", ())
        runs = self._read(f"SELECT id FROM batches WHERE {_OPEN}", ())
        return {row[0] for row in files}, {row[0] for row in parts}, {row[0] for row in runs}

    def statuses(self) -> dict[str, int]:
        """How many batches have which status."""
        return dict(self._read("SELECT status, count(*) FROM batches GROUP BY status", ()))

    # Connections

    def _page(
        self,
        table: str,
        owner: str,
        after: str | None,
        where: str,
        values: Sequence[Any],
        limit: int,
        order: str,
        columns: str,
    ) -> list[Any] | None:
        if after is not None:
            found = self._read(f"SELECT seq FROM {table} WHERE id = ? AND owner = ?", (after, owner))
            if not found:
                return None
            where += f" AND seq {'>' if order == 'asc' else '<'} ?"
            values = [*values, found[0][0]]
        query = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY seq {order} LIMIT ?"
        return self._read(query, (*values, limit))

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._reading, faults.named(self.path):
            assert self._reader is not None, "the store is closed"  # noqa: S101 - a fault of ours
            return self._reader.execute(query, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._writing, faults.named(self.path):
            con = self._writer
            assert con is not None, "the store is closed"  # noqa: S101 - a fault of ours
            con.execute("BEGIN IMMEDIATE")
            try:
                yield con
                reached("server.before_commit")
                con.execute("COMMIT")
                reached("server.after_commit")
            except BaseException:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                raise


_ALIVE: Final = "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"


_NAMES: Final[Mapping[type[Any], tuple[str, ...]]] = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (StoredFile, StoredBatch, StoredUpload, StoredPart)
}


def _columns(kind: type[Any]) -> str:
    return ", ".join(_NAMES[kind])


def _made(kind: type[T], row: Sequence[Any]) -> T:
    values: dict[str, Any] = dict(zip(_NAMES[kind], row, strict=True))
    for name in _JSON & values.keys():
        if values[name] is not None:
            values[name] = json.loads(values[name])
    if "models" in values:
        values["models"] = tuple(values["models"])
    return kind(**values)


def _one(kind: type[T], rows: Sequence[Any]) -> T | None:
    return _made(kind, rows[0]) if rows else None


def _packed(name: str, value: Any) -> Any:
    return json.dumps(value) if name in _JSON and value is not None else value


def _insert(con: sqlite3.Connection, table: str, thing: T) -> None:
    values: Mapping[str, Any] = {
        name: _packed(name, getattr(thing, name)) for name in _NAMES[type(thing)] if name != "seq"
    }
    con.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        tuple(values.values()),
    )


assert set(TERMINAL) == {"failed", "completed", "expired", "cancelled"}  # noqa: S101 - _OPEN and the index say it, too
