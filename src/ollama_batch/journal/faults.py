"""SQLite's and the system's errors, translated into the journal's."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ollama_batch.errors import (
    DiskFullError,
    JournalCorruptError,
    JournalError,
    JournalLockedError,
)

# A limit on file size (EFBIG) or a quota reaches us as a failed write rather than as SQLITE_FULL.
_NO_ROOM = frozenset({sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_FSYNC})
_NO_ROOM_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def free_bytes(path: Path | None) -> int:
    """Bytes an unprivileged user may still write on the file system that holds `path`."""
    folder = Path(tempfile.gettempdir()) if path is None else path.parent
    return shutil.disk_usage(folder).free


def is_disk_full(exc: OSError) -> bool:
    """Whether a failed write says that there is no room, rather than that it is not allowed."""
    return exc.errno in _NO_ROOM_ERRNO


def translate(exc: sqlite3.Error, path: Path | None) -> JournalError:
    """The journal error that says what `exc` means for `path`."""
    where = "the temporary journal" if path is None else str(path)
    text = None if path is None else str(path)
    code = getattr(exc, "sqlite_errorcode", None) or 0
    primary = code & 0xFF
    name = getattr(exc, "sqlite_errorname", type(exc).__name__)
    if primary == sqlite3.SQLITE_FULL or code in _NO_ROOM:
        return DiskFullError(
            f"{where} cannot grow: the disk, a quota or a limit on file size is full ({name}, "
            f"{free_bytes(path)} bytes free); nothing is lost, make room and go on",
            text,
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalCorruptError(
            f"{where} is damaged ({exc}): export what can be read, then start again with another output",
            text,
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalLockedError(
            f"{where} is being written by another program ({exc}): try again later", text
        )
    if primary in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    ):
        return JournalError(
            f"{where} cannot be opened ({exc}): check the permissions of file and folder", text
        )
    return JournalError(f"{where} cannot be used ({name}: {exc})", text)


@contextmanager
def named(path: Path | None) -> Iterator[None]:
    """Turn SQLite's errors inside the block into JournalErrors that name `path`."""
    try:
        yield
    except sqlite3.Error as exc:
        raise translate(exc, path) from exc
