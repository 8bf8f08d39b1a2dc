"""Runs that find by themselves how many requests may be out, against engines that are real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchReport, BatchRequest, Concurrency, RunJournal
from ollama_batch._portal import portal
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.events import Decision, Noticed, RowFinished, RunStarted
from ollama_batch.testing import CostModel, Fault
from ollama_batch.types import ChatRequest, EngineInfo
from runner_support import Events, ids, line, names, rows_file, runner_on, write_lines
from tries_support import timed, tries
from trouble_support import QUICK, ScriptedEngine

SLOW = CostModel(prefill_tps=20_000.0, decode_tps=200.0)
"""About a tenth of a second for an answer, far more than everything around it."""

BRISK = CostModel(prefill_tps=40_000.0, decode_tps=400.0)
"""Half of that, for as few slots as leave the machine idle for the most part."""


def decisions(events: Events) -> list[Decision]:
    return [event for event in events.of(Decision) if event.kind == "concurrency"]


def heads(count: int, *, each: int) -> list[dict[str, Any]]:
    """Rows under so many heads of 300 words, in turns."""
    rows = [line(name) for name in names(count * each)]
    for n, row in enumerate(rows):
        head = " ".join([f"head{n % count}"] * 300)
        row["body"]["messages"].insert(0, {"role": "system", "content": head})
    return rows


@pytest.mark.parametrize(("slots", "rows"), [(1, 40), (4, 160), (12, 400)])
def test_a_run_finds_the_slots_of_an_ollama_that_does_not_tell_them(
    fake_ollama_factory: Any, tmp_path: Path, slots: int, rows: int
) -> None:
    for attempt in tries():
        with attempt:
            fake = fake_ollama_factory(slots=slots, speed=SLOW if slots > 4 else BRISK)
            events = Events()
            folder = tmp_path / str(attempt.retry_state.attempt_number)
            folder.mkdir()
            source = rows_file(folder / "in.jsonl", rows)
            report = runner_on(fake, hooks=[events]).run(source, output=folder / "out.jsonl")
            assert report.ok
            assert ids(folder / "out.jsonl") == names(rows)
            m = report.metrics
            assert report.concurrency == m.concurrency
            assert m.concurrency_min <= m.concurrency <= m.concurrency_max
            assert fake.ledger.max_in_flight <= m.concurrency_max
            made = decisions(events)
            assert len(made) == m.concurrency_changes
            assert m.concurrency_decisions == tuple(each.message for each in made)[-10:]
            # Each begins where the last ended, the first where the run began.
            befores = [each.data["before"] for each in made]
            afters = [events.of(RunStarted)[0].concurrency, *(each.data["after"] for each in made)]
            assert befores == afters[:-1]
            assert m.queue_reported == rows
            assert 0 < m.queue_share < 1
            assert m.queue_mean_s > 0
            with RunJournal.open_readonly(folder / "out.jsonl.run.db") as journal:
                noted = [note.data for note in journal.notes("concurrency")]
            assert [note["message"] for note in noted] == [each.message for each in made]
            timed(slots <= m.concurrency <= slots + max(3, slots // 2) + 1, m.concurrency)
            timed(0 <= m.engine_idle_share < 0.5, m.engine_idle_share)
            timed(0.3 * slots < m.served_mean <= slots + 0.1, m.served_mean)


def test_what_was_decided_is_in_words_and_in_the_report(fake_ollama_factory: Any) -> None:
    fake = fake_ollama_factory(slots=1, speed=BRISK)
    report = runner_on(fake).run(BatchRequest.chat(name) for name in names(40))
    first = report.metrics.concurrency_decisions[0]
    assert first.startswith("concurrency 4 -> 3: more wait than need be; ")
    assert "% of the time of answers)" in first
    text = str(report)
    assert f"concurrency {report.concurrency} at the end (from " in text
    assert " for a slot on average, " in text


def test_a_server_that_runs_one_slot_is_named_once_with_what_helps(
    fake_ollama_factory: Any, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(slots=1, speed=CostModel(latency_s=0.03))
    for concurrency in ("auto", 4):
        events = Events()
        source = rows_file(tmp_path / f"{concurrency}.jsonl", 70)
        report = runner_on(fake, hooks=[events], concurrency=concurrency).run(source)
        (named,) = [event for event in events.of(Noticed) if event.kind == "one_slot"]
        assert "answers one request at a time, by the times it tells; the others wait 0." in named.message
        assert "OLLAMA_NUM_PARALLEL=4 ollama serve" in named.message
        assert list(report.notes).count(named.message) == 1


def test_a_server_with_several_slots_is_not_said_to_have_one(fake_ollama_factory: Any) -> None:
    fake = fake_ollama_factory(slots=3, speed=CostModel(latency_s=0.06))
    events = Events()
    runner_on(fake, hooks=[events]).run(BatchRequest.chat(name) for name in names(120))
    assert not [event for event in events.of(Noticed) if event.kind == "one_slot"]


@pytest.mark.parametrize("stream", [False, True])
def test_several_heads_keep_their_slots_where_slots_are_not_told(
    fake_ollama_factory: Any, tmp_path: Path, stream: bool
) -> None:
    """As much is reused as with the right number, which nobody has said."""
    rows = heads(4, each=50)
    path = write_lines(tmp_path / "in.jsonl", rows)

    def cached(concurrency: int | str) -> float:
        fake = fake_ollama_factory(
            slots=2, speed=CostModel(latency_s=0.04), reports_cached=True, tokenizer="words"
        )
        runner = runner_on(fake, concurrency=concurrency, state_dir=None)
        source: Any = iter(rows) if stream else path
        report = runner.run(source)
        assert report.ok
        return float(report.metrics.cached_share or 0)

    told = cached(2)
    assert told > 0.89
    for attempt in tries():
        with attempt:
            found = cached("auto")
            timed(found >= 0.9 * told, found, told)


def test_conversations_are_as_many_at_a_time_as_there_are_slots(
    fake_ollama_factory: Any, tmp_path: Path
) -> None:
    """Eight lanes on two slots: what is not with the engine waits here, and displaces nobody."""

    def run(concurrency: int | str) -> BatchReport[Any]:
        fake = fake_ollama_factory(
            slots=2, speed=CostModel(latency_s=0.1), reports_cached=True, tokenizer="words"
        )
        policy = ConversationPolicy(lanes=8)
        runner = runner_on(
            fake, mode="conversation", conversation=policy, concurrency=concurrency, state_dir=None
        )
        report = runner.run(source)
        assert report.ok
        return report

    source = rows_file(tmp_path / "in.jsonl", 120)
    told = run(2).metrics.cached_share
    for attempt in tries(5):
        with attempt:
            found = run("auto")
            timed(found.metrics.cached_share >= 0.9 * told, found.metrics.cached_share, told)
            timed(found.concurrency in (2, 3), found.concurrency)


def test_refusals_bring_fewer_out_and_cost_no_row(fake_ollama_factory: Any, tmp_path: Path) -> None:
    fault = Fault("busy", when=range(40, 52))
    fake = fake_ollama_factory(slots=8, speed=SLOW, faults=[fault])
    events = Events()
    source = rows_file(tmp_path / "in.jsonl", 120)
    report = runner_on(fake, hooks=[events], retry=QUICK).run(source, output=tmp_path / "out.jsonl")
    assert report.ok
    assert ids(tmp_path / "out.jsonl") == names(120)
    cuts = [each for each in decisions(events) if each.data["why"] == "the engine is busy"]
    assert cuts
    assert cuts[0].data["after"] < cuts[0].data["before"]


@pytest.mark.parametrize(
    ("bounds", "slots"), [(Concurrency(min=3, max=5), 1), (Concurrency(min=2, max=5), 16)]
)
def test_it_stays_within_the_users_bounds(fake_ollama_factory: Any, bounds: Concurrency, slots: int) -> None:
    fake = fake_ollama_factory(slots=slots, speed=BRISK)
    report = runner_on(fake, concurrency=bounds).run(BatchRequest.chat(name) for name in names(50))
    m = report.metrics
    assert bounds.min <= m.concurrency_min <= m.concurrency <= m.concurrency_max <= bounds.max
    if slots == 1:
        assert m.concurrency_min == bounds.min
    else:
        assert m.concurrency_max == bounds.max
    assert fake.ledger.max_in_flight <= bounds.max


def test_a_number_is_kept(fake_ollama_factory: Any) -> None:
    fake = fake_ollama_factory(slots=1, speed=CostModel(latency_s=0.005))
    report = runner_on(fake, concurrency=6).run(BatchRequest.chat(name) for name in names(120))
    m = report.metrics
    assert (m.concurrency, m.concurrency_changes, report.concurrency) == (6, 0, 6)
    assert fake.ledger.max_in_flight == 6


def test_a_run_goes_on_with_another_concurrency(fake_ollama: Any, tmp_path: Path) -> None:
    source, output = rows_file(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    for limit, concurrency in enumerate((1, "auto", Concurrency(max=3), 7), start=1):
        report = runner_on(fake_ollama, concurrency=concurrency).run(source, output=output, limit=10 * limit)
        assert (report.counts.resumed, report.counts.sent) == (10 * limit - 10, 10)
    assert ids(output) == names(40)


class Slotted(ScriptedEngine):
    """Answers so many at a time, and tells that; keeps how many were out together with each request."""

    def __init__(self, slots: int, answer_s: float = 0.002) -> None:
        super().__init__(self._in_a_slot)
        self.answer_s = answer_s
        self.slots = slots
        self.free = asyncio.Semaphore(slots)
        self.out: set[str] = set()
        self.most: list[int] = []

    async def describe(self, model: str) -> EngineInfo:
        return EngineInfo("slotted", self.address, None, model, slots=self.slots)

    async def _in_a_slot(self, request: ChatRequest) -> None:
        self.out.add(request.custom_id)
        self.most.append(len(self.out))
        try:
            async with self.free:
                await asyncio.sleep(self.answer_s)
        finally:
            self.out.remove(request.custom_id)


@pytest.mark.parametrize("order", ["prefix", "input"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("concurrency", [8, "auto"])
def test_a_cap_is_followed_down_and_up_and_every_row_is_answered_once(
    tmp_path: Path, order: str, stream: bool, concurrency: Any
) -> None:
    engine = Slotted(8)
    seen = 0

    class Capping:
        def on_event(self, event: object) -> None:
            nonlocal seen
            if isinstance(event, RowFinished):
                seen += 1
                caps = {60: 1, 120: None, 150: 2, 170: 1, 200: None}
                if seen in caps:
                    portal().limit(engine.address).cap(caps[seen], "test")

    rows = heads(5, each=60)
    source: Any = iter(rows) if stream else write_lines(tmp_path / "in.jsonl", rows)
    runner = runner_on(None, engine=engine, order=order, concurrency=concurrency, hooks=[Capping()])  # type: ignore[arg-type]  # no fake where there is an engine
    report = runner.run(source, output=tmp_path / "out.jsonl")
    assert report.ok
    assert sorted(engine.asked) == sorted(names(300))
    assert ids(tmp_path / "out.jsonl") == names(300)
    assert max(engine.most[80:110]) == 1
    assert max(engine.most[180:195]) == 1
    assert max(engine.most) >= 8


@pytest.mark.parametrize("stream", [False, True])
def test_lanes_of_workers_that_stand_aside_are_taken_over(tmp_path: Path, stream: bool) -> None:
    engine = Slotted(8, answer_s=0.03)  # long beside what lies between two answers of a lane
    seen = 0

    class Capping:
        def on_event(self, event: object) -> None:
            nonlocal seen
            if isinstance(event, RowFinished):
                seen += 1
                if seen in (20, 60):
                    portal().limit(engine.address).cap(1 if seen == 20 else None, "test")

    rows = [line(name) for name in names(120)]
    source: Any = iter(rows) if stream else write_lines(tmp_path / "in.jsonl", rows)
    options = {"mode": "conversation", "conversation": ConversationPolicy(lanes=4), "num_ctx": 32_768}
    runner = runner_on(None, engine=engine, hooks=[Capping()], state_dir=None, **options)  # type: ignore[arg-type]  # no fake where there is an engine
    report = runner.run(source, output=tmp_path / "out.jsonl")
    assert report.ok
    assert sorted(engine.asked) == sorted(names(120))
    assert max(engine.most[30:55]) == 1
    assert max(engine.most) == 4


def test_two_runs_on_one_address_share_what_is_found(fake_ollama_factory: Any, tmp_path: Path) -> None:
    fake = fake_ollama_factory(slots=2, speed=BRISK)
    runs = [
        runner_on(fake).start(
            rows_file(tmp_path / f"{n}.jsonl", 120, prefix=f"{n}-"), output=tmp_path / f"{n}.out"
        )
        for n in range(2)
    ]
    reports = [run.wait(60) for run in runs]
    assert all(report.ok for report in reports)
    # Had each run a limit of its own, twice as many would wait.
    assert sum(record.in_flight for record in fake.ledger.completions()[120:]) / 120 < 7


@pytest.fixture
def embedded() -> Iterator[Any]:
    pytest.importorskip("xllamacpp")
    from ollama_batch.engines import EmbeddedEngine

    engines = []

    def make(slots: int) -> EmbeddedEngine:
        engines.append(EmbeddedEngine.toy(slots=slots, num_ctx=512))
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.aclose())


def test_the_slots_of_a_real_engine_are_kept_busy_and_its_waits_told(embedded: Any) -> None:
    engine = embedded(4)
    rows = [BatchRequest.chat(f"row {n}", max_tokens=24) for n in range(160)]
    report = runner_on(None, engine=engine, model=engine.model, on_length="keep").run(rows)  # type: ignore[arg-type]  # no fake where there is an engine
    m = report.metrics
    assert report.ok
    assert m.concurrency_min >= 5
    assert m.concurrency_max <= 16
    assert m.queue_reported == 160
    assert m.queue_share is not None
    assert asyncio.run_coroutine_threadsafe(engine.waiting(), portal().loop).result(10) == 0
