"""Named points of the write path, where tests stop the process to prove that nothing is lost.

`reached(name)` does nothing unless a listener was set. Every place that writes, syncs, renames or locks
calls it with a name from `POINTS` or `SERVER_POINTS`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS: tuple[str, ...] = (
    "row.before_send",
    "row.after_reply",
    "lock.before_acquire",
    "lock.acquired",
    "lock.before_release",
    "lock.released",
    "file.create",
    "file.remove",
    "file.before_rename",
    "file.after_rename",
    "folder.before_sync",
    "folder.after_sync",
    "file.before_sync",
    "file.after_sync",
    "create.before_commit",
    "create.after_commit",
    "create.begin",
    "rows.before_insert",
    "rows.before_commit",
    "rows.after_commit",
    "result.before_insert",
    "result.after_insert",
    "result.after_commit",
    "result.before_replace",
    "partial.before_append",
    "partial.after_append",
    "partial.mend",
    "new.begin",
    "meta.before_put",
    "meta.after_put",
    "note.before_insert",
    "note.after_insert",
    "export.begin",
    "export.before_flush",
    "failed.begin",
    "requests.begin",
    "close.begin",
    "aside.before_rename",
    "aside.before_return",
    "upgrade.before_commit",
    "upgrade.after_commit",
    "turns.before_assign",
    "turns.after_assign",
    "turns.before_requeue",
    "turn.before_begin",
    "turn.after_begin",
)

SERVER_POINTS: tuple[str, ...] = (
    "server.before_tables",
    "server.before_commit",
    "server.after_commit",
    "server.before_link",
    "server.after_link",
    "server.before_forget",
    "submission.before_note",
    "submission.before_download",
)
"""Those of the batch server, and of who sends a file to one: no run of the library comes to them."""

_listener: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Tell the listener, if there is one, that the write path is at `name`."""
    if _listener is not None:
        _listener(name)


def listen(listener: Callable[[str], None] | None) -> None:
    """Call `listener` at every point from now on, in this process; None stops that."""
    global _listener
    _listener = listener
