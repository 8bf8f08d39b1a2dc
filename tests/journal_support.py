"""Helpers for the journal's tests, and the programs their child processes run.

As a program: `python journal_support.py work|race|trace|fork|full ARGUMENTS`. A child tells what it knows
to be durable on its standard output, which is the oracle: the journal is never asked about itself alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ollama_batch import _points
from ollama_batch.errors import DiskFullError, JournalError, JournalLockedError
from ollama_batch.journal import RunJournal
from ollama_batch.types import ResultRecord, RowRecord

IDENTITY = {"model": "toy", "sampling": {"temperature": 0}, "num_ctx": 4096}
ROWS = 24


def row(index: int, custom_id: str | None = None, *, source: int = 0, text: str = "") -> RowRecord:
    name = f"row-{index}" if custom_id is None else custom_id
    digest = hashlib.blake2b((text or name).encode(), digest_size=16).digest()
    return RowRecord(index, source, index + 1, name, digest, index * 100, 100)


def result(index: int, *, code: str | None = None, text: str = "answer", attempts: int = 1) -> ResultRecord:
    line = json.dumps({"custom_id": f"row-{index}", "text": text, "error": code}).encode()
    return ResultRecord(index, code is None, code, attempts, line, b'{"latency_s": 0.5}')


def is_flawed(index: int) -> bool:
    """Whether the row fails in the first session of `work`."""
    return index % 7 == 3


async def work(folder: Path, tell: Callable[[dict[str, object]], None]) -> None:
    """One whole run, resumable at any moment: all rows, an export, failed rows again, another export."""
    path = folder / "out.jsonl.run.db"
    output, errors, partial = (
        folder / name for name in ("out.jsonl", "errors.jsonl", "out.jsonl.partial.jsonl")
    )
    for retry in (None, frozenset({"engine_error"})):
        with RunJournal.open(path, identity=IDENTITY, partial=partial) as journal:
            journal.pin("digest", "sha256:1")
            if retry is not None and journal.get("state") == "finished":
                return
            for start in range(0, ROWS, 8):
                await journal.add_rows([row(n) for n in range(start, start + 8)])
            await journal.turns.assign(2)
            await journal.turns.requeue(retry)
            waiting: Iterator[RowRecord] = iter(await journal.pending(after=-1, limit=ROWS, retry=retry))

            async def worker(
                rows: Iterator[RowRecord] = waiting,
                journal: RunJournal = journal,
                again: bool = retry is not None,
            ) -> None:
                for item in rows:
                    code = "engine_error" if is_flawed(item.index) and not again else None
                    token = uuid.uuid4().hex
                    record = result(item.index, code=code, text=token)
                    await journal.turns.begin(item.index, None, [{"role": "user", "content": token}])
                    tell({"sent": item.index})
                    if code is not None:
                        await journal.note("attempt", {"index": item.index})
                    await journal.commit(record)
                    tell({"kept": item.index, "ok": record.ok, "line": record.line.decode()})

            await asyncio.gather(*(worker() for _ in range(3)))
            journal.export(0, output, errors)
            journal.put("state", "retrying" if retry is None else "finished")
    tell({"done": True})


def run_child(*arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program of this file and return it with all that it told."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def kill_at(folder: Path, point: str, nth: int = 1) -> list[dict[str, object]]:
    """Run `work` until it reaches `point` for the `nth` time and is killed; returns what it told.

    Fails if the point was never reached.
    """
    child = run_child("work", folder, point, nth)
    assert child.returncode == -signal.SIGKILL, f"{point} was not reached: {child.returncode} {child.stderr}"
    return [json.loads(line) for line in child.stdout.splitlines()]


def points_reached(folder: Path) -> Counter[str]:
    """How often `work` reaches each point."""
    seen: Counter[str] = Counter()
    _points.listen(lambda name: seen.update([name]))
    try:
        asyncio.run(work(folder, lambda _: None))
    finally:
        _points.listen(None)
    return seen


class Racers:
    """Processes that try to open one journal at the same moment, again and again."""

    def __init__(self, count: int) -> None:
        self._children = [
            subprocess.Popen(
                [sys.executable, __file__, "race"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(count)
        ]
        for child in self._children:
            assert _ask(child) == "ready"

    def race(self, path: Path) -> list[str]:
        """How each of them fared: "won", or the name of the error."""
        for child in self._children:
            _say(child, str(path))
        fared = [_ask(child) for child in self._children]
        for child in self._children:
            _say(child, "close")
        for child in self._children:
            assert _ask(child) == "closed"
        return fared

    def close(self) -> None:
        for child in self._children:
            child.communicate(timeout=30)


@contextmanager
def racers(count: int = 3) -> Iterator[Racers]:
    """Processes ready to race."""
    group = Racers(count)
    try:
        yield group
    finally:
        group.close()


def _say(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()


def _ask(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _tell(fact: dict[str, object]) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


def _work(folder: str, point: str = "", nth: str = "1") -> None:
    left = int(nth)

    def kill(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    _points.listen(kill)
    asyncio.run(work(Path(folder), _tell))


def _race() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        journal = None
        try:
            journal = RunJournal.open(Path(line.strip()), identity=IDENTITY)
            print("won", flush=True)
        except JournalLockedError as exc:
            print(type(exc).__name__, flush=True)
        sys.stdin.readline()
        if journal is not None:
            journal.close()
        print("closed", flush=True)


def _trace(folder: str) -> None:
    place = Path(folder)

    async def one() -> None:
        with RunJournal.open(place / "run.db", identity=IDENTITY) as journal:
            await journal.add_rows([row(0)])
            os.write(2, b"MARK insert\n")
            await journal.commit(result(0))
            os.write(2, b"MARK kept\n")
            journal.export(0, place / "out.jsonl")
            os.write(2, b"MARK exported\n")

    asyncio.run(one())


def _fork(folder: str) -> None:
    journal = RunJournal.open(Path(folder) / "run.db", identity=IDENTITY)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            journal.put("key", 1)
        except JournalError as exc:
            code = 0 if "fork" in str(exc) else 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    journal.put("key", 2)
    _tell({"child": os.waitstatus_to_exitcode(status), "parent": journal.get("key")})
    journal.close()


def _full(folder: str) -> None:
    """Fill a journal up to a limit on file size, raise the limit, and go on with the very same record."""
    import resource

    async def fill() -> None:
        with RunJournal.open(Path(folder) / "run.db", identity=IDENTITY) as journal:
            await journal.add_rows([row(n) for n in range(400)])
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
            refused = 0
            for n in range(400):
                record = result(n, text="x" * 2000)
                try:
                    await journal.commit(record)
                except DiskFullError:
                    refused += 1
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                    await journal.commit(record)
                _tell({"kept": n, "line": record.line.decode()})
            _tell({"refused": refused})

    asyncio.run(fill())


def main(arguments: Sequence[str]) -> None:
    programs = {"work": _work, "race": _race, "trace": _trace, "fork": _fork, "full": _full}
    programs[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
