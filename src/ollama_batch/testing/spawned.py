"""A fake server in a process of its own, steered from the process that started it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from os import PathLike
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

import orjson

from ollama_batch.testing.base import FakeServer
from ollama_batch.testing.config import FakeConfig
from ollama_batch.testing.faults import Fault
from ollama_batch.testing.ledger import FileLedger, Ledger


class SpawnedFakeOllama(FakeServer):
    """The handle of a fake server that runs in another process: same methods, same ledger, same faults.

    The server ends when its standard input does, so it never outlives the process that started it.
    Made by `FakeOllama.spawn`.
    """

    def __init__(
        self, config: FakeConfig, *, ledger: str | PathLike[str] | None = None, port: int = 0
    ) -> None:
        self._config = config.to_json()
        self._can_raise = callable(config.reply)
        self._error: BaseException | None = None
        self._wanted_port = port
        self._folder: Path | None = None
        if ledger is None:
            self._folder = Path(mkdtemp(prefix="fake-ollama-"))
            ledger = self._folder / "ledger.jsonl"
        self.ledger: Ledger = FileLedger(ledger, readonly=True)
        self._path = Path(ledger)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process of the server. Raises RuntimeError if it is not running."""
        return self._running().pid

    def start(self) -> Self:
        """Start the process, if that has not happened yet; it listens when this returns."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ollama_batch.testing.fake_ollama", "--child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            settings = {
                "config": self._config,
                "ledger": str(self._path.absolute()),
                "port": self._port or self._wanted_port,
            }
            try:
                self._port = self._ask(settings)["port"]
            except BaseException:
                self._end()
                raise
        return self

    def inject(self, fault: Fault) -> None:
        """Let `fault` happen from now on; its n-th request is counted from now."""
        self._ask({"do": "inject", "fault": fault.to_json()})

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._ask({"do": "clear_faults"})

    def stop(self) -> None:
        """Close the listener, reset every connection and lose all loaded models; the ledger stays."""
        self._ask({"do": "stop"})

    def restart(self) -> None:
        """Stop if need be, and listen again on the same port."""
        self._ask({"do": "restart"})

    def hold(self) -> None:
        """Let completions arrive, but answer none until `release`."""
        self._ask({"do": "hold"})

    def release(self) -> None:
        """Answer the completions that were held."""
        self._ask({"do": "release"})

    def memory_used_bytes(self) -> int:
        """What loaded models and their work take on the card now, in bytes."""
        return int(self._ask({"do": "memory_used_bytes"})["said"])

    def kill(self) -> None:
        """Kill the server's process; `start` brings another one up on the same port with the same ledger."""
        process = self._running()
        process.kill()
        self._reap(process)

    def close(self) -> None:
        """End the server; a ledger in a file of yours stays, one of its own is read into memory.

        Then `check`.
        """
        super().close()

    def _take_error(self) -> BaseException | None:
        if self._process is not None and self._can_raise:
            said = self._ask({"do": "take_error"})["said"]
            if said is not None:
                self._error = RuntimeError(f"the reply function raised in the server's process:\n{said}")
        error, self._error = self._error, None
        return error

    def _end(self) -> None:
        with suppress(RuntimeError, OSError):  # it is gone, or has never begun
            self._error = self._take_error()
        if self._process is not None:
            self._reap(self._process)
        if self._folder is not None:
            self.ledger = _in_memory(self.ledger)
            with suppress(FileNotFoundError):
                self._path.unlink()
            self._folder.rmdir()
            self._folder = None

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(BrokenPipeError):
            process.communicate(timeout=10)  # closes its standard input, which ends it
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the fake server is not running: start it first")
        return self._process

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        process = self._running()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the fake server has no pipes")
        process.stdin.write(orjson.dumps(command) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._reap(process)
            raise RuntimeError("the fake server's process ended; what it said is on standard error")
        answer: dict[str, Any] = orjson.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the fake server refused: {answer['error']}")
        return answer


def _in_memory(ledger: Ledger) -> Ledger:
    copy = Ledger()
    for record in sorted(ledger.records(), key=lambda record: record.seq):
        copy._keep(record)
    for load in ledger.load_settings():
        copy.loaded(load)
    for load in ledger.aborted_loads():
        copy.load_aborted(load)
    return copy
