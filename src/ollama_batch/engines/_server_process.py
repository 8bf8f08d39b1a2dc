"""The child process of an engine that brings its own server, as its parent sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.errors import EngineExitedError

_log = logging.getLogger("ollama_batch.engines.server")

READY: Final = "ollama-batch server: "
"""Begins the line by which a child says that its server is there; the scripts have it as well."""

_LOG_LINES: Final = 40
_LOG_LINE_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Ready:
    """What the child says of its server once it has started it."""

    url: str
    version: str
    pid: int


class ServerProcess:
    """The child process, and the thread that starts it, reads its log and sees its end.

    `script` is one of ours, run by its path: it takes `settings` as a line of JSON, tells READY with the
    fields of `Ready` as another, and ends its server and itself when its stdin ends.

    On Linux the child is ended when the *thread* that started it ends, so that thread lives as long as it.
    """

    def __init__(self, name: str, script: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self._script = script
        self.started_at = time.monotonic()
        self.ready: Future[Ready] = Future()
        self.ended: Future[int | None] = Future()
        for future in (self.ready, self.ended):
            future.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for others
        self._settings = {**settings, "parent_pid": os.getpid()}
        self._tail: deque[str] = deque(maxlen=_LOG_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # stop and kill act on a process that is started or never will be
        self._stopping = False
        threading.Thread(target=self._own, name=name, daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether the server has come up (it may have ended since)."""
        return self.ready.done() and self.ready.exception() is None

    def stop(self) -> None:
        """Ask the process to end: its stdin ends."""
        with self._lock:
            self._stopping = True
            process = self._process
            if process is not None and process.stdin is not None and not process.stdin.closed:
                try:
                    process.stdin.close()
                except OSError:
                    pass  # it has ended already

    def kill(self) -> None:
        """End the process at once."""
        self.stop()
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def epitaph(self) -> str:
        """How the process ended, with the last lines of its log."""
        code = self.ended.result() if self.ended.done() else None
        how = "has ended" if code is None else f"ended with {_exit_words(code)}"
        tail = "\n".join(self._tail)
        log = f"; its last log lines:\n{tail}" if tail else "; it left no log"
        return f"the server process of {self.name} {how}{log}"

    def _own(self) -> None:
        code: int | None = None
        try:
            process = self._spawn()
            if process is not None:
                with process:  # closes the pipes
                    self._read(process)
                    code = process.wait()
        except Exception as error:
            self._tail.append(f"{type(error).__name__}: {error}")
        finally:
            if self.is_ready and not self._stopping:
                _log.warning("the server process of %s ended, code %s", self.name, code)
            self.ended.set_result(code)
            if not self.ready.done():
                self.ready.set_exception(EngineExitedError(self.epitaph()))

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        # -P: the folder of the script holds modules named like other packages.
        command = [sys.executable, "-P", self._script]
        with self._lock:
            if self._stopping:
                return None
            process = self._process = subprocess.Popen(  # noqa: S603 - our own script
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=sys.platform != "win32",  # Ctrl-C in a terminal reaches the parent only
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            assert process.stdin is not None  # noqa: S101 - asked for above
            process.stdin.write(json.dumps(self._settings).encode() + b"\n")
            process.stdin.flush()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for in _spawn
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line.startswith(READY) and not self.ready.done():
                self.ready.set_result(Ready(**json.loads(line.removeprefix(READY))))
            elif line:
                self._tail.append(line[:_LOG_LINE_CHARS])


async def settled(future: Future[Any], timeout_s: float) -> bool:
    """Whether `future` has a result or an exception within `timeout_s` seconds."""
    if future.done():
        return True
    waiter = asyncio.wrap_future(future)
    try:
        await asyncio.wait({waiter}, timeout=max(0.0, timeout_s))
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # seen: asyncio would report it as never retrieved
        return future.done()
    finally:
        waiter.cancel()


def _exit_words(code: int) -> str:
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
