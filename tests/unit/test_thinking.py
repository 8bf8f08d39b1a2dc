"""Thinking in the text of an answer is told apart from it, by one rule wherever answers are read."""

from __future__ import annotations

import json

import pytest

from ollama_batch import JsonSchema
from ollama_batch._thinking import without_thinking
from ollama_batch.engines._replies import check_outcome
from ollama_batch.errors import ReasoningOnlyError
from ollama_batch.structured import read_answer
from ollama_batch.types import Completion

SAID = json.dumps({"score": 7})
SCHEMA = JsonSchema({"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]})


def engine_takes(text: str) -> bool:
    """Whether a text counts as an answer where an engine gives it."""
    message = {"role": "assistant", "content": text}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    completion = Completion(output=text, body=body, finish_reason="stop", usage=None)
    try:
        return check_outcome(completion) is completion
    except ReasoningOnlyError:
        return False


@pytest.mark.parametrize("before", ["", "\n ", "\ufeff", "\ufeff \n", " \ufeff"])
@pytest.mark.parametrize("thought", ["", "<think></think>", '<think>\nno {"score": 1}?\n</think>\n'])
@pytest.mark.parametrize("margin", ["", "\ufeff"])
def test_what_follows_the_thinking_is_the_answer(before: str, thought: str, margin: str) -> None:
    text = f"{before}{thought}{margin}{SAID}\n"
    assert without_thinking(text) == SAID
    assert engine_takes(text)
    answer = read_answer(text, SCHEMA)
    assert (answer.parsed, answer.repaired) == ({"score": 7}, False)


@pytest.mark.parametrize("before", ["", "\n ", "\ufeff", "\ufeff \n"])
@pytest.mark.parametrize("thought", ["<think>so", "<think>so</think>", f"<think>{SAID}</think>\n\ufeff"])
def test_thinking_alone_is_no_answer_to_either(before: str, thought: str) -> None:
    assert without_thinking(before + thought) == ""
    assert not engine_takes(before + thought)
    assert read_answer(before + thought, SCHEMA).fault == "has no JSON object"


def test_thinking_that_is_spoken_of_is_text() -> None:
    text = "Write <think>so</think> before it."
    assert without_thinking(text) == text
    assert engine_takes(text)
