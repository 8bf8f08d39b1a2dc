"""Processes that have nothing to import any more: each is forked from one that has imported its program.

What is killed is a process of its own all the same. `python nursery.py PROGRAM` forks one that calls
`PROGRAM.main(settings)` for each line of settings on standard input, and tells its process id on standard
output, then its exit code once it has ended: one at a time.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


class Nursery:
    """Makes processes of one program; what they write to standard error is added to the file `errors`."""

    def __init__(self, program: str, errors: Path) -> None:
        with errors.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__, program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                bufsize=0,
            )

    def start(self, settings: dict[str, Any]) -> Life:
        """Begin a life; the last one must have ended."""
        requests, told = self._process.stdin, self._process.stdout
        assert requests is not None
        assert told is not None
        requests.write(json.dumps(settings).encode() + b"\n")
        return Life(told)

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait(30)


class Life:
    """One process, from its fork to its end."""

    def __init__(self, told: IO[bytes]) -> None:
        self._told = told
        self.pid = int(told.readline())
        self.code: int | None = None

    def poll(self, patience_s: float = 0.0) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        if self.code is None and select.select([self._told], [], [], patience_s)[0]:
            self.code = int(self._told.readline())
        return self.code

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, patience_s: float = 30.0) -> int:
        """Its exit code. One that does not end is killed, and an AssertionError raised."""
        if self.poll(patience_s) is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"it does not end in {patience_s:g} s")
        assert self.code is not None
        return self.code


def main() -> None:
    program = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        if not (pid := os.fork()):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            program.main(json.loads(line))
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
