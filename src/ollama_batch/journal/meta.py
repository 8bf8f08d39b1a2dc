"""Settings, notes and marks: the journal's small tables."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ollama_batch._points import reached
from ollama_batch.journal.data import Note
from ollama_batch.journal.export import Mark
from ollama_batch.journal.identity import normal

IDENTITY = "_identity"
PINS = "_pins"
RUN_ID = "_run_id"
CREATED_AT = "_created_at"
SESSION = "_session"
_EXPORT = "_export."


def birth(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a new journal holds from its first moment."""
    return {IDENTITY: normal(identity), RUN_ID: uuid.uuid4().hex, CREATED_AT: time.time(), SESSION: 0}


def get(con: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """The value under `key`."""
    found = con.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if found is None else json.loads(found[0])


def put(con: sqlite3.Connection, key: str, value: Any) -> None:
    """Commit a value under `key`."""
    reached("meta.before_put")
    con.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, json.dumps(value)),
    )
    reached("meta.after_put")


def add_note(con: sqlite3.Connection, kind: str, data: Mapping[str, Any]) -> None:
    """Commit a note with the present time."""
    reached("note.before_insert")
    values = (time.time(), kind, json.dumps(data, default=str))
    con.execute("INSERT INTO notes (at, kind, data) VALUES (?, ?, ?)", values)
    reached("note.after_insert")


def notes(read: Callable[[str, Sequence[Any]], list[Any]], kind: str | None) -> list[Note]:
    """Notes, oldest first; of one kind, or all."""
    where, values = ("", []) if kind is None else (" WHERE kind = ?", [kind])
    query = f"SELECT at, kind, data FROM notes{where} ORDER BY id"  # noqa: S608 - constants of ours
    found = read(query, values)
    return [Note(at, kind, json.loads(data)) for at, kind, data in found]


def announce_export(con: sqlite3.Connection, source: int, marks: Sequence[Mark]) -> None:
    """Commit what the files of an export will be, beside those that may still be in place."""
    key = f"{_EXPORT}{source}"
    put(con, key, [*get(con, key, []), list(marks)])


def settle_export(con: sqlite3.Connection, source: int) -> None:
    """Forget the files that the last announced export has replaced."""
    key = f"{_EXPORT}{source}"
    put(con, key, get(con, key, [])[-1:])


def marks(con: sqlite3.Connection) -> list[Mark]:
    """The marks of every exported file that may still be in place."""
    found = con.execute("SELECT value FROM meta WHERE key >= ? AND key < ?", (_EXPORT, _EXPORT + "\uffff"))
    return [mark for (value,) in found for export in json.loads(value) for mark in export]
