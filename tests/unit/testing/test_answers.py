from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from ollama_batch.testing import _answers
from ollama_batch.testing._asks import Refusal, keep_alive_s


class Score(BaseModel):
    value: int = Field(ge=0, le=10)
    share: float = Field(gt=0, lt=1)
    label: Literal["good", "bad"]
    note: str | None
    tags: list[str] = Field(min_length=2)


class Evaluation(BaseModel):
    scores: list[Score]
    best: Score
    final: bool


@pytest.mark.parametrize("seed", range(20))
def test_json_answers_fit_their_schema(seed: int) -> None:
    source = _answers.answer_bytes(seed, "toy:1b", "digest", {})
    Evaluation.model_validate_json(_answers.json_text(Evaluation.model_json_schema(), source))


def test_json_without_a_schema_is_an_object() -> None:
    assert isinstance(json.loads(_answers.json_text("json", bytes(64))), dict)


def test_answers_depend_on_everything_and_on_nothing_else() -> None:
    def text(seed: int = 0, model: str = "m", digest: str = "d", **sampling: Any) -> str:
        return _answers.words(_answers.answer_bytes(seed, model, digest, sampling))

    assert text() == text()
    assert text(temperature=1, top_k=2) == text(top_k=2, temperature=1)
    assert len({text(), text(seed=1), text(model="n"), text(digest="e"), text(temperature=0.5)}) == 5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 300.0),
        (0, 0.0),
        (-1, float("inf")),
        (90, 90.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("-1m", float("inf")),
        ("0", 0.0),
        ("0s", 0.0),
    ],
)
def test_keep_alive_is_a_number_or_a_go_duration(value: Any, seconds: float) -> None:
    assert keep_alive_s(value) == seconds


@pytest.mark.parametrize("value", ["5", "", "5 minutes", "m5"])
def test_a_keep_alive_that_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(Refusal, match="invalid duration"):
        keep_alive_s(value)
