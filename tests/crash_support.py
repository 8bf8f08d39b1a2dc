"""Kill a run again and again and count what the engine was asked: the engine's ledger is the oracle."""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nursery import Life, Nursery
from ollama_batch import RunJournal
from ollama_batch.errors import JournalError
from ollama_batch.testing import FakeOllama, Fault

LIFE_S = 60.0

ELSEWHERE = (
    *("aside.before_rename", "aside.before_return", "failed.begin", "file.remove"),
    "requests.begin",
    *("upgrade.before_commit", "upgrade.after_commit"),
    "new.begin",
)
"""Points only reached when a run is asked for something special, which has tests of its own."""


def mode_for(point: str) -> str:
    """The mode of a run that reaches `point`."""
    return "conversation" if point.startswith(("turn.", "turns.")) else "independent"


@functools.cache
def _errors() -> Path:
    handle, name = tempfile.mkstemp()
    os.close(handle)
    atexit.register(os.unlink, name)
    return Path(name)


@functools.cache
def _nursery() -> Nursery:
    nursery = Nursery("run_child", _errors())
    atexit.register(nursery.close)
    return nursery


@dataclass
class Campaign:
    """One run over `rows` rows, killed until it is done, and what was counted on the way."""

    folder: Path
    rows: int = 2000
    concurrency: int = 16
    flaky: int = 3
    mode: str = "independent"
    options: dict[str, Any] = field(default_factory=dict)
    kills: int = 0
    ok_rows_sent_again: int = 0
    most_resent_at_one_kill: int = 0
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.mode == "conversation":
            self.flaky = 0  # a fake refuses by message, and here a row's messages are others the next time
        self.input = self.folder / "in.jsonl"
        self.output = self.folder / "out.jsonl"
        with self.input.open("w") as file:
            for n in range(self.rows):
                kind = "flaky" if n % max(1, self.rows // max(1, self.flaky)) == 1 else "row"
                message = {"role": "user", "content": f"{kind}-{n}\njudge this"}
                line = {
                    "custom_id": f"{kind}-{n}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {"messages": [message]},
                }
                file.write(json.dumps(line) + "\n")
        # Each flaky row is refused once, so that a resumed run has a failed row to replace.
        refused = Fault("status", status=400, match="flaky", first=1)
        self.fake = FakeOllama(slots=self.concurrency, faults=(refused,) if self.flaky else ())

    def __enter__(self) -> Campaign:
        self.fake.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.fake.stop()

    def life(self, *, point: str | None = None, nth: int = 1, kill_after: int | None = None) -> bool:
        """One process, from start to death or end: True if it ended by itself, well.

        It is killed at the `nth` time it reaches `point`, or once the engine was asked `kill_after` rows.
        """
        done = self._done()
        asked = self.fake.ledger.counts()
        settings: dict[str, Any] = {
            "input": str(self.input),
            "output": str(self.output),
            "url": self.fake.url,
            "options": {"mode": self.mode, "concurrency": self.concurrency, **self.options},
            "point": point,
            "nth": nth,
        }
        child = _nursery().start(settings)
        if kill_after is not None:
            self._kill_when_asked(child, sum(asked.values()) + kill_after)
        code = child.wait(LIFE_S)
        killed = code == -signal.SIGKILL
        if killed:
            self.kills += 1
        elif code != 0:
            self.problems.append(f"exit {code}: {_errors().read_text()[-2000:]}")
        self._count(done, asked, killed)
        return code == 0

    def _kill_when_asked(self, child: Life, asked: int) -> None:
        until = time.monotonic() + LIFE_S
        while child.poll() is None and time.monotonic() < until:
            if self.fake.ledger.count() >= asked:
                child.send(signal.SIGKILL)
                return
            time.sleep(0.002)  # between two looks at the ledger

    def prompts(self) -> dict[str, set[str]]:
        """The digests of all prompts that each row was sent as."""
        found: dict[str, set[str]] = {}
        for record in self.fake.ledger.completions():
            found.setdefault(record.key, set()).add(record.digest)
        return found

    def _done(self) -> set[str]:
        """The ids of ok rows, as the journal has them now."""
        path = self.output.with_name("out.jsonl.run.db")
        if not path.exists():
            return set()
        try:
            with RunJournal.open_readonly(path) as journal:
                return {row.custom_id for row, _ in journal.results(ok=True) if row.custom_id is not None}
        except JournalError as error:
            self.problems.append(f"the journal cannot be read after a kill: {error}")
            return set()

    def _count(self, done_before: set[str], asked_before: Counter[str], killed: bool) -> None:
        asked = self.fake.ledger.counts()
        again = [name for name in done_before if asked[name] != asked_before[name]]
        self.ok_rows_sent_again += len(again)
        done = self._done()
        lost = done_before - done
        if lost:
            self.problems.append(f"lost {sorted(lost)[:5]}")
        if killed:
            failed = sum(1 for name in asked if name.startswith("flaky"))
            out = sum(1 for name in asked - asked_before if name not in done) - failed
            self.most_resent_at_one_kill = max(self.most_resent_at_one_kill, out)

    def finish(self, rng: random.Random, kills: int = 0) -> None:
        """Kill at `kills` random moments, then let the run end, and check its output."""
        for _ in range(kills):
            left = self.rows - len(self._done())
            if self.life(kill_after=rng.randint(1, max(2, left // max(1, kills - self.kills + 1)))):
                break
        # Flaky rows that failed in the last of these sessions are sent once more.
        for _ in range(2 if self.flaky else 1):
            if not self.life():
                self.problems.append("the last session did not end well")
        self.check_output()

    def check_output(self) -> None:
        """Exactly one line for every row, in input order; an answer for each."""
        wanted = [json.loads(line)["custom_id"] for line in self.input.read_text().splitlines()]
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        found = [line["custom_id"] for line in lines]
        if found != wanted:
            missing = len(set(wanted) - set(found))
            self.problems.append(
                f"{len(found)} lines for {len(wanted)} rows, {missing} missing, or out of order"
            )
        if any(line["error"] is not None for line in lines):
            self.problems.append("an output line has an error")
        unasked = set(wanted) - self.fake.ledger.keys()
        if unasked:
            self.problems.append(f"never asked: {sorted(unasked)[:5]}")
