"""What a run makes of its engine and of its rows before it sends them."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_batch import BatchRequest, EngineInfo
from ollama_batch._intake import IMAGE_TOKENS, Intake, row_check, upper_tokens
from ollama_batch._meeting import choose_num_ctx, choose_width
from ollama_batch._options import NUM_CTX_BUCKETS, RunnerOptions

OPTIONS = RunnerOptions(model="m")


def info(engine: str = "ollama", slots: int | None = None) -> EngineInfo:
    return EngineInfo(engine=engine, address="", version=None, model="m", slots=slots)


@pytest.mark.parametrize(
    ("largest", "trained", "recorded", "chosen"),
    [
        (1, None, None, 4096),
        (4096, None, None, 4096),
        (4097, None, None, 8192),
        (100_000, 131_072, None, 131_072),
        (100_000, 40_960, None, 40_960),
        (10**9, None, None, NUM_CTX_BUCKETS[-1]),
        (100_000, 131_072, 4096, 4096),
    ],
)
def test_auto_num_ctx(largest: int, trained: int | None, recorded: int | None, chosen: int) -> None:
    assert choose_num_ctx(OPTIONS, Intake(largest_tokens=largest), trained, recorded) == chosen


def test_an_explicit_num_ctx_is_taken_as_it_is() -> None:
    options = RunnerOptions(model="m", num_ctx=5000)
    assert choose_num_ctx(options, Intake(largest_tokens=10**6), 4096, 8192) == 5000


def test_auto_concurrency_is_one_more_than_the_slots_that_are_told() -> None:
    assert choose_width(OPTIONS, info(slots=4)) == 5
    assert choose_width(OPTIONS, info("openai", slots=8)) == 9
    assert choose_width(OPTIONS, info("ollama")) == 4
    assert choose_width(OPTIONS, info("openai")) == 16
    assert choose_width(RunnerOptions(model="m", concurrency=3), info(slots=8)) == 3


def estimate(content: Any, **params: Any) -> int:
    message = {"role": "user", "content": content}
    return upper_tokens(BatchRequest(messages=[message], params=params), 100)


def test_the_estimate_of_a_row_holds_all_that_becomes_tokens() -> None:
    empty = estimate("")
    assert empty >= 100
    assert estimate("x" * 1000) >= empty + 400
    assert estimate("\u4e16" * 1000) >= empty + 1500  # a token and more for such a character
    assert estimate([{"type": "text", "text": "x" * 1000}]) >= empty + 400
    assert estimate([{"type": "image_url", "image_url": {"url": "data:"}}]) == empty + IMAGE_TOKENS
    assert estimate("", tools=[{"description": "x" * 1000}]) >= empty + 400
    assert estimate("", max_tokens=5000) == empty + 4900
    assert estimate("", max_completion_tokens=5000) == empty + 4900
    called = [{"function": {"name": "f", "arguments": "x" * 1000}}]
    message = {"role": "assistant", "content": None, "tool_calls": called}
    assert upper_tokens(BatchRequest(messages=[message]), 100) >= 500


def test_a_row_is_checked_together_with_the_defaults() -> None:
    def needs_logprobs(body: Any) -> tuple[str, str] | None:
        return (
            None if "top_logprobs" not in body or body.get("logprobs") else ("top_logprobs", "needs logprobs")
        )

    alone = row_check(OPTIONS, needs_logprobs)
    assert alone({"top_logprobs": 3}) == ("body.top_logprobs", "needs logprobs")
    both = row_check(RunnerOptions(model="m", defaults={"logprobs": True}), needs_logprobs)
    assert both({"top_logprobs": 3}) is None
    assert both({"top_logprobs": 3, "logprobs": False}) is not None


def test_a_row_may_name_the_models_of_the_run_alone() -> None:
    check = row_check(RunnerOptions(model="m", allow_models=frozenset({"n"})), lambda body: None)
    assert check({"model": "m"}) is check({"model": "n"}) is check({}) is check({"model": None}) is None
    refused = check({"model": "o"})
    assert refused is not None
    assert (refused[0], refused[2:]) == ("body.model", ("model_mismatch",))
    ignoring = row_check(RunnerOptions(model="m", row_models="ignore"), lambda body: None)
    assert ignoring({"model": "o"}) is None


def test_the_runs_own_model_comes_first() -> None:
    intake = Intake(total=3)
    intake.models.update(["z", "a", "m"])
    assert intake.phases("m") == ["m", "a", "z"]
    assert intake.phases("other") == ["a", "m", "z"]
    assert Intake().phases("m") == ["m"]
