"""The real llama.cpp held to the schema of a response model: what comes back are instances of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")

from ollama_batch import BatchRequest, BatchRunner, JsonSchema
from ollama_batch.engines.embedded import EmbeddedEngine

ROWS = 50


class Part(BaseModel):
    """Used twice, so that the schema has references."""

    rating: Literal["Great", "Good", "Average", "Weak", "None"]
    reasoning: str = Field(max_length=60)


class Judgement(BaseModel):
    """As an evaluation of a candidate is."""

    reasoning: str = Field(max_length=80)
    recommendation: Literal["Strong Yes", "Yes", "Maybe", "No", "Strong No"]
    years: int
    engineer: bool
    education: Part
    companies: Part
    skills: list[str] = Field(max_length=3)


class Tree(BaseModel):
    """Its schema refers to itself, at its root."""

    kind: Literal["leaf", "branch"]
    below: list[Tree] = Field(max_length=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine.toy(num_ctx=2048)
    yield engine
    asyncio.run(engine.aclose())


def requests(count: int) -> list[BatchRequest]:
    return [
        BatchRequest.chat(f"Candidate {n}, as JSON.", system="You judge candidates.", seed=n)
        for n in range(count)
    ]


def runner(engine: EmbeddedEngine, **options: Any) -> BatchRunner:
    settings = {"model": "toy", "engine": engine, "num_ctx": 2048, "max_tokens": 1200, "progress": "none"}
    return BatchRunner(**{**settings, "defaults": {"temperature": 0.7}, **options})


def test_at_least_99_of_100_answers_of_a_model_held_to_the_schema_fit(
    engine: EmbeddedEngine, tmp_path: Path
) -> None:
    """With 50 rows that is all of them, and none is asked again: random weights write nothing else."""
    judge = runner(engine, response_model=Judgement, output_retries=0)
    results = list(judge.run(requests(ROWS), output=tmp_path / "out.jsonl").results())
    assert [result.error for result in results if not result.ok] == []
    assert all(isinstance(result.parsed, Judgement) for result in results)
    assert not any(result.repaired for result in results)
    # Random, not all the same, and in the order of the fields.
    assert len({result.output for result in results}) > ROWS // 2
    assert all(
        result.output and result.output.index("reasoning") < result.output.index("recomm")
        for result in results
    )


def test_a_model_that_refers_to_itself_can_be_held_to(engine: EmbeddedEngine) -> None:
    results = list(runner(engine, response_model=Tree).run(requests(8)).results())
    assert [result.error for result in results if not result.ok] == []
    assert all(isinstance(result.parsed, Tree) for result in results)


def test_a_json_schema_holds_it_as_well(engine: EmbeddedEngine) -> None:
    schema = JsonSchema(
        {
            "type": "object",
            "properties": {"verdict": {"enum": ["Yes", "No"]}, "score": {"$ref": "#/$defs/score"}},
            "required": ["verdict", "score"],
            "additionalProperties": False,
            "$defs": {"score": {"type": "integer", "minimum": 1, "maximum": 10}},
        }
    )
    for result in runner(engine, response_model=schema).run(requests(8)).results():
        assert result.parsed is not None
        assert set(result.parsed) == {"verdict", "score"}
        assert 1 <= result.parsed["score"] <= 10


def test_conversations_of_answers_that_are_data_go_on(engine: EmbeddedEngine) -> None:
    talk = runner(engine, response_model=Tree, mode="conversation", max_tokens=400)
    results = list(talk.run(requests(8)).results())
    assert all(isinstance(result.parsed, Tree) for result in results)
    assert {result.lane for result in results} == {0, 1, 2, 3}
