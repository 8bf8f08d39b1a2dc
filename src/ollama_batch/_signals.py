"""Ctrl-C, SIGTERM and SIGHUP while a run is waited for in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeAlias

from ollama_batch.errors import OllamaBatchError, RunCancelledError, RunInterrupted

TERM_GRACE_S = 7.0
"""How long SIGTERM lets requests finish: container runtimes kill after 10 s by default, and a silent engine
may take another second to part from."""


def _reason(number: int) -> OllamaBatchError | RunInterrupted:
    if number == signal.SIGINT:
        return RunInterrupted("interrupted; run again to go on")
    return RunCancelledError(f"stopped by {signal.Signals(number).name}; run again to go on")


Drain: TypeAlias = Callable[[OllamaBatchError | RunInterrupted, float | None], None]
Now: TypeAlias = Callable[[OllamaBatchError | RunInterrupted], None]


@contextmanager
def stop_on_signals() -> Iterator[Callable[[Drain, Now], None]]:
    """The first signal drains the run, the second stops it at once (SIGHUP only drains).

    The block begins the run and then calls what it is given with the run's `drain(reason, grace_s)` (how
    long requests that are out may take, None = as long as they need) and `now(reason)`; a signal that came
    before is passed on then. Handlers are set only in the main thread and only in place of Python's
    defaults, and put back afterwards: an application with its own handlers keeps them.
    """
    seen = 0
    early: list[int] = []
    run: tuple[Drain, Now] | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if run is None:
            early.append(number)
            return
        drain, now = run
        seen += number != getattr(signal, "SIGHUP", None)
        if seen > 1:
            now(_reason(number))
        else:
            drain(_reason(number), TERM_GRACE_S if number == signal.SIGTERM else None)

    def begun(drain: Drain, now: Now) -> None:
        nonlocal run
        run = (drain, now)
        while early:
            handle(early.pop(0), None)

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
        yield begun
    finally:
        for number, previous in replaced.items():
            signal.signal(number, previous)
        for number in early:  # there was no run to stop after all
            signal.raise_signal(number)
