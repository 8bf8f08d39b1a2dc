"""Conversations: what each row is sent behind, when a lane is cut, and what a failure leaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversation_support import HEAD, Prompts, answer_to, own_name, row, talker
from ollama_batch import ConversationPolicy, HybridTrim, OpenAIEngine, SlidingWindowTrim
from ollama_batch.errors import ConfigError, DiskFullError, JournalMismatchError
from ollama_batch.events import Decision, Noticed, RunPaused
from ollama_batch.journal.turns import Turns
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import FakeOllama, FakeReply, Fault
from ollama_batch.types import BatchRequest
from runner_support import Events, ids, runner_on, write_lines

Factory = Callable[..., FakeOllama]


@pytest.fixture
def prompts() -> Prompts:
    return Prompts()


@pytest.fixture
def fake(fake_ollama_factory: Factory, prompts: Prompts) -> FakeOllama:
    return fake_ollama_factory(reply=prompts, tokenizer="words")


def unbroken(names: list[str], lanes: int, words: int = 3) -> dict[str, list[dict[str, Any]]]:
    """The prompt of each row where nothing is trimmed and nothing fails."""
    said: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
    found = {}
    for n, name in enumerate(names):
        own = row(name, words)["body"]["messages"][1]
        found[name] = [HEAD, *said[n % lanes], own]
        said[n % lanes] += [own, {"role": "assistant", "content": answer_to(found[name])}]
    return found


NAMES = [f"r{n}" for n in range(11)]


@pytest.mark.parametrize("lanes", [1, 2, 4, 16])
def test_each_row_is_sent_behind_what_its_lane_has_said(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path, lanes: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    report = talker(fake, lanes=lanes).run(source, output=tmp_path / "out.jsonl")
    assert report.ok
    assert {own_name(each): each for each in prompts.asked} == unbroken(NAMES, lanes)
    assert ids(tmp_path / "out.jsonl") == NAMES
    assert [result.lane for result in report.results()] == [n % lanes for n in range(len(NAMES))]
    assert report.lanes == lanes
    assert f"lanes {lanes}" in str(report)


def test_a_stream_is_held_in_the_same_lanes_as_a_file(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    requests = [BatchRequest.from_openai(row(name)) for name in NAMES]
    report = talker(fake, lanes=3).run(iter(requests), output=tmp_path / "out.jsonl")
    assert report.ok
    assert {own_name(each): each for each in prompts.asked} == unbroken(NAMES, 3)


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_fewer_workers_than_lanes_change_nothing_but_the_pace(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path, concurrency: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    assert talker(fake, lanes=4, concurrency=concurrency).run(source).ok
    assert {own_name(each): each for each in prompts.asked} == unbroken(NAMES, 4)
    assert fake.ledger.max_in_flight <= concurrency
    if concurrency == 1:
        # One conversation after another, so that they do not displace each other from the engine's cache.
        assert prompts.names() == [name for lane in range(4) for name in NAMES[lane::4]]


def test_a_stream_with_fewer_workers_than_lanes_comes_to_its_end(fake: FakeOllama) -> None:
    rows = [BatchRequest.from_openai(row(f"r{n}")) for n in range(1200)]
    fast = talker(fake, lanes=3, concurrency=1, keep_messages=2, every=1)
    assert fast.run(iter(rows)).counts.ok == 1200


def test_a_failed_row_leaves_the_conversation_as_it_was(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    fake.inject(Fault("status", status=400, match="r3"))
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    report = talker(fake, lanes=1).run(source, output=tmp_path / "out.jsonl")
    assert [example.custom_ids for example in report.error_examples] == [("r3",)]
    without = [name for name in NAMES if name != "r3"]
    assert {own_name(each): each for each in prompts.asked} == unbroken(without, 1)


def test_a_row_that_is_sent_again_goes_behind_all_others(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    fake.inject(Fault("status", status=400, match="r3"))
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    runner = talker(fake, lanes=2)
    runner.run(source, output=tmp_path / "out.jsonl")
    fake.clear_faults()
    report = runner.run(source, output=tmp_path / "out.jsonl", retry_failed=True)
    assert report.ok
    again = prompts.of("r3")
    assert [own_name([each]) for each in again if each["role"] == "user"] == ["r1", "r5", "r7", "r9", "r3"]


def test_rows_of_one_head_share_conversations_and_heads_do_not(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    rows = [row(f"r{n}", head=("first", "second")[n % 2]) for n in range(8)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert talker(fake, lanes=2).run(source).ok
    for n in range(8):
        sent = prompts.of(f"r{n}")
        assert sent[0]["content"] == ("first", "second")[n % 2]
        users = [own_name([each]) for each in sent if each["role"] == "user"]
        assert users == [f"r{k}" for k in range(n % 4, n + 1, 4)]


def test_a_short_head_after_a_long_one_is_not_taken_for_a_cut_prompt(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(tokenizer="words")
    rows = [row(f"r{n}", words=1, head="A" if n < 6 else "B") for n in range(12)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    report = talker(fake, lanes=2, counter=None, state_dir=None).run(source)
    assert [result.error for result in report.results() if result.error is not None] == []


def test_a_lane_is_cut_beyond_the_high_mark_and_down_to_the_low_one(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    names = [f"r{n}" for n in range(60)]
    source = write_lines(tmp_path / "in.jsonl", [row(name, words=20) for name in names])
    num_ctx, max_tokens = 432, 32
    limit = num_ctx - max_tokens
    report = talker(fake, lanes=1, num_ctx=num_ctx, max_tokens=max_tokens, trim=SlidingWindowTrim()).run(
        source, output=tmp_path / "out.jsonl"
    )
    assert report.ok
    results = list(report.results())
    sizes = [result.usage.prompt_tokens for result in results if result.usage is not None]
    assert max(sizes) <= math.floor(0.875 * limit)
    assert max(sizes) > 0.7 * limit, "the room there is was not used"
    cut = [result for result in results if result.trim is not None]
    exchange = 20 + 5
    assert 2 <= len(cut) <= math.ceil(60 * exchange / (0.375 * limit)) + 1
    for result in cut:
        assert result.trim is not None
        assert result.trim["why"] == "high"
        assert result.trim["dropped"] > 0
        assert result.usage is not None
        assert result.usage.prompt_tokens <= 0.5 * limit
    assert report.metrics.trims == len(cut)
    assert report.metrics.trim_saved_tokens == sum(
        result.trim["tokens_saved"] for result in cut if result.trim
    )
    whole = unbroken(names, 1, words=20)
    for name in names:
        sent, everything = prompts.of(name), whole[name]
        assert sent[0] == everything[0]
        assert sent[-1] == everything[-1]
        # Answers name how much they were sent behind, and so differ from those of an uncut conversation.
        users = [each for each in sent if each["role"] == "user"]
        assert users == [each for each in everything if each["role"] == "user"][-len(users) :]


def test_a_lane_is_cut_every_so_many_answers(fake: FakeOllama, prompts: Prompts, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [row(f"r{n}") for n in range(25)])
    report = talker(fake, lanes=1, every=6, keep_messages=4).run(source)
    cut = {result.custom_id: result.trim for result in report.results() if result.trim is not None}
    assert list(cut) == ["r6", "r12", "r18", "r24"]
    assert {trim["why"] for trim in cut.values() if trim} == {"every"}
    assert [len(prompts.of(name)) for name in cut] == [1 + 4 + 1] * 4


def test_the_original_rule_keeps_forty_messages(fake: FakeOllama, prompts: Prompts, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [row(f"r{n}") for n in range(120)])
    runner = runner_on(
        fake,
        mode="conversation",
        conversation=ConversationPolicy.original(),
        num_ctx=40_000,
        max_tokens=32,
        state_dir=None,
    )
    report = runner.run(source)
    cut = [result.custom_id for result in report.results() if result.trim is not None]
    assert cut == ["r50", "r100"]
    assert len(prompts.of("r50")) == 1 + 40 + 1
    assert len(prompts.of("r49")) == 1 + 2 * 49 + 1


def test_lanes_are_cut_deep_when_they_are_asked_to(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [row(f"r{n}", words=30) for n in range(40)])

    class AskHalfWay:
        def on_event(self, event: Any) -> None:
            if type(event).__name__ == "RowFinished" and event.result.custom_id == "r19":
                runs[0].trim_conversations()

    runs = [talker(fake, lanes=1, num_ctx=2000, hooks=[AskHalfWay()]).start(source)]
    report = runs[0].wait(30)
    cut = [result for result in report.results() if result.trim is not None]
    assert [result.trim["why"] for result in cut if result.trim] == ["asked"]
    quarter = 0.875 * (2000 - 32) / 4
    assert cut[0].usage is not None
    assert 0.8 * quarter < cut[0].usage.prompt_tokens <= quarter


def test_a_row_that_does_not_fit_alone_fails_and_its_lane_goes_on(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    rows = [row(name) for name in NAMES]
    rows[4] = row("r4", words=900)
    source = write_lines(tmp_path / "in.jsonl", rows)
    report = talker(fake, lanes=1, num_ctx=256, max_tokens=16).run(source)
    assert [(example.code, example.custom_ids) for example in report.error_examples] == [
        ("context_length_exceeded", ("r4",))
    ]
    assert fake.ledger.count("r4") == 0
    assert "r3" in [own_name([each]) for each in prompts.of("r5") if each["role"] == "user"]


def test_no_prompt_is_longer_than_the_limit_of_the_policy(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path
) -> None:
    rows = [row(name, words=20) for name in NAMES]
    rows[4] = row("r4", words=80)
    source = write_lines(tmp_path / "in.jsonl", rows)
    report = talker(fake, lanes=1, limit=70).run(source)
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.custom_id == "r4"
    assert failed.error is not None
    assert failed.error.code == "context_length_exceeded"
    assert "70 (the conversation limit): raise the conversation limit or" in failed.error.message
    assert fake.ledger.count("r4") == 0
    sent = [prompts.of(name) for name in NAMES if name != "r4"]
    assert 40 < max(sum(len(each["content"].split()) for each in prompt) for prompt in sent) <= 70


def test_a_conversation_that_the_server_cuts_in_silence_is_no_answer(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    prompts = Prompts()

    def forgetful(body: Any) -> Any:
        text = prompts(body)
        sent = sum(len(message["content"].split()) for message in body["messages"])
        return FakeReply(text, prompt_tokens=sent if sent < 400 else 150)

    fake = fake_ollama_factory(reply=forgetful, tokenizer="words")
    source = write_lines(tmp_path / "in.jsonl", [row(f"r{n}", words=80) for n in range(8)])
    report = talker(fake, lanes=1).run(source)
    codes = {result.custom_id: result.error and result.error.code for result in report.results()}
    assert codes["r0"] is None
    assert {codes[f"r{n}"] for n in range(5, 8)} == {"prompt_truncated"}


def test_what_is_too_long_for_the_engine_moves_the_marks_and_is_known_to_the_next_run(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    hidden = 300

    def limited(body: Any) -> FakeReply:
        sent = sum(len(message["content"].split()) for message in body["messages"])
        if sent > hidden:
            return FakeReply(status=500, body={"error": "llama-server error: CUDA error: out of memory"})
        return FakeReply("one two three four five", prompt_tokens=sent)

    fake = fake_ollama_factory(reply=limited, tokenizer="words")
    events = Events()
    options = {
        "lanes": 1,
        "num_ctx": 1000,
        "state_dir": tmp_path / "state",
        "hooks": [events],
        "retry": RetryPolicy(server=0, wait_s=0),
        "trim": SlidingWindowTrim(),
    }
    source = write_lines(tmp_path / "in.jsonl", [row(f"r{n}", words=5 + 7 * n % 23) for n in range(150)])
    report = talker(fake, **options).run(source)
    assert report.ok, report
    learned = [event for event in events.of(Decision) if event.kind == "limit_learned"]
    assert 1 <= len(learned) <= 8
    (told,) = (event for event in events.of(Noticed) if event.kind == "limit_learned")
    assert 0.9 * hidden <= told.data["ceiling"] <= 1.05 * hidden  # it may lie in what is not tried yet
    assert told.message in report.notes
    events.seen.clear()
    asked = fake.ledger.count()
    assert talker(fake, **options).run(source).ok
    assert [event for event in events.of(Decision) if event.kind != "memory_guard"] == []
    assert fake.ledger.count() == asked + 150


def test_a_full_disk_lets_a_row_wait_before_it_is_sent(
    fake: FakeOllama, prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, refused = Turns.begin, []

    async def full_twice(self: Turns, *arguments: Any, **named: Any) -> None:
        if len(prompts.asked) == 5 and len(refused) < 2:
            refused.append(len(prompts.asked))
            raise DiskFullError("no room")
        await begin(self, *arguments, **named)

    monkeypatch.setattr(Turns, "begin", full_twice)
    monkeypatch.setattr("ollama_batch._room.RETRY_S", 0.01)
    events = Events()
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    assert talker(fake, lanes=1, hooks=[events]).run(source, output=tmp_path / "out.jsonl").ok
    assert refused == [5, 5]
    assert [event.reason for event in events.of(RunPaused)] == ["disk"]
    assert {own_name(each): each for each in prompts.asked} == unbroken(NAMES, 1)


def test_a_run_that_goes_on_needs_the_same_lanes_and_the_same_rule(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    output = tmp_path / "out.jsonl"
    talker(fake, lanes=2).run(source, output=output)
    assert talker(fake, lanes=2, trim=HybridTrim()).run(source, output=output).counts.sent == 0
    for other in ({"lanes": 3}, {"lanes": 2, "high": 0.5}, {"lanes": 2, "trim": SlidingWindowTrim()}):
        with pytest.raises(JournalMismatchError, match=r"conversation|trim"):
            talker(fake, **other).run(source, output=output)
    with pytest.raises(JournalMismatchError, match="mode"):
        runner_on(fake, num_ctx=4096, max_tokens=32).run(source, output=output)


def test_what_does_not_go_with_a_conversation_is_refused_by_name(fake: FakeOllama) -> None:
    with pytest.raises(ConfigError, match=r"conversation=.*mode"):
        runner_on(fake, conversation=ConversationPolicy())
    with pytest.raises(ConfigError, match="allow_models"):
        runner_on(fake, mode="conversation", allow_models=["other:1b"])
    with pytest.raises(ConfigError, match="trim="):
        runner_on(fake, trim="hybrid")
    engine = OpenAIEngine(fake.url)
    with pytest.raises(ConfigError, match="does not tell its context length"):
        runner_on(fake, engine=engine, mode="conversation").run(["x"])
    told = talker(fake, engine=engine, lanes=1, num_ctx=4096)
    assert told.run(["x", "y"]).ok
    asyncio.run(engine.aclose())


@pytest.mark.parametrize(
    "wrong",
    [
        {"high": 0},
        {"high": 1.2},
        {"low": 0.9},
        {"every": 0},
        {"lanes": 0},
        {"lanes": 1000},
        {"keep_messages": -1},
        {"limit": "x"},
    ],
    ids=str,
)
def test_a_policy_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ConversationPolicy(**wrong)
