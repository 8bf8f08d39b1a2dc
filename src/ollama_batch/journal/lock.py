"""One writer for a journal: a lock of the operating system that dies with its process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from ollama_batch._points import reached
from ollama_batch.errors import JournalError, JournalLockedError

# Long enough to outlast a reader's look at the lock, which holds it for microseconds.
_PATIENCE_S = 0.3


def lock_path(path: Path) -> Path:
    """The lock file of the journal at `path`."""
    return path.with_name(path.name + ".lock")


class WriterLock:
    """The right to write one journal; not reentrant, and refused within one process just the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = lock_path(path)
        self._lock = FileLock(self._file, mode=0o600, thread_local=False)

    def acquire(self) -> None:
        """Take the lock. Raises JournalLockedError, naming the holder if it is known, within a second."""
        reached("lock.before_acquire")
        try:
            self._lock.acquire(timeout=_PATIENCE_S, poll_interval=0.02)
        except Timeout:
            raise JournalLockedError(
                f"{self._path} is in use by another runner{_holder(self._file)}: wait until it ends, or "
                f"watch it with `ollama-batch watch {self._path}`",
                str(self._path),
            ) from None
        except OSError as exc:
            raise JournalError(
                f"the lock {self._file} cannot be taken: {exc.strerror or exc}", str(self._path)
            ) from exc
        reached("lock.acquired")
        try:
            # Only information for whoever is refused; the lock itself never depends on it.
            self._file.write_text(f"{os.getpid()}\n", encoding="ascii")
        except OSError:
            pass  # Windows keeps a locked file from being written

    def release(self) -> None:
        """Give the lock up and leave no file behind; harmless if it is not held."""
        if not self._lock.is_locked:
            return
        reached("lock.before_release")
        try:
            # While it is held: whoever opened the old file meanwhile finds it unlinked once it gets the lock
            # and opens the name again (filelock compares the link count), so two never hold it.
            self._file.unlink(missing_ok=True)
        except OSError:
            pass  # Windows cannot remove an open file; an unlocked lock file means nothing
        self._lock.release()
        reached("lock.released")


def _holder(file: Path) -> str:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return f" (process {text})" if text.isdigit() else ""


def is_held(path: Path) -> bool:
    """Whether a writer has the journal at `path` now; leaves nothing behind and never makes a writer fail."""
    file = lock_path(path)
    if sys.platform == "win32":
        if not file.exists():
            return False
        lock = FileLock(file, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False
    import fcntl

    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # no lock file, no holder
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
