"""What figures say of the work of an engine: every answer counts, also those that were asked for again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from answer_shapes import PLAIN, Verdict
from ollama_batch import BatchRequest, _error_examples
from ollama_batch.analysis import analyze
from ollama_batch.errors import RunCancelledError
from ollama_batch.testing import FakeOllama, FakeReply
from runner_support import line, read_lines, rows_file, runner_on, write_lines

Factory = Callable[..., FakeOllama]
WAIT = "wait"
"""In the place of an answer: one that comes too late."""


class Counting:
    """A `reply` that says what each answer cost, and adds up what it has said: the server's own books.

    The n-th answer to a row is the n-th of its `texts`, or the last; a number is an HTTP status.
    """

    def __init__(self, texts: Mapping[str, list[str | int]]) -> None:
        self._texts = texts
        self._times: dict[str, int] = {}
        self.answers = self.prompt = self.completion = self.cached = 0

    def __call__(self, body: Mapping[str, Any]) -> FakeReply:
        name = next(each for each in body["messages"] if each["role"] == "user")["content"].split("\n")[0]
        texts = self._texts.get(name, [PLAIN])
        n = self._times[name] = self._times.get(name, 0) + 1
        text = texts[min(n, len(texts)) - 1]
        if text == WAIT:
            return FakeReply(PLAIN, delay_s=30)
        if isinstance(text, int):
            return FakeReply(status=text, body="no")
        self.answers += 1
        cost = {"prompt_tokens": 100 + 7 * self.answers, "completion_tokens": 10 + self.answers}
        self.prompt += cost["prompt_tokens"]
        self.completion += cost["completion_tokens"]
        self.cached += 50
        return FakeReply(text, cached_tokens=50, **cost)


def test_tokens_and_requests_are_those_that_the_server_worked_on(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    books = Counting({"r1": ["no", PLAIN], "r2": ["no", "no", PLAIN], "r3": ["no"], "r4": ["no", 400]})
    fake = fake_ollama_factory(reply=books)
    source, output = rows_file(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    report = runner_on(fake, response_model=Verdict, output_retries=2, concurrency=1).run(
        source, output=output
    )
    m = report.metrics
    assert (m.ok, m.failed, m.asked_again) == (4, 2, 6)
    assert books.answers == 2 + 2 + 3 + 3 + 1
    assert (m.answers, m.earlier_answers) == (11, 6)
    assert (m.prompt_tokens, m.completion_tokens) == (books.prompt, books.completion)
    assert (m.cached_tokens, m.cached_reported) == (books.cached, 11)
    assert [(head.rows, head.prompt_tokens) for head in m.heads] == [(6, books.prompt)]
    assert m.rows_per_s is not None
    assert m.requests_per_s == pytest.approx(m.rows_per_s * 12 / 6)
    assert m.tokens_per_s == pytest.approx((books.prompt + books.completion) / m.elapsed_s)
    assert m.prompt_tokens_mean == pytest.approx(books.prompt / 11)
    text = str(report)
    assert f"{books.prompt:,} prompt ({books.prompt / 11:.0f} a request)" in text
    assert "with 6 asked for again" in text
    assert "rows/s)" in text

    results = {each.custom_id: each for each in report.results()}
    for row, earlier in {"r0": 0, "r1": 1, "r2": 2, "r3": 2, "r4": 1, "r5": 0}.items():
        assert len(results[row].earlier_usage) == earlier, row
    assert results["r4"].usage is None, "its last request had no answer"
    told = [each for result in results.values() for each in (*result.earlier_usage, result.usage) if each]
    assert sum(each.prompt_tokens for each in told) == books.prompt
    written = {each["custom_id"]: each for each in read_lines(output)}
    last = results["r2"].usage
    assert last is not None
    assert written["r2"]["response"]["body"]["usage"]["prompt_tokens"] == last.prompt_tokens
    assert "ollama_batch" not in written["r0"]

    for given in (output, f"{output}.run.db"):
        tokens = analyze(given).tokens
        assert (tokens.prompt, tokens.completion, tokens.cached) == (
            books.prompt,
            books.completion,
            books.cached,
        )
        assert (tokens.reported, tokens.earlier, tokens.cached_reported) == (5, 6, 11)


def test_a_resumed_run_loses_none_and_rows_sent_again_keep_what_they_cost(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    books = Counting({"r0": ["no", PLAIN], "r1": ["no", "no", "no", PLAIN], "r2": ["no", PLAIN]})
    fake = fake_ollama_factory(reply=books)
    source, output = rows_file(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    runner = runner_on(fake, response_model=Verdict, concurrency=1)
    run = runner.start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count("r3") == 1)
    run.cancel()
    with pytest.raises(RunCancelledError):
        run.wait(timeout=10)
    second = runner.run(source, output=output)
    assert second.counts.failed == 1
    third = runner.run(source, output=output, retry_failed=True)
    assert (third.counts.ok, third.counts.failed) == (5, 0)
    journal = f"{output}.run.db"
    tokens = analyze(journal).tokens
    assert (tokens.prompt, tokens.completion, tokens.cached) == (books.prompt, books.completion, books.cached)
    assert (tokens.reported, tokens.earlier) == (5, books.answers - 5)
    assert f"{books.answers - 5} answers before the last" in str(analyze(journal))
    assert [len(each.earlier_usage) for each in third.results()] == [1, 1, 1, 0, 0]


def test_what_a_row_had_cost_when_a_run_was_stopped_is_counted(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    """The row is asked again while the run is told to stop: its second answer never comes."""
    books = Counting({"r1": ["no", WAIT, PLAIN]})
    fake = fake_ollama_factory(reply=books)
    source, output = rows_file(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    runner = runner_on(fake, response_model=Verdict, concurrency=1)
    run = runner.start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count() == 3)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError) as stopped:
        run.wait(timeout=10)
    m = stopped.value.report.metrics
    assert (m.ok, m.answers, m.earlier_answers) == (1, 2, 1)
    assert (m.prompt_tokens, m.completion_tokens) == (books.prompt, books.completion)
    assert runner.run(source, output=output).counts.ok == 3
    assert books.answers == 4
    tokens = analyze(f"{output}.run.db").tokens
    assert (tokens.prompt, tokens.completion, tokens.earlier) == (books.prompt, books.completion, 1)


def test_a_report_names_the_limit_that_has_cut_an_answer_off(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply=lambda body: FakeReply("so far", done_reason="length"))
    lines = [line("own1", max_tokens=7), line("own2", max_completion_tokens=9), line("run1")]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"
    for _ in range(2):  # the second is told from the journal
        report = runner_on(fake, max_tokens=33).run(source, output=output)
        text = str(report)
        assert report.own_max_tokens == 2
        assert "max_tokens 33 (2 rows have their own)" in text
        (example,) = report.error_examples
        assert (example.count, dict(example.params)) == (3, {"max_tokens": 2})
        assert (
            "2 output_truncated (own1, own2): the answer was cut off by its token limit; raise the row's own"
            in text
        )
        assert (
            "1 output_truncated (run1): the answer was cut off by its token limit; raise max_tokens" in text
        )
        assert "answers were cut off: a new run (another output=, or overwrite=True) with a larger" in text
        assert "answers were cut off by max_tokens of their rows: run these with a larger one" in text
    requests = [BatchRequest.chat("a", max_tokens=5), BatchRequest.chat("b", max_tokens=6)]
    report = runner_on(fake, max_tokens=33).run(iter(requests))
    text = str(report)
    assert "max_tokens 33 (not used: every row has its own)" in text
    assert "with a larger max_tokens=" not in text


def test_messages_of_a_code_are_told_apart_with_their_rows(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    """What is said of one row alone, numbers, ids and its place in a file, makes no message of its own."""

    def refuse(body: Mapping[str, Any]) -> FakeReply:
        name = body["messages"][0]["content"].split("\n")[0]
        why = ["bad grammar in {0}", "no such tool t-{1}", "image {1} of {0} is broken"][int(name[1:]) % 3]
        return FakeReply(status=400, body={"error": why.format(name, 1000 + len(name))})

    fake = fake_ollama_factory(reply=refuse)
    report = runner_on(fake).run(rows_file(tmp_path / "in.jsonl", 8), output=tmp_path / "out.jsonl")
    (example,) = report.error_examples
    assert [(kind.count, kind.custom_ids) for kind in example.kinds] == [
        (3, ("r0", "r3", "r6")),
        (3, ("r1", "r4", "r7")),
        (2, ("r2", "r5")),
    ]
    assert example.custom_ids == example.kinds[0].custom_ids
    assert example.message == example.kinds[0].message
    text = str(report)
    assert "3 request_rejected (r0, r3, r6): " in text
    assert "2 request_rejected (r2, r5): " in text


def test_failed_rows_beyond_those_that_are_read_are_counted_all_the_same(
    fake_ollama_factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_error_examples, "LOOKED_AT", 4)
    fake = fake_ollama_factory(reply=Counting({"r6": [422], **{f"r{n}": [400] for n in range(6)}}))
    report = runner_on(fake).run(rows_file(tmp_path / "in.jsonl", 7), output=tmp_path / "out.jsonl")
    (example,) = report.error_examples
    assert example.count == 7
    assert sum(kind.count for kind in example.kinds) == 4
    assert "3 more with these codes" in str(report)
