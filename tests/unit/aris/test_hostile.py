"""Hostile candidates: none crashes, each has the outcome of its table, and prompts stay clean."""

from __future__ import annotations

import io

import orjson
import pytest

from aris_support import Hostile, document, hostile, lines, whole
from ollama_batch.aris import PraxisTemplate, read_candidates, to_requests
from ollama_batch.jsonl import parse_line

CASES = list(hostile())
TEMPLATE = PraxisTemplate(cv_tokens=200, swarm_tokens=200, praxis_tokens=200)


def test_there_are_200_of_them_with_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize("form", ["document", "lines"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:40])
def test_a_hostile_candidate_has_the_outcome_of_its_table(case: Hostile, form: str) -> None:
    export = [whole("first"), case.candidate, whole("last")]
    reader = read_candidates(
        io.BytesIO(document(export) if form == "document" else lines(export)), on_invalid="skip"
    )
    requests = to_requests(reader, PraxisTemplate() if case.outcome == "empty" else TEMPLATE)
    made = list(requests)
    if case.outcome in ("request", "empty"):
        assert reader.invalid == []
        assert len(made) == 2 + (case.outcome == "request")
        assert requests.counts.empty == (case.outcome == "empty")
    else:
        [fault] = reader.invalid
        assert (fault.code, fault.line) == (case.outcome, 2)
        place = "candidates[1]" if form == "document" else ""
        assert (fault.field or "") == ".".join(filter(None, (place, case.field)))
        assert [request.custom_id for request in made] == ["first", "last"]
        assert reader.quality.invalid == 1
    for request in made:
        parse_line(orjson.dumps(request.to_openai()))  # the strict reader of batch files takes it
        system, user = (str(message["content"]) for message in request.messages)
        assert system == TEMPLATE.criteria
        asked = user.removesuffix(str(TEMPLATE.answer_format))
        assert asked != user
        assert "1970-01-01" not in asked
        assert "None" not in asked
        assert "null" not in asked
        assert asked.count("</profile>") == 1
        assert "<|" not in asked
        assert asked.isprintable() or all(c.isprintable() or c in "\n\u200d" for c in asked)
        assert len(asked) < 40_000


def test_what_is_wrong_is_told_without_what_the_person_says() -> None:
    for case in CASES:
        if not isinstance(case.candidate, dict) or case.outcome in ("request", "empty"):
            continue
        reader = read_candidates(io.BytesIO(document([case.candidate, whole("b")])), on_invalid="skip")
        told = [str(next(reader)), repr(reader), str(reader.quality), *map(str, reader.invalid)]
        for secret in ("Dana", "Moreau", "Fernhill", "Lisbon", "Oakline", "Alder"):
            assert not any(secret in text for text in told), case.name
