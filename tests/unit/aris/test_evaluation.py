"""What PraxisEvaluation takes and what it refuses; its JSON schema says the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, TypeAdapter, ValidationError

from evaluations_support import answer
from ollama_batch.aris import PraxisEvaluation
from ollama_batch.aris.evaluation import RATINGS, RECOMMENDATIONS

SCHEMA = PraxisEvaluation.model_json_schema()
ACCEPTS = Draft202012Validator(SCHEMA).is_valid
ACCEPTS_MORE_KEYS = Draft202012Validator(
    json.loads(json.dumps(SCHEMA).replace('"additionalProperties": false', '"additionalProperties": true'))
).is_valid
"""The schema as it is for what need not follow it: further keys are nothing to refuse an answer for."""


def takes(value: Any) -> bool:
    try:
        PraxisEvaluation.model_validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))


PLACES = list(places(answer()))


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """An answer with `value` at `path`; ... takes the key away."""
    made = copy.deepcopy(answer())
    inner: Any = made
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return made


def test_every_word_is_taken_and_kept() -> None:
    for word in RECOMMENDATIONS:
        assert PraxisEvaluation.model_validate(answer(word)).recommendation == word
    for word in RATINGS:
        made = PraxisEvaluation.model_validate_json(json.dumps(answer("No", word, word, word)))
        assert made.analysis.trajectory.rating == word
        assert json.loads(made.model_dump_json()) == answer("No", word, word, word)
    assert RECOMMENDATIONS == ("Strong Yes", "Yes", "Maybe", "No", "Strong No")
    assert RATINGS == ("Great", "Good", "Average", "Weak", "None")


def test_the_rating_none_is_a_word_and_null_is_refused() -> None:
    made = PraxisEvaluation.model_validate(answer("No", "None"))
    assert made.analysis.educational_pedigree.rating == "None"
    assert '"rating":"None"' in made.model_dump_json()
    assert not takes(changed(("analysis", "trajectory", "rating"), None))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("strong yes", "Strong Yes"),
        ("STRONG NO", "Strong No"),
        ("  Strong \n yes ", "Strong Yes"),
        ("mAyBe", "Maybe"),
        ("StrongYes", None),
        ("Strong_Yes", None),
        ("Strong Yes.", None),
        ("Definitely", None),
        ("", None),
    ],
)
def test_letter_case_and_white_space_are_put_right_and_nothing_else_is(said: str, kept: str | None) -> None:
    if kept is None:
        assert not takes(answer(said))
    else:
        assert PraxisEvaluation.model_validate(answer(said)).recommendation == kept


def test_ratings_are_spelled_likewise() -> None:
    analysis = PraxisEvaluation.model_validate(answer("yes", "GREAT", " none", "good")).analysis
    assert analysis.educational_pedigree.rating == "Great"
    assert analysis.company_pedigree.rating == "None"
    assert analysis.trajectory.rating == "Good"


@pytest.mark.parametrize("path", PLACES, ids=".".join)
@pytest.mark.parametrize("value", [..., None, 1, "", [], {}, "true", "Yes", True], ids=repr)
def test_what_the_schema_refuses_is_refused_and_nothing_else(path: tuple[str, ...], value: Any) -> None:
    made = changed(path, value)
    assert takes(made) == ACCEPTS_MORE_KEYS(made)


@given(
    path=st.sampled_from(PLACES),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from([*RATINGS, *RECOMMENDATIONS, "x"]),
        lambda inner: st.dictionaries(st.sampled_from(["rating", "reasoning", "value"]), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_schema_and_model_agree_on_any_change(path: tuple[str, ...], value: Any) -> None:
    made = changed(path, value)
    assert takes(made) == ACCEPTS_MORE_KEYS(made)


def test_keys_that_were_not_asked_for_are_forbidden_to_engines_and_left_out_of_answers() -> None:
    more = answer(confidence=0.9)
    more["analysis"]["trajectory"]["years"] = 3
    assert not ACCEPTS(more)
    assert json.loads(PraxisEvaluation.model_validate(more).model_dump_json()) == answer()


def test_the_schema_has_the_plainest_form() -> None:
    """No references and no words but these, all of which llama.cpp turns into its grammar."""
    known = {"type", "properties", "required", "additionalProperties", "enum", "minLength"}

    def check(schema: dict[str, Any]) -> None:
        assert set(schema) <= known
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert list(schema["properties"]) == schema["required"]
            for inner in schema["properties"].values():
                check(inner)

    check(SCHEMA)
    assert list(SCHEMA["properties"]) == list(answer())
    assert list(SCHEMA["properties"]["analysis"]["properties"]) == list(answer()["analysis"])
    assert TypeAdapter(PraxisEvaluation).json_schema() == SCHEMA


def test_it_may_be_a_part_of_another_model() -> None:
    class Pair(BaseModel):
        before: PraxisEvaluation
        after: list[PraxisEvaluation]

    accepts = Draft202012Validator(Pair.model_json_schema()).is_valid
    assert accepts({"before": answer(), "after": [answer()]})
    assert not accepts({"before": answer("x"), "after": []})
