"""An export is copied byte for byte, whatever it is made of and wherever its reading stops for more."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch import InputError
from ollama_batch.aris import _export
from ollama_batch.aris._export import Copied, copy_export
from ollama_batch.aris._scan import Candidate

NEW = '{"rating":"None","n":"名\\n"}'


def copy(path: Path, raw: bytes, fill: Callable[[Candidate], bytes | None], chunk: int = 2**20) -> bytes:
    path.write_bytes(raw)
    out = io.BytesIO()
    with mock.patch.object(_export, "_CHUNK", chunk):
        copy_export(path, out.write, fill)
    return out.getvalue()


def fill_all(candidate: Candidate) -> bytes | None:
    return None if candidate.custom_id is None else NEW.encode()


# Exports in pieces: each is written as it is, or as what it must have become.

Pieces = list[str | tuple[str, str]]

SPACE = st.text(" \n\r\t", max_size=2)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NUMBER = st.sampled_from(
    [
        "0",
        "-0",
        "1.0",
        "1.50",
        "1e400",
        "-1E-07",
        "12345678901234567890123",
        "0.1000000000000000055511151231257827",
    ]
)
SCALAR = st.one_of(
    NUMBER,
    st.sampled_from(["true", "false", "null"]),
    TEXT.map(json.dumps),
    TEXT.map(lambda t: json.dumps(t, ensure_ascii=False)),
)
NAMES = ("praxisData", "aristotleId", "candidates", "gemData", "a\u0304 \u540d", "")


@st.composite
def strings(draw: st.DrawFn, text: str) -> str:
    """`text` as JSON, some of its characters as escapes."""
    plain = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if text and draw(st.booleans()):
        return f'"\\u{ord(text[0]):04x}{plain[2:]}' if text[0].isascii() and text[0].isalnum() else plain
    return plain


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 3)) if depth else 0
    if kind < 2:
        return draw(SCALAR)
    inner = draw(st.lists(values(depth - 1), max_size=3))
    if kind == 2:
        return f"[{draw(SPACE)}{','.join(f'{each}{draw(SPACE)}' for each in inner)}]"
    members = [
        f"{draw(SPACE)}{draw(strings(draw(st.sampled_from(NAMES))))}{draw(SPACE)}:{each}" for each in inner
    ]
    return f"{{{','.join(members)}{draw(SPACE)}}}"


@st.composite
def candidates(draw: st.DrawFn) -> Pieces:
    """A candidate with an id and any members, praxisData among them once, twice or not at all."""
    names = draw(st.lists(st.sampled_from(NAMES[:1] + NAMES[2:]), max_size=4))
    names.insert(draw(st.integers(0, len(names))), "aristotleId")
    pieces: Pieces = ["{"]
    gap = colon = ""
    for number, name in enumerate(names):
        gap, colon = draw(SPACE), f"{draw(SPACE)}:{draw(SPACE)}"
        value = draw(values())
        if name == "aristotleId":
            value = draw(st.integers(0, 99).map(str) | TEXT.filter(bool).map(json.dumps))
        pieces.append(f"{',' if number else ''}{gap}{draw(strings(name))}{colon}")
        pieces.append((value, NEW) if name == "praxisData" else value)
        if number < len(names) - 1:
            pieces.append(draw(SPACE))
    if "praxisData" not in names:
        pieces.append(("", f',{gap}"praxisData"{colon}{NEW}'))
    return [*pieces, draw(SPACE), "}"]


NO_CANDIDATE = st.sampled_from(
    ['{"aristotleId": null, "praxisData": null}', '{"praxisData": 1}', "{ }", "null", '"praxisData"', "[]"]
)


@st.composite
def lists(draw: st.DrawFn) -> Pieces:
    pieces: Pieces = ["["]
    rows: list[Pieces] = draw(st.lists(candidates() | NO_CANDIDATE.map(lambda text: [text]), max_size=3))
    for number, row in enumerate(rows):
        pieces += [*([","] if number else []), draw(SPACE), *row, draw(SPACE)]
    return [*pieces, "]"]


@st.composite
def documents(draw: st.DrawFn) -> Pieces:
    pieces: Pieces = [draw(st.sampled_from(["", "\ufeff"])), draw(SPACE), "{"]
    names = draw(st.lists(st.sampled_from(["metadata", "praxisData", "gemData"]), max_size=2))
    names.insert(draw(st.integers(0, len(names))), "candidates")
    for number, name in enumerate(names):
        pieces += ["," if number else "", draw(SPACE), f'"{name}"', draw(SPACE), ":", draw(SPACE)]
        pieces += draw(lists()) if name == "candidates" else [draw(values())]
        pieces.append(draw(SPACE))
    return [*pieces, "}", draw(SPACE)]


@st.composite
def lines(draw: st.DrawFn) -> Pieces:
    pieces: Pieces = [draw(st.sampled_from(["", "\ufeff"]))]
    rows: list[Pieces] = draw(st.lists(candidates(), min_size=1, max_size=3))
    end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    one_line = {10: " ", 13: " "}
    for row in rows:
        for each in row:
            old, new = each if isinstance(each, tuple) else (each, each)
            pieces.append((old.translate(one_line), new.translate(one_line)))
        pieces.append(end)
    return pieces


def before(pieces: Pieces) -> bytes:
    return "".join(each if isinstance(each, str) else each[0] for each in pieces).encode()


def after(pieces: Pieces) -> bytes:
    return "".join(each if isinstance(each, str) else each[1] for each in pieces).encode()


CHUNK = st.integers(1, 40) | st.just(2**20)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export") / "export"


@given(st.one_of(documents(), lists(), lines()), CHUNK)
def test_every_byte_outside_praxisdata_is_kept(place: Path, pieces: Pieces, chunk: int) -> None:
    assert copy(place, before(pieces), fill_all, chunk) == after(pieces)
    assert copy(place, before(pieces), lambda _: None, chunk) == before(pieces)


def with_new(export: dict[str, Any]) -> dict[str, Any]:
    for each in export["candidates"]:
        if isinstance(each, dict) and each.get("aristotleId") not in (None, ""):
            each["praxisData"] = json.loads(NEW)
    return export


@given(documents(), CHUNK)
def test_a_parser_sees_the_same_values_and_the_new_ones(place: Path, pieces: Pieces, chunk: int) -> None:
    def read(raw: bytes) -> dict[str, Any]:
        return json.loads(raw.decode("utf-8-sig"), parse_float=Decimal)  # type: ignore[no-any-return]  # an object

    made = copy(place, before(pieces), fill_all, chunk)
    assert repr(read(made)) == repr(with_new(read(before(pieces)))), "repr: True is not 1, and order counts"


@given(documents(), st.data())
def test_what_is_no_json_is_refused_and_nothing_else(
    place: Path, pieces: Pieces, data: st.DataObject
) -> None:
    """A character less, one more, or another one: Python's own reader says whether that is still JSON."""
    text = before(pieces).decode("utf-8-sig")
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from(["", *'{}[]",:\\0e \n\x01x']))
    broken = text[:at] + new + text[at + data.draw(st.integers(0, 1)) :]
    try:
        value = json.loads(broken)
    except ValueError:
        value = None
    chunk = data.draw(CHUNK)
    if value is None:
        with pytest.raises(InputError):
            copy(place, broken.encode(), fill_all, chunk)
    elif isinstance(value, dict) and isinstance(value.get("candidates"), list) and "aristotleId" not in value:
        assert json.loads(copy(place, broken.encode(), lambda _: None, chunk)) == value


DOCUMENT = (
    '\ufeff{"metadata": {"candidates": [{"aristotleId": "x", "praxisData": 1}]}, "candidates": [\n'
    '  {"aristotleId": "\u00e9-1", "gemData": {"praxisData": "mine", "n": 1.50}, "praxisData": null},\n'
    '  {"aristotleId": 7, "t": "\\ud83d\\ude00 \\"}]"}\n]}\n'
)


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_an_export_that_was_cut_off_is_refused_wherever_that_was(place: Path, chunk: int) -> None:
    raw = DOCUMENT.encode()
    whole = len(raw.rstrip())
    for length in range(whole):
        with pytest.raises(InputError, match=r"cut off|is empty|no JSON"):
            copy(place, raw[:length], fill_all, chunk)
    assert copy(place, raw[:whole], fill_all, chunk).count(NEW.encode()) == 2


def test_a_gzip_that_was_cut_off_is_refused_wherever_that_was(place: Path) -> None:
    raw = gzip.compress(DOCUMENT.encode(), mtime=0)
    for length in range(2, len(raw)):
        with pytest.raises(InputError, match=r"cut off|is damaged"):
            copy(place, raw[:length], fill_all)
    assert copy(place, raw, fill_all) == copy(place, DOCUMENT.encode(), fill_all)


NO_EXPORT = "is no export of Aris: it has no list 'candidates' and no line with an 'aristotleId'"


def told(path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        copy(path, text.encode(), fill_all)
    return str(caught.value).removeprefix(f"{path} ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("\ufeff \n", "is empty"),
        ("aristotleId,name\n1,x\n", "is no JSON: Expecting '{' or '[' (byte 0)"),
        ('{"candidates": [{"aristotleId": 1}, {"a" 1}]}', "is no JSON: Expecting ':' (byte 41, candidate 2)"),
        ('{"candidates": [{"aristotleId": 1},]}', "is no JSON: Expecting value (byte 35, candidate 2)"),
        ('{"candidates": [1 2]}', "is no JSON: Expecting ',' or ']' (byte 18, candidate 1)"),
        ('{"candidates": []} {}', "goes on after its end (byte 19)"),
        ('{"candidates": []', "ends in the middle: it was cut off (byte 17)"),
        ('{"candidates": null}', NO_EXPORT),
        ('{"custom_id": "a", "response": {}}\n', NO_EXPORT),
        ('{"candidates": [{"a": ' + "[" * 99_999, "is nested too deeply (byte 16, candidate 1)"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_told_with_its_place(place: Path, text: str, said: str) -> None:
    assert told(place, text) == said


def test_an_export_in_another_encoding_is_refused(place: Path) -> None:
    for encoding in ("utf-16", "utf-32"):
        with pytest.raises(InputError, match="is no JSON"):
            copy(place, DOCUMENT.lstrip("\ufeff").encode(encoding), fill_all)


def counted(path: Path, text: str) -> tuple[bytes, Copied]:
    path.write_bytes(text.encode())
    out = io.BytesIO()
    counts = copy_export(path, out.write, fill_all)
    return out.getvalue(), counts


def test_lines_that_are_no_candidates_are_copied_and_counted(tmp_path: Path) -> None:
    text = (
        '{"aristotleId":"a"}\n{"broken": \n\n[1]\n{"x":1}\n{"aristotleId":"b","praxisData":0} more\n{"aristo'
    )
    made, counts = counted(tmp_path / "export.jsonl", text)
    assert made.decode() == text.replace('"a"}', f'"a","praxisData":{NEW}}}')
    assert counts == Copied(candidates=2, nameless=1, unreadable=4)


def test_a_broken_first_line_is_one_of_lines_where_the_name_says_so(tmp_path: Path) -> None:
    text = '{"aristotleI\n{"aristotleId":"a","praxisData":null}\n'
    made, counts = counted(tmp_path / "export.jsonl", text)
    assert made.decode() == text.replace("null", NEW)
    assert counts == Copied(candidates=1, unreadable=1)
    with pytest.raises(InputError):
        counted(tmp_path / "export.json", text)


@pytest.mark.parametrize(
    ("literal", "custom_id"),
    [
        ('"a"', "a"),
        ('"\\u0061"', "a"),
        ('"\u00e9"', "\u00e9"),
        ('"\\u00e9"', "\u00e9"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\U0001f600"', "\U0001f600"),
        ("12", "12"),
        ("-0", "-0"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.50", "1.50"),
        ('""', None),
        ("null", None),
        ("true", None),
        ('["a"]', None),
        ('{"aristotleId": "a"}', None),
    ],
)
def test_an_id_is_text_or_the_text_of_a_number(place: Path, literal: str, custom_id: str | None) -> None:
    seen: list[bytes | None] = []
    copy(place, f'[{{"aristotleId": {literal}}}]'.encode(), lambda each: seen.append(each.custom_id))
    assert seen == [None if custom_id is None else custom_id.encode()]


def test_an_id_that_is_no_utf8_is_none(place: Path) -> None:
    raw = b'[{"aristotleId": "\xff", "n": "\xfe"}]'
    assert copy(place, raw, fill_all) == raw


def test_of_two_ids_the_last_counts_as_for_every_parser(place: Path) -> None:
    seen: list[bytes | None] = []
    copy(place, b'[{"aristotleId": "a", "aristotleId": "b"}]', lambda each: seen.append(each.custom_id))
    assert seen == [b"b"]


@pytest.mark.parametrize(
    ("value", "evaluated"), [("null", False), ("{}", False), ('""', False), ('{"a": 1}', True), ('"x"', True)]
)
def test_an_earlier_evaluation_is_seen(place: Path, value: str, evaluated: bool) -> None:
    seen: list[bool] = []
    copy(
        place,
        f'[{{"aristotleId": 1, "praxisData": {value}}}]'.encode(),
        lambda each: seen.append(each.evaluated),
    )
    assert seen == [evaluated]


def test_a_value_that_is_too_long_is_refused_before_it_fills_the_memory(place: Path) -> None:
    long = '{"candidates": [{"aristotleId": "a", "t": "' + "x" * 50_000
    with mock.patch.multiple(_export, MAX_BYTES=20_000, _CHUNK=1_000):
        place.write_text(long)
        with pytest.raises(InputError, match="has a value of more than"):
            copy_export(place, lambda _: None, fill_all)
        place.write_text('{"aristotleId": "a"}\n' + long)
        with pytest.raises(InputError, match="has a line of more than"):
            copy_export(place, lambda _: None, fill_all)


def export_in_parts(count: int) -> Iterator[bytes]:
    yield b'{"candidates": ['
    field = json.dumps("\u540d" * 60_000, ensure_ascii=False).encode()
    for number in range(count):
        yield b'%s{"aristotleId": "%d", "cvData": %s}' % (b"," if number else b"", number, field)
    yield b"]}"


def test_memory_does_not_grow_with_the_export(tmp_path: Path) -> None:
    peaks = []
    for count in (30, 300):
        path = tmp_path / f"{count}.json"
        with path.open("wb") as file:
            file.writelines(export_in_parts(count))
        tracemalloc.start()
        copy_export(path, lambda _: None, fill_all)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "300.json").stat().st_size > 50_000_000
    assert peaks[1] < 1.1 * peaks[0] < 10_000_000


def test_large_fields_pass_in_time_that_grows_with_their_size(tmp_path: Path) -> None:
    """A candidate that needs many readings is not read from its start each time: that many bytes at most."""
    scanned = 0
    original = _export.find_candidate

    def scan(text: str, at: int) -> Any:
        nonlocal scanned
        scanned += len(text) - at
        return original(text, at)

    size = 30_000_000
    path = tmp_path / "large.json"
    path.write_text('[{"aristotleId": "a", "cvData": "' + "x" * size + '"}]')
    with mock.patch.object(_export, "find_candidate", scan):
        copy_export(path, lambda _: None, fill_all)
    assert scanned < 4 * size
