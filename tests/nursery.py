"""Processes that run `run_child.main`, forked from one that has imported everything: they start at once.

What is killed is a process of its own all the same. `python nursery.py` forks what it is told, one at a time:
a line of JSON in; the process id out, then its wait status.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

LIFE_S = 60


class Child:
    """One process of the nursery, started with `settings`; it is ended after `LIFE_S`."""

    def __init__(self, nursery: subprocess.Popen[bytes], settings: dict[str, Any]) -> None:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        self._told: IO[bytes] = nursery.stdout
        handle, self._errors = tempfile.mkstemp()
        os.close(handle)
        line = json.dumps({"settings": settings, "errors": self._errors}) + "\n"
        nursery.stdin.write(line.encode())
        nursery.stdin.flush()
        self._pid = int(self._told.readline())

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""
        if not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def ended(self) -> bool:
        """Whether it has ended, by itself or not."""
        return bool(select.select([self._told], [], [], 0)[0])

    def wait(self) -> tuple[int, str]:
        """Its exit code as of `subprocess` (negative: the signal), and what it wrote to standard error."""
        code = os.waitstatus_to_exitcode(int(self._told.readline()))
        errors = Path(self._errors)
        said = errors.read_text()
        errors.unlink()
        return code, said


def start(settings: dict[str, Any]) -> Child:
    """Start a child; one at a time for each process that asks."""
    return Child(_nursery(), settings)


@functools.cache
def _nursery() -> subprocess.Popen[bytes]:
    # It ends with its standard input, which is closed at the end of this process.
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


def _be_born(settings: dict[str, Any], errors: str) -> NoReturn:
    import run_child

    code = 1
    try:
        written = os.open(errors, os.O_WRONLY)
        os.dup2(written, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        signal.alarm(LIFE_S)
        run_child.main(settings)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import run_child

    run_child.prepare()
    for line in sys.stdin:
        told = json.loads(line)
        if not (pid := os.fork()):
            _be_born(told["settings"], told["errors"])
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
