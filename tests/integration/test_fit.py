"""Every prompt is known to fit before it is sent: runs on fakes that cut or refuse, and on llama.cpp."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchReport, OpenAIEngine, RetryPolicy
from ollama_batch.errors import InputError, RunCancelledError
from ollama_batch.events import Decision, RowSent
from ollama_batch.testing import FakeModel, FakeOllama, Fault, LedgerRecord
from ollama_batch.testing._prompts import measure
from ollama_batch.testing._toy_words import WORDS
from ollama_batch.tokens import EstimateCounter
from ollama_batch.trim import AggressiveTrim, HybridTrim, ImportanceTrim, SlidingWindowTrim
from ollama_batch.types import Message
from runner_support import MODEL, Events, line, runner_on, write_lines
from tokens_support import WordCounter

NUM_CTX, ANSWER = 2048, 64
PROBES = 32
STRATEGIES = [SlidingWindowTrim(), HybridTrim(), ImportanceTrim(), AggressiveTrim(limit=NUM_CTX)]


def prose(rng: random.Random, chars: int) -> str:
    """So many characters of words, with a name or a number here and there."""
    text = ""
    while len(text) < chars:
        text += rng.choice(WORDS if rng.random() < 0.95 else ("Björn", "PostgreSQL", "2024", "(C++)")) + " "
    return text[:chars]


def true_tokens(request: Mapping[str, Any]) -> int:
    """The tokens that the fake engine counts."""
    messages = [{**m, "images": ()} for m in request["body"]["messages"]]
    return measure(messages, "chars")[1]


def single(rng: random.Random, name: str, tokens: int) -> dict[str, Any]:
    """A request of so many tokens, all in one message."""
    return line(name, prose(rng, 4 * tokens - len(name) - 20), max_tokens=ANSWER)


def conversation(rng: random.Random, name: str, tokens: int) -> dict[str, Any]:
    """A request of so many tokens with a head, exchanges, and a short question at the end."""
    messages: list[Message] = [{"role": "system", "content": "You judge candidates."}]
    for turn in range(8):
        role = "assistant" if turn % 2 else "user"
        messages.append({"role": role, "content": prose(rng, tokens // 2)})
    messages.append({"role": "user", "content": f"{name}\nAnd now?"})
    return {**line(name), "body": {"messages": messages, "max_tokens": ANSWER}}


def sent_rows(fake: FakeOllama) -> list[LedgerRecord]:
    """What a server was sent for rows, our own questions (for one token each) aside."""
    return [
        record
        for record in fake.ledger.completions()
        if 1 not in (record.sent.get("max_tokens"), record.sent.get("options", {}).get("num_predict"))
    ]


def sent(fake: FakeOllama) -> set[str]:
    """The rows that a server was sent."""
    return {record.key for record in sent_rows(fake)}


def mixed(make: Any, *, ordinary: int = 300, planted: int = 100) -> tuple[list[dict[str, Any]], set[str]]:
    """Requests of all lengths, a third of them close below the limit, and over-long ones among them."""
    rng, room = random.Random(7), NUM_CTX - ANSWER
    rows = []
    for n in range(ordinary):
        rows.append(make(rng, f"r{n}", rng.randint(50, 1400) if n % 3 else rng.randint(1400, 1650)))
    for n in range(planted):
        tokens = rng.randint(room + 20, 2 * NUM_CTX) if n % 4 else rng.randint(5 * NUM_CTX, 9 * NUM_CTX)
        rows.append(make(rng, f"long{n}", tokens))
    rng.shuffle(rows)
    return rows, {row["custom_id"] for row in rows if true_tokens(row) > room}


def run_on_v1(fake: FakeOllama, rows: list[dict[str, Any]], output: Path, **options: Any) -> BatchReport[Any]:
    """A run through the OpenAI form of Ollama, which cannot be told to refuse what is too long."""
    engine = OpenAIEngine(fake.url)
    try:
        return runner_on(fake, engine=engine, **options).run(rows, output=output)
    finally:
        asyncio.run(engine.aclose())


@pytest.fixture(params=[True, False], ids=["rendered", "native"])
def fake(request: pytest.FixtureRequest, fake_ollama_factory: Any) -> FakeOllama:
    """A server in each of Ollama's two chat paths, which treat prompts that are too long differently."""
    fake: FakeOllama = fake_ollama_factory(models=[FakeModel(MODEL, rendered=request.param)])
    return fake


def test_rows_that_are_too_long_fail_by_name_and_are_never_sent(fake: FakeOllama, tmp_path: Path) -> None:
    rows, planted = mixed(single)
    assert len(planted) >= 100
    events = Events()
    runner = runner_on(fake, num_ctx=NUM_CTX, hooks=[events], state_dir=tmp_path / "state")
    report = runner.run(rows, output=tmp_path / "out.jsonl")
    failed = {result.custom_id: result for result in report.results() if not result.ok}
    assert failed.keys() == planted
    for result in failed.values():
        assert result.error is not None
        assert result.error.code == "context_length_exceeded"
        assert (
            "there is room for 1,984 (num_ctx 2,048 less the row's own max_tokens 64)" in result.error.message
        )
        assert "set trim" in result.error.message
        assert result.attempts == 0
    assert planted.isdisjoint(sent(fake))
    assert {record.outcome for record in sent_rows(fake)} == {"answered"}
    # What was asked beside the rows are the questions by which the run learned to count.
    asked = fake.ledger.count() - (len(rows) - len(planted))
    assert PROBES <= asked <= PROBES + 20  # and the few rows that were in doubt
    assert [event.kind for event in events.of(Decision) if event.kind == "asked_engine"] == ["asked_engine"]
    assert fake.ledger.loads == 1


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_rows_that_are_too_long_are_trimmed_and_say_so(
    fake: FakeOllama, tmp_path: Path, strategy: Any
) -> None:
    rows, planted = mixed(conversation, ordinary=100)
    assert len(planted) >= 100
    runner = runner_on(fake, num_ctx=NUM_CTX, trim=strategy, state_dir=None)
    report = runner.run(rows, output=tmp_path / "out.jsonl")
    assert report.counts.failed == 0
    # The server was told to refuse what does not fit: it had nothing to refuse.
    assert {record.outcome for record in sent_rows(fake)} == {"answered"}
    trimmed = {result.custom_id: result.trim for result in report.results() if result.trim is not None}
    assert planted <= trimmed.keys()
    for result in report.results():
        assert result.usage is not None
        assert result.usage.prompt_tokens <= NUM_CTX - ANSWER
        true = true_tokens(next(row for row in rows if row["custom_id"] == result.custom_id))
        altered = result.usage.prompt_tokens < true
        assert altered == (result.trim is not None)
    for trim in trimmed.values():
        assert trim["tokens_after"] < trim["tokens_before"]
    metrics = report.metrics
    assert metrics.trims == len(trimmed)
    assert metrics.trim_saved_tokens == sum(trim["tokens_saved"] for trim in trimmed.values())
    # Few rows are trimmed that would have fitted.
    assert len(trimmed.keys() - planted) <= 10


@pytest.mark.parametrize("first", [True, False], ids=["long first", "long among others"])
def test_what_a_server_cuts_in_silence_is_no_answer(fake: FakeOllama, tmp_path: Path, first: bool) -> None:
    """Ollama's `/v1`, where nobody can ask for an error: only its count gives it away."""
    rng = random.Random(3)
    context = fake.config.num_ctx
    rows = [single(rng, f"r{n}", rng.randint(50, round(0.85 * context))) for n in range(150)]
    long = [single(rng, f"long{n}", rng.randint(context + 20, 4 * context)) for n in range(20)]
    rows[60:60] = long
    if first:
        rows.insert(0, rows.pop(60))
    options = {"concurrency": 1 if first else 8, "order": "input", "state_dir": None}
    report = run_on_v1(fake, rows, tmp_path / "out.jsonl", **options)
    codes = {r.custom_id: None if r.error is None else r.error.code for r in report.results()}
    wrong = {"prompt_truncated"} if fake.config.models[0].rendered else {"context_length_exceeded"}
    assert {codes[row["custom_id"]] for row in long} == wrong
    assert {code for name, code in codes.items() if name.startswith("r")} == {None}
    for result in report.results():
        assert result.ok == (result.custom_id.startswith("r"))


def test_told_its_context_a_server_that_cuts_is_sent_nothing_too_long(
    fake: FakeOllama, tmp_path: Path
) -> None:
    rows, planted = mixed(single, ordinary=100)
    report = run_on_v1(fake, rows, tmp_path / "out.jsonl", num_ctx=NUM_CTX, state_dir=None)
    assert {result.custom_id for result in report.results() if not result.ok} == planted
    assert planted.isdisjoint(sent(fake))
    messages = {r.error.message for r in report.results() if r.error is not None}
    assert all("give the server a larger context" in message for message in messages)


def test_a_head_is_counted_once_and_short_rows_not_at_all(fake: FakeOllama, tmp_path: Path) -> None:
    rng = random.Random(5)
    head = {"role": "system", "content": prose(rng, 3000)}
    rows = []
    for n in range(200):
        chars = 300 if n % 2 else 3500
        own = {"role": "user", "content": f"r{n}\n{prose(rng, chars)}"}
        rows.append({**line(f"r{n}"), "body": {"messages": [head, own], "max_tokens": ANSWER}})
    counter = WordCounter()
    runner = runner_on(fake, num_ctx=4096, counter=counter, state_dir=None, order="input")
    report = runner.run(rows, output=tmp_path / "out.jsonl")
    assert report.counts.failed == 0
    assert counter.seen.count(head["content"]) == 1
    long = [row["body"]["messages"][1]["content"] for row in rows[::2]]
    assert all(counter.seen.count(text) == 1 for text in long)
    short = {row["body"]["messages"][1]["content"] for row in rows[1::2]}
    # A few of the short ones that were answered are learned from.
    assert len(short & set(counter.seen)) <= 64
    asked = counter.ledger.texts
    assert counter.ledger.tokenized < asked / 2


def test_a_run_of_short_rows_counts_nothing(fake: FakeOllama, tmp_path: Path) -> None:
    counter, state = WordCounter(), tmp_path / "state"
    rows = [line(f"r{n}", "word " * 100) for n in range(100)]
    report = runner_on(fake, num_ctx=4096, counter=counter, state_dir=state).run(rows)
    assert report.counts.ok == 100
    assert counter.ledger.texts == 0
    assert fake.ledger.count() == 100
    assert not (state / "tokens").exists()


def test_a_second_run_knows_how_the_model_counts(fake: FakeOllama, tmp_path: Path) -> None:
    rng = random.Random(9)
    rows = [single(rng, f"r{n}", 1500) for n in range(40)]
    for run, asked in enumerate([PROBES, 0]):
        before = fake.ledger.count()
        runner = runner_on(fake, num_ctx=NUM_CTX, counter=EstimateCounter(), state_dir=tmp_path / "state")
        report = runner.run(rows, output=tmp_path / f"{run}.jsonl")
        assert report.counts.ok == len(rows)
        assert fake.ledger.count() - before - len(rows) == asked
    (kept,) = (tmp_path / "state" / "tokens").glob("*.json")
    assert json.loads(kept.read_text())["kinds"]["text"]["seen"] >= PROBES + len(rows)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("busy", when=range(1, 4)),
        Fault("crash", first=1, when=range(2, 6)),
        Fault("reset", when=range(1, 4)),
        Fault("refuse", when=[1], for_s=0.3),
    ],
    ids=lambda fault: fault.kind,
)
def test_trouble_while_the_engine_is_asked_costs_no_row(
    fake_ollama_factory: Any, tmp_path: Path, fault: Fault
) -> None:
    """Rows close to the limit, which all wait for what the engine says of its counting."""
    fake = fake_ollama_factory(faults=[fault])
    rng = random.Random(11)
    rows = [single(rng, f"r{n}", 1500) for n in range(40)]
    retry = RetryPolicy(wait_s=0.01, wait_max_s=0.05, server=8)
    runner = runner_on(fake, num_ctx=NUM_CTX, state_dir=None, retry=retry, concurrency=32)
    report = runner.run(rows, output=tmp_path / "out.jsonl")
    assert report.counts.ok == len(rows)


def test_a_run_that_is_stopped_while_it_asks_fails_no_row_and_goes_on(
    fake: FakeOllama, tmp_path: Path
) -> None:
    rng = random.Random(13)
    rows = [single(rng, f"r{n}", 1500) for n in range(40)]
    output = tmp_path / "out.jsonl"
    asked = threading.Event()

    class Asked(Events):
        def on_event(self, event: Any) -> None:
            super().on_event(event)
            if isinstance(event, Decision) and event.kind == "asked_engine":
                asked.set()

    for now in (False, True):
        fake.hold()
        asked.clear()
        events = Asked()
        run = runner_on(fake, num_ctx=NUM_CTX, state_dir=None, concurrency=32, hooks=[events]).start(
            rows, output=output
        )
        assert asked.wait(30)
        run.cancel(now=now) if now else run.cancel()
        fake.release()
        with pytest.raises(RunCancelledError) as stopped:
            run.wait()
        assert stopped.value.report.counts.failed == 0
        assert events.of(RowSent) == []
    report = runner_on(fake, num_ctx=NUM_CTX, state_dir=None).run(rows, output=output)
    assert (report.counts.ok, report.counts.failed) == (len(rows), 0)


def test_a_row_of_a_megabyte_holds_up_nobody(fake: FakeOllama, tmp_path: Path) -> None:
    rng = random.Random(15)
    huge = line("huge", prose(rng, 20_000) * 60)
    tick = threading.Event()
    late: list[float] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while not tick.is_set():
            before = loop.time()
            await asyncio.sleep(0.01)
            late.append(loop.time() - before - 0.01)

    from ollama_batch._portal import portal

    watching = portal().submit(watch())
    report = runner_on(fake, num_ctx=NUM_CTX, max_tokens=ANSWER, state_dir=None).run(
        [huge, *(line(f"r{n}") for n in range(20))], output=tmp_path / "out.jsonl"
    )
    tick.set()
    watching.result(10)
    assert {result.custom_id for result in report.results() if not result.ok} == {"huge"}
    assert max(late) < 0.5
    assert fake.ledger.count() == 20


def test_a_stream_gets_a_context_from_its_first_rows_and_keeps_it(fake: FakeOllama) -> None:
    rng = random.Random(17)

    def requests() -> Iterator[dict[str, Any]]:
        for n in range(1100):
            yield single(rng, f"r{n}", rng.randint(100, 1500) if n % 10 == 0 else 50)
        yield single(rng, "long", 60_000)
        yield single(rng, "last", 100)

    report = runner_on(fake, max_tokens=ANSWER, state_dir=None).run(requests())
    assert [result.custom_id for result in report.results() if not result.ok] == ["long"]
    assert fake.ledger.loads == 1
    (settings,) = fake.ledger.load_settings()
    assert settings["num_ctx"] == 8192  # 4,096 holds the first rows; that and a bucket


@pytest.mark.parametrize("order", ["prefix", "input"])
def test_looking_ahead_in_a_stream_does_not_lose_the_rows_before_a_bad_one(
    fake: FakeOllama, order: str
) -> None:
    """At most 16 are taken with the first; what is wrong further on stops the run behind the rows before."""
    items = [*(line(f"r{n}") for n in range(40)), {"no": "request"}, line("last")]
    runner = runner_on(fake, order=order, state_dir=None)
    with pytest.raises(InputError, match="item 41 is invalid"):
        runner.run(iter(items))
    assert sent(fake) == {f"r{n}" for n in range(40)}


def test_a_model_with_less_context_than_was_asked_for_is_sent_nothing_too_long(
    fake_ollama_factory: Any, tmp_path: Path
) -> None:
    """Ollama lowers a num_ctx beyond what the model was trained for."""
    fake = fake_ollama_factory(models=[FakeModel(MODEL, context_length=NUM_CTX)])
    rows, planted = mixed(single, ordinary=50, planted=30)
    report = runner_on(fake, num_ctx=32_768, state_dir=None).run(rows, output=tmp_path / "out.jsonl")
    assert {result.custom_id for result in report.results() if not result.ok} == planted
    assert planted.isdisjoint(sent(fake))


def test_what_a_row_says_of_its_answer_and_model_counts(fake_ollama_factory: Any, tmp_path: Path) -> None:
    """Each model of a run has a context and a calibration of its own."""
    fake = fake_ollama_factory(models=[FakeModel(MODEL), FakeModel("toy:2b", context_length=1024)])
    rng = random.Random(21)
    body = prose(rng, 4 * 1200)
    rows = [
        line("roomy", body),
        line("too long an answer", body, max_completion_tokens=1200),
        line("no room at all", max_tokens=NUM_CTX),
        line("smaller model", body, model="toy:2b"),
        line("fits it", prose(rng, 2000), model="toy:2b"),
    ]
    runner = runner_on(
        fake,
        num_ctx=NUM_CTX,
        max_tokens=ANSWER,
        allow_models=["toy:2b"],
        counter=EstimateCounter(),
        state_dir=tmp_path / "state",
    )
    path = write_lines(tmp_path / "in.jsonl", rows)
    report = runner.run(path, output=tmp_path / "out.jsonl")
    failed = {result.custom_id for result in report.results() if not result.ok}
    assert failed == {"too long an answer", "no room at all", "smaller model"}
    assert failed.isdisjoint(sent(fake))
    assert len(list((tmp_path / "state" / "tokens").glob("*.json"))) == 2


def test_a_row_that_is_too_long_is_so_in_every_session(fake: FakeOllama, tmp_path: Path) -> None:
    rng = random.Random(23)
    rows = [single(rng, f"r{n}", tokens) for n, tokens in enumerate([100, 2100, 100])]
    output = tmp_path / "out.jsonl"
    first = runner_on(fake, state_dir=None, num_ctx=NUM_CTX).run(rows, output=output)
    assert first.counts.failed == 1
    again = runner_on(fake, state_dir=None, num_ctx=NUM_CTX).run(
        rows, output=output, retry_failed={"context_length_exceeded"}
    )
    assert (again.counts.ok, again.counts.failed) == (2, 1)
    assert sent(fake) == {"r0", "r2"}
    assert fake.ledger.count("r0") == fake.ledger.count("r2") == 1
