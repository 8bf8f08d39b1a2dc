"""Rows that begin alike go together, each group to one worker; results stay in input order."""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import RunStoppedError
from ollama_batch.testing import CostModel, FakeOllama
from runner_support import ids, line, runner_on, write_lines

HEADS = [f"criteria {n}" for n in range(6)]


def with_head(name: str, head: str) -> dict[str, Any]:
    row = line(name)
    row["body"]["messages"].insert(0, {"role": "system", "content": head})
    return row


def mixed(path: Path, per_head: int = 8, loners: int = 5) -> list[str]:
    rows = [with_head(f"h{h}-{n}", head) for h, head in enumerate(HEADS) for n in range(per_head)]
    rows += [with_head(f"alone-{n}", f"own head {n}") for n in range(loners)]
    random.Random(1).shuffle(rows)
    write_lines(path, rows)
    return [row["custom_id"] for row in rows]


def asked(fake: FakeOllama) -> list[str]:
    return [record.key for record in fake.ledger.completions()]


def test_with_one_worker_every_head_is_asked_in_one_go(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    names = mixed(tmp_path / "in.jsonl")
    runner_on(fake_ollama, concurrency=1).run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    heads = [name.split("-")[0] for name in asked(fake_ollama)]
    assert len(list(groupby(heads))) == len(HEADS) + 1
    assert ids(tmp_path / "out.jsonl") == names


def test_never_more_heads_are_in_work_than_workers(tmp_path: Path) -> None:
    names = mixed(tmp_path / "in.jsonl", per_head=12, loners=0)
    with FakeOllama(slots=3, speed=CostModel(latency_s=0.002)) as fake:
        runner_on(fake, concurrency=3).run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
        heads = [name.split("-")[0] for name in asked(fake)]
    assert ids(tmp_path / "out.jsonl") == names
    last = {head: n for n, head in enumerate(heads)}
    for n in range(len(heads)):
        begun = set(heads[: n + 1])
        assert len([head for head in begun if last[head] > n]) <= 3


def test_workers_that_share_a_head_at_its_end_are_not_handed_a_row_twice(tmp_path: Path) -> None:
    names = mixed(tmp_path / "in.jsonl", per_head=12, loners=0)
    with FakeOllama(slots=3, speed=CostModel(latency_s=0.002)) as fake:
        for attempt in range(10):
            output = tmp_path / f"out-{attempt}.jsonl"
            runner_on(fake, concurrency=3).run(tmp_path / "in.jsonl", output=output)
            assert ids(output) == names
        assert set(fake.ledger.counts().values()) == {10}


def test_input_order_is_kept_when_asked_for(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    names = mixed(tmp_path / "in.jsonl")
    runner = runner_on(fake_ollama, concurrency=1, order="input")
    runner.run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    assert asked(fake_ollama) == names


def test_rows_of_one_head_that_share_their_leading_text_go_together(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    documents = [f"document {n} " + "x" * 300 for n in range(4)]
    rows = []
    for n in range(40):
        row = line(f"r{n}")
        row["body"]["messages"] = [
            {"role": "system", "content": "criteria"},
            {"role": "user", "content": f"{documents[n % 4]}\nquestion {n}"},
        ]
        rows.append(row)
    write_lines(tmp_path / "in.jsonl", rows)
    runner_on(fake_ollama, concurrency=1).run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    told = [record.key.split(" x")[0] for record in fake_ollama.ledger.completions()]
    assert len(list(groupby(told))) == 4


def test_a_stopped_run_goes_on_with_the_rows_that_are_left(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    names = mixed(tmp_path / "in.jsonl")
    seen: list[str] = []

    class StopHalfWay:
        def on_event(self, event: Any) -> None:
            if type(event).__name__ == "RowFinished":
                seen.append(event.result.custom_id)
                if len(seen) == len(names) // 2:
                    runs[0].cancel()

    runner = runner_on(fake_ollama, concurrency=2, hooks=[StopHalfWay()])
    runs = [runner.start(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")]
    with pytest.raises(RunStoppedError):
        runs[0].wait(30)
    report = runner_on(fake_ollama, concurrency=2).run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    assert report.ok
    assert sorted(asked(fake_ollama)) == sorted(names)
    assert ids(tmp_path / "out.jsonl") == names
