"""Rows that begin alike go together, each group to one worker; results stay in input order."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import RunStoppedError
from ollama_batch.errors import InputError, RequestRejectedError
from ollama_batch.events import Noticed, RowsFound, RunStarted
from ollama_batch.testing import CostModel, FakeModel, FakeOllama
from ollama_batch.types import ChatRequest, EngineInfo
from runner_support import Events, ids, line, runner_on, write_lines
from trouble_support import ScriptedEngine

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


# Streams


class Release:
    """Lets the server answer once the whole stream has been read."""

    def __init__(self, fake: FakeOllama) -> None:
        self._fake = fake
        fake.hold()

    def on_event(self, event: Any) -> None:
        # A short one is read to its end before the run starts to send.
        known = isinstance(event, RunStarted) and event.total is not None
        if known or (isinstance(event, RowsFound) and event.complete):
            self._fake.release()


def heads_of(names: list[str]) -> list[str]:
    return [name.rpartition("-")[0] if name.startswith("h") else name for name in names]


def shuffled(per_head: int = 8, loners: int = 5) -> list[dict[str, Any]]:
    rows = [with_head(f"h{h}-{n}", head) for h, head in enumerate(HEADS) for n in range(per_head)]
    rows += [with_head(f"alone-{n}", f"own head {n}") for n in range(loners)]
    random.Random(1).shuffle(rows)
    return rows


def test_rows_of_a_stream_that_begin_alike_go_together(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    rows = shuffled()
    runner = runner_on(fake_ollama, concurrency=1, hooks=[Release(fake_ollama)])
    runner.run(iter(rows), output=tmp_path / "out.jsonl")
    heads = heads_of(asked(fake_ollama))
    assert len(list(groupby(heads))) == len(set(heads)) == len(HEADS) + 5
    assert ids(tmp_path / "out.jsonl") == [row["custom_id"] for row in rows]


def test_a_stream_keeps_the_order_of_arrival_when_asked_for(fake_ollama: FakeOllama) -> None:
    rows = shuffled()
    runner_on(fake_ollama, concurrency=1, order="input").run(iter(rows))
    assert asked(fake_ollama) == [row["custom_id"] for row in rows]


def test_rows_that_come_one_by_one_are_sent_as_they_come_whatever_their_head(fake_ollama: FakeOllama) -> None:
    rows = shuffled()

    def slow() -> Iterator[dict[str, Any]]:
        for n, row in enumerate(rows):
            yield row
            fake_ollama.wait_until(lambda ledger, n=n: ledger.count() == n + 1)

    runner_on(fake_ollama, concurrency=3).run(slow())
    assert asked(fake_ollama) == [row["custom_id"] for row in rows]


def test_a_stream_that_stops_half_way_goes_on_with_the_rows_that_are_left(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    rows = shuffled()
    with pytest.raises(InputError, match=f"item {len(rows) + 1} .* RuntimeError: no more"):
        runner_on(fake_ollama, concurrency=2).run(failing(rows), output=tmp_path / "out.jsonl")
    before = asked(fake_ollama)
    assert sorted(before) == sorted(row["custom_id"] for row in rows), "the rows before the error are sent"
    more = [*rows, *(with_head(f"h1-{n}", HEADS[1]) for n in range(100, 110))]
    report = runner_on(fake_ollama, concurrency=2).run(iter(more), output=tmp_path / "out.jsonl")
    assert (report.counts.sent, report.counts.total) == (10, len(more))
    assert set(fake_ollama.ledger.counts().values()) == {1}
    assert ids(tmp_path / "out.jsonl") == [row["custom_id"] for row in more]


def failing(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from rows
    raise RuntimeError("no more")


def test_a_run_that_is_stopped_reads_its_stream_no_further(fake_ollama: FakeOllama) -> None:
    closed = threading.Event()

    def endless() -> Iterator[dict[str, Any]]:
        try:
            for n in count():
                yield with_head(f"h{n % 3}-{n}", HEADS[n % 3])
        finally:
            closed.set()

    fake_ollama.hold()
    run = runner_on(fake_ollama, concurrency=2).start(endless())
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    run.cancel()
    fake_ollama.release()
    with pytest.raises(RunStoppedError):
        run.wait(10)
    assert closed.is_set()
    assert fake_ollama.ledger.count() == 2


# Models


def test_rows_of_each_model_go_head_by_head(fake_ollama_factory: Any, tmp_path: Path) -> None:
    fake = fake_ollama_factory(models=[FakeModel("toy:1b"), FakeModel("big:9b")])
    rows = shuffled(loners=0)
    for n, row in enumerate(rows):
        row["body"]["model"] = ["toy:1b", "big:9b"][n % 3 == 0]
    write_lines(tmp_path / "in.jsonl", rows)
    runner = runner_on(fake, concurrency=1, allow_models=["big:9b"])
    runner.run(tmp_path / "in.jsonl", output=tmp_path / "out.jsonl")
    told = [(record.model, record.key.split("-")[0]) for record in fake.ledger.completions()]
    assert len(told) == len(rows)
    assert [model for model, _ in groupby(told, key=lambda pair: pair[0])] == ["toy:1b", "big:9b"]
    assert len(list(groupby(told))) == len(set(told))
    assert ids(tmp_path / "out.jsonl") == [row["custom_id"] for row in rows]


# Engines whose slots share their cache


class Sharing(ScriptedEngine):
    """Shares prefixes, and keeps what was out beside each request.

    The first request of each head is answered after some turns of the loop; those that follow not before
    `most` were out at once.
    """

    def __init__(self, *, most: int, bad: str | None = None) -> None:
        super().__init__(self._slowly)
        self.beside: list[tuple[str, set[str]]] = []
        self._most = most
        self._full = asyncio.Event()
        self._heads: set[str] = set()
        self._out: set[str] = set()
        self._bad = bad

    async def describe(self, model: str) -> EngineInfo:
        return EngineInfo("sharing", self.address, None, model, shares_prefixes=True)

    async def _slowly(self, request: ChatRequest) -> RequestRejectedError | None:
        self.beside.append((request.custom_id, set(self._out)))
        self._out.add(request.custom_id)
        head = heads_of([request.custom_id])[0]
        if head in self._heads:
            if len(self._out) == self._most:
                self._full.set()
            async with asyncio.timeout(20):
                await self._full.wait()
        else:
            self._heads.add(head)
            for _ in range(200):  # time for others to go as well, if they would
                await asyncio.sleep(0)
        self._out.remove(request.custom_id)
        return RequestRejectedError("no", status=400) if request.custom_id == self._bad else None


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_the_first_request_of_a_head_goes_alone_and_the_rest_at_once(
    tmp_path: Path, heads: int, stream: bool
) -> None:
    rows = [with_head(f"h{n % heads}-{n}", HEADS[n % heads]) for n in range(heads * 12)]
    engine = Sharing(most=5)
    source: Any = iter(rows) if stream else write_lines(tmp_path / "in.jsonl", rows)
    runner_on(None, engine=engine, concurrency=5).run(source, output=tmp_path / "out.jsonl")
    assert sorted(engine.asked) == sorted(row["custom_id"] for row in rows)
    assert ids(tmp_path / "out.jsonl") == [row["custom_id"] for row in rows]
    first: dict[str, str] = {}
    for name, beside in engine.beside:
        head = heads_of([name])[0]
        if first.setdefault(head, name) != name:
            assert first[head] not in beside, f"{name} went while its head was being warmed up"
    assert max(len(beside) for _, beside in engine.beside) == 4
    if heads == 1 and not stream:
        assert engine.asked == [row["custom_id"] for row in rows]


def test_a_head_whose_first_request_fails_goes_on(tmp_path: Path) -> None:
    rows = [with_head(f"h0-{n}", HEADS[0]) for n in range(20)]
    engine = Sharing(most=5, bad="h0-0")
    report = runner_on(None, engine=engine, concurrency=5).run(iter(rows))
    assert (report.counts.ok, report.counts.failed) == (19, 1)
    assert max(len(beside) for _, beside in engine.beside) == 4


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_first_request_that_takes_long_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int, stream: bool
) -> None:
    monkeypatch.setattr("ollama_batch._feed.WARM_UP_S", 0.01)
    rows = [with_head(f"h{n % heads}-{n}", HEADS[n % heads]) for n in range(12)]
    all_asked = asyncio.Event()

    async def answer(request: ChatRequest) -> None:
        if len(engine.asked) == len(rows):
            all_asked.set()
        elif request.custom_id in {f"h{n}-{n}" for n in range(heads)}:
            await all_asked.wait()

    engine = Sharing(most=heads + 1)
    engine._answer = answer
    source: Any = iter(rows) if stream else write_lines(tmp_path / "in.jsonl", rows)
    assert runner_on(None, engine=engine, concurrency=heads + 1).run(source).ok


# Heads that differ by a few characters

CRITERIA = "".join(random.Random(2).choices("abcdefgh ", k=2000))


def dated(n: int, place: int) -> dict[str, Any]:
    tail = "".join(random.Random(n).choices("klmnop ", k=400))
    row = with_head(f"r{n}", f"{CRITERIA[:place]}2024-05-{n:02d}{CRITERIA[place:]}")
    row["body"]["messages"][1]["content"] += tail
    return row


@pytest.mark.parametrize("stream", [False, True])
def test_a_date_inside_the_head_is_named_once_with_its_place(
    fake_ollama: FakeOllama, tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows, events = [dated(n, 700) for n in range(60)], Events()
    source: Any = iter(rows) if stream else write_lines(tmp_path / "in.jsonl", rows)
    runner = runner_on(fake_ollama, hooks=[events])
    report = runner.run(source, output=tmp_path / "out.jsonl")
    (note,) = report.notes
    assert "character 708 of messages[0] (system)" in note
    assert "'r19' and 'r20'" in note
    (told,) = events.of(Noticed)
    assert told.kind == "head_differs"
    assert (told.data["character"], told.data["message_index"]) == (708, 0)
    assert told.data["same_chars"] > 1300
    assert events.kinds().index("Noticed") > events.kinds().index(RunStarted.__name__)
    assert CRITERIA[690:700] not in caplog.text
    if not stream:
        assert runner.run(source, output=tmp_path / "out.jsonl").notes == (), "a file that is not read again"


def test_a_date_at_the_end_of_the_head_loses_nothing_and_is_not_named(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [dated(n, 2000) for n in range(60)])
    assert runner_on(fake_ollama).run(source).notes == ()
