"""Named points of the write path, where tests stop the process to prove that nothing is lost.

`reached(name)` does nothing unless a listener was set. Every place that writes, syncs, renames or locks
calls it with a name from `POINTS`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable

POINTS: tuple[str, ...] = (
    "row.before_send",
    "row.after_reply",
)

_listener: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Tell the listener, if there is one, that the write path is at `name`."""
    if _listener is not None:
        _listener(name)


def listen(listener: Callable[[str], None] | None) -> None:
    """Call `listener` at every point from now on, in this process; None stops that."""
    global _listener
    _listener = listener
