"""Lines of OpenAI batch files: what is refused and why, and that the rest comes back as it was."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_input_corpus import BadLine, bad_lines, body, call, good, messages, user
from ollama_batch.jsonl import (
    Limits,
    LineError,
    RawLine,
    decode_line,
    fingerprint,
    parse_line,
    parse_output_line,
    read_lines,
)
from ollama_batch.types import BatchRequest

GOOD_LINES = {
    "plain": good(),
    "id of 512 characters": good(custom_id="i" * 512),
    "id that looks like a path": good(custom_id="../../x\n\"'\U0001f600\u202eabc"),
    "stream false": body(stream=False),
    "stream null": body(stream=None),
    "metadata": body(metadata={"a": 1}),
    "largest integers": body(seed=2**64 - 1, user=-(2**63)),
    "64 levels": body(seed=json.loads("[" * 62 + "]" * 62)),
    "parts": user(
        [
            {"type": "text", "text": "x"},
            {"type": "image_url", "image_url": {"url": "data:,"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_data": ""}},
        ]
    ),
    "all roles": messages(
        {"role": "system", "content": "x"},
        {"role": "developer", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": "", "name": "n"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "tool", "content": "x", "tool_call_id": "c"},
        {"role": "function", "content": None, "name": "f"},
    ),
    "tool call": call(),
    "braces in a text": user("{[" * 1000 + '\\"'),
    "a literal backslash-u": user("\\u0000 \\ud800"),
    "a pair of surrogates": user("\U0001f600"),
}


@pytest.mark.parametrize("bad", bad_lines(), ids=lambda bad: bad.name)
def test_a_bad_line_is_refused_by_rule_field_and_id(bad: BadLine) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(bad.raw)
    error = caught.value
    assert (error.code, error.field, error.custom_id) == (bad.code, bad.field, bad.custom_id)
    row = str(error.at("in.jsonl", 7))
    assert row.startswith("in.jsonl:7")
    assert row.encode()  # an error can always be printed
    assert len(row) < 1200


@pytest.mark.parametrize("line", GOOD_LINES.values(), ids=GOOD_LINES.keys())
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_good_line_is_accepted_and_decodes_alike_afterwards(line: dict[str, Any], ascii_only: bool) -> None:
    raw = json.dumps(line, ensure_ascii=ascii_only).encode()
    request = parse_line(raw)
    assert request == BatchRequest.from_openai(json.loads(raw))
    assert decode_line(raw) == request


def test_another_endpoint_of_openai_is_refused_by_name() -> None:
    with pytest.raises(LineError, match=r"^/v1/embeddings is an endpoint of OpenAI's .* not supported here"):
        parse_line(json.dumps(good(url="/v1/embeddings")).encode())


def test_a_bare_body_and_a_result_line_are_told_apart_from_typing_errors() -> None:
    with pytest.raises(LineError, match="bare chat body"):
        parse_line(b'{"messages":[]}')
    with pytest.raises(LineError, match="result file"):
        parse_line(b'{"id":"x","custom_id":"a","response":null,"error":null}')


def test_limits_are_settings() -> None:
    raw = json.dumps(good()).encode()
    parse_line(raw, limits=Limits(max_line_bytes=len(raw), max_depth=4, max_id_chars=1, max_messages=1))
    for limits, code in [
        (Limits(max_line_bytes=len(raw) - 1), "line_too_long"),
        (Limits(max_depth=3), "invalid_json_line"),
    ]:
        with pytest.raises(LineError) as caught:
            parse_line(raw, limits=limits)
        assert caught.value.code == code
    with pytest.raises(LineError) as caught:
        parse_line(json.dumps(good(custom_id="ab")).encode(), limits=Limits(max_id_chars=1))
    assert caught.value.field == "custom_id"
    two = json.dumps(messages({"role": "user", "content": "x"}, {"role": "user", "content": "x"})).encode()
    with pytest.raises(LineError) as caught:
        parse_line(two, limits=Limits(max_messages=1))
    assert caught.value.field == "body.messages"


@pytest.mark.parametrize("wrong", [{"max_line_bytes": 0}, {"max_depth": -1}, {"max_depth": 201}])
def test_limits_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": _text}),
    min_size=1,
    max_size=3,
)
_reserved = {"messages", "metadata", "stream", "model"}
requests = st.builds(
    BatchRequest,
    messages=_messages,
    custom_id=_text.filter(bool),
    params=st.dictionaries(_text.filter(lambda key: key not in _reserved), _json, max_size=3),
    metadata=st.dictionaries(_text, _json, max_size=2),
)


@given(requests, st.booleans())
def test_what_a_request_writes_parses_back_equal(request: BatchRequest, ascii_only: bool) -> None:
    raw = json.dumps(request.to_openai(), ensure_ascii=ascii_only).encode()
    assert parse_line(raw) == request
    assert decode_line(raw) == request


@given(st.binary(max_size=60) | _text.map(str.encode) | _json.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_but_a_line_error(raw: bytes) -> None:
    with pytest.raises(LineError):
        parse_line(raw)


@given(st.lists(st.sampled_from([b"{}", b"x", b"", b"  ", b"\t"]), max_size=6), st.data())
def test_lines_are_found_with_their_numbers_and_offsets(lines: list[bytes], data: st.DataObject) -> None:
    ends = [data.draw(st.sampled_from([b"\n", b"\r\n"])) for _ in lines]
    if ends and data.draw(st.booleans()):
        ends[-1] = b""
    whole = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"".join(
        line + end for line, end in zip(lines, ends, strict=True)
    )
    found = list(read_lines(io.BytesIO(whole)))
    wanted = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    assert [(line.line, line.raw) for line in found] == wanted
    assert all(whole[line.offset : line.offset + len(line.raw)] == line.raw for line in found)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", range(8, 18))
def test_only_a_line_over_the_limit_is_too_long(size: int, bom: bytes, end: bytes) -> None:
    whole = bom + b"x" * size + (end + b"next" + end if end else b"")
    found = list(read_lines(io.BytesIO(whole), limits=Limits(max_line_bytes=10)))
    first = RawLine(1, len(bom), b"x" * size) if size <= 10 else RawLine(1, found[0].offset, b"", True)
    assert found[0] == first
    if end:
        assert found[1:] == [RawLine(2, len(bom) + size + len(end), b"next")]


class _Endless(io.RawIOBase):
    """A file of one line of `size` bytes and one more line, made as it is read."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.tail = b"\n" + json.dumps(good()).encode()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left:
            count = min(self.left, len(buffer))
            buffer[:count] = b"x" * count
            self.left -= count
            return count
        count = min(len(buffer), len(self.tail))
        buffer[:count] = self.tail[:count]
        self.tail = self.tail[count:]
        return count


def test_a_line_of_150_megabytes_takes_no_memory_to_speak_of() -> None:
    limits = Limits(max_line_bytes=2**20)
    tracemalloc.start()
    try:
        with io.BufferedReader(_Endless(150 * 10**6)) as file:
            found = list(read_lines(file, limits=limits))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(line.line, line.too_long) for line in found] == [(1, True), (2, False)]
    assert found[1].offset == 150 * 10**6 + 1
    assert peak < 16 * 2**20


def test_a_fingerprint_is_16_bytes_and_differs_where_the_bytes_do() -> None:
    assert len(fingerprint(b"a")) == 16
    assert fingerprint(b"a") == fingerprint(b"a") != fingerprint(b"a ")


@pytest.mark.parametrize(
    ("line", "ok", "status", "error"),
    [
        ({"response": {"status_code": 200, "body": {}}, "error": None}, True, 200, None),
        ({"response": {"status_code": 200, "body": {}}}, True, 200, None),
        (
            {"response": {"status_code": 400, "body": {"error": {"code": "c"}}}, "error": None},
            False,
            400,
            {"code": "c"},
        ),
        ({"response": None, "error": {"code": "batch_expired"}}, False, None, {"code": "batch_expired"}),
        ({"response": {"status_code": 200, "body": {}}, "error": {"code": "c"}}, False, 200, {"code": "c"}),
        (
            {"response": {"status_code": 400, "body": None}, "error": "wrong url"},
            False,
            400,
            {"message": "wrong url"},
        ),
        ({"response": None, "error": None}, False, None, None),
    ],
)
def test_a_result_line_is_ok_only_with_status_200_and_no_error(
    line: dict[str, Any], ok: bool, status: int | None, error: Any
) -> None:
    found = parse_output_line(json.dumps({"custom_id": "a", **line}).encode())
    assert (found.custom_id, found.ok, found.status, found.error) == ("a", ok, status, error)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"custom_id":"a"}', b'{"custom_id":1,"error":null}'])
def test_what_is_no_result_line_is_refused(raw: bytes) -> None:
    with pytest.raises(LineError):
        parse_output_line(raw)
