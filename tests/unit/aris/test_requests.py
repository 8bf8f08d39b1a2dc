"""Requests from candidates and from anything else, and the batch files that they are written to."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aris_support import document, whole, write
from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.aris import (
    Candidate,
    PraxisTemplate,
    RequestCounts,
    read_candidates,
    to_requests,
    write_requests,
)
from ollama_batch.aris.synthetic import write_export
from ollama_batch.errors import ConfigError, InputError, OutputError
from ollama_batch.jsonl import parse_line
from ollama_batch.testing import FakeModel, FakeOllama


def candidates(*ids: str, **more: Any) -> list[Candidate]:
    return [Candidate.model_validate({**whole(name), **more}) for name in ids]


def ids(path: Path) -> list[str | None]:
    return [parse_line(line).custom_id for line in path.read_bytes().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def requests(count: int) -> Iterator[BatchRequest]:
    return (BatchRequest.chat("text", custom_id=f"r{n}") for n in range(count))


def test_candidates_become_requests_as_they_are_taken() -> None:
    taken: list[str] = []

    def source() -> Iterator[Candidate]:
        for candidate in candidates("a", "b", "c"):
            taken.append(candidate.aristotle_id)
            yield candidate

    stream = to_requests(source())
    assert next(stream).custom_id == "a"
    assert taken == ["a"]
    assert [request.custom_id for request in stream] == ["b", "c"]
    assert stream.counts == RequestCounts(made=3)


def test_a_path_is_read_as_an_export(tmp_path: Path) -> None:
    path = write(tmp_path / "e.json", document([whole("a"), whole("b")]))
    assert [request.custom_id for request in to_requests(path)] == ["a", "b"]
    assert [request.custom_id for request in to_requests(str(path), PraxisTemplate(omit=["name"]))] == [
        "a",
        "b",
    ]


def test_who_was_evaluated_before_is_left_out_when_asked_and_who_says_nothing_always() -> None:
    items = [
        *candidates("a"),
        *candidates("b", praxisData={"recommendation": "Yes"}),
        *candidates("c", praxisData={}),
        *candidates("d", gemData=None),
    ]
    stream = to_requests(items, skip_evaluated=True)
    assert [request.custom_id for request in stream] == ["a", "c"]
    assert stream.counts == RequestCounts(made=2, evaluated=1, empty=1, empty_items=("d",))
    assert [request.custom_id for request in to_requests(items)] == ["a", "b", "c"]


def test_a_limit_closes_the_export_that_was_opened(tmp_path: Path) -> None:
    stream = to_requests(write(tmp_path / "e.json", document([whole("a"), whole("b")])), limit=1)
    assert [request.custom_id for request in stream] == ["a"]
    assert list(stream.items) == []


def test_a_limit_counts_requests_and_reads_no_further() -> None:
    source = iter([*candidates("a", gemData=None), *candidates("b", "c", "d")])
    stream = to_requests(source, limit=2)
    assert [request.custom_id for request in stream] == ["b", "c"]
    assert next(source).aristotle_id == "d"


@pytest.mark.parametrize(
    ("adapter", "limit", "told"),
    [(None, 0, "limit=0: must be 1 or more"), (object(), 1, "which object lacks")],
)
def test_wrong_arguments_are_named(adapter: Any, limit: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        to_requests([], adapter, limit=limit)


def test_another_domain_needs_one_method(fake_ollama_factory: Callable[..., FakeOllama]) -> None:
    class Tickets:
        def request(self, ticket: dict[str, str], /) -> BatchRequest | None:
            if not ticket["text"]:
                return None
            return BatchRequest.chat(ticket["text"], system="Name the product.", custom_id=ticket["id"])

    stream = to_requests([{"id": "t1", "text": "It beeps."}, {"id": "t2", "text": ""}], Tickets())
    fake = fake_ollama_factory(models=(FakeModel("toy"),))
    report = BatchRunner(model="toy", base_url=fake.url, progress="none").run(stream)
    assert [result.custom_id for result in report.results()] == ["t1"]
    assert stream.counts == RequestCounts(made=1, empty=1, empty_items=("item 2",))


# Files


def test_a_file_appears_whole_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    place = tmp_path / "batch.jsonl"

    def watched() -> Iterator[BatchRequest]:
        for request in requests(3):
            assert not place.exists()
            yield request

    assert write_requests(watched(), place) == [place]
    assert ids(place) == ["r0", "r1", "r2"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert names(tmp_path) == ["batch.jsonl"]


@pytest.mark.parametrize(("count", "sizes"), [(6, [3, 3]), (7, [3, 3, 1]), (2, [2]), (0, [])])
def test_a_split_has_files_of_so_many_requests(tmp_path: Path, count: int, sizes: list[int]) -> None:
    written = write_requests(requests(count), tmp_path / "batch.jsonl", split=3)
    assert [path.name for path in written] == [f"batch-000{n + 1}.jsonl" for n in range(len(sizes))]
    assert [len(ids(path)) for path in written] == sizes
    assert [name for path in written for name in ids(path)] == [f"r{n}" for n in range(count)]
    assert names(tmp_path) == [path.name for path in written]


def test_without_a_request_nothing_is_written_or_lost(tmp_path: Path) -> None:
    place = tmp_path / "batch.jsonl"
    assert write_requests([], place) == []
    place.write_text("mine")
    assert write_requests([], place, overwrite=True) == []
    assert place.read_text() == "mine"


def test_what_is_in_the_way_stays_unless_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "batch.jsonl"
    place.write_text("mine")
    untouched = requests(1)
    with pytest.raises(OutputError, match=r"batch\.jsonl exists: give another name, or say overwrite=True"):
        write_requests(untouched, place)
    assert next(untouched).custom_id == "r0", "found out before any work is done"
    write_requests(requests(1), place, overwrite=True)
    assert ids(place) == ["r0"]
    with pytest.raises(OutputError, match="is a folder"):
        write_requests(requests(1), tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        write_requests(requests(1), tmp_path / "none" / "batch.jsonl")
    with pytest.raises(ConfigError, match="split=0"):
        write_requests(requests(1), place, split=0)


def test_parts_of_an_earlier_split_are_not_left_among_the_new_ones(tmp_path: Path) -> None:
    place = tmp_path / "batch.jsonl"
    write_requests(requests(9), place, split=3)
    (tmp_path / "batch-notes.jsonl").write_text("mine")
    with pytest.raises(OutputError, match=r"batch-0001\.jsonl exists"):
        write_requests(requests(4), place, split=2)
    write_requests(requests(4), place, split=2, overwrite=True)
    assert names(tmp_path) == ["batch-0001.jsonl", "batch-0002.jsonl", "batch-notes.jsonl"]
    assert ids(tmp_path / "batch-0002.jsonl") == ["r2", "r3"]


KILLED = """
import os, signal, sys
from ollama_batch import _points
from ollama_batch.aris import to_requests, write_requests

def die(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

_points.listen(die)
write_requests(to_requests(sys.argv[1]), sys.argv[2], overwrite=True)
"""


@pytest.mark.parametrize("point", ["requests.begin", "file.before_sync", "file.before_rename"])
def test_a_kill_leaves_the_file_that_was_there(tmp_path: Path, point: str) -> None:
    path, place = write(tmp_path / "e.json", document([whole("a")])), tmp_path / "batch.jsonl"
    place.write_text("before")
    child = [sys.executable, "-c", KILLED, str(path), str(place), point]
    assert subprocess.run(child, check=False, timeout=60).returncode == -signal.SIGKILL
    assert place.read_text() == "before"
    write_requests(to_requests(path), place, overwrite=True)
    assert ids(place) == ["a"]


@pytest.mark.parametrize("split", [None, 2])
def test_an_export_that_turns_out_broken_leaves_what_was_there(tmp_path: Path, split: int | None) -> None:
    path = write_export(tmp_path / "e.json", 30, repeated_ids=1)
    place = tmp_path / "batch.jsonl"
    for name in ("batch.jsonl", "batch-0001.jsonl"):
        (tmp_path / name).write_text("before")
    before = names(tmp_path)
    with pytest.raises(InputError, match="1 candidate is broken"):
        write_requests(to_requests(read_candidates(path)), place, split=split, overwrite=True)
    assert names(tmp_path) == before
    assert place.read_text() == (tmp_path / "batch-0001.jsonl").read_text() == "before"


def test_an_export_without_profiles_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "e.json", document([{"aristotleId": "a"}, {"aristotleId": "b"}]))
    stream = to_requests(path)
    assert (list(stream), list(stream)) == ([], [])
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        "none of the 2 candidates read has gemData: there is nothing to judge anybody by"
    )
    assert stream.counts.empty_items == ("a", "b")
