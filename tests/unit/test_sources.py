"""Where requests come from: files read again by offset, streams read once, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_input_corpus import BadItem, bad_items, bad_lines, good
from ollama_batch.errors import ConfigError, InputChangedError, InputError
from ollama_batch.jsonl import Limits, parse_line
from ollama_batch.sources import FileSource, ScannedRow, StreamSource, open_sources
from ollama_batch.types import BatchRequest, InvalidRow, RowRecord


def line_of(custom_id: str, text: str = "x") -> bytes:
    return json.dumps(BatchRequest.chat(text, custom_id=custom_id).to_openai()).encode()


def write(path: Path, *ids: str) -> Path:
    path.write_bytes(b"".join(line_of(custom_id) + b"\n" for custom_id in ids))
    return path


def records(source: FileSource) -> list[RowRecord]:
    rows = [row for row in source.scan() if isinstance(row, ScannedRow)]
    return [row.to_record(index, 0) for index, row in enumerate(rows)]


async def drain(source: StreamSource, limit: int = 10, **arguments: Any) -> list[ScannedRow | InvalidRow]:
    found: list[ScannedRow | InvalidRow] = []
    while rows := await source.next_rows(limit, **arguments):
        assert len(rows) <= limit
        found += rows
    await source.aclose()
    return found


def stream(requests: Any, **arguments: Any) -> StreamSource:
    (source,) = open_sources(requests, **arguments)
    assert isinstance(source, StreamSource)
    return source


def ids(rows: list[ScannedRow | InvalidRow]) -> list[str | None]:
    return [row.custom_id for row in rows]


# Regular files


def test_every_bad_line_of_a_file_is_named_by_file_line_and_rule(tmp_path: Path) -> None:
    bad = [case for case in bad_lines() if len(case.raw) < 10**6 and b"\n" not in case.raw]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(part for case in bad for part in (line_of("ok"), b"", case.raw)))
    found = list(FileSource(path).scan())
    assert [row.line for row in found] == [n for i in range(len(bad)) for n in (3 * i + 1, 3 * i + 3)]
    assert all(isinstance(row, ScannedRow) for row in found[::2])
    for case, row in zip(bad, found[1::2], strict=True):
        assert isinstance(row, InvalidRow), case.name
        assert (row.file, row.code, row.field, row.custom_id) == (
            str(path),
            case.code,
            case.field,
            case.custom_id,
        )


@given(st.lists(st.sampled_from(["row", "blank", "spaces", "bad"]), min_size=1, max_size=8), st.data())
def test_rows_are_read_again_as_they_were_scanned(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], data: st.DataObject
) -> None:
    parts = [data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))]
    wanted = []
    for number, kind in enumerate(kinds, start=1):
        text = data.draw(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
        raw = {"row": line_of(f"r{number}", text), "blank": b"", "spaces": b" \t ", "bad": b"{"}[kind]
        parts += [raw, data.draw(st.sampled_from([b"\n", b"\r\n"]))]
        if kind == "row":
            wanted.append((number, parse_line(raw)))
    if data.draw(st.booleans()):
        parts.pop()
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    path.write_bytes(b"".join([*parts, b"\n", line_of("last")]))
    source = FileSource(path)
    rows = records(source)
    assert [row.line for row in rows[:-1]] == [number for number, _ in wanted]
    order = data.draw(st.permutations(rows))
    by_line = dict(wanted)
    by_line[rows[-1].line] = BatchRequest.chat("x", custom_id="last")
    try:
        assert source.read(rows) == [by_line[row.line] for row in rows]
        assert source.read(order) == [by_line[row.line] for row in order]
    finally:
        asyncio.run(source.aclose())


async def test_rows_too_large_for_one_span_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(line_of(str(i), "x" * 3 * 2**20) for i in range(3)))
    source = FileSource(path)
    assert [request.custom_id for request in source.read(records(source))] == ["0", "1", "2"]
    await source.aclose()
    await source.aclose()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes().replace(b'"b"', b'"z"')),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\n" + path.read_bytes()),
        lambda path: path.unlink(),
    ],
    ids=["one byte", "shrunk", "emptied", "shifted", "gone"],
)
async def test_a_changed_file_is_noticed_by_line(tmp_path: Path, change: Any) -> None:
    path = write(tmp_path / "in.jsonl", "a", "b")
    source = FileSource(path)
    rows = records(source)
    change(path)
    with pytest.raises(InputChangedError, match=r"in.jsonl:2") as caught:
        source.read(rows[1:])
    await source.aclose()
    (row,) = caught.value.invalid
    assert (row.line, row.custom_id, row.code) == (2, "b", "input_changed")


def test_size_and_time_of_a_file_are_told_and_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", "a")
    os.utime(path, ns=(5, 12345))
    source = FileSource(path)
    assert source.stat() == (len(line_of("a")) + 1, 12345)
    path.unlink()
    with pytest.raises(InputChangedError, match="No such file"):
        source.stat()
    with pytest.raises(InputError, match="No such file"):
        next(source.scan())


@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_requests_is_refused_as_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(FileSource(path).scan())
    assert [row.code for row in caught.value.invalid] == ["empty_file"]


def _no_seed(body: Mapping[str, Any]) -> tuple[str, str] | None:
    assert body["messages"]
    return ("seed", "this engine has none") if "seed" in body else None


async def test_what_the_engine_cannot_honour_is_refused_with_its_reason(tmp_path: Path) -> None:
    requests = [BatchRequest.chat("x", custom_id="a"), BatchRequest.chat("x", custom_id="b", seed=1)]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(request.to_openai()) for request in requests))
    for name, found in [
        (str(path), list(FileSource(path).scan(check=_no_seed))),
        ("<list>", await drain(stream(requests), check=_no_seed)),
    ]:
        assert isinstance(found[0], ScannedRow)
        refused = InvalidRow(name, 2, "unsupported_parameter", "this engine has none", "b", "body.seed")
        assert found[1] == refused


def test_a_duplicate_names_the_line_that_was_first(tmp_path: Path) -> None:
    source = FileSource(write(tmp_path / "in.jsonl", "a", "a"))
    row = source.duplicate(records(source)[1], 1)
    assert (row.line, row.code, row.custom_id, row.field) == (2, "duplicate_custom_id", "a", "custom_id")
    assert "line 1" in row.message
    assert stream(["x"]).duplicate(records(source)[1], 1).file == "<list>"


def test_scanning_holds_one_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        for number in range(300):
            file.write(line_of(str(number), "x" * 50_000) + b"\n")
    tracemalloc.start()
    try:
        assert sum(1 for _ in FileSource(path).scan()) == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


# What stands for which source


def test_paths_lists_and_patterns_open_one_source_per_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "c.txt", "d[1].jsonl"):
        write(tmp_path / name, "x")

    def names(requests: object) -> list[str]:
        sources = open_sources(requests)
        assert all(isinstance(source, FileSource) for source in sources)
        return [source.name for source in sources]

    assert names("c.txt") == ["c.txt"]
    assert names(Path("c.txt")) == ["c.txt"]
    assert names("?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("d[1].jsonl") == ["d[1].jsonl"]
    assert names(str(tmp_path / "[ab].*")) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert names(["b.jsonl", "a.jsonl"]) == ["b.jsonl", "a.jsonl"]
    assert names((Path("b.jsonl"), "c.txt")) == ["b.jsonl", "c.txt"]
    assert names(["c.txt", "a.jsonl"]) == ["c.txt", "a.jsonl"]
    assert isinstance(stream(["c.txt", "Say hello"]), StreamSource)


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", "x")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "in.jsonl.gz").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "dangling").symlink_to("nowhere")
    cases: list[tuple[object, str]] = [
        ("missing.jsonl", "does not exist; a single prompt goes in a list"),
        ("Why is the sky blue?", "no file matches|does not exist"),
        ("Say hello", "does not exist; a single prompt goes in a list"),
        ("x" * 5000, "does not exist"),
        ("", "not the path of a file"),
        ("a\0b", "not the path of a file"),
        ("*.csv", "no file matches"),
        ("folder", "is a directory"),
        ("empty.jsonl", "empty_file"),
        ("in.jsonl.gz", "unpack it first"),
        ("dangling", "cannot be read"),
        (["a.jsonl", "a.jsonl"], "same file as a.jsonl: pass it once"),
        ([Path("a.jsonl"), Path("link.jsonl")], "same file as a.jsonl"),
        (["a.jsonl", "Say hello"], "pass files as pathlib.Path"),
        (["a.jsonl", "missing.jsonl"], "'missing.jsonl' does not exist"),
    ]
    for requests, message in cases:
        with pytest.raises(InputError, match=message):
            open_sources(requests)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "x")
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        open_sources(path)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "put one request in a list"),
        (b"x", "put one request in a list"),
        (good(), "put one request in a list"),
        (BatchRequest.chat("x"), "put one request in a list"),
        (7, "iterable of requests, not a int"),
        (pd.DataFrame({"p": ["x"]}), r"pass the column with the prompts, df\['column'\]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_source_of_requests_is_refused_with_the_remedy(requests: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_sources(requests)


# Streams


async def test_prompts_bodies_lines_and_requests_become_rows() -> None:
    body = {"messages": [{"role": "user", "content": "c"}], "seed": 1, "metadata": {"m": 1}}
    mixed = [
        "a",
        BatchRequest.chat("b", custom_id="q", seed=2),
        body,
        good(custom_id="d"),
        good(custom_id=None),
    ]
    rows = await drain(stream(mixed))
    assert all(isinstance(row, ScannedRow) for row in rows)
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]
    assert ids(rows) == ["0", "q", "2", "d", "4"]
    found = [row.request for row in rows if isinstance(row, ScannedRow)]
    assert found[0] == BatchRequest.chat("a", custom_id="0")
    assert found[1] == BatchRequest.chat("b", custom_id="q", seed=2)
    assert found[2] == BatchRequest.chat("c", custom_id="2", seed=1, metadata={"m": 1})


@pytest.mark.parametrize("bad", bad_items(), ids=lambda bad: bad.name)
async def test_a_bad_item_is_named_and_the_rest_goes_on(bad: BadItem) -> None:
    before, row, after = await drain(stream(iter(["x", bad.item, "y"])))
    assert isinstance(row, InvalidRow)
    assert (row.line, row.code, row.field, row.custom_id) == (2, bad.code, bad.field, bad.custom_id)
    assert str(row).encode()
    assert ids([before, after]) == ["0", "2"]


async def test_the_same_request_has_the_same_fingerprint_however_its_keys_are_ordered() -> None:
    first = {"messages": [{"role": "user", "content": "x"}], "seed": 1, "top_p": 1}
    second = {"top_p": 1, "seed": 1, "messages": ({"content": "x", "role": "user"},)}
    other = {"top_p": 2, "seed": 1, "messages": [{"content": "x", "role": "user"}]}
    (a,), (b,), (c,) = [await drain(stream([item])) for item in (first, second, other)]
    assert isinstance(a, ScannedRow)
    assert isinstance(b, ScannedRow)
    assert isinstance(c, ScannedRow)
    assert a.fingerprint == b.fingerprint != c.fingerprint


async def test_a_generator_may_reuse_the_object_it_yields() -> None:
    def reused() -> Iterator[dict[str, Any]]:
        message = {"role": "user", "content": ""}
        for text in "ab":
            message["content"] = text
            yield {"messages": [message]}

    rows = await drain(stream(reused()))
    texts = [row.request.messages[0]["content"] for row in rows if isinstance(row, ScannedRow)]
    assert texts == ["a", "b"]


@pytest.mark.parametrize("prompt", ["word " * 300, "x" * 5000, "a\nb", "a?", "*"])
async def test_a_list_of_prompts_is_one_whatever_they_look_like(prompt: str) -> None:
    rows = await drain(stream([prompt, prompt]))
    assert [row.request.messages[0]["content"] for row in rows if isinstance(row, ScannedRow)] == [prompt] * 2


async def test_a_series_gives_its_values_and_missing_ones_are_invalid() -> None:
    rows = await drain(stream(pd.Series(["a", None, "b"], index=[7, 8, 9])))
    assert ids(rows) == ["0", None, "2"]
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].file == "<Series>"


async def test_no_more_than_asked_for_is_pulled() -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield "x"

    source = stream(endless())
    found = 0
    while found < 3:
        found += len(await source.next_rows(3 - found))
    assert pulled == 3
    await source.aclose()


async def test_the_first_row_of_a_slow_generator_does_not_wait_for_the_second() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[str]:
        yield "a"
        assert go_on.wait(60)
        yield "b"

    source = stream(slow())
    assert ids(await source.next_rows(10)) == ["0"]
    go_on.set()
    assert ids(await source.next_rows(10)) == ["1"]
    assert await source.next_rows(10) == []
    assert await source.next_rows(10) == []
    await source.aclose()


async def test_a_generator_runs_in_one_thread_which_is_not_the_loops() -> None:
    seen = set()

    def threads() -> Iterator[str]:
        for _ in range(5):
            seen.add(threading.get_ident())
            yield "x"

    await drain(stream(threads()), limit=1)
    assert len(seen) == 1
    assert seen != {threading.get_ident()}


async def test_what_a_generator_raises_names_the_item_after_the_rows_before_it() -> None:
    def failing() -> Iterator[str]:
        yield "a"
        yield "b"
        raise KeyError("lost")

    async def failing_later() -> AsyncIterator[str]:
        for text in failing():
            yield text

    for requests, name in [(failing(), "<generator>"), (failing_later(), "<async_generator>")]:
        source = stream(requests)
        found = await source.next_rows(2)
        found += await source.next_rows(2) if len(found) == 1 else []
        assert ids(found) == ["0", "1"]
        with pytest.raises(InputError, match=f"item 3 of {name} could not be read: KeyError") as caught:
            await source.next_rows(2)
        assert isinstance(caught.value.__cause__, KeyError)
        await source.aclose()


async def test_an_object_that_cannot_be_iterated_after_all_is_an_error() -> None:
    class Broken:
        def __iter__(self) -> Iterator[str]:
            raise OSError("no connection")

    with pytest.raises(InputError, match="item 1 of <Broken> could not be read: OSError: no connection"):
        await drain(stream(Broken()))


async def test_a_generator_is_closed_when_reading_stops_early() -> None:
    closed = []

    def sync() -> Iterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.append("sync")

    async def asynchronous() -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.append("async")

    async def waiting() -> AsyncIterator[str]:
        yield "x"
        try:
            await asyncio.Event().wait()
        finally:
            closed.append("waiting")

    for requests in (sync(), asynchronous(), waiting()):
        source = stream(requests)
        assert await source.next_rows(2)
        await source.aclose()
        await source.aclose()
        assert await source.next_rows(1) == []
    assert closed == ["sync", "async", "waiting"]


async def test_a_source_that_was_never_read_closes_at_once() -> None:
    source = stream(["x"])
    await source.aclose()
    assert await source.next_rows(1) == []


def test_an_async_iterable_runs_on_the_loop_it_belongs_to() -> None:
    loops = []

    async def requests() -> AsyncIterator[str]:
        for text in "abc":
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            yield text

    home = asyncio.new_event_loop()
    thread = threading.Thread(target=home.run_forever)
    thread.start()
    try:
        rows = asyncio.run(drain(stream(requests(), loop=home), limit=2))
    finally:
        home.call_soon_threadsafe(home.stop)
        thread.join()
        home.close()
    assert ids(rows) == ["0", "1", "2"]
    assert set(loops) == {home}


async def test_a_cancelled_pump_does_not_pass_for_the_end_of_the_input() -> None:
    async def endless() -> AsyncIterator[str]:
        yield "x"
        await asyncio.Event().wait()

    source = stream(endless())
    assert await source.next_rows(1)
    waiting = asyncio.create_task(source.next_rows(1))
    await asyncio.sleep(0)
    (pump,) = [task for task in asyncio.all_tasks() if task.get_name() == "ollama_batch-source"]
    pump.cancel()
    with pytest.raises(InputError, match="reading <async_generator> was cancelled"):
        await waiting
    await source.aclose()


# Open files, pipes


LINES = b"\xef\xbb\xbf" + line_of("a", "\u00e9") + b"\r\n\n" + b"{}\n" + line_of("b")


@pytest.mark.parametrize("kind", ["bytes", "text", "binary file", "text file", "pipe"])
async def test_open_files_are_read_as_lines(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINES)
    if kind == "pipe":
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=fifo.write_bytes, args=(LINES,))
        writer.start()
        rows = await drain(stream(fifo))
        writer.join()
        assert rows[1].line == 3
    elif kind.endswith("file"):
        with path.open("rb" if kind == "binary file" else "r") as file:
            rows = await drain(stream(file))
            assert not file.closed
        assert isinstance(rows[1], InvalidRow)
        assert rows[1].file == str(path)
    else:
        rows = await drain(stream(io.BytesIO(LINES) if kind == "bytes" else io.StringIO(LINES.decode())))
    assert [(row.line, row.custom_id) for row in rows] == [(1, "a"), (3, None), (4, "b")]
    assert isinstance(rows[0], ScannedRow)
    assert rows[0].request.messages[0]["content"] == "\u00e9"


async def test_an_open_file_without_requests_is_refused_as_empty() -> None:
    with pytest.raises(InputError, match="empty_file"):
        await drain(stream(io.BytesIO(b"\n\n")))


async def test_a_text_file_in_another_encoding_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"custom_id":"\xe9"}')
    with path.open(encoding="utf-8") as file, pytest.raises(InputError, match="UnicodeDecodeError"):
        await drain(stream(file))
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        (row,) = await drain(stream(file))
    assert isinstance(row, InvalidRow)
    assert row.code == "invalid_json_line"


async def test_a_line_over_the_limit_is_refused_and_the_next_one_read() -> None:
    limits = Limits(max_line_bytes=1000)
    file = io.BytesIO(line_of("a", "x" * 1000) + b"\n" + line_of("b"))
    rows = await drain(stream(file, limits=limits))
    assert isinstance(rows[0], InvalidRow)
    assert rows[0].code == "line_too_long"
    assert ids(rows) == [None, "b"]


async def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        await stream(["x"]).next_rows(0)
