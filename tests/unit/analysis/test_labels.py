"""Labels that differ in letter case and white space alone are counted as one, and that is said."""

from __future__ import annotations

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from analysis_support import chat_line, write_lines
from ollama_batch import BatchRunner
from ollama_batch.analysis import analyze, compare
from ollama_batch.analysis.words import words_of
from ollama_batch.testing import FakeOllama, FakeReply

SAID = ("Maybe", "maybe", "MAYBE ", "Maybe", "strong  yes", "Strong Yes", "Strong Yes", "No", None, 5)


class Verdict(StrEnum):
    """What the forgiving model below takes."""

    STRONG = "Strong Yes"
    MAYBE = "Maybe"
    NO = "No"


class Evaluation(BaseModel):
    """Takes its words in any letter case, as the evaluations of an Aris export do."""

    recommendation: Verdict

    @field_validator("recommendation", mode="before")
    @classmethod
    def forgiving(cls, value: Any) -> Any:
        """The word in the spelling that counts."""
        named = {each.casefold(): each for each in Verdict}
        return named.get(" ".join(value.split()).casefold(), value)


def said(path: Path, values: list[Any]) -> Path:
    return write_lines(
        path, [chat_line(f"row-{n}", json.dumps({"label": value})) for n, value in enumerate(values)]
    )


def test_spellings_of_one_label_are_counted_as_one_under_the_commonest(tmp_path: Path) -> None:
    found = analyze(said(tmp_path / "out.jsonl", list(SAID)), fields="label").field("label")
    assert dict(found.labels) == {"Maybe": 4, "Strong Yes": 3, "5": 1, "No": 1}
    assert (found.present, found.null, found.respelt) == (9, 1, 3)


def test_an_order_gives_labels_their_names(tmp_path: Path) -> None:
    results = said(tmp_path / "out.jsonl", ["maybe", "maybe", "Maybe", "NO"])
    found = analyze(results, fields={"label": ["Yes", "Maybe", "No"]}).field("label")
    assert list(found.labels.items()) == [("Yes", 0), ("Maybe", 3), ("No", 1)]
    assert found.respelt == 3


def test_an_order_with_both_spellings_tells_them_apart(tmp_path: Path) -> None:
    results = said(tmp_path / "out.jsonl", ["a", "A", "A", " a"])
    found = analyze(results, fields={"label": ["A", "a"]}).field("label")
    assert (dict(found.labels), found.respelt) == ({"A": 2, "a": 1, " a": 1}, 0)
    other = said(tmp_path / "other.jsonl", ["A", "A", "A", "a"])
    assert compare(results, other, fields={"label": ["A", "a"]}).changed == 2
    assert compare(results, other, fields="label").changed == 0


def test_what_was_spelt_otherwise_is_said_in_text_and_on_the_page(tmp_path: Path) -> None:
    results = said(tmp_path / "out.jsonl", list(SAID))
    found = analyze(results, fields="label")
    assert "3 spelt otherwise (letter case, white space)" in str(found)
    assert "3 spelt otherwise (letter case, white space)" in found.html()
    assert "spelt otherwise" not in str(analyze(said(tmp_path / "b.jsonl", ["Yes", "No"]), fields="label"))


def test_another_spelling_is_no_change(tmp_path: Path) -> None:
    a = said(tmp_path / "a.jsonl", ["Yes", "Yes", "Yes", "No", "Maybe", "Yes"])
    b = said(tmp_path / "b.jsonl", ["yes", "YES", "Yes", "no ", "Yes", None])
    found = compare(a, b, fields="label")
    assert found.changed == 2
    [field] = found.fields
    assert (field.count, field.agreed, field.only_a, field.respelt) == (5, 4, 1, 3)
    assert [(move.a, move.b, move.count) for move in field.moves] == [("Maybe", "Yes", 1)]
    # By hand: 4 of 5 agree; Yes 3 and 4, No 1 and 1, Maybe 1 and 0 of 5.
    chance = (3 * 4 + 1 * 1) / 25
    assert field.kappa == pytest.approx((4 / 5 - chance) / (1 - chance))
    assert "3 spelt otherwise" in str(found)


class Whole(BaseModel):
    """An evaluation within another object, as a list and by itself, with nothing for some."""

    parts: list[Evaluation]
    best: Evaluation | None


def test_the_words_of_a_model_are_found_where_they_stand() -> None:
    words = [str(each) for each in Verdict]
    settings = {"response_model": {"schema": Whole.model_json_schema()}}
    assert list(words_of(settings, "parts.0.recommendation")) == words
    assert list(words_of(settings, "best.recommendation")) == words
    assert list(words_of(settings, "best")) == []
    assert list(words_of(settings, "nothing.at.all")) == []
    assert list(words_of({"response_model": {"schema": {"$ref": "#"}}}, "a")) == []
    assert list(words_of({"response_model": {"schema": {"properties": {"a": {"const": "A"}}}}}, "a")) == ["A"]
    assert list(words_of({}, "a")) == list(words_of({"response_model": None}, "a")) == []


def test_a_circle_of_references_ends() -> None:
    schema = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"a": {"$ref": "#/$defs/a"}}}
    assert list(words_of({"response_model": {"schema": schema}}, "a.b")) == []


@pytest.mark.parametrize("place", ["out.jsonl", "out.jsonl.run.db"])
def test_a_run_that_forgives_the_spelling_is_counted_as_it_was_checked(tmp_path: Path, place: str) -> None:
    words = ("maybe", "maybe", "no", "No", "strong yes", "Maybe", " MAYBE")
    replies = iter(words * 2)
    with FakeOllama(reply=lambda _: FakeReply(json.dumps({"recommendation": next(replies)}))) as fake:
        runner: BatchRunner[Evaluation] = BatchRunner(
            model="toy:1b", base_url=fake.url, response_model=Evaluation, progress="none"
        )
        given = [f"Candidate {n}?" for n in range(2 * len(words))]
        report = runner.run(given, output=tmp_path / "out.jsonl")
        checked = Counter(result.parsed.recommendation for result in report.results() if result.parsed)
    assert checked.total() == 2 * len(words)
    labels = analyze(tmp_path / place, fields="recommendation").field("recommendation").labels
    assert sorted(labels.values()) == sorted(checked.values())
    if place.endswith(".db"):  # which knows the response model
        assert dict(labels) == checked
    named = analyze(tmp_path / place, fields={"recommendation": [str(each) for each in Verdict]})
    assert dict(named.field("recommendation").labels) == checked
