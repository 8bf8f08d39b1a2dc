"""Runs with a response model: what becomes of 60 answers, what is asked again, what a journal gives back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from answer_shapes import PLAIN, SHAPES, YES, Verdict
from conversation_support import HEAD, Prompts, own_name, row, talker
from ollama_batch import BatchRequest, BatchRunner, HybridTrim, JsonSchema, OpenAIEngine, TrimStrategy
from ollama_batch.errors import ConfigError, JournalMismatchError, MissingExtraError, RunCancelledError
from ollama_batch.events import RowRetried
from ollama_batch.structured import reading
from ollama_batch.testing import FakeOllama, FakeReply
from runner_support import Events, line, read_lines, rows_file, runner_on, write_lines

Factory = Callable[..., FakeOllama]
WRONG = '{"verdict": "yes", "score": 7}'


def first_question(body: Mapping[str, Any]) -> str:
    return str(next(each for each in body["messages"] if each["role"] == "user")["content"]).split("\n")[0]


class Script:
    """A `reply` that gives each row the answers prepared for it, one after another, then the last."""

    def __init__(self, answers: Mapping[str, list[str | FakeReply]]) -> None:
        self._answers = answers
        self.asked: dict[str, list[list[Mapping[str, Any]]]] = {}

    def __call__(self, body: Mapping[str, Any]) -> str | FakeReply | None:
        name = first_question(body)
        if name not in self._answers:
            return None
        times = self.asked.setdefault(name, [])
        times.append(body["messages"])
        prepared = self._answers[name]
        return prepared[min(len(times), len(prepared)) - 1]


@pytest.fixture(params=["ollama", "openai"])
def engine(request: pytest.FixtureRequest) -> Callable[[FakeOllama], Any]:
    """What makes an engine for a fake; None is the default one."""
    return (lambda fake: None) if request.param == "ollama" else (lambda fake: OpenAIEngine(fake.url))


def test_each_of_sixty_answers_ends_as_the_table_says(
    fake_ollama_factory: Factory, engine: Callable[[FakeOllama], Any], tmp_path: Path
) -> None:
    script = Script({f"s{n}": [shape.reply, PLAIN] for n, shape in enumerate(SHAPES)})
    fake = fake_ollama_factory(reply=script)
    source = write_lines(tmp_path / "in.jsonl", [line(f"s{n}") for n in range(len(SHAPES))])
    made = engine(fake)
    runner = runner_on(
        fake, response_model=Verdict, num_ctx=4096, **({} if made is None else {"engine": made})
    )
    report = runner.run(source, output=tmp_path / "out.jsonl")
    results = list(report.results())
    assert len(results) == len(SHAPES)
    for n, (shape, result) in enumerate(zip(SHAPES, results, strict=True)):
        asked = script.asked[f"s{n}"]
        what = f"{shape.name}: {result}"
        assert result.attempts == len(asked), what
        if shape.outcome == "failed":
            assert (result.ok, result.parsed, result.repaired, len(asked)) == (False, None, False, 1), what
            assert result.error is not None
            assert result.error.code == shape.fault, what
            continue
        assert result.ok, what
        assert isinstance(result.parsed, Verdict), what
        assert result.asked_again == (shape.outcome == "asked again"), what
        assert len(asked) == 1 + result.asked_again, what
        assert result.repaired is (shape.outcome == "repaired"), what
        assert result.parsed.model_dump(exclude_unset=True) == (shape.means or YES), what
        if shape.outcome != "asked again":
            assert result.output == shape.reply, what
    metrics = report.metrics
    assert metrics.repaired == sum(shape.outcome == "repaired" for shape in SHAPES)
    assert metrics.asked_again == sum(shape.outcome == "asked again" for shape in SHAPES)
    assert f"{metrics.asked_again} asked again, {metrics.repaired} repaired" in str(report)
    if made is not None:
        asyncio.run(made.aclose())


def test_what_asks_again_is_the_prompt_the_answer_and_what_is_wrong_with_it(
    fake_ollama_factory: Factory,
) -> None:
    script, events = Script({"a": [WRONG, PLAIN]}), Events()
    fake = fake_ollama_factory(reply=script)
    request = BatchRequest.chat("a\nthe question", system="you judge")
    (result,) = runner_on(fake, response_model=Verdict, hooks=[events]).run([request]).results()
    assert (result.ok, result.parsed, result.asked_again) == (True, Verdict(**YES), 1)
    first, second = script.asked["a"]
    assert second[:2] == first == [HEAD, {"role": "user", "content": "a\nthe question"}]
    assert second[2] == {"role": "assistant", "content": WRONG}
    complaint = second[3]["content"]
    assert second[3]["role"] == "user"
    assert "does not fit Verdict: verdict: Input should be 'Yes' or 'No'" in complaint
    assert json.loads(complaint.partition("\n")[2]) == Verdict.model_json_schema()
    (retried,) = events.of(RowRetried)
    assert (retried.code, retried.attempt, retried.wait_s) == ("output_unparsed", 1, 0.0)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_row_is_asked_again_as_often_as_is_allowed_and_then_fails_with_its_last_answer(
    fake_ollama_factory: Factory, tmp_path: Path, retries: int
) -> None:
    answers: list[str | FakeReply] = [WRONG, "no", "{", '{"verdict": 1}']
    script = Script({"a": answers})
    fake = fake_ollama_factory(reply=script)
    runner = runner_on(fake, response_model=Verdict, output_retries=retries)
    report = runner.run(["a"], output=tmp_path / "out.jsonl")
    (result,) = report.results()
    assert (result.ok, result.parsed, result.output) == (False, None, answers[retries])
    assert (result.attempts, result.asked_again) == (1 + retries, retries)
    assert result.error is not None
    assert (result.error.code, result.error.row_caused) == ("output_unparsed", True)
    # Always behind the row's own prompt: what was said in between does not pile up.
    assert [len(messages) for messages in script.asked["a"]] == [1, *[3] * retries]
    (written,) = read_lines(tmp_path / "out.errors.jsonl")
    assert written["response"]["body"]["choices"][0]["message"]["content"] == answers[retries]
    assert written["error"]["code"] == "output_unparsed"
    told = written.get("ollama_batch", {})
    assert told.get("asked_again", 0) == retries
    assert len(told.get("earlier_usage", ())) == retries


def test_other_trouble_while_asking_again_has_its_own_budget_and_outcome(
    fake_ollama_factory: Factory,
) -> None:
    script = Script(
        {
            "a": [WRONG, FakeReply(PLAIN, done_reason="length")],
            "b": [WRONG, FakeReply(status=500, body="x"), PLAIN],
        }
    )
    fake = fake_ollama_factory(reply=script)
    a, b = runner_on(fake, response_model=Verdict).run(["a", "b"]).results()
    assert a.error is not None
    assert (a.error.code, a.asked_again, a.parsed) == ("output_truncated", 1, None)
    assert (b.ok, b.asked_again, b.attempts) == (True, 1, 3)


def test_a_prompt_that_asks_again_is_never_sent_if_it_does_not_fit(fake_ollama_factory: Factory) -> None:
    schema = JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    fake = fake_ollama_factory(reply="no", tokenizer="words")
    long = "a " + "word " * 165
    runner = runner_on(fake, response_model=schema, num_ctx=200, max_tokens=20, output_retries=5)
    short, full = runner.run(["short", long]).results()
    assert (short.attempts, full.attempts) == (6, 1)
    for result in (short, full):
        assert result.error is not None
        assert result.error.code == "output_unparsed"
    assert full.asked_again == 0


TOO_LONG = {"error": {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 9999}}


@pytest.mark.parametrize("trim", [None, HybridTrim()], ids=["", "trimmed"])
def test_a_prompt_that_asks_again_and_is_refused_as_too_long_fails_its_row_for_its_answer(
    fake_ollama_factory: Factory, trim: TrimStrategy | None
) -> None:
    """The row's own prompt was not too long, and is not to be cut for what was said about its answer."""
    refused = FakeReply(status=400, body={"error": json.dumps(TOO_LONG)})
    script = Script({"a": [WRONG, refused, PLAIN]})
    fake = fake_ollama_factory(reply=script)
    (result,) = runner_on(fake, response_model=Verdict, output_retries=5, trim=trim).run(["a"]).results()
    assert result.error is not None
    assert (result.error.code, result.output) == ("output_unparsed", WRONG)
    assert len(script.asked["a"]) == 2


# What the engine is told


def test_the_engine_is_given_the_schema_as_the_official_client_gives_it(fake_ollama: FakeOllama) -> None:
    client = ollama.Client(host=fake_ollama.url, trust_env=False)
    messages = [{"role": "user", "content": "x"}]
    answer = client.chat("toy:1b", messages, format=Verdict.model_json_schema(), think=False)
    client.close()
    Verdict.model_validate_json(answer.message.content or "")
    assert runner_on(fake_ollama, response_model=Verdict).run(["x"]).ok
    theirs, ours = fake_ollama.ledger.completions()
    assert json.dumps(theirs.sent["format"]) == json.dumps(ours.sent["format"])  # in this order
    assert theirs.sent["think"] is ours.sent["think"] is False


def test_an_openai_server_is_given_the_schema_as_response_format(fake_ollama: FakeOllama) -> None:
    engine = OpenAIEngine(fake_ollama.url)
    assert runner_on(fake_ollama, response_model=Verdict, engine=engine).run(["x"]).ok
    (asked,) = fake_ollama.ledger.completions()
    assert asked.sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Verdict", "schema": Verdict.model_json_schema()},
    }
    asyncio.run(engine.aclose())


def test_a_format_of_the_row_or_the_defaults_is_what_the_engine_is_told_and_the_model_still_checks(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply=Script({"own": [PLAIN], "none": [PLAIN], "wrong": [WRONG]}))
    any_object = {"type": "json_object"}
    source = write_lines(
        tmp_path / "in.jsonl",
        [line("own", response_format=any_object), line("none"), line("wrong", response_format=any_object)],
    )
    own, none, wrong = runner_on(fake, response_model=Verdict, output_retries=0).run(source).results()
    assert (own.parsed, none.parsed, wrong.parsed) == (Verdict(**YES), Verdict(**YES), None)
    formats = {asked.key: asked.sent["format"] for asked in fake.ledger.completions()}
    assert formats == {"own": "json", "none": Verdict.model_json_schema(), "wrong": "json"}
    runner_on(fake, response_model=Verdict, defaults={"response_format": any_object}).run(["none"])
    assert fake.ledger.completions()[-1].sent["format"] == "json"


def test_without_a_response_model_a_row_s_own_format_passes_and_nothing_is_checked(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(reply="no JSON at all")
    form = {"type": "json_schema", "json_schema": {"name": "v", "schema": Verdict.model_json_schema()}}
    source = write_lines(tmp_path / "in.jsonl", [line("a", response_format=form)])
    (result,) = runner_on(fake).run(source).results()
    assert (result.ok, result.parsed, result.output) == (True, None, "no JSON at all")
    assert fake.ledger.completions()[0].sent["format"] == Verdict.model_json_schema()


# What is kept, and given back


def test_a_line_holds_the_model_s_own_text_and_what_that_was_repaired_to(
    fake_ollama_factory: Factory, tmp_path: Path
) -> None:
    fenced = f"```json\n{PLAIN}\n```"
    fake = fake_ollama_factory(reply=Script({"a": [PLAIN], "b": [fenced], "c": [WRONG, fenced]}))
    runner_on(fake, response_model=Verdict).run(["a", "b", "c"], output=tmp_path / "out.jsonl")
    a, b, c = read_lines(tmp_path / "out.jsonl")
    texts = [each["response"]["body"]["choices"][0]["message"]["content"] for each in (a, b, c)]
    assert texts == [PLAIN, fenced, fenced]
    assert "ollama_batch" not in a
    assert b["ollama_batch"] == {"parsed": YES}
    (earlier,) = c["ollama_batch"].pop("earlier_usage")
    assert earlier.keys() >= {"prompt_tokens", "completion_tokens"}
    assert c["ollama_batch"] == {"parsed": YES, "asked_again": 1}


def test_a_resumed_run_gives_the_answers_of_earlier_sessions_as_objects(
    fake_ollama_factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were repaired then are not repaired once more: another release might do it otherwise."""
    answers: dict[str, list[str | FakeReply]] = {
        "r0": [PLAIN],
        "r1": ["{'verdict': 'Yes', 'score': 7,}"],
        "r2": [WRONG, PLAIN],
        "r3": ["no"],
        "r4": [FakeReply(PLAIN, delay_s=30)],
    }
    fake = fake_ollama_factory(reply=Script(answers))
    source, output = rows_file(tmp_path / "in.jsonl", 8), tmp_path / "out.jsonl"
    run = runner_on(fake, response_model=Verdict, concurrency=1).start(source, output=output)
    fake.wait_until(lambda ledger: ledger.count("r4") == 1)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(timeout=10)
    monkeypatch.setattr(reading, "repaired", None)
    answers["r4"] = [PLAIN]
    runner = runner_on(fake, response_model=Verdict, concurrency=1)
    streamed = {each.custom_id: each for each in runner.iter_results(source, output=output)}
    again = {each.custom_id: each for each in runner.run(source, output=output).results()}
    for results in (streamed, again):
        assert len(results) == 8
        for name in ("r0", "r1", "r2", "r4"):
            assert results[name].parsed == Verdict(**YES), name
        assert [results[f"r{n}"].repaired for n in range(5)] == [False, True, False, False, False]
        assert [results[f"r{n}"].asked_again for n in range(5)] == [0, 0, 1, 1, 0]
        assert (results["r3"].ok, results["r3"].parsed) == (False, None)
        assert all(isinstance(results[f"r{n}"].parsed, Verdict) for n in (5, 6, 7))
    assert fake.ledger.count("r0") == 1


def test_every_way_to_run_gives_objects(fake_ollama: FakeOllama) -> None:
    runner = runner_on(fake_ollama, response_model=Verdict)

    async def all_ways() -> list[Any]:
        report = await runner.arun(["a"])
        return [
            *[each.parsed async for each in runner.stream(["b"])],
            *[each.parsed for each in report.results()],
            *[each.parsed for each in (await runner.start(["c"])).results()],
        ]

    found = asyncio.run(all_ways())
    found += [each.parsed for each in runner.iter_results(["d"])]
    found += list(runner.run(["e"]).to_pandas()["parsed"])
    assert len(found) == 5
    assert all(isinstance(each, Verdict) for each in found)


class Changed(BaseModel):
    """Verdict as it may be the next day."""

    verdict: str
    score: int = 1


def test_a_validator_that_has_changed_makes_parsed_none_and_says_so(
    fake_ollama_factory: Factory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = fake_ollama_factory(reply=PLAIN)
    runner = runner_on(fake, response_model=Verdict)
    report = runner.run(["a", "b"], output=tmp_path / "out.jsonl")
    form = runner.options.form
    assert form is not None
    monkeypatch.setattr(form, "_adapter", runner_on(fake, response_model=Node).options.form._adapter)
    assert [(each.ok, each.parsed) for each in report.results()] == [(True, None), (True, None)]
    assert caplog.text.count("does not take that any more") == 1


class Node(BaseModel):
    """A model that refers to itself."""

    value: int
    children: list[Node]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (Verdict, None, "response_model was Verdict, is not set"),
        (None, Verdict, "response_model was not set, is Verdict"),
        (Verdict, Changed, "response_model was Verdict, is Changed"),
        (
            JsonSchema({"properties": {"a": {"maximum": 5}}}),
            JsonSchema({"properties": {"a": {"maximum": 10}}}),
            "response_model.schema.properties.a.maximum was 5, is 10",
        ),
        (JsonSchema({}, name="a"), JsonSchema({}, name="b"), 'response_model.name was "a", is "b"'),
        (
            JsonSchema({"properties": {"a": {}, "b": {}}}),
            JsonSchema({"properties": {"b": {}, "a": {}}}),
            "response_model.digest was",
        ),
    ],
    ids=["taken away", "added", "another", "a rule", "a name", "an order"],
)
def test_another_response_model_is_refused_and_the_difference_shown(
    fake_ollama: FakeOllama, tmp_path: Path, before: Any, now: Any, said: str
) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    runner_on(fake_ollama, response_model=before).run(source, output=output)
    with pytest.raises(JournalMismatchError) as caught:
        runner_on(fake_ollama, response_model=now).run(source, output=output)
    assert said in str(caught.value)
    # How often is asked again may change, as other retries may.
    again = runner_on(fake_ollama, response_model=before, output_retries=3).run(source, output=output)
    assert again.counts.resumed == 2


# Conversations


class Judge(Prompts):
    """Answers with verdicts, of rows named `bad` wrongly, once."""

    def __init__(self, bad: str, *, always: bool = False) -> None:
        super().__init__()
        self._bad = bad
        self._always = always

    def __call__(self, body: Mapping[str, Any]) -> str:
        messages = [dict(message) for message in body["messages"]]
        self.asked.append(messages)
        last = str(messages[-1]["content"])
        again = last.startswith("This cannot be used")
        row_name = str(messages[-3]["content"]).split()[0] if again else last.split()[0]
        return "not so" if row_name == self._bad and (self._always or not again) else PLAIN


NAMES = [f"r{n}" for n in range(9)]


@pytest.mark.parametrize("always", [False, True], ids=["asked again", "failed"])
def test_what_asks_again_and_what_fails_is_no_part_of_the_conversation(
    fake_ollama_factory: Factory, tmp_path: Path, always: bool
) -> None:
    judge = Judge("r2", always=always)
    fake = fake_ollama_factory(reply=judge, tokenizer="words")
    source = write_lines(tmp_path / "in.jsonl", map(row, NAMES))
    report = talker(fake, lanes=1, response_model=Verdict).run(source, output=tmp_path / "out.jsonl")
    results = list(report.results())
    assert [each.ok for each in results] == [not (always and each.custom_id == "r2") for each in results]
    assert all(isinstance(each.parsed, Verdict) is each.ok for each in results)
    said: list[dict[str, Any]] = []
    prompts = iter(judge.asked)
    for name in NAMES:
        own = row(name)["body"]["messages"][1]
        assert next(prompts) == [HEAD, *said, own]
        if name == "r2":
            again = next(prompts)
            assert again[:-1] == [HEAD, *said, own, {"role": "assistant", "content": "not so"}]
            if always:
                continue
        said += [own, {"role": "assistant", "content": PLAIN}]
    assert next(prompts, None) is None


@pytest.mark.parametrize("bad", [4, 10])
def test_a_conversation_goes_on_as_an_unbroken_one_behind_a_row_that_was_asked_again(
    fake_ollama_factory: Factory, tmp_path: Path, bad: int
) -> None:
    """Also in when it is cut: the length of the prompt that asked again is not that of the conversation."""

    def run(folder: Path, *, broken: bool) -> dict[str, list[dict[str, Any]]]:
        folder.mkdir()
        judge = Judge(f"r{bad}")
        fake = fake_ollama_factory(reply=judge, tokenizer="words")
        source = write_lines(folder / "in.jsonl", [row(name, words=20) for name in names])
        options: dict[str, Any] = {"lanes": 1, "num_ctx": 420, "max_tokens": 32, "response_model": Verdict}
        if broken:
            runner = talker(fake, **options)
            assert runner.run(source, output=folder / "out.jsonl", limit=bad + 1).ok
        report = talker(fake, **options).run(source, output=folder / "out.jsonl")
        assert report.ok
        assert report.metrics.trims > 0
        # The last prompts of rows, less our own questions about how the engine counts.
        return {own_name(each): each for each in judge.asked if each[0] == HEAD and own_name(each) in names}

    names = [f"r{n}" for n in range(30)]
    whole, broken = run(tmp_path / "whole", broken=False), run(tmp_path / "broken", broken=True)
    assert whole == broken
    assert len(whole) == len(names)


# Wrong use


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"response_model": int}, "response_model=int: an answer is a JSON object"),
        ({"response_model": Verdict, "on_length": "keep"}, 'on_length="keep" counts what was cut off'),
        ({"output_retries": -1}, "output_retries=-1: must be a whole number from 0 to 100"),
        ({"output_retries": 1.5}, "output_retries=1.5: must be"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BatchRunner(model="toy:1b", **options)


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_batch.structured.form.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[structured\]"'):
        BatchRunner(model="toy:1b", response_model=Verdict)
