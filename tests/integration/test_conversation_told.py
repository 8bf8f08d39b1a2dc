"""What a run says of its conversations: lanes, what was trimmed, the context it chose, heads that differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from conversation_support import Prompts, row, talker
from ollama_batch import BatchReport, ConfigError, EmbeddedEngine
from ollama_batch.errors import RunCancelledError
from ollama_batch.events import Noticed
from ollama_batch.journal import RunJournal, TrimCounts
from ollama_batch.jsonl import parse_output_line
from ollama_batch.records import encode_result
from ollama_batch.testing import FakeOllama
from ollama_batch.types import BatchResult, RowRecord
from runner_support import Events, line, names, read_lines, rows_file, runner_on, write_lines

Factory = Callable[..., FakeOllama]
LANES = {f"r{n}": n % 2 for n in range(24)}
"""Rows of one head take turns: docs/context.md."""


@pytest.fixture
def fake(fake_ollama_factory: Factory) -> FakeOllama:
    return fake_ollama_factory(reply=Prompts(), tokenizer="words")


@pytest.fixture
def talked(fake: FakeOllama, tmp_path: Path) -> BatchReport[Any]:
    """24 rows in two lanes that had to be cut several times."""
    source = write_lines(tmp_path / "in.jsonl", [row(name, 60) for name in LANES])
    return talker(fake, lanes=2, num_ctx=400).run(source, output=tmp_path / "out.jsonl")


def test_a_results_row_knows_its_lane_in_journal_report_and_output(
    talked: BatchReport[Any], tmp_path: Path
) -> None:
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert {row.custom_id: row.lane for row, _ in journal.results()} == LANES
    assert {result.custom_id: result.lane for result in talked.results()} == LANES
    written = {each["custom_id"]: each["ollama_batch"]["lane"] for each in read_lines(tmp_path / "out.jsonl")}
    assert written == LANES
    frame = talked.to_pandas()
    assert dict(zip(frame["custom_id"], frame["lane"], strict=True)) == LANES


def test_what_was_trimmed_is_in_the_output_the_frame_and_the_status(
    talked: BatchReport[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ollama_batch.cli import main

    trims = {each.custom_id: each.trim for each in talked.results() if each.trim is not None}
    assert 2 <= len(trims) < 24
    saved = {name: trim["tokens_before"] - trim["tokens_after"] for name, trim in trims.items()}
    written = {each["custom_id"]: each["ollama_batch"] for each in read_lines(tmp_path / "out.jsonl")}
    assert {name: each["trim"] for name, each in written.items() if "trim" in each} == trims
    frame = talked.to_pandas()
    cut = frame[frame["trimmed_tokens"].notna()]
    assert dict(zip(cut["custom_id"], cut["trimmed_tokens"], strict=True)) == saved
    assert set(cut["trim_why"]) == {"high"}
    assert main(["status", str(tmp_path / "out.jsonl.run.db")]) == 0
    said = (
        f"  mode conversation, 2 lanes; {len(trims)} rows trimmed, {sum(saved.values()):,} tokens left out\n"
    )
    assert said in capsys.readouterr().out


def test_a_line_with_more_in_it_is_still_read_as_one_of_openai(
    talked: BatchReport[Any], tmp_path: Path
) -> None:
    for raw in (tmp_path / "out.jsonl").read_bytes().splitlines():
        assert parse_output_line(raw).ok
        whole = json.loads(raw)
        assert list(whole) == ["id", "custom_id", "response", "error", "ollama_batch"]
        body = ChatCompletion.model_validate(whole["response"]["body"])
        assert body.choices[0].message.content


def test_independent_rows_have_neither_lane_nor_a_word_of_ours_in_their_lines(
    fake: FakeOllama, tmp_path: Path
) -> None:
    source = rows_file(tmp_path / "in.jsonl", 3)
    report = runner_on(fake).run(source, output=tmp_path / "out.jsonl")
    assert [result.lane for result in report.results()] == [None] * 3
    assert all(
        list(each) == ["id", "custom_id", "response", "error"] for each in read_lines(tmp_path / "out.jsonl")
    )
    asked: list[str] = []
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        journal._connection().set_trace_callback(asked.append)
        assert journal.trims().rows == 0
    assert not any("answers" in query for query in asked), "status reads no line where nothing can be trimmed"


def test_a_trimmed_independent_row_is_counted(fake: FakeOllama, tmp_path: Path) -> None:
    from ollama_batch import SlidingWindowTrim

    talk = line("long")
    turns = [{"role": "user", "content": "w " * 90}, {"role": "assistant", "content": "a " * 90}]
    talk["body"]["messages"] = [*turns * 3, *talk["body"]["messages"]]
    source = write_lines(tmp_path / "in.jsonl", [talk, line("short")])
    runner = runner_on(fake, num_ctx=300, max_tokens=32, trim=SlidingWindowTrim())
    report = runner.run(source, output=tmp_path / "out.jsonl")
    long, short = report.to_pandas()[["trim_why", "trimmed_tokens"]].itertuples(index=False)
    assert long.trim_why == "too_long"
    assert short.trim_why is None or short.trim_why != short.trim_why
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert (journal.trims().rows, journal.trims().tokens) == (1, long.trimmed_tokens)
    assert "; 1 trim saved " in str(report)


def test_a_row_with_another_head_begins_anew_and_was_not_trimmed(fake: FakeOllama, tmp_path: Path) -> None:
    rows = [row("r0"), row("r1"), row("r2", head="you translate"), row("r3", head="you translate")]
    report = talker(fake, lanes=1).run(iter(rows), output=tmp_path / "out.jsonl")
    assert [None if each.trim is None else each.trim["why"] for each in report.results()] == [
        None,
        None,
        "head",
        None,
    ]
    assert report.metrics.trims == 0
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert journal.trims() == TrimCounts(0, 0)


def test_what_earlier_releases_left_out_and_did_not_tell_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ollama_batch.cli import main

    path = tmp_path / "out.jsonl.run.db"
    journal = RunJournal.open(path, identity={"mode": "conversation", "trim": "hybrid"})

    async def work() -> None:
        await journal.add_rows([RowRecord(index, 0, index + 1, f"r{index}", b"") for index in range(2)])
        for index in range(2):
            told: BatchResult[Any] = BatchResult(
                custom_id=f"r{index}", ok=True, output="yes", index=index, trim={"why": "high"}
            )
            await journal.commit(encode_result(told))

    try:
        asyncio.run(work())
    finally:
        journal.close()
    with RunJournal.open_readonly(path) as reader:
        assert reader.trims() == TrimCounts(2, None)
    main(["status", str(path)])
    assert "mode conversation; 2 rows trimmed\n" in capsys.readouterr().out


# What was chosen, and what cannot work


def kinds(report: BatchReport[Any], events: Events) -> list[str]:
    told = events.of(Noticed)
    assert all(event.message in report.notes for event in told)
    return [event.kind for event in told]


def test_the_context_that_a_conversation_gets_is_said_with_its_reason(
    fake: FakeOllama, tmp_path: Path
) -> None:
    events = Events()
    source = write_lines(tmp_path / "in.jsonl", [row(name, 300) for name in names(10)])
    options: dict[str, Any] = {"num_ctx": "auto", "max_tokens": 1024, "hooks": [events], "lanes": 2}
    report = talker(fake, **options).run(source, output=tmp_path / "out.jsonl")
    assert kinds(report, events) == ["num_ctx"]
    assert report.num_ctx == fake.ledger.completions()[0].sent["options"]["num_ctx"]
    assert report.num_ctx_why == "room for several rows and their answers in one conversation"
    assert f"num_ctx {report.num_ctx:,} (auto: {report.num_ctx_why})" in str(report)
    (note,) = report.notes
    other = "another num_ctx= makes a new run (another output=, or overwrite=True)"
    assert note == f'num_ctx="auto" is {report.num_ctx:,} here: {report.num_ctx_why}; {other}'
    given = talker(fake, **{**options, "num_ctx": 8192, "hooks": []}).run(source, output=tmp_path / "2.jsonl")
    assert (given.num_ctx_why, given.notes) == (None, ())
    assert "num_ctx 8,192, " in str(given)


def test_independent_rows_get_the_reason_in_the_report_alone(fake: FakeOllama, tmp_path: Path) -> None:
    source = rows_file(tmp_path / "in.jsonl", 3)
    report = runner_on(fake).run(source, output=tmp_path / "out.jsonl")
    assert "num_ctx 4,096 (auto: holds the rows)" in str(report)
    assert report.notes == ()
    source.write_text(source.read_text() + json.dumps(line("more")) + "\n")
    again = runner_on(fake).run(source, output=tmp_path / "out.jsonl")
    assert again.num_ctx_why == "as the run began"


@pytest.mark.slow
def test_a_toys_context_is_said_to_be_its_own(tmp_path: Path) -> None:
    import asyncio

    engine = EmbeddedEngine.toy(alias="toy", num_ctx=2048)
    try:
        report = runner_on(None, engine=engine, model="toy", max_tokens=16).run(  # type: ignore[arg-type]  # no server
            rows_file(tmp_path / "in.jsonl", 2), output=tmp_path / "out.jsonl"
        )
    finally:
        asyncio.run(engine.aclose())
    said = (
        'num_ctx="auto" is 2,048 here: the engine was started with it; an engine started with another '
        "num_ctx= makes a new run (another output=, or overwrite=True)"
    )
    assert said in report.notes


def test_a_context_that_the_answer_fills_is_refused_before_anything_is_sent(fake: FakeOllama) -> None:
    for num_ctx in (512, 1024):
        with pytest.raises(ConfigError, match=f"num_ctx={num_ctx}, max_tokens=1024: .* must be larger"):
            runner_on(fake, num_ctx=num_ctx)
    runner_on(fake, num_ctx=1025)
    assert fake.ledger.count() == 0


# Heads


def dated(name: str, number: int) -> dict[str, Any]:
    return row(name, 3, head=f"you judge, case {number}")


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_rows_that_share_no_head_are_told_of_once(fake: FakeOllama, tmp_path: Path, stream: bool) -> None:
    events = Events()
    lines = [dated(name, number) for number, name in enumerate(names(60))]
    source: Any = lines if stream else write_lines(tmp_path / "in.jsonl", lines)
    report = talker(fake, lanes=3, hooks=[events]).run(source, output=tmp_path / "out.jsonl")
    assert {result.lane for result in report.results()} == {0}, "that is what the notice is about"
    told = [event for event in events.of(Noticed) if event.kind == "heads_differ"]
    assert len(told) == 1
    assert told[0].data["alone"] == told[0].data["rows"]
    assert "one lane answers them one after another" in told[0].message
    assert 'mode="independent"' in told[0].message


def test_rows_that_share_a_head_are_not_told_of(fake: FakeOllama, tmp_path: Path) -> None:
    events = Events()
    lines = [dated(name, number % 8) for number, name in enumerate(names(40))]
    talker(fake, lanes=2, hooks=[events]).run(
        write_lines(tmp_path / "in.jsonl", lines), output=tmp_path / "out.jsonl"
    )
    assert events.of(Noticed) == []


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("mode", ["independent", "conversation"])
def test_rows_that_nearly_agree_are_told_of_only_where_they_could(
    fake: FakeOllama, tmp_path: Path, mode: str, stream: bool
) -> None:
    """In a conversation a row's own messages stand behind other rows, whatever they begin with."""
    events = Events()
    lines = [
        line(name, f"{number:04} " + "the same words for all of them " * 20)
        for number, name in enumerate(names(60))
    ]
    for each in lines:  # the ledger's name goes to the end
        first, _, rest = each["body"]["messages"][0]["content"].partition("\n")
        each["body"]["messages"][0]["content"] = f"{rest} {first}"
    source: Any = lines if stream else write_lines(tmp_path / "in.jsonl", lines)
    make = talker if mode == "conversation" else runner_on
    make(fake, hooks=[events], num_ctx=8192, max_tokens=32).run(source, output=tmp_path / "out.jsonl")
    told = [event.kind for event in events.of(Noticed)]
    assert told == ([] if mode == "conversation" else ["head_differs"])


# Asking for a trim


def test_who_asks_for_a_trim_learns_how_many_conversations_heard_it(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [row(name) for name in names(12)])
    fake.hold()
    run = talker(fake, lanes=3).start(source, output=tmp_path / "out.jsonl")
    fake.wait_until(lambda ledger: ledger.count() == 3)
    assert run.trim_conversations() == 3
    fake.release()
    run.wait(30)
    assert run.trim_conversations() == 0, "it has ended"
    fake.hold()
    run = talker(fake, lanes=3).start(source, output=tmp_path / "two.jsonl")
    fake.wait_until(lambda ledger: ledger.count() == 15)
    run.cancel()
    assert run.trim_conversations() == 0, "nothing more is sent"
    fake.release()
    with pytest.raises(RunCancelledError):
        run.wait(30)
    fake.hold()
    run = runner_on(fake).start(source, output=tmp_path / "three.jsonl")
    fake.wait_until(lambda ledger: ledger.count() > 18)
    assert run.trim_conversations() == 0, "independent rows are no conversations"
    fake.release()
    run.wait(30)


def test_a_row_that_is_too_long_alone_is_not_told_of_trim(fake: FakeOllama, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [row("r0"), row("r1", 9000)])
    report = talker(fake).run(source, output=tmp_path / "out.jsonl")
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.error is not None
    assert failed.error.code == "context_length_exceeded"
    assert "make the row shorter" in failed.error.message
    assert "num_ctx 4,096 less max_tokens 32" in failed.error.message
    assert "trim" not in failed.error.message + str(report)
