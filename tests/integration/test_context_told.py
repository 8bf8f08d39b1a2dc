"""What is said of the context: which limit binds, in figures that agree, with advice that can help."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchReport, EmbeddedEngine, HybridTrim, OpenAIEngine
from ollama_batch.cli import main
from ollama_batch.errors import JournalMismatchError
from ollama_batch.testing import FakeModel, FakeOllama
from runner_support import MODEL, line, read_lines, rows_file, runner_on, write_lines

Cli = Callable[..., tuple[int, str, str]]
LONG = "word " * 6000


@pytest.fixture
def small(fake_ollama_factory: Any) -> FakeOllama:
    """A server whose model was trained for 4,096 tokens."""
    fake: FakeOllama = fake_ollama_factory(models=[FakeModel(MODEL, context_length=4096)])
    return fake


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Cli:
    def ask(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return ask


@pytest.fixture
def toy() -> Iterator[EmbeddedEngine]:
    pytest.importorskip("xllamacpp")
    engine = EmbeddedEngine.toy(num_ctx=2048)
    yield engine
    asyncio.run(engine.aclose())


def failure(report: BatchReport[Any]) -> str:
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.error is not None
    assert failed.error.code == "context_length_exceeded"
    return failed.error.message


@pytest.mark.parametrize("trim", [None, HybridTrim()])
def test_where_the_model_takes_no_more_that_is_the_limit_that_is_named(
    small: FakeOllama, tmp_path: Path, trim: Any
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line("r0"), line("r1", LONG)])
    runner = runner_on(small, num_ctx=400_000, trim=trim, state_dir=None)
    report = runner.run(source, output=tmp_path / "out.jsonl")
    said = failure(report)
    room = "there is room for 3,072 (the 4,096 that the model was trained for less max_tokens 1,024): "
    assert room in said
    ways = said.partition(room)[2]
    assert ways.startswith("take a model with a longer context, lower max_tokens, or ")
    assert ways.endswith("set trim" if trim is None else "make the row shorter")
    assert (report.num_ctx, report.context, report.context_by) == (400_000, 4096, "trained")
    assert report.metrics.context_limit == 4096
    told = str(report)
    assert "num_ctx 400,000, context 4,096 (the model was trained for no more)" in told
    assert " of 4,096 tokens at most" in told
    assert "num_ctx 400,000 is more than toy:1b was trained for: prompt and answer have 4,096" in told
    assert "with a model that takes more than 4,096 tokens" in told
    assert "larger num_ctx" not in told + said
    assert ("trim" in said, "trim=" in told) == (trim is None, trim is None)
    again = runner.run(source, output=tmp_path / "out.jsonl")
    assert (again.context, again.context_by) == (4096, "trained"), "without the engine too"


def test_a_larger_num_ctx_is_advised_up_to_what_the_model_takes(
    fake_ollama_factory: Any, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(models=[FakeModel(MODEL, context_length=6000)])
    runner = runner_on(fake, num_ctx=2048, max_tokens=64, state_dir=None)
    assert "raise num_ctx, lower" in failure(runner.run([line("a", "word " * 2500)]))
    assert "raise num_ctx (the model takes 6,000 at most), lower" in failure(runner.run([line("b", LONG)]))


def test_rows_left_out_are_not_told_of_a_larger_num_ctx_that_the_model_does_not_take(
    small: FakeOllama,
) -> None:
    report = runner_on(small, state_dir=None).run([line(f"r{n}", LONG) for n in range(3)], limit=3)
    (note,) = (note for note in report.notes if "may need more than num_ctx" in note)
    assert note.endswith("with trim= mends that)")
    assert "num_ctx=" not in note


def test_num_ctx_told_of_a_server_is_shown_as_what_it_is(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    engine = OpenAIEngine(fake_ollama.url)
    source = write_lines(tmp_path / "in.jsonl", [line("r0"), line("r1", LONG)])
    try:
        runner = runner_on(fake_ollama, engine=engine, num_ctx=4096, state_dir=None)
        report = runner.run(source, output=tmp_path / "out.jsonl")
    finally:
        asyncio.run(engine.aclose())
    assert (report.num_ctx, report.context, report.context_by) == (None, 4096, "told")
    assert report.metrics.context_limit == 4096
    assert "context 4,096 (num_ctx as told, not sent: prompts are fitted to it)" in str(report)
    said = failure(report)
    assert "3,072 (num_ctx 4,096, as told, less max_tokens 1,024): give the server a larger context" in said
    assert "with a server that has a larger context" in str(report)


def test_a_command_line_reads_its_own_options_on_paper_both_can(
    ask: Cli, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    """Printed messages name options; error files, which any program reads, have bare names."""
    source = write_lines(tmp_path / "in.jsonl", [line("r0"), line("r1", LONG)])
    words = ("--base-url", fake_ollama.url, "--model", MODEL, "--progress", "none", "--num-ctx", "4096")
    code, out, err = ask("run", source, "-o", tmp_path / "out.jsonl", *words, "--max-failures", 0)
    assert code == 3
    assert "raise --num-ctx, lower --max-tokens, or set --trim" in err
    assert "(another -o, or --overwrite) with a larger --num-ctx or with --trim, which shortens" in out
    assert ask("export", tmp_path / "out.jsonl.run.db", "-o", tmp_path / "seen.jsonl")[0] == 0
    (failed,) = read_lines(tmp_path / "seen.errors.jsonl")
    message = failed["response"]["body"]["error"]["message"]
    assert message.endswith("raise num_ctx, lower max_tokens, or set trim")

    talk = ("--mode", "conversation", "--conversation-limit", "500")
    code, out, err = ask("run", source, "-o", tmp_path / "talk.jsonl", *words, *talk, "--max-failures", 0)
    assert code == 3
    assert "room for 500 (the conversation limit): raise --conversation-limit or make the row shorter" in err
    assert "with a larger --conversation-limit ... helps; else they have to be made shorter" in out
    for said in (out, err):
        assert "ConversationPolicy" not in said
        assert "larger --num-ctx" not in said
        assert "--trim" not in said, "it has a strategy"


def test_a_row_that_the_engine_refuses_for_what_it_is_fails_at_once(
    toy: EmbeddedEngine, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    seeing = line("sees")
    seeing["body"]["messages"][0]["content"] = [{"type": "text", "text": "what?"}, picture]
    runner = runner_on(fake_ollama, engine=toy, model="toy", max_tokens=8, on_length="keep")
    report = runner.run(
        write_lines(tmp_path / "in.jsonl", [seeing, line("r1")]), output=tmp_path / "out.jsonl"
    )
    (failed,) = (result for result in report.results() if not result.ok)
    assert failed.error is not None
    assert (failed.custom_id, failed.attempts, failed.error.code) == ("sees", 1, "unsupported_parameter")
    assert failed.error.message.startswith("the model takes no images: ")
    assert (report.metrics.retried, report.counts.ok) == (0, 1)
    assert "retry_failed" not in str(report)
    assert "with a model or an engine that can" in str(report)
    (written,) = read_lines(tmp_path / "out.errors.jsonl")
    assert json.dumps(written).count("the model takes no images") == 1


def test_other_fields_of_an_embedded_engine_are_refused_of_a_finished_run_too(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    source = rows_file(tmp_path / "in.jsonl", 2)

    def run(top_k: int) -> BatchReport[Any]:
        engine = EmbeddedEngine.toy(num_ctx=512, extra_body={"top_k": top_k})
        options: dict[str, Any] = {"model": "toy", "max_tokens": 4, "on_length": "keep"}
        try:
            return runner_on(fake_ollama, engine=engine, **options).run(source, output=tmp_path / "out.jsonl")
        finally:
            asyncio.run(engine.aclose())

    assert run(5).counts.sent == 2
    with pytest.raises(JournalMismatchError, match=r"extra_body.top_k was 5, is 6"):
        run(6)
    assert run(5).counts.resumed == 2


def test_rows_that_were_no_requests_are_not_counted_as_refused_ones(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line("r0", n=2), line("r1")])
    report = runner_on(fake_ollama).run(source, output=tmp_path / "out.jsonl", on_invalid="skip")
    assert [(each.code, each.valid) for each in report.error_examples] == [("unsupported_parameter", False)]
    assert "the engine cannot do" not in str(report)
    assert "no valid request: run the mended lines as a file of their own" in str(report)


def test_a_notice_of_the_context_is_one_of_the_run(small: FakeOllama, tmp_path: Path) -> None:
    report = runner_on(small, num_ctx=4096).run(rows_file(tmp_path / "in.jsonl", 2))
    assert not any("trained" in note for note in report.notes), "no more was asked for"
    assert "context 4,096 (" not in str(report)
