"""What a run makes of its engine and of its rows before it sends them."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_batch import EngineInfo
from ollama_batch._intake import Intake, row_check
from ollama_batch._meeting import Meeting, choose_num_ctx, choose_width, context_of, tell_too_long
from ollama_batch._options import RunnerOptions
from ollama_batch._sizes import NUM_CTX_BUCKETS
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.errors import ConfigError
from ollama_batch.trim import SlidingWindowTrim

OPTIONS = RunnerOptions(model="m")


def info(
    engine: str = "ollama", slots: int | None = None, context: int | None = None, *, fixed: bool = False
) -> EngineInfo:
    return EngineInfo(
        engine=engine,
        address="",
        version=None,
        model="m",
        slots=slots,
        context_length=context,
        context_fixed=fixed,
    )


def intake_of(*tokens: int, stream: bool = False) -> Intake:
    intake = Intake(total=None if stream else len(tokens))
    for number, size in enumerate(tokens):
        intake.sizes.add(f"r{number}", size)
    return intake


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
    assert choose_num_ctx(OPTIONS, intake_of(1, largest), info(context=trained), recorded) == chosen


def test_auto_num_ctx_leaves_one_row_in_a_thousand_out() -> None:
    assert choose_num_ctx(OPTIONS, intake_of(*[100] * 999, 50_000), info(), None) == 4096
    assert choose_num_ctx(OPTIONS, intake_of(*[100] * 998, 50_000), info(), None) == 65536


def test_a_stream_gets_the_bucket_above_and_no_more_than_the_model_can() -> None:
    rows = intake_of(100, 5000, stream=True)
    assert choose_num_ctx(OPTIONS, rows, info(), None) == 16384
    assert choose_num_ctx(OPTIONS, rows, info(context=10_000), None) == 10_000
    assert choose_num_ctx(OPTIONS, rows, info(), 4096) == 4096
    assert choose_num_ctx(OPTIONS, Intake(), info(), None) == 8192


def test_a_context_that_is_fixed_is_taken_as_it_is() -> None:
    fixed = info("embedded", context=6000, fixed=True)
    assert choose_num_ctx(OPTIONS, intake_of(100), fixed, None) == 6000
    assert choose_num_ctx(OPTIONS, intake_of(10**6), fixed, None) == 6000


def test_an_explicit_num_ctx_is_taken_as_it_is() -> None:
    options = RunnerOptions(model="m", num_ctx=5000)
    assert choose_num_ctx(options, intake_of(10**6), info(context=4096), 8192) == 5000


@pytest.mark.parametrize(
    ("num_ctx", "engine", "sent", "room", "whose"),
    [
        ("auto", info(), 8192, 8192, "num_ctx"),
        ("auto", info(context=131_072), 8192, 8192, "num_ctx"),
        ("auto", info(context=4096), 8192, 4096, "trained"),  # Ollama lowers what it was not trained for
        (8192, info(context=4096), 8192, 4096, "trained"),
        (4096, info(context=4096), 4096, 4096, "trained"),  # a larger num_ctx would change nothing
        (2048, info("embedded", context=8192, fixed=True), 2048, 2048, "num_ctx"),
        (8192, info("embedded", context=8192, fixed=True), 8192, 8192, "num_ctx"),
        (400_000, info("embedded", context=131_072, fixed=True), 400_000, 131_072, "trained"),
        ("auto", info("openai", context=8192, fixed=True), None, 8192, "server"),
        (4096, info("openai", context=8192, fixed=True), None, 4096, "told"),
        (16384, info("openai", context=8192, fixed=True), None, 8192, "server"),
        (4096, info("openai"), None, 4096, "told"),
        (4096, info("openai", context=2048), None, 4096, "told"),  # trained for, which limits nothing
        ("auto", info("openai"), None, None, "num_ctx"),
        ("auto", info("openai", context=2048), None, None, "num_ctx"),
    ],
)
def test_the_room_is_the_least_of_what_is_sent_told_and_said(
    num_ctx: Any, engine: EngineInfo, sent: int | None, room: int | None, whose: str
) -> None:
    context = context_of(RunnerOptions(model="m", num_ctx=num_ctx), engine, sent)
    assert (context.tokens, context.source) == (room, whose)


def test_what_was_told_when_the_run_began_counts_where_auto_is_asked_later() -> None:
    server = info("openai")
    assert context_of(OPTIONS, server, None, told=4096).tokens == 4096
    assert context_of(OPTIONS, server, None, told="auto").tokens is None
    assert context_of(RunnerOptions(model="m", num_ctx=2048), server, None, told="auto").tokens == 2048


def test_a_conversation_with_nobody_knowing_its_room_is_refused() -> None:
    options = RunnerOptions(model="m", mode="conversation")
    with pytest.raises(ConfigError, match="give num_ctx= as the server was started with"):
        context_of(options, info("openai"), None)
    assert context_of(options, info(), 4096).tokens == 4096


class Notices:
    """What was noticed, as the run would journal it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.seen.append((kind, message, data))


def test_rows_that_auto_num_ctx_leaves_out_are_named_longest_first() -> None:
    intake, noticed = intake_of(*[100] * 5000, 9000, 70_000, 5000, 6000), Notices()
    tell_too_long(intake, Meeting(info(), 4096, 1), options=OPTIONS, noticed=noticed)
    ((kind, message, data),) = noticed.seen
    assert kind == "too_long"
    assert "4 of 5,004 rows may need more than num_ctx 4,096: r5001 (up to 70,000 tokens), r5000" in message
    assert "and 1 more" in message
    assert "fail if they do not fit (a new run (another output=, or overwrite=True) with num_ctx=" in message
    assert message.endswith("or trim= mends that)")
    assert data == {"rows": 4, "num_ctx": 4096, "longest": ["r5001", "r5000", "r5003", "r5002"]}


def test_rows_that_will_be_trimmed_are_not_said_to_fail() -> None:
    options, noticed = RunnerOptions(model="m", trim=SlidingWindowTrim()), Notices()
    tell_too_long(intake_of(9000), Meeting(info(), 4096, 1), options=options, noticed=noticed)
    assert "are trimmed if they do not fit" in noticed.seen[0][1]
    assert "fail" not in noticed.seen[0][1]


@pytest.mark.parametrize(
    ("options", "num_ctx"),
    [(OPTIONS, 16384), (OPTIONS, None), (RunnerOptions(model="m", num_ctx=4096), 4096)],
    ids=["all fit", "context not ours", "chosen by the user"],
)
def test_nothing_is_said_of_rows_that_nobody_left_out(options: RunnerOptions, num_ctx: int | None) -> None:
    noticed = Notices()
    tell_too_long(intake_of(100, 9000), Meeting(info(), num_ctx, 1), options=options, noticed=noticed)
    assert noticed.seen == []


def test_auto_concurrency_is_one_more_than_the_slots_that_are_told() -> None:
    assert choose_width(OPTIONS, info(slots=4)) == 5
    assert choose_width(OPTIONS, info("openai", slots=8)) == 9
    assert choose_width(OPTIONS, info("ollama")) == 4
    assert choose_width(OPTIONS, info("openai")) == 16
    assert choose_width(RunnerOptions(model="m", concurrency=3), info(slots=8)) == 3


def test_conversations_are_as_many_as_slots_and_never_more_than_lanes() -> None:
    def width(lanes: int, slots: int | None = None, concurrency: Any = "auto") -> int:
        policy = ConversationPolicy(lanes=lanes)
        options = RunnerOptions(model="m", mode="conversation", conversation=policy, concurrency=concurrency)
        return choose_width(options, info(slots=slots))

    assert [width(8, 4), width(2, 4), width(8), width(8, 4, 6), width(8, 4, 20)] == [4, 2, 8, 6, 8]


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
