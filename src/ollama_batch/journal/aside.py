"""Making room for a new journal without losing the old one."""

from __future__ import annotations

import os
from pathlib import Path

from ollama_batch._points import reached
from ollama_batch.journal.lock import WriterLock
from ollama_batch.journal.place import check_place, sync_folder


def put_back(old: Path, path: Path) -> bool:
    """Give a journal that was set aside its name `path` again; False if another is there by now.

    Raises JournalLockedError if a runner has that.
    """
    lock = WriterLock(path)
    lock.acquire()
    try:
        if path.exists() or not old.exists():
            return False
        # The log first, as in `set_aside`: with the file itself in place the journal is whole.
        for tail in ("-wal", "-shm", ""):
            left = old.with_name(old.name + tail)
            if left.exists():
                reached("aside.before_return")
                left.replace(path.with_name(path.name + tail))
        sync_folder(path.parent)
        return True
    finally:
        lock.release()


def set_aside(path: Path) -> Path | None:
    """Rename the journal `path` to `<name>.old1` (2, 3 ...), whatever it holds; None if there is none.

    Raises JournalLockedError if a runner has it: what is in use stays where it is.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a symbolic link
    check_place(path)
    lock = WriterLock(path)
    lock.acquire()
    try:
        if not path.exists():
            return None
        n = 1
        while (new := path.with_name(f"{path.name}.old{n}")).exists():
            n += 1
        # The log first: cut short here, the next call finds the same free name and brings the two together
        # again. A log left behind alone would be removed when the new journal is made.
        for tail in ("-wal", "-shm", ""):
            old = path.with_name(path.name + tail)
            if old.exists():
                reached("aside.before_rename")
                old.replace(new.with_name(new.name + tail))
        sync_folder(path.parent)
        return new
    finally:
        lock.release()
