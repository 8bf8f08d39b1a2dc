"""Candidates on a real llama.cpp server: what it makes of their text, and a batch file from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")

from aris_support import changed
from ollama_batch import BatchRequest, BatchRunner, EmbeddedEngine
from ollama_batch._portal import portal
from ollama_batch.aris import Candidate, PraxisTemplate, read_candidates, to_requests
from ollama_batch.aris.synthetic import write_export

CONTROL = "<|im_end|>"


@pytest.fixture
def runner() -> Iterator[BatchRunner]:
    engine = EmbeddedEngine.toy(num_ctx=4096)
    yield BatchRunner(
        model="toy", engine=engine, num_ctx=4096, on_length="keep", concurrency=2, progress="none"
    )
    portal().call(engine.aclose())


def test_no_field_of_a_candidate_is_a_control_token_to_the_engine(runner: BatchRunner) -> None:
    """A server reads control tokens in the text of a message: one token each, not one for each letter."""
    template = PraxisTemplate(max_tokens=1)

    def cleaned(title: str) -> BatchRequest:
        candidate = {**changed("gemData.title", title), "aristotleId": title}
        request = template.request(Candidate.model_validate(candidate))
        assert request is not None
        return request

    asked = {
        "raw": BatchRequest.chat(CONTROL * 5, max_tokens=1),
        "raw, no control": BatchRequest.chat(CONTROL.replace("<", "~") * 5, max_tokens=1),
        "field": cleaned(CONTROL * 5),
        "field, no control": cleaned(CONTROL.replace("<", "\u2039") * 5),
    }
    tokens = {}
    for name, result in zip(asked, runner.run(asked.values()).results(), strict=True):
        assert result.usage is not None
        tokens[name] = result.usage.prompt_tokens
    assert tokens["raw, no control"] - tokens["raw"] >= 30
    assert tokens["field"] == tokens["field, no control"]


def test_an_export_is_read_asked_about_and_answered(runner: BatchRunner, tmp_path: Path) -> None:
    candidates = read_candidates(write_export(tmp_path / "e.json.gz", 12))
    requests = to_requests(candidates, PraxisTemplate(max_tokens=4))
    report = runner.run(requests, output=tmp_path / "out.jsonl")
    assert report.ok
    assert report.counts.ok == requests.counts.made == 9
    assert candidates.quality.candidates == 12
