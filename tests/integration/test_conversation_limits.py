"""Rows that are longer than they look, and what a run then says of limits and of what it left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from conversation_support import Prompts, row, talker
from ollama_batch import BatchReport
from ollama_batch.events import Decision, Noticed
from ollama_batch.journal import RunJournal
from ollama_batch.testing import FakeOllama, FakeReply
from runner_support import Events, write_lines

Factory = Callable[..., FakeOllama]

NUM_CTX, MAX_TOKENS = 16_384, 32
ROOM = NUM_CTX - MAX_TOKENS


def one_word(name: str, characters: int) -> dict[str, Any]:
    """A row of so many characters, of which our counter sees two words."""
    made = row(name)
    made["body"]["messages"][-1]["content"] = f"{name} " + "x" * characters
    return made


class Limited:
    """Counts two characters as a token, so that it is stricter than the fake with its four.

    Refuses what is longer than `limit` in the words of Ollama, without a number, and writes it down.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: list[int] = []

    def __call__(self, body: Mapping[str, Any]) -> FakeReply:
        text = "".join(f"<{each['role']}>{each['content']}\n" for each in body["messages"])
        tokens = math.ceil(len(text) / 2)
        if tokens > self.limit:
            self.refused.append(tokens)
            said = {"error": "the input length exceeds the context length"}
            return FakeReply(status=400, body=said)
        return FakeReply("one two three four five", prompt_tokens=tokens)


class Talk:
    """30 rows of 800 characters in one conversation, the eleventh exchanged for another."""

    def __init__(self, fake: FakeOllama, tmp_path: Path, eleventh: dict[str, Any], **options: Any) -> None:
        rows = [row(f"r{n}", 100) for n in range(30)]
        rows[10] = eleventh
        self.events = Events()
        self.state = tmp_path / "state"
        given = {"lanes": 1, "num_ctx": NUM_CTX, "max_tokens": MAX_TOKENS, "state_dir": self.state}
        runner = talker(fake, **{**given, "hooks": [self.events], **options})
        self.report: BatchReport[Any] = runner.run(
            write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl"
        )
        self.results = {result.custom_id: result for result in self.report.results()}

    @property
    def told(self) -> list[str]:
        seen = [*self.events.of(Decision), *self.events.of(Noticed)]
        return [event.message for event in seen if event.kind == "limit_learned"]

    def nothing_was_learned(self) -> bool:
        others = [result for name, result in self.results.items() if name != "r10"]
        assert all(result.ok for result in others)
        assert [result.trim for result in others if result.trim is not None] == []
        return not self.told and not list(self.state.glob("limits/*")) and self.report.notes == ()


def test_a_row_that_never_fits_teaches_no_limit(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    """The engine names its context, which is num_ctx: nothing new."""
    fake = fake_ollama_factory(reply=lambda body: "one two three four five")
    talk = Talk(fake, tmp_path, one_word("r10", 4 * (NUM_CTX + 1000)))
    error = talk.results["r10"].error
    assert error is not None
    assert error.code == "context_length_exceeded"
    assert talk.nothing_was_learned()


def test_nor_does_it_where_the_engine_names_no_number(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    limited = Limited(NUM_CTX)
    talk = Talk(fake_ollama_factory(reply=limited), tmp_path, one_word("r10", 2 * (NUM_CTX + 1000)))
    error = talk.results["r10"].error
    assert error is not None
    assert error.code == "context_length_exceeded"
    assert limited.refused[-1] < min(limited.refused[:-1]), "the row alone was the last try"
    assert talk.nothing_was_learned()


def test_a_row_that_fits_alone_is_answered_alone_and_teaches_no_limit_that_is_none(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    limited = Limited(NUM_CTX)
    talk = Talk(fake_ollama_factory(reply=limited), tmp_path, one_word("r10", 2 * (ROOM - 200)))
    assert talk.report.ok
    assert min(limited.refused) > NUM_CTX
    trim = talk.results["r10"].trim
    assert trim is not None
    assert (trim["why"], trim["kept"], trim["dropped"]) == ("refused", 0, 10)
    assert talk.told == []


@pytest.mark.parametrize(
    ("limit", "row_tokens", "proofs"),
    [(8000, 5000, ["at most", "about"]), (11_500, 8000, ["about"])],
    ids=["the row fits by its bytes", "it may not"],
)
def test_a_hidden_limit_is_learned_once_an_answer_shows_how_long_the_refused_prompt_was(
    fake_ollama_factory: Factory, tmp_path: Path, limit: int, row_tokens: int, proofs: list[str]
) -> None:
    limited = Limited(limit)
    talk = Talk(fake_ollama_factory(reply=limited), tmp_path, one_word("r10", 2 * row_tokens))
    assert talk.report.ok
    first = limited.refused[0]
    assert limit < first < ROOM
    learned = [event for event in talk.events.of(Decision) if event.kind == "limit_learned"][: len(proofs)]
    assert all(f"a prompt of {proof} " in event.message for proof, event in zip(proofs, learned, strict=True))
    assert all(event.data["failed"] > limit for event in learned), "so many are refused, whatever the row"
    assert learned[-1].data["failed"] == pytest.approx(first, rel=0.05)
    (note,) = (event for event in talk.events.of(Noticed) if event.kind == "limit_learned")
    assert note.message.startswith(f"conversations are cut beyond {note.data['ceiling']:,} tokens")
    assert note.data["ceiling"] < first


# What was left out


def whole(report: BatchReport[Any], path: Path) -> list[Mapping[str, Any]]:
    """The trims of the rows, after a look at what the report and the journal make of them."""
    trims = [result.trim for result in report.results() if result.trim is not None]
    saved = sum(trim["tokens_before"] - trim["tokens_after"] for trim in trims)
    assert all(trim["tokens_saved"] > 0 and trim["dropped"] > 0 for trim in trims)
    assert (report.metrics.trims, report.metrics.trim_saved_tokens) == (len(trims), saved)
    assert f"saved {saved:,} tokens" in str(report)
    with RunJournal.open_readonly(path) as journal:
        assert (journal.trims().rows, journal.trims().tokens) == (len(trims), saved)
    return trims


def test_a_conversation_that_begins_anew_says_what_it_left_out(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    """By our count, many short words would be as long as many long ones; by their bytes they fit alone."""
    fake = fake_ollama_factory(reply=lambda body: "one two three four five")
    rows = [row(f"r{n}" + "x" * 40, 10) for n in range(8)]
    rows[6]["body"]["messages"][-1]["content"] = "r6 " + "a " * 300
    report = talker(fake, lanes=1, num_ctx=2000, max_tokens=32).run(
        write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl"
    )
    assert report.ok
    (trim,) = whole(report, tmp_path / "out.jsonl.run.db")
    before = [result.usage.prompt_tokens for result in report.results() if result.usage is not None]
    assert {**trim, "tokens_before": 0, "tokens_after": 0, "tokens_saved": 0} == {
        "why": "high",
        "strategy": "anew",
        "tokens_before": 0,
        "tokens_after": 0,
        "tokens_saved": 0,
        "kept": 0,
        "dropped": 6,
        "clipped": 0,
        "first_changed_index": 1,
        "reused_prefix_tokens": trim["reused_prefix_tokens"],
        "cache_loss_tokens": trim["tokens_after"] - trim["reused_prefix_tokens"],
    }
    assert trim["tokens_before"] == pytest.approx(before[5] + 11, rel=0.1), "the sixth prompt and its answer"
    assert before[6] < before[5]


def test_messages_that_are_to_stay_and_do_not_fit_are_told_of_once(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply=Prompts(), tokenizer="words")
    events = Events()
    rows = write_lines(tmp_path / "in.jsonl", [row(f"r{n}", 90) for n in range(90)])
    policy = {"lanes": 1, "every": 25, "keep_messages": 40, "high": 0.875, "low": 0.875}
    runner = talker(fake, **policy, num_ctx=2000, max_tokens=32, hooks=[events])
    report = runner.run(rows, output=tmp_path / "out.jsonl")
    assert report.ok
    trims = whole(report, tmp_path / "out.jsonl.run.db")
    assert len(trims) > 1
    assert all(0 < trim["kept"] < 20 for trim in trims)
    (told,) = (event for event in events.of(Noticed) if event.kind == "kept_fewer")
    first = next(result for result in report.results() if result.trim is not None)
    assert told.data["custom_id"] == first.custom_id
    assert told.data["kept"] == 2 * trims[0]["kept"]
    assert "keep_messages=40" in told.message
    assert told.message in report.notes


def test_messages_that_fit_are_not_told_of(fake_ollama_factory: Factory, tmp_path: Path) -> None:
    fake = fake_ollama_factory(reply=Prompts(), tokenizer="words")
    events = Events()
    rows = write_lines(tmp_path / "in.jsonl", [row(f"r{n}", 90) for n in range(60)])
    policy = {"lanes": 1, "every": 25, "keep_messages": 40, "high": 0.875, "low": 0.875}
    report = talker(fake, **policy, num_ctx=8000, hooks=[events]).run(rows, output=tmp_path / "out.jsonl")
    trims = whole(report, tmp_path / "out.jsonl.run.db")
    assert {trim["kept"] for trim in trims} == {20}
    assert [event.kind for event in events.of(Noticed)] == []
