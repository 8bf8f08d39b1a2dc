"""How a run goes, shown to whoever watches: a live bar, a notebook cell, or one plain line now and then.

Plain lines are `ollama-batch` and then `key=value` pairs that `shlex.split` takes apart: state, done, total,
ok, failed, retried, in_flight, requests_per_s and out_tokens_per_s (of the last minute), cached (share of
prompt tokens), eta, elapsed, concurrency (once the run has changed it), recoveries, restarts, quarantined and
lost (time) once the engine was in trouble, and a quoted reason while paused or stalled. What is not known yet
is `unknown`.
Where the engine does not tell what it reused, cached is `not-reported`, or `~60%-estimated` if the times of
prompt evaluation let it be guessed.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol, TextIO, runtime_checkable

from ollama_batch._views import notebook_view, plain_line, terminal_view
from ollama_batch.errors import ConfigError
from ollama_batch.events import Event, Hook, RowFinished, RunEnding, RunStarted
from ollama_batch.metrics import MetricsHook

_log = logging.getLogger("ollama_batch.progress")

_LINE_S = 5.0
_LINE_ROWS = 1000
# One live bar at a time owns the terminal; further runs print plain lines above it.
_terminal = threading.Lock()


@runtime_checkable
class Progress(Hook, Protocol):
    """A hook that shows a run between `start()` and `stop()`."""

    def start(self) -> None:
        """Begin to show; nothing happens if it was started already."""
        ...

    def stop(self) -> None:
        """Show the last state, end threads, restore the terminal; may be called more than once."""
        ...


def make_progress(
    mode: Literal["auto", "plain", "none"] | Hook, *, stream: TextIO | None = None, metrics: MetricsHook
) -> Progress:
    """The progress display for `mode`, reading `metrics`, which must be told of every event first.

    "auto" is a cell output in a notebook, a live bar where `stream` (standard error unless given) is a
    terminal, and otherwise a plain line every 5 seconds or 1,000 rows, as "plain" is everywhere. "none"
    shows nothing. A hook of your own is told the events; its `start` and `stop` are called if it has them.
    Raises ConfigError for any other mode.
    """
    if not isinstance(mode, str):
        if not callable(getattr(mode, "on_event", None)):
            raise ConfigError(f"progress must be 'auto', 'plain', 'none' or a hook, not {mode!r}")
        return _OwnProgress(mode)
    if mode == "none":
        return _NoProgress()
    if mode == "plain":
        return PlainProgress(metrics, stream=stream)
    if mode != "auto":
        raise ConfigError(f"progress must be 'auto', 'plain', 'none' or a hook, not {mode!r}")
    if stream is None and in_notebook():
        return NotebookProgress(metrics)
    if _is_terminal(sys.stderr if stream is None else stream):
        return TerminalProgress(metrics, stream=stream)
    return PlainProgress(metrics, stream=stream)


def in_notebook() -> bool:
    """Whether an IPython kernel runs this process; imports nothing."""
    module = sys.modules.get("IPython")
    get_ipython = getattr(module, "get_ipython", None)
    shell = get_ipython() if callable(get_ipython) else None
    return getattr(shell, "kernel", None) is not None


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        terminal = stream is not None and stream.isatty()
    except ValueError:
        return False  # closed
    return terminal and os.environ.get("TERM", "") not in ("dumb", "unknown")


class _NoProgress:
    def start(self) -> None:
        return

    def stop(self) -> None:
        return

    def on_event(self, event: Event) -> None:
        return


class _OwnProgress:
    """Somebody's own hook in the clothes of a Progress."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self.on_event = hook.on_event

    def start(self) -> None:
        begin = getattr(self._hook, "start", None)
        if callable(begin):
            begin()

    def stop(self) -> None:
        end = getattr(self._hook, "stop", None)
        if callable(end):
            end()


class _Ticking:
    """A display drawn by a thread of its own, so that a stalled run still shows a heartbeat.

    A display that cannot be drawn is given up, and never disturbs the run.
    """

    interval_s = 0.25

    def __init__(self, metrics: MetricsHook) -> None:
        self._metrics = metrics
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._dead = False
        # Invariant: one thread draws at a time.
        self._drawing = threading.Lock()

    def start(self) -> None:
        """Begin to show."""
        if self._thread is not None or self._ended:
            return
        self._guarded(self._open)
        self._thread = threading.Thread(target=self._run, name="ollama-batch-progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show the last state and end the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ended = True
        self._wake.set()
        thread.join()
        self._guarded(self._close)

    def on_event(self, event: Event) -> None:
        """Take note of `event`; the metrics hold all that is shown."""

    def tick(self) -> None:
        """Draw, if it is time to."""
        self._guarded(self._draw)

    def _run(self) -> None:
        while True:
            self._wake.wait(self.interval_s)
            self._wake.clear()
            if self._ended:
                return
            self.tick()

    def _guarded(self, step: Callable[[], None]) -> None:
        with self._drawing:
            if self._dead:
                return
            try:
                step()
            except Exception as exc:
                # A closed pipe, a vanished terminal, an odd encoding: the run is worth more than its display.
                self._dead = True
                _log.warning("the progress display ended: %s: %s", type(exc).__name__, exc)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _draw(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class PlainProgress(_Ticking):
    """A line at the start, every 5 seconds or 1,000 rows, when the run is asked to end, and at its end."""

    def __init__(
        self,
        metrics: MetricsHook,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(metrics)
        self._stream = stream
        self._clock = clock
        self._last = clock()
        self._rows = 0
        self._due = False

    def on_event(self, event: Event) -> None:
        """Print a line when the run starts or is asked to end; wake the printing thread every 1,000 rows."""
        if isinstance(event, RowFinished):
            self._rows += 1
            if self._rows >= _LINE_ROWS:
                self._wake.set()
        elif isinstance(event, RunStarted | RunEnding):
            self._rows = 0
            self._due = True
            self.tick()

    def _open(self) -> None:
        self._last = self._clock()

    def _draw(self) -> None:
        if self._due or self._rows >= _LINE_ROWS or self._clock() - self._last >= _LINE_S:
            self._due = False
            self._rows = 0
            self._last = self._clock()
            self._write(plain_line(self._metrics.snapshot()))

    def _close(self) -> None:
        last = self._metrics.snapshot()
        # Of a run that never began to send, the error that it raises says all there is to say.
        if last.run_id is not None:
            self._write(plain_line(last))

    def _write(self, line: str) -> None:
        # Looked up at each line: a live bar, a notebook or a test may have put another stream there.
        stream = sys.stderr if self._stream is None else self._stream
        if stream is None:
            return
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()


class _LiveProgress(_Ticking):
    """A display that is redrawn in place, or plain lines where that cannot be had."""

    def __init__(self, metrics: MetricsHook, *, stream: TextIO | None = None) -> None:
        super().__init__(metrics)
        self._stream = stream
        self._plain: PlainProgress | None = None

    def on_event(self, event: Event) -> None:
        """Pass `event` on where plain lines stand in."""
        if self._plain is not None:
            self._plain.on_event(event)

    def _open(self) -> None:
        if not self._begin():
            self._plain = PlainProgress(self._metrics, stream=self._stream)

    def _draw(self) -> None:
        if self._plain is not None:
            self._plain.tick()
        else:
            self._refresh()

    def _close(self) -> None:
        if self._plain is not None:
            self._plain._close()
        else:
            self._refresh()

    @abstractmethod
    def _begin(self) -> bool: ...

    @abstractmethod
    def _refresh(self) -> None: ...


class TerminalProgress(_LiveProgress):
    """A live bar, drawn four times a second; further ones at the same time print plain lines."""

    def __init__(self, metrics: MetricsHook, *, stream: TextIO | None = None, console: Any = None) -> None:
        super().__init__(metrics, stream=stream)
        self._console = console
        self._live: Any = None

    def _begin(self) -> bool:
        if not _terminal.acquire(blocking=False):
            return False
        try:
            from rich.console import Console
            from rich.live import Live

            stream = sys.stderr if self._stream is None else self._stream
            console = Console(file=stream, force_jupyter=False) if self._console is None else self._console
            live = Live(
                get_renderable=lambda: terminal_view(self._metrics.snapshot()),
                console=console,
                auto_refresh=False,
                # What others print goes above the bar, but only what would reach this terminal anyway.
                redirect_stdout=stream is sys.stderr and _is_terminal(sys.stdout),
                redirect_stderr=stream is sys.stderr,
            )
            live.start(refresh=True)
        except BaseException:
            _terminal.release()
            raise
        self._live = live
        return True

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def stop(self) -> None:
        """Show the last state, end the thread and restore the terminal."""
        super().stop()
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()
        except Exception:
            _log.debug("the terminal is gone", exc_info=True)
        finally:
            _terminal.release()


class NotebookProgress(_LiveProgress):
    """A cell output that is updated in place twice a second."""

    interval_s = 0.5

    def __init__(self, metrics: MetricsHook) -> None:
        super().__init__(metrics)
        self._handle: Any = None

    def _begin(self) -> bool:
        try:
            # Not imported by name: IPython has no types.
            self._handle = importlib.import_module("IPython.display").DisplayHandle()
            self._handle.display(self._view(), raw=True)
        except Exception:
            _log.debug("no notebook display", exc_info=True)
            return False
        return True

    def _refresh(self) -> None:
        if self._handle is not None:
            self._handle.update(self._view(), raw=True)

    def _view(self) -> dict[str, str]:
        m = self._metrics.snapshot()
        return {"text/html": notebook_view(m), "text/plain": plain_line(m)}
