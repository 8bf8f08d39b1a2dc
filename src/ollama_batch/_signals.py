"""Ctrl-C, SIGTERM and SIGHUP while a run is waited for in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ollama_batch.errors import OllamaBatchError, RunCancelledError, RunInterrupted

TERM_GRACE_S = 7.0
"""How long SIGTERM lets requests finish: container runtimes kill after 10 s by default, and a silent engine
may take another second to part from."""


def _reason(number: int) -> OllamaBatchError | RunInterrupted:
    if number == signal.SIGINT:
        return RunInterrupted("interrupted; run again to go on")
    return RunCancelledError(f"stopped by {signal.Signals(number).name}; run again to go on")


@contextmanager
def stop_on_signals(
    drain: Callable[[OllamaBatchError | RunInterrupted, float | None], None],
    now: Callable[[OllamaBatchError | RunInterrupted], None],
) -> Iterator[None]:
    """The first signal drains the run, the second stops it at once (SIGHUP only drains).

    `drain(reason, grace_s)` gets how long requests that are out may take (None = as long as they
    need). Handlers are set only in the main thread and only in place of Python's defaults, and put
    back afterwards: an application with its own handlers keeps them.
    """
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        hangup = number == getattr(signal, "SIGHUP", None)
        seen += not hangup
        if seen > 1:
            now(_reason(number))
        else:
            drain(_reason(number), TERM_GRACE_S if number == signal.SIGTERM else None)

    replaced: dict[int, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):
                replaced[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in replaced.items():
            signal.signal(number, previous)
