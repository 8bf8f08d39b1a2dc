"""An engine that follows the schema of PraxisEvaluation says nothing that PraxisEvaluation refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_batch import BatchRequest, BatchRunner, EmbeddedEngine
from ollama_batch._portal import portal
from ollama_batch.aris import PraxisEvaluation, rank, write_evaluations

pytest.importorskip("xllamacpp", reason="needs ollama-batch[embedded]")

ROWS = 12


def test_answers_of_a_real_engine_are_evaluations_and_find_their_candidates(tmp_path: Path) -> None:
    """The model has random weights: it is llama.cpp's grammar, made of the schema, that does it."""
    export = tmp_path / "export.json"
    candidates = [{"aristotleId": f"c-{number}", "praxisData": None} for number in range(ROWS)]
    export.write_text(json.dumps({"candidates": candidates}))
    schema = PraxisEvaluation.model_json_schema()
    form = {"type": "json_schema", "json_schema": {"name": "evaluation", "schema": schema}}
    engine = EmbeddedEngine.toy(num_ctx=2048)
    runner = BatchRunner(
        model="toy",
        engine=engine,
        max_tokens=1500,
        defaults={"response_format": form, "temperature": 1.0},
        progress="none",
    )
    requests = [
        BatchRequest.chat(f"judge {each['aristotleId']}", custom_id=str(each["aristotleId"]), seed=number)
        for number, each in enumerate(candidates)
    ]
    try:
        report = runner.run(requests, output=tmp_path / "results.jsonl")
    finally:
        portal().call(engine.aclose())
    assert report.counts.ok == ROWS
    done = write_evaluations(export, tmp_path / "results.jsonl.run.db", tmp_path / "out.json")
    assert (done.written, done.unparsed, done.failures) == (ROWS, 0, ())
    filled = json.loads((tmp_path / "out.json").read_text())["candidates"]
    said = {each["aristotleId"]: each["praxisData"]["recommendation"] for each in filled}
    assert said == {each.custom_id: each.recommendation for each in rank(report.results()).candidates}
