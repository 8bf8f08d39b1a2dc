"""Answers as data: what their text says, what counts as a repair, and what is no response model."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, field_validator
from typing_extensions import TypedDict

from answer_shapes import PLAIN, SHAPES, YES, Shape, Verdict
from ollama_batch import JsonSchema
from ollama_batch.errors import ConfigError
from ollama_batch.structured import form_of, read_answer
from ollama_batch.structured.repair import REPAIRED_CHARS, parts, repaired

TEXTS = [shape for shape in SHAPES if isinstance(shape.reply, str)]


def test_there_are_sixty_answers_and_each_is_another() -> None:
    assert len(SHAPES) >= 60
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert {shape.outcome for shape in SHAPES} == {"ok", "repaired", "asked again", "failed"}


@pytest.mark.parametrize("shape", TEXTS, ids=lambda shape: shape.name)
def test_an_answer_is_what_the_table_says(shape: Shape) -> None:
    assert isinstance(shape.reply, str)
    answer = read_answer(shape.reply, Verdict)
    if shape.outcome == "asked again":
        assert (answer.parsed, answer.repaired) == (None, False)
        assert answer.fault is not None
        assert answer.fault.startswith(shape.fault)
    else:
        assert answer.fault is None
        assert isinstance(answer.parsed, Verdict)
        assert answer.parsed.model_dump(exclude_unset=True) == shape.means
        assert answer.repaired is (shape.outcome == "repaired")


@pytest.mark.parametrize("shape", TEXTS, ids=lambda shape: shape.name)
def test_what_pydantic_takes_by_itself_is_ok_and_nothing_else_is(shape: Shape) -> None:
    """Against pydantic's own reader, which knows no byte order mark and takes the last of two keys."""
    if shape.name in ("a byte order mark", "thinking before it", "a key twice"):
        return
    try:
        assert isinstance(shape.reply, str)
        Verdict.model_validate_json(shape.reply)
        taken = True
    except ValidationError:
        taken = False
    assert taken is (shape.outcome == "ok")


# Repairs


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ('{"a": 1.50,}', {"a": 1.5}),
        ('{"a": 1e5,}', {"a": 100000.0}),
        ('{"a": -5,}', {"a": -5}),
        ('{"a": 1,000}', {"a": "1,000"}),
        ('{"a": "", "b": \'\',}', {"a": "", "b": ""}),
        ('{"a": 12345678901234567890123,}', {"a": 12345678901234567890123}),
        ('{"a": "caf\\u00e9",}', {"a": "café"}),
        ('{"a": "tab\\tand \\"more\\"",}', {"a": 'tab\tand "more"'}),
        ("{'a': True, 'b': False, 'c': None}", {"a": True, "b": False, "c": None}),
        ('{"a": {"b": [1, 2,],},}', {"a": {"b": [1, 2]}}),
        ('{"a": "{b", "c": "}",}', {"a": "{b", "c": "}"}),
        ("{'a': \"it's\"}", {"a": "it's"}),
    ],
)
def test_a_repair_that_changes_no_word_is_taken(text: str, means: dict[str, Any]) -> None:
    assert repaired(text) == means


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": 1}, "c": "cut te',
        '{"a": 1, "c": "use {x}',
        '{"a": 1, "c": "he says "use {x}',
        '{"a": 1, "}',
        "{'a': 1, 'c': 'use {x}",
        '{"a": 1 // why\n}',
        '{"a": "x" "b": "y"}',
        '{"a": ["x" "y"]}',
        '{"a" "b"}',
        '{"a": +5}',
        '{"a": $5}',
        '{"a": 50%}',
        '{"a": <5}',
        '{"a": 0.1234567890123456789,}',
        '{"a": "b", "a": "c",}',
        '{"a": [1, 2}',
        '{"a": 1}}',
        '{"a": }',
        '{"a": , "b": 1}',
        '{"a": "x", "b"}',
        "{",
        "{" * 300 + "}" * 300,
    ],
    ids=lambda text: text[:24],
)
def test_a_repair_that_adds_drops_or_moves_anything_is_not(text: str) -> None:
    assert repaired(text) is None


def test_text_that_would_take_too_long_is_not_repaired() -> None:
    long = '{"a": "' + "word " * (REPAIRED_CHARS // 5) + '",}'
    began = time.process_time()
    assert repaired(long) is None
    assert time.process_time() - began < 0.5
    assert repaired('{"a": "' + "word " * 1000 + '",}') == {"a": "word " * 1000}


def test_parts_are_words_numbers_and_signs_without_quotes_and_last_commas() -> None:
    assert parts('{"a": [1.0, "b c",],}') == ["{", "a", ":", "[", "1", ",", "b", "c", "]", "}"]
    assert parts("{'None': None}") == parts('{"None": null}') == ["{", "null", ":", "null", "}"]
    assert parts("x1 ü_2 -3e2 5th") == ["x1", "ü_2", "-3E+2", "5", "th"]


def test_depth_without_end_is_a_fault_and_no_crash() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "{" * 20_000 + "}" * 20_000):
        assert read_answer(text, Verdict).fault is not None


def test_a_number_beyond_all_bounds_is_a_fault_and_no_crash() -> None:
    for number in ("9" * 5000, "1e999", "NaN", "Infinity", "-Infinity"):
        assert read_answer(f'{{"verdict": "Yes", "score": {number}}}', Verdict).fault is not None


# What may be a response model


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["a", "b"]
    at: int


class Named(BaseModel):
    first: str = Field(alias="firstName")


class Odd:
    pass


class Table(RootModel[dict[str, int]]):
    pass


@pytest.mark.parametrize(
    ("model", "text", "means"),
    [
        (Point, '{"x": 1}', Point(1)),
        (Movie, '{"title": "M"}', {"title": "M"}),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(value=1, children=[Node(value=2)])),
        (Strict, '{"kind": "a", "at": 3}', Strict(kind="a", at=3)),
        (Named, '{"firstName": "Ann"}', Named(firstName="Ann")),
        (Table, '{"a": 1}', Table({"a": 1})),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_class_that_pydantic_takes_and_that_is_an_object_will_do(
    model: type[Any], text: str, means: Any
) -> None:
    assert read_answer(text, model).parsed == means
    schema = form_of(model).schema
    assert schema["type"] == "object"
    assert "$ref" not in schema
    json.dumps(schema)


def test_a_model_that_forbids_extra_keys_has_them_asked_about() -> None:
    answer = read_answer('{"kind": "a", "at": 3, "extra": 1}', Strict)
    assert answer.fault == "does not fit Strict: extra: Extra inputs are not permitted"
    assert read_answer('{"kind": "a", "at": "3"}', Strict).fault is not None


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (int, "an answer is a JSON object, and this is none"),
        (str, "an answer is a JSON object, and this is none"),
        (RootModel[list[int]], "an answer is a JSON object, and this is none"),
        (list[int], "must be a class that pydantic can validate"),
        (Verdict(verdict="Yes", score=1), "must be a class that pydantic can validate"),
        ("Verdict", "must be a class that pydantic can validate"),
        ({"type": "object"}, "must be a class that pydantic can validate, .* or a JsonSchema"),
        (object, "an answer is a JSON object, and this is none"),
        (Odd, "has no JSON schema"),
    ],
    ids=str,
)
def test_what_is_no_response_model_is_refused_and_says_what_is(model: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        form_of(model)


def test_a_validator_that_breaks_fails_the_answer_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(BaseModel):
        kind: str

        @field_validator("kind")
        @classmethod
        def known(cls, value: str) -> str:
            return {"a": "first"}[value]

    assert read_answer('{"kind": "a"}', Breaks).parsed == Breaks.model_construct(kind="first")
    assert (
        read_answer('{"kind": "secret"}', Breaks).fault == "does not fit Breaks: a validator raised KeyError"
    )
    assert "secret" not in caplog.text


def test_a_fault_names_fields_and_rules_and_not_what_was_said() -> None:
    text = '{"verdict": "secret", "score": 4711, "details": [{"rating": "hidden"}]}'
    schema = JsonSchema(Verdict.model_json_schema())
    for answer in (read_answer(text, Verdict), read_answer(text, schema)):
        assert answer.fault is not None
        assert "verdict" in answer.fault
        assert "rating" in answer.fault
        for word in ("secret", "4711", "hidden"):
            assert word not in answer.fault


def test_many_faults_are_named_in_part() -> None:
    many = json.dumps({**YES, "details": [{"rating": "x", "why": 1}] * 50})
    fault = read_answer(many, Verdict).fault
    assert fault is not None
    assert fault.endswith("and 95 more")
    assert len(fault) < 1200


# JSON schemas

SCHEMA = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["Yes", "No"]},
        "score": {"$ref": "#/$defs/score"},
    },
    "required": ["verdict", "score"],
    "additionalProperties": False,
    "$defs": {"score": {"type": "integer", "maximum": 10}},
}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PLAIN, None),
        (f"Here: {PLAIN}", None),
        ('{"verdict": "yes", "score": 7}', 'does not fit answer: verdict: breaks enum ["Yes", "No"]'),
        ('{"verdict": "Yes", "score": 11}', "does not fit answer: score: breaks maximum 10"),
        ('{"verdict": "Yes"}', "does not fit answer: score missing"),
        ('{"verdict": "Yes", "score": 7, "x": 1}', "does not fit answer: breaks additionalProperties false"),
        ("[]", "is a list, no JSON object"),
    ],
)
def test_a_json_schema_is_a_response_model_whose_parsed_is_data(text: str, fault: str | None) -> None:
    answer = read_answer(text, JsonSchema(SCHEMA))
    assert answer.fault == fault
    assert answer.parsed == (YES if fault is None else None)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array"}, "an answer is a JSON object, not 'array'"),
        ({"type": "objekt"}, "JsonSchema: type is not right"),
        ({"properties": {"a": {"minimum": "x"}}}, "JsonSchema: properties.a.minimum is not right"),
        ({"$ref": "https://example.org/schema.json"}, "leads elsewhere; nothing is fetched"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "leads elsewhere; nothing is fetched"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ([], "a JSON schema is an object, not a list"),
    ],
    ids=str,
)
def test_what_is_no_schema_of_an_object_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JsonSchema(schema)


def test_a_reference_to_nothing_fails_the_answer_and_not_the_run() -> None:
    schema = JsonSchema({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})
    fault = read_answer('{"a": 1}', schema).fault
    assert fault is not None
    assert "the schema cannot be applied" in fault


def test_the_order_of_properties_is_part_of_what_is_compared() -> None:
    """It is the order of the answer, and an answer whose reasons come first is another."""
    one = JsonSchema({"type": "object", "properties": {"a": {}, "b": {}}}).identity()
    two = JsonSchema({"type": "object", "properties": {"b": {}, "a": {}}}).identity()
    assert one["schema"] == two["schema"]
    assert one["digest"] != two["digest"]


# Anything at all

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_data = st.recursive(
    _scalars | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(st.text(max_size=6), _data, min_size=1, max_size=4)
ANY_OBJECT = JsonSchema({"type": "object"})


@given(_objects, st.data())
def test_no_beginning_of_an_answer_is_ever_taken_for_all_of_it(value: dict[str, Any], data: Any) -> None:
    text = json.dumps(
        value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1]))
    )
    cut = data.draw(st.integers(0, len(text) - 1))
    for said in (text[:cut], f"```json\n{text[:cut]}", f"Sure: {text[:cut]}\n```"):
        answer = read_answer(said, ANY_OBJECT)
        assert answer.parsed is None, said


@given(_objects, st.sampled_from(["```json\n{}\n```", "Sure.\n\n{}\n\nIs that all right?", "{}\n{}"]))
def test_an_object_is_found_whatever_is_around_it(value: dict[str, Any], around: str) -> None:
    answer = read_answer(around.replace("{}", json.dumps(value)), ANY_OBJECT)
    assert (answer.parsed, answer.repaired) == (value, True)


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,\"'\\ \nab1", max_size=40))
def test_whatever_is_said_what_counts_has_every_word_of_it(said: str) -> None:
    """And nothing is raised. The oracle counts letters and figures, in any order."""
    answer = read_answer(said, ANY_OBJECT)
    assert (answer.parsed is None) is (answer.fault is not None)
    if answer.json is not None and said.count("{") == said.count("}") == 1:
        span = said[said.find("{") : said.rfind("}") + 1]
        if "\\" not in span and not any(character.isdigit() for character in span):
            letters = sorted(filter(str.isalpha, json.dumps(answer.parsed, ensure_ascii=False)))
            assert letters == sorted(filter(str.isalpha, span))
