"""Two runners on one run: one gets it, the other is told which run is taken, and no row is sent twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRunner, RunJournal
from ollama_batch.errors import JournalLockedError
from ollama_batch.testing import FakeOllama

RUNNER = Path(__file__).parents[1] / "race_child.py"
RACES, AT_ONCE = 100, 10


def write(path: Path, names: Sequence[str]) -> Path:
    with path.open("w") as file:
        for name in names:
            body = {"messages": [{"role": "user", "content": name}]}
            line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


class Racer:
    """A process that starts runs the moment it is told to."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(RUNNER), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.told() == "ready"

    def tell(self, word: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word) + "\n")
        self._process.stdin.flush()

    def told(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


@contextmanager
def racers(url: str, count: int) -> Iterator[list[Racer]]:
    group: list[Racer] = []
    try:
        group.extend(Racer(url) for _ in range(count))
        yield group
    finally:
        for racer in group:
            racer.close()


@pytest.mark.slow
def test_of_100_races_between_two_processes_each_has_one_winner(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    won = 0
    with racers(fake_ollama.url, 2) as (one, two):
        for start in range(0, RACES, AT_ONCE):
            races = []
            for number in range(start, start + AT_ONCE):
                source = write(tmp_path / f"in{number}.jsonl", [f"race{number}-{n}" for n in range(3)])
                races.append([str(source), str(tmp_path / f"out{number}.jsonl")])
            fake_ollama.hold()  # so that no winner is done before the loser has tried
            one.tell(races)
            two.tell(races[::-1])
            lost = [*one.told(), *two.told()]
            fake_ollama.release()
            done = [*one.told(), *two.told()]
            for _, output in races:
                ends = [told for where, told in lost if where == output]
                assert len(ends) == 1, f"{output}: {len(ends)} of two runners were refused"
                assert ends[0].startswith(f"JournalLockedError: {output}.run.db is in use")
                assert [told for where, told in done if where == output] == [3]
                won += 1
    assert won == RACES
    assert set(fake_ollama.ledger.counts().values()) == {1}, "no row was sent by both"
    assert fake_ollama.ledger.count() == 3 * RACES


def test_a_second_run_on_one_output_is_refused_within_a_process_too(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source, output = write(tmp_path / "in.jsonl", ["a", "b"]), tmp_path / "out.jsonl"
    runner = BatchRunner(model="toy:1b", base_url=fake_ollama.url, progress="none")
    fake_ollama.hold()
    first = runner.start(source, output=output)
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    with pytest.raises(JournalLockedError, match=r"out\.jsonl\.run\.db is in use by another runner"):
        runner.run(source, output=output)
    with pytest.raises(JournalLockedError):
        runner.start(source, output=output, overwrite=True).wait(30)
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        assert journal.state == "running", "the refused ones took nothing from the first"
    fake_ollama.release()
    assert first.wait(30).counts.ok == 2
    assert fake_ollama.ledger.counts() == {"a": 1, "b": 1}
    assert runner.run(source, output=output).counts.sent == 0


def test_runs_on_different_outputs_do_not_hinder_each_other(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ["a", "b"])
    with BatchRunner(model="toy:1b", base_url=fake_ollama.url, progress="none") as runner:
        runs = [runner.start(source, output=tmp_path / f"out{n}.jsonl") for n in range(8)]
        assert [run.wait(30).counts.ok for run in runs] == [2] * 8
    assert fake_ollama.ledger.counts() == {"a": 8, "b": 8}
