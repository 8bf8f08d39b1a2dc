"""Between us and an `ollama serve` of our own: starts it, keeps its log, and leaves nothing behind.

Run as a script, by its path. It reads its settings as one line of JSON from stdin and says so on stdout once
the server's process is there. When stdin ends, or the process that started it, the server gets SIGTERM and
some seconds; then it, and whatever it has started, is killed. A server that ends by itself takes what it has
left running with it as well. The last lines of the log are told at the end, and how the server ended is how
this ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

READY = "ollama-batch server: "
LINUX = sys.platform == "linux"
POSIX = os.name == "posix"
TAIL_LINES = 30
PDEATHSIG, CHILD_SUBREAPER = 1, 36
SWEEP_S = 3.0


class Log:
    """A file of at most `most_bytes`, beside one with as much of what was before it."""

    def __init__(self, path: str, most_bytes: int) -> None:
        self._path = Path(path)
        self._most_bytes = most_bytes
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()

    def follow(self, lines: IO[bytes]) -> None:
        """Keep every line; a disk without room must not stop the server."""
        while line := lines.readline(65536):
            self.tail.append(line.decode(errors="replace").rstrip())
            with contextlib.suppress(OSError):
                if self._size + len(line) > self._most_bytes:
                    self._file.close()
                    self._path.replace(self._path.with_name(self._path.name + ".1"))
                    self._file = self._path.open("wb", buffering=0)
                    self._size = 0
                self._size += self._file.write(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Server:
    """The process of `ollama serve`, the leader of a group of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._grace_s: float = settings["grace_s"]
        self._stopping = threading.Event()
        ours = os.getpid()

        def end_with_us() -> None:
            _prctl(PDEATHSIG, int(signal.SIGTERM))
            if os.getppid() != ours:
                os._exit(1)

        self.process = subprocess.Popen(  # noqa: S603 - the user's own program
            settings["command"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings["env"]},
            start_new_session=POSIX,
            preexec_fn=end_with_us if LINUX else None,  # no other thread runs yet
        )

    def stop(self) -> None:
        """Ask it to end, and kill it if it takes too long; returns at once."""
        if not self._stopping.is_set():
            self._stopping.set()
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._signal("SIGTERM")
        try:
            self.process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self._signal("SIGKILL")

    def _signal(self, name: str) -> None:
        with contextlib.suppress(OSError):
            if POSIX:
                os.killpg(self.process.pid, getattr(signal, name))
            elif name == "SIGTERM":
                self.process.terminate()
            else:
                self.process.kill()

    def sweep(self) -> None:
        """Kill what the server has left running: its group, and its orphans, which are ours (Linux)."""
        if POSIX:
            self._signal("SIGKILL")
        import psutil

        gives_up_at = time.monotonic() + SWEEP_S
        while left := psutil.Process().children(recursive=True):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=0.5)
            if time.monotonic() > gives_up_at:
                return


def main() -> None:
    """Serve until stdin ends or the parent process dies."""
    settings = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    log = Log(settings["log"], settings["log_bytes"])
    _prctl(CHILD_SUBREAPER, 1)
    try:
        server = Server(settings)
    except OSError as error:
        sys.exit(f"{settings['command'][0]} cannot be run: {error}")
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    _prctl(PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != settings["parent_pid"]:  # it died before the call
        server.stop()
    threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    assert server.process.stdout is not None  # noqa: S101 - asked for above
    following = threading.Thread(target=log.follow, args=(server.process.stdout,), daemon=True)
    following.start()
    _tell(f"{READY}{json.dumps({'url': '', 'version': '', 'pid': server.process.pid})}")
    code = server.process.wait()
    server.sweep()
    following.join(1.0)  # ends with the last process that has the pipe
    for line in log.tail:
        _tell(line)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to take away
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _prctl(option: int, value: int) -> None:
    if LINUX:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _stop_with_stdin(server: Server) -> None:
    while os.read(0, 4096):
        pass
    server.stop()


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there any more
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
