"""Results as the journal keeps them: nothing lost, and no failure that reads as an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.jsonl import parse_output_line
from ollama_batch.records import decode_result, encode_result, made_json
from ollama_batch.types import BatchResult, RowError, Usage

USAGE = Usage(900, 200, 800, None)


def answer(content: str | None = "hi", **fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        ],
        "usage": USAGE.to_openai(),
        **fields,
    }


OK: BatchResult[Any] = BatchResult(
    custom_id="row-1",
    ok=True,
    output="hi",
    usage=USAGE,
    finish_reason="stop",
    attempts=2,
    latency_s=0.1 + 0.2,
    metadata={"k": [1]},
    model_digest="sha256:d",
    index=3,
    body=answer(),
)
FAILED: BatchResult[Any] = BatchResult(custom_id="row-1", ok=False, error=RowError("c", "m"), index=3)


def test_an_answer_is_a_line_of_openai_form() -> None:
    line = json.loads(encode_result(OK).line)
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert line["id"].startswith("batch_req_")
    assert line["custom_id"] == "row-1"
    assert line["response"] == {"status_code": 200, "request_id": "chatcmpl-1", "body": OK.body}
    assert line["error"] is None


def test_what_the_body_tells_is_not_stored_twice() -> None:
    info = json.loads(encode_result(OK).info)
    assert info.keys() == {"latency_s", "metadata", "model_digest"}


def test_an_http_failure_keeps_status_and_reason_in_the_response() -> None:
    failed = replace(FAILED, error=RowError("context_length_exceeded", "too long", 400, "messages"))
    line = json.loads(encode_result(failed, request_id="req_1").line)
    reason = {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    assert line["response"] == {"status_code": 400, "request_id": "req_1", "body": {"error": reason}}
    assert line["error"] is None


def test_the_engines_failure_is_typed_as_one_of_the_server() -> None:
    failed = replace(FAILED, error=RowError("engine_error", "m", 500, None, row_caused=False))
    body = json.loads(encode_result(failed).line)["response"]["body"]
    assert body["error"]["type"] == "server_error"


def test_a_failure_without_http_has_no_response() -> None:
    line = json.loads(encode_result(replace(FAILED, error=RowError("request_timeout", "late"))).line)
    assert line["response"] is None
    assert line["error"] == {"code": "request_timeout", "message": "late"}


def test_a_useless_answer_is_kept_whole_beside_its_error() -> None:
    cut = replace(OK, ok=False, error=RowError("output_truncated", "cut off", 200))
    record = encode_result(cut)
    line = json.loads(record.line)
    assert line["response"]["body"] == OK.body
    assert line["error"] == {"code": "output_truncated", "message": "cut off"}
    assert record.code == "output_truncated"
    assert not parse_output_line(record.line).ok


def test_the_same_result_gives_the_same_bytes_and_other_rows_other_ids() -> None:
    first, again, other = (encode_result(result) for result in (OK, OK, replace(OK, index=4)))
    assert first == again
    assert json.loads(first.line)["id"] != json.loads(other.line)["id"]


def test_a_row_without_id_has_null_in_its_line() -> None:
    record = encode_result(replace(FAILED, custom_id=""))
    assert json.loads(record.line)["custom_id"] is None
    assert decode_result(record, None) == replace(FAILED, custom_id="")


def test_what_the_run_changed_after_the_answer_comes_back_as_changed() -> None:
    repaired = replace(OK, output='{"a":1}', repaired=True, usage=replace(USAGE, source="estimate"))
    assert decode_result(encode_result(repaired), "row-1") == repaired


def test_a_line_keeps_the_text_and_beside_it_the_json_that_was_made_of_it() -> None:
    made = '{"a": [1, 123456789012345678901234567890, "é"]}'
    result = replace(OK, output=OK.output, repaired=True, asked_again=2)
    record = encode_result(result, made=made)
    assert decode_result(record, "row-1") == result
    assert made_json(record) == json.loads(made)
    line = json.loads(record.line)
    assert line["ollama_batch"] == {"asked_again": 2, "parsed": json.loads(made)}
    assert line["response"] == json.loads(encode_result(OK).line)["response"]
    assert made_json(encode_result(OK)) is None


def test_reasoning_is_read_back_under_either_name() -> None:
    for key in ("reasoning", "reasoning_content"):
        body = answer()
        body["choices"][0]["message"][key] = "because"
        result = replace(OK, body=body, reasoning="because")
        record = encode_result(result)
        assert "reasoning" not in json.loads(record.info)
        assert decode_result(record, "row-1") == result


def test_a_body_of_any_mapping_type_is_stored() -> None:
    result = replace(OK, body=MappingProxyType(answer()))
    assert decode_result(encode_result(result), "row-1") == OK


def test_an_unpaired_surrogate_in_a_message_does_not_lose_the_row() -> None:
    record = encode_result(replace(FAILED, error=RowError("c", "file \udcff", 400)))
    found = decode_result(record, "row-1").error
    assert found is not None
    assert found.message == "file ?"


@pytest.mark.parametrize("wrong", [replace(OK, error=RowError("c", "m")), replace(FAILED, error=None)])
def test_a_result_that_contradicts_itself_is_refused(wrong: BatchResult[Any]) -> None:
    with pytest.raises(ValueError, match="ok is"):
        encode_result(wrong)


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_counts = st.integers(0, 2**40)
_json = st.recursive(
    st.none() | st.booleans() | _counts | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_text, inner, max_size=2),
    max_leaves=5,
)
_maps = st.dictionaries(_text, _json, max_size=2)
_usages = st.builds(
    Usage, _counts, _counts, st.none() | _counts, st.none() | _counts, st.sampled_from(["engine", "estimate"])
)
_messages = _maps | st.fixed_dictionaries(
    {"content": st.none() | _text}, optional={"reasoning": _json, "reasoning_content": _text}
)
_choices = _json | st.lists(
    st.fixed_dictionaries({}, optional={"message": _messages, "finish_reason": _json}), max_size=2
)
_bodies = _maps | st.fixed_dictionaries(
    {}, optional={"choices": _choices, "usage": _json | _usages.map(Usage.to_openai), "id": _json}
)
_errors = st.builds(
    RowError,
    _text,
    _text,
    st.none() | st.sampled_from([200, 302, 400, 404, 500, 503]),
    st.none() | _text,
    st.booleans(),
)
_results = st.builds(
    BatchResult,
    custom_id=_text.filter(bool),
    ok=st.just(True),
    output=st.none() | _text,
    reasoning=st.none() | _text,
    error=st.none() | _errors,
    usage=st.none() | _usages,
    finish_reason=st.none() | st.sampled_from(["stop", "length"]) | _text,
    attempts=st.integers(0, 9),
    latency_s=st.none() | st.floats(0, 1e6),
    trim=st.none() | _maps,
    repaired=st.booleans(),
    asked_again=st.integers(0, 3),
    metadata=_maps,
    model_digest=st.none() | _text,
    index=_counts,
    body=st.none() | _bodies,
).map(lambda result: replace(result, ok=result.error is None))


@given(_results)
def test_every_result_comes_back_exactly(result: BatchResult[Any]) -> None:
    record = encode_result(result)
    assert decode_result(record, result.custom_id) == result
    assert (record.index, record.ok, record.attempts) == (result.index, result.ok, result.attempts)
    assert record.code == (None if result.error is None else result.error.code)
    assert b"\n" not in record.line


@given(_results)
def test_a_reader_of_openai_files_takes_answers_alone_for_answers(result: BatchResult[Any]) -> None:
    line = json.loads(encode_result(result).line)
    answered = line["error"] is None and line["response"]["status_code"] == 200
    assert answered == result.ok
    assert parse_output_line(encode_result(result).line).ok == result.ok
