"""Reading exports: every form, positions of what is broken, progress, what the file itself can have wrong."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import ijson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aris_support import deep, document, lines, whole, write
from ollama_batch._chat_line import Limits
from ollama_batch.aris import Candidate, ReadProgress, read_candidates
from ollama_batch.aris.depth import NestingWatch
from ollama_batch.aris.source import parser
from ollama_batch.aris.synthetic import synthetic_candidates, write_export
from ollama_batch.errors import ConfigError, InputError, MissingExtraError

THREE = [whole("a"), whole("b"), whole("c")]


def ids(found: Iterator[Candidate]) -> list[str]:
    return [candidate.aristotle_id for candidate in found]


@pytest.fixture
def fresh_parser() -> Iterator[None]:
    parser.cache_clear()
    yield
    parser.cache_clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", document(THREE)),
        ("a.json", json.dumps({"candidates": THREE, "metadata": {}}, indent=2).encode()),
        ("a.json", b"\xef\xbb\xbf" + document(THREE)),
        ("a.json", b"\n  " + json.dumps(THREE).encode()),
        ("a.jsonl", lines(THREE)),
        ("a.txt", lines(THREE)),
        ("a.jsonl", b"\n\n" + lines(THREE).replace(b"\n", b"\r\n").rstrip()),
        ("a.json.gz", document(THREE)),
        ("a.jsonl.gz", lines(THREE)),
    ],
    ids=["document", "indented", "bom", "array", "lines", "no suffix", "crlf", "packed", "packed lines"],
)
def test_every_form_is_read_from_a_path_and_from_a_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    assert ids(read_candidates(path)) == ["a", "b", "c"]
    assert ids(read_candidates(str(path))) == ["a", "b", "c"]
    with path.open("rb") as file:
        assert ids(read_candidates(file)) == ["a", "b", "c"]
        assert not file.closed


def test_a_pipe_that_gives_few_bytes_at_a_time_is_read() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7))

    for content in (document(THREE), lines(THREE), gzip.compress(document(THREE))):
        assert ids(read_candidates(Slow(content))) == ["a", "b", "c"]


def test_everything_the_export_says_is_kept() -> None:
    candidate = whole("a")
    candidate.update(extra={"deep": [1, {"x": None}]}, swarmData={"number": 12345678901234567890123})
    candidate["gemData"]["headline"] = "of its own"
    candidate["gemData"]["work_info"][0]["summary"] = "did things"
    [found] = read_candidates(io.BytesIO(document([candidate])))
    assert found.model_dump(by_alias=True) == candidate
    assert found.gem is not None
    assert found.gem.jobs[0].company == "Oakline Systems"
    assert found.gem.model_extra == {"headline": "of its own"}


def test_metadata_is_told_where_it_comes_first() -> None:
    reader = read_candidates(io.BytesIO(document(THREE)))
    assert reader.metadata == {"batchSize": 3}
    assert read_candidates(io.BytesIO(lines(THREE))).metadata is None


def test_broken_candidates_refuse_the_export_all_of_them_told_with_their_positions(tmp_path: Path) -> None:
    broken = [whole("a"), 5, whole("b"), whole("a"), {"gemData": {}}, *([None] * 200)]
    path = write(tmp_path / "e.json", document(broken))
    reader = read_candidates(path)
    assert next(reader).aristotle_id == "a"
    with pytest.raises(InputError) as refused:
        next(reader)
    assert refused.value.count == 203
    assert len(refused.value.invalid) == 100
    assert [(row.line, row.code) for row in refused.value.invalid[:4]] == [
        (2, "invalid_type"),
        (4, "duplicate_custom_id"),
        (5, "missing_required_parameter"),
        (6, "invalid_type"),
    ]
    told = str(refused.value).splitlines()
    assert told[0] == (
        f'{path}: 203 candidates are broken: mend the export, or leave out what is with on_invalid="skip"'
    )
    assert told[2] == (
        f"  {path}:4 [a] candidates[3].aristotleId: candidate 1 has this aristotleId already"
        " (duplicate_custom_id)"
    )
    assert told[-1] == "  ... and 103 more"


def test_broken_lines_are_left_out_one_by_one() -> None:
    content = b'{"aristotleId": "a"}\n{"aristotleId": \n\n{"aristotleId": "\xff"}\n{"aristotleId": NaN}\n'
    content += b'{"aristotleId": "d", "x": ' + b"[" * 80 + b"]" * 80 + b"}\n" + b'{"aristotleId": "b"}'
    reader = read_candidates(io.BytesIO(content), on_invalid="skip")
    assert ids(reader) == ["a", "b"]
    assert [(row.line, row.code) for row in reader.invalid] == [
        *((2, "invalid_json_line"), (4, "invalid_json_line"), (5, "invalid_json_line")),
        (6, "invalid_json_line"),
    ]


def test_a_line_that_is_too_long_is_left_out() -> None:
    content = lines([whole("a"), {"aristotleId": "x" * 5_000}, whole("b")])
    reader = read_candidates(io.BytesIO(content), on_invalid="skip", limits=Limits(max_line_bytes=2_000))
    assert ids(reader) == ["a", "b"]
    assert [row.code for row in reader.invalid] == ["line_too_long"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (
            document(THREE)[:-30],
            r"no valid JSON behind candidate 2, after about \d[\d,]+ bytes: .*premature EOF",
        ),
        (document(THREE) + b"{}", "no valid JSON behind candidate 3.*trailing garbage"),
        (document(THREE).replace(b'"b"', b'"\xff"'), "no valid JSON behind candidate 1"),
        (document(THREE).replace(b'"b"', b"NaN"), "no valid JSON behind candidate 1"),
        (document([]), "has no candidates"),
        (b'{"candidates": null}', "has no candidates"),
        (b'{"candidates": {"aristotleId": "a"}}', "has no candidates"),
        (b'{"results": [\n]}', "has no candidates"),
        (b'{"custom_id": "a", "body": {}}', "is no Aris export"),
        (b"hello", "no valid JSON behind candidate 0"),
        (b'{"candidates": [' + b"[" * 400_000, "nests deeper than the 64 levels"),
        (b'{"metadata": ' + b"[" * 400_000, "nests deeper than the 64 levels"),
        (document([{"aristotleId": "a", "x": deep(100)}]), "nests deeper than the 64 levels"),
        (
            document([{"aristotleId": "a", "x": "y" * 5_000_000}]),
            r"candidate 1 is longer than the 1,000,000 bytes",
        ),
        (b'{"candidates": [{"x": 1e99999999999999999999}]}', "candidate 1 has a number"),
        (gzip.compress(document(THREE))[:-20], "gzip data is damaged or cut off"),
        (gzip.compress(document(THREE))[:100] + b"x" * 400, "gzip data is damaged or cut off"),
        (b"\x1f\x8bnothing packed", "gzip data is damaged or cut off"),
    ],
)
def test_an_export_that_cannot_be_read_says_where_and_why(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "export"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as refused:
        list(read_candidates(path, on_invalid="skip", limits=Limits(max_line_bytes=1_000_000)))
    assert str(path) in str(refused.value)
    assert "Dana" not in str(refused.value), "the parser's message shows a piece of the text"


def test_files_that_are_none_and_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        read_candidates(tmp_path / "none.json")
    with pytest.raises(InputError, match="Is a directory"):
        read_candidates(tmp_path)
    with pytest.raises(ConfigError, match="binary mode"):
        read_candidates(io.StringIO("{}"))  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(ConfigError, match='on_invalid=\'keep\': must be "fail" or "skip"'):
        read_candidates(io.BytesIO(b"{}"), on_invalid="keep")  # type: ignore[arg-type]  # likewise


def test_progress_is_told_every_1000_candidates_every_5_seconds_and_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", lines([{"aristotleId": str(n), "x": "y" * 500} for n in range(2_500)]))
    told: list[ReadProgress] = []
    now = [0.0]
    reader = read_candidates(path, progress=told.append, clock=lambda: now[0])
    for candidate in reader:
        if candidate.aristotle_id == "1499":
            now[0] = 6.0
    assert [each.candidates for each in told] == [1_000, 1_500, 2_500, 2_500]
    assert [each.elapsed_s for each in told] == [0.0, 6.0, 6.0, 6.0]
    assert [each.done for each in told] == [False, False, False, True]
    assert told[-1].read_bytes == told[-1].total_bytes == path.stat().st_size
    assert told[0].read_bytes < told[-1].read_bytes


def test_a_stream_has_no_size_and_a_file_that_was_opened_is_closed(tmp_path: Path) -> None:
    told: list[ReadProgress] = []
    list(read_candidates(io.BytesIO(document(THREE)), progress=told.append))
    assert told[-1].total_bytes is None
    path = write(tmp_path / "e.json", document(THREE))
    with read_candidates(path) as reader:
        next(reader)
    with pytest.raises(StopIteration):
        next(reader)


def test_the_quality_of_an_export_is_counted() -> None:
    lacking = whole("b")
    lacking["gemData"].update(title=None, location="", skills=[], first_name=None, last_name="")
    jobs = lacking["gemData"]["work_info"]
    jobs[0].update(work_start_date="1970-01-01", work_end_date="some day", is_current=False)
    jobs += [dict(jobs[1]), {**jobs[1], "title": " staff  ENGINEER "}, {"title": "x"}]
    del lacking["gemData"]["company"]
    export = [
        whole("a"),
        lacking,
        {"aristotleId": "c", "cvData": {"a": 1}, "praxisData": {"b": 2}},
        *({"aristotleId": "c"}, {"aristotleId": ""}, 7),
    ]
    reader = read_candidates(io.BytesIO(document(export)), on_invalid="skip")
    list(reader)
    assert str(reader.quality).splitlines() == [
        "3 candidates, 3 broken (1 without an id, 1 with the id of another)",
        "  with gem 2, swarm 2, cv 1, praxis 1",
        "  profiles without: name 1, title 1, company 1, location 1, skills 1",
        "  7 jobs, 2 told twice; dates: 3 unknown, 1 unreadable",
    ]


@pytest.mark.usefixtures("fresh_parser")
def test_without_the_c_backend_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ijson, "backend", "python")
    with pytest.warns(RuntimeWarning, match=r"not the one in C \(yajl2_c\)"):
        read_candidates(io.BytesIO(document(THREE)))
    # A second warning would be an error here.
    assert ids(read_candidates(io.BytesIO(document(THREE)))) == ["a", "b", "c"]


@pytest.mark.usefixtures("fresh_parser")
def test_without_ijson_lines_are_read_and_documents_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ijson", None)
    assert ids(read_candidates(io.BytesIO(lines(THREE)))) == ["a", "b", "c"]
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[aris\]"'):
        read_candidates(io.BytesIO(document(THREE)))


def test_the_backend_in_c_is_what_the_tests_run_with() -> None:
    assert ijson.backend == "yajl2_c"


def test_memory_does_not_grow_with_the_export(tmp_path: Path) -> None:
    path = write_export(tmp_path / "e.json", 1_000)
    assert path.stat().st_size > 7_000_000
    tracemalloc.start()
    try:
        for _ in read_candidates(path):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
CANDIDATE: st.SearchStrategy[Any] = JSON | st.fixed_dictionaries(
    {"aristotleId": st.sampled_from(["a", "b", "c", "d", "\U0001f600", " "]) | JSON},
    optional={"gemData": st.none() | st.just({}), "swarmData": JSON, "cvData": JSON, "cv": JSON, "gem": JSON},
)


@settings(max_examples=150)
@given(
    st.lists(CANDIDATE, min_size=1, max_size=6),
    st.sampled_from(["document", "array", "lines"]),
    st.booleans(),
)
def test_every_candidate_is_handed_out_unchanged_or_told_as_broken(
    candidates: list[Any], form: str, packed: bool
) -> None:
    first = whole("first")  # so that lines are known as those of an export
    export = [first, *candidates]
    text = {"document": document, "array": lambda x: json.dumps(x).encode(), "lines": lines}[form](export)
    reader = read_candidates(io.BytesIO(gzip.compress(text) if packed else text), on_invalid="skip")
    found = list(reader)
    wanted: list[Any] = []
    for candidate in json.loads(json.dumps(export), parse_float=Decimal):
        name = candidate.get("aristotleId") if isinstance(candidate, dict) else None
        usable = isinstance(name, str) and 0 < len(name) <= 512 and "\x00" not in name
        if usable and all(name != each["aristotleId"] for each in wanted):
            wanted.append(candidate)
    for each, candidate in zip(found, wanted, strict=True):
        kept = each.model_dump(by_alias=True, exclude_unset=True)
        # Beside a field of ours by its Python name, pydantic holds that field for set.
        assert {key: kept[key] for key in kept if key in candidate or kept[key] is not None} == candidate
        assert each.cv == candidate.get("cvData")
    assert len(reader.invalid) == len(export) - len(wanted)


def levels(text: str) -> int:
    """How deep a JSON text nests, by its own definition."""
    deepest = depth = 0
    quoted = escaped = False
    for char in text:
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


BRACKETS = st.text(alphabet='[]{}"\\ax,', max_size=8)
NESTED: st.SearchStrategy[Any] = st.recursive(
    BRACKETS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(BRACKETS, inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=300)
@given(NESTED, st.integers(1, 9), st.integers(1, 6))
def test_the_watch_refuses_what_is_deeper_than_twice_the_limit_and_never_what_is_within(
    value: Any, size: int, limit: int
) -> None:
    text = json.dumps(value)
    raw = text.encode()
    watch = NestingWatch(limit)
    refused = any(watch.too_deep(raw[at : at + size]) for at in range(0, len(raw), size))
    if levels(text) <= limit:
        assert not refused
    elif levels(text) > 2 * limit:
        assert refused


def test_synthetic_candidates_are_read_as_they_were_made(tmp_path: Path) -> None:
    made = list(synthetic_candidates(40, seed=3, cv_share=0.5, evaluated_share=0.5))
    path = write_export(tmp_path / "e.json.gz", 40, seed=3, cv_share=0.5, evaluated_share=0.5)
    found = [each.model_dump(by_alias=True, exclude_unset=True) for each in read_candidates(path)]
    for gem in (each.get("gemData") for each in made):
        for name in ("skills", "work_info", "education_info"):
            if gem and gem.get(name) == "":
                gem[name] = None
    assert json.loads(json.dumps(found, default=float)) == made
