from __future__ import annotations

import dataclasses
import json
import math
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch._histogram import LogHistogram
from ollama_batch.events import (
    Decision,
    Noticed,
    RowFinished,
    RowRetried,
    RowsFound,
    RunEnding,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStalled,
)
from ollama_batch.metrics import BatchMetrics, MetricsHook
from ollama_batch.types import Timings
from visible_support import FakeClock, finished, hook, sent, started

SHARES = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=300))
def test_quantiles_are_within_two_percent_of_the_exact_ones(values: list[float]) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    for share, found in zip(SHARES, histogram.quantiles(SHARES), strict=True):
        exact = ordered[max(1, math.ceil(share * len(ordered))) - 1]
        assert found == pytest.approx(exact, rel=0.02)
    assert histogram.high == max(values)
    assert histogram.mean == pytest.approx(math.fsum(values) / len(values))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_histogram_refuses_what_is_no_duration(value: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        LogHistogram().add(value)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e9])
def test_values_out_of_range_are_clamped_and_bounded_by_the_extremes(value: float) -> None:
    histogram = LogHistogram()
    histogram.add(value)
    assert histogram.quantiles((0.5,)) == [value]


def test_a_histogram_does_not_grow() -> None:
    histogram = LogHistogram()
    size = len(histogram.buckets)
    for number in range(10_000):
        histogram.add(number * 1e-3)
    assert len(histogram.buckets) == size
    assert sum(histogram.buckets) == histogram.count == 10_000


def test_nothing_is_known_before_a_run_starts() -> None:
    m = MetricsHook(clock=FakeClock()).snapshot()
    assert m == BatchMetrics()
    assert (m.state, m.total, m.eta_s, m.requests_per_s, m.latency_p50_s, m.context_peak) == (
        "waiting",
        None,
        None,
        None,
        None,
        None,
    )
    assert m.unmeasured["vram_used_bytes"] == "not measured"


def test_rows_are_counted_over_all_sessions_and_rates_over_this_one() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=100, resumed=60, resumed_failed=5)
    for number in range(10):
        metrics.on_event(sent(in_flight=2))
        clock.tick(0.5)
        metrics.on_event(finished(ok=number != 3, in_flight=1))
    m = metrics.snapshot()
    assert (m.total, m.completed, m.ok, m.failed, m.resumed, m.resumed_failed) == (100, 70, 64, 6, 60, 5)
    assert (m.sent, m.in_flight, dict(m.errors)) == (10, 1, {"request_timeout": 1})
    assert m.requests_per_s == pytest.approx(10 / 5)
    assert m.requests_per_s_1m == pytest.approx(10 / 5)


def test_retried_counts_attempts_beyond_the_first() -> None:
    metrics = hook(FakeClock())
    for attempt in (1, 2, 3, 1):
        metrics.on_event(sent(attempt=attempt))
    m = metrics.snapshot()
    assert (m.sent, m.retried) == (4, 2)


@pytest.mark.parametrize(
    ("told", "tokens", "share", "reported"),
    [
        ([None, None], None, None, 0),
        ([0, 0], 0, 0.0, 2),
        ([50, None, 0], 50, 0.25, 2),
        ([100], 100, 1.0, 1),
    ],
)
def test_cached_tokens_not_reported_is_not_zero(
    told: list[int | None], tokens: int | None, share: float | None, reported: int
) -> None:
    metrics = hook(FakeClock())
    for cached in told:
        metrics.on_event(finished(prompt=100, cached=cached))
    m = metrics.snapshot()
    assert (m.cached_tokens, m.cached_share, m.cached_reported, m.answers) == (
        tokens,
        share,
        reported,
        len(told),
    )


def test_tokens_are_summed_and_averaged_over_rows_with_an_answer() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(prompt=100, completion=20, reasoning=7))
    metrics.on_event(finished(prompt=300, completion=40, source="estimate"))
    metrics.on_event(finished(ok=False, prompt=200, completion=0))
    metrics.on_event(finished(ok=False, usage=False))
    m = metrics.snapshot()
    assert (m.prompt_tokens, m.completion_tokens, m.total_tokens) == (600, 60, 660)
    assert (m.answers, m.estimated, m.reasoning_tokens, m.reasoning_reported) == (3, 1, 7, 1)
    assert (m.prompt_tokens_mean, m.completion_tokens_mean) == (200.0, 20.0)


def test_context_has_a_current_a_peak_and_a_limit_that_decisions_move() -> None:
    metrics = hook(FakeClock(), num_ctx=8192)
    for prompt in (500, 900, 100):
        metrics.on_event(finished(prompt=prompt, completion=10))
    metrics.on_event(Decision(kind="other", message="nothing about the context"))
    before = metrics.snapshot()
    metrics.on_event(Decision(kind="recovery", message="smaller", data={"num_ctx": 4096}))
    after = metrics.snapshot()
    assert (before.context_current, before.context_peak, before.context_limit) == (110, 910, 8192)
    assert after.context_limit == 4096


def test_trims_and_the_tokens_they_saved_are_counted() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(trim={"tokens_saved": 40}))
    metrics.on_event(finished(trim={"tokens_before": 100, "tokens_after": 30}))
    metrics.on_event(finished(trim={"strategy": "window"}))
    metrics.on_event(finished())
    m = metrics.snapshot()
    assert (m.trims, m.trim_saved_tokens) == (3, 110)


def test_what_trims_saved_is_unknown_where_none_told_and_nothing_where_there_was_none() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished())
    before = metrics.snapshot()
    assert (before.trims, before.trim_saved_tokens) == (0, 0)
    metrics.on_event(finished(trim={"why": "high"}))
    after = metrics.snapshot()
    assert (after.trims, after.trim_saved_tokens) == (1, None)


def test_latency_is_of_answered_rows_only() -> None:
    metrics = hook(FakeClock())
    for latency in (1.0, 2.0, 3.0):
        metrics.on_event(finished(latency_s=latency))
    metrics.on_event(finished(ok=False, usage=False, latency_s=600.0))
    m = metrics.snapshot()
    assert m.latency_mean_s == pytest.approx(2.0)
    assert m.latency_p50_s == pytest.approx(2.0, rel=0.02)
    assert m.latency_p99_s == pytest.approx(3.0, rel=0.02)
    assert m.latency_max_s == 3.0


def test_the_last_minute_forgets_what_is_older() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=None)
    for _ in range(100):
        metrics.on_event(finished(prompt=100, completion=10))
    clock.tick(30)
    metrics.on_event(finished(prompt=50, completion=5))
    clock.tick(45)
    m = metrics.snapshot()
    # At 75.0 s the window holds the buckets of seconds 16 to 75, which is 59 whole seconds and no part more.
    assert m.requests_per_s_1m == pytest.approx(1 / 59)
    assert m.tokens_per_s_1m == pytest.approx(55 / 59)
    assert m.completion_tokens_per_s_1m == pytest.approx(5 / 59)
    assert m.requests_per_s == pytest.approx(101 / 75)
    assert m.tokens_per_s == pytest.approx((100 * 110 + 55) / 75)
    clock.tick(3600)
    assert metrics.snapshot().requests_per_s_1m == 0.0


@pytest.mark.parametrize("pace", [0.25, 3.0, 20.0])
def test_a_steady_pace_reads_the_same_overall_and_over_the_minute(pace: float) -> None:
    clock = FakeClock()
    metrics = hook(clock, total=10_000)
    for _ in range(int(200 * pace)):
        clock.tick(1 / pace)
        metrics.on_event(finished())
    m = metrics.snapshot()
    assert m.requests_per_s == pytest.approx(pace, rel=0.001)
    assert m.requests_per_s_1m == pytest.approx(pace, rel=0.08)
    assert m.eta_s == pytest.approx((10_000 - m.completed) / pace, rel=0.08)


def test_the_eta_follows_the_last_minute_once_it_says_enough() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=1000)
    for _ in range(10):
        clock.tick(10)
        metrics.on_event(finished())
    assert metrics.snapshot().eta_s == pytest.approx(990 * 10)
    for _ in range(120):
        clock.tick(1)
        metrics.on_event(finished())
    assert metrics.snapshot().eta_s == pytest.approx(870, rel=0.05)


def test_the_eta_is_unknown_until_there_is_something_to_go_by() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=None)
    clock.tick(10)
    metrics.on_event(finished())
    assert metrics.snapshot().eta_s is None
    metrics.on_event(RowsFound(total=7, complete=False))
    assert (metrics.snapshot().eta_s, metrics.snapshot().found, metrics.snapshot().total) == (None, 7, None)
    metrics.on_event(RowsFound(total=11, complete=True))
    assert metrics.snapshot().eta_s == pytest.approx(100.0)
    metrics.on_event(started(total=5))
    assert metrics.snapshot().eta_s is None


def test_the_eta_of_a_run_with_every_row_done_is_zero() -> None:
    metrics = hook(FakeClock(), total=3, resumed=3)
    assert metrics.snapshot().eta_s == 0.0


def test_a_row_that_waits_to_be_sent_again_is_not_in_flight() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(sent(in_flight=2))
    untold = RowRetried(index=0, custom_id="row", attempt=1, code="engine_crashed", wait_s=0.0)
    metrics.on_event(untold)
    assert metrics.snapshot().in_flight == 2
    metrics.on_event(replace(untold, in_flight=1))
    assert metrics.snapshot().in_flight == 1


RECOVERY = Decision(kind="recovery", message="", data={"do": "pause"})


def test_a_recovery_that_is_over_before_a_pause_is_told_has_its_time_counted() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=20)
    clock.tick(2)
    metrics.on_event(RECOVERY)
    clock.tick(0.75)
    during = metrics.snapshot()
    assert (during.state, during.paused, during.lost_s, during.paused_s) == ("running", False, 0.75, 0.75)
    metrics.on_event(replace(sent(), idle_s=0.75))
    clock.tick(3)
    metrics.on_event(replace(sent(), idle_s=0.5))
    m = metrics.snapshot()
    assert (m.recoveries, m.lost_s, m.paused_s, m.elapsed_s) == (1, 0.75, 0.75, 5.75)
    assert m.engine_idle_share == pytest.approx(0.5 / 5.0)


def test_a_recovery_that_becomes_a_pause_is_lost_from_its_beginning() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=20)
    metrics.on_event(RECOVERY)
    clock.tick(1)
    metrics.on_event(RunPaused(reason="engine", message="it is down"))
    metrics.on_event(RECOVERY)
    clock.tick(4)
    assert metrics.snapshot().state_s == 5.0
    metrics.on_event(RunResumed(reason="engine", paused_s=5.0))
    clock.tick(1)
    metrics.on_event(sent())
    m = metrics.snapshot()
    assert (m.recoveries, m.lost_s, m.paused_s) == (2, 5.0, 5.0)


def test_a_pause_that_a_user_asked_for_is_not_lost_but_what_the_engine_adds_is() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=20)
    metrics.on_event(RunPaused(reason="user", message=""))
    clock.tick(10)
    metrics.on_event(RECOVERY)
    clock.tick(3)
    metrics.on_event(RunFinished(outcome="stopped", error="", duration_s=13.0))
    clock.tick(9)
    m = metrics.snapshot()
    assert (m.lost_s, m.paused_s, m.elapsed_s, m.paused) == (3.0, 13.0, 13.0, False)


def test_pauses_are_counted_and_left_out_of_the_eta() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=20)
    for _ in range(10):
        clock.tick(1)
        metrics.on_event(finished())
    metrics.on_event(RunPaused(reason="engine_down", message="connection refused"))
    clock.tick(5)
    metrics.on_event(RunPaused(reason="engine_down", message="still refused"))
    clock.tick(95)
    paused = metrics.snapshot()
    assert (paused.state, paused.paused, paused.state_reason) == ("paused", True, "engine_down")
    assert (paused.state_message, paused.state_s, paused.paused_s, paused.eta_s) == (
        "still refused",
        100.0,
        100.0,
        None,
    )
    metrics.on_event(RunResumed(reason="engine_down", paused_s=100.0))
    clock.tick(2)
    m = metrics.snapshot()
    assert (m.state, m.paused, m.paused_s, m.elapsed_s) == ("running", False, 100.0, 112.0)
    assert m.eta_s == pytest.approx(10 * 12 / 10)


def test_a_stall_lasts_until_a_row_finishes() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    metrics.on_event(RunStalled(silent_s=60.0, in_flight=4))
    clock.tick(5)
    m = metrics.snapshot()
    assert (m.state, m.state_s) == ("stalled", 65.0)
    metrics.on_event(finished())
    assert metrics.snapshot().state == "running"


def test_a_run_that_was_asked_to_end_says_so_until_it_has_ended() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(RunEnding(message="interrupted; requests that are out may finish"))
    metrics.on_event(finished())
    m = metrics.snapshot()
    assert (m.state, m.state_message) == ("ending", "interrupted; requests that are out may finish")
    metrics.on_event(RunFinished(outcome="interrupted", error="interrupted", duration_s=1.0))
    assert metrics.snapshot().state == "interrupted"


def test_a_finished_run_stands_still() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=2)
    clock.tick(4)
    metrics.on_event(finished())
    metrics.on_event(RunPaused(reason="engine_down", message="gone"))
    clock.tick(6)
    metrics.on_event(RunFinished(outcome="stopped", error="the engine did not come back", duration_s=10.0))
    then = metrics.snapshot()
    clock.tick(1000)
    assert metrics.snapshot() == then
    assert (then.state, then.state_message, then.elapsed_s, then.paused_s, then.in_flight, then.eta_s) == (
        "stopped",
        "the engine did not come back",
        10.0,
        6.0,
        0,
        None,
    )


def test_a_second_run_begins_anew() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished(cached=5))
    metrics.on_event(started(total=7, run_id="other"))
    m = metrics.snapshot()
    assert (m.completed, m.answers, m.cached_tokens, m.total, m.run_id) == (0, 0, None, 7, "other")


def test_a_snapshot_is_plain_json_without_nan() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    metrics.on_event(finished(ok=False))
    plain = metrics.snapshot().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["cached_tokens"] is None
    assert plain["requests_per_s"] is None
    assert plain["errors"] == {"request_timeout": 1}


def test_snapshots_from_another_thread_are_of_one_moment() -> None:
    metrics = MetricsHook()
    metrics.on_event(started(total=None))
    torn: list[BatchMetrics] = []
    ready, done = threading.Event(), threading.Event()

    def read() -> None:
        while not done.is_set():
            m = metrics.snapshot()
            if m.prompt_tokens != 100 * m.completed or m.completion_tokens != 10 * m.completed:
                torn.append(m)
            ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(10)
        for _ in range(5000):
            metrics.on_event(finished())
    finally:
        done.set()
        reader.join()
    assert torn == []
    assert metrics.snapshot().completed == 5000


def test_what_a_run_has_out_is_what_it_decided_last() -> None:
    metrics = hook(FakeClock())
    assert (metrics.snapshot().concurrency, metrics.snapshot().concurrency_changes) == (4, 0)
    for before, after in ((4, 8), (8, 2), (2, 3)):
        data = {"before": before, "after": after}
        metrics.on_event(Decision(kind="concurrency", message=f"{before} -> {after}", data=data))
    metrics.on_event(Decision(kind="num_ctx", message="other", data={"before": 1, "after": 99}))
    m = metrics.snapshot()
    assert (m.concurrency, m.concurrency_min, m.concurrency_max, m.concurrency_changes) == (3, 2, 8, 3)
    assert m.concurrency_decisions == ("4 -> 8", "8 -> 2", "2 -> 3")


def test_only_the_latest_decisions_are_kept_in_words() -> None:
    metrics = hook(FakeClock())
    for n in range(1, 40):
        data = {"before": n, "after": n + 1}
        metrics.on_event(Decision(kind="concurrency", message=str(n), data=data))
    m = metrics.snapshot()
    assert m.concurrency_decisions == tuple(map(str, range(30, 40)))
    assert m.concurrency_changes == 39


def test_waits_work_and_idle_time_are_shares_of_what_was_told() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    for queue_s, prompt_s in ((1.0, 1.0), (0.0, None), (None, 2.0)):
        metrics.on_event(sent())
        clock.tick(4)
        event = finished(latency_s=4.0)
        timings = Timings(queue_s=queue_s, prompt_s=prompt_s, generate_s=1.0)
        metrics.on_event(dataclasses.replace(event, timings=timings))
    clock.tick(8)
    metrics.on_event(dataclasses.replace(sent(), idle_s=8.0))
    m = metrics.snapshot()
    assert (m.queue_reported, m.queue_mean_s, m.queue_share) == (2, 0.5, 1 / 8)
    assert m.served_mean == (1 + 1 + 2 + 1) / 20
    assert m.engine_idle_share == 8 / 20


def test_a_pause_is_no_idle_time() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    clock.tick(10)
    metrics.on_event(RunPaused(reason="user", message=""))
    clock.tick(5)
    metrics.on_event(RunResumed(reason="user", paused_s=5.0))
    metrics.on_event(dataclasses.replace(sent(), idle_s=6.0))
    assert metrics.snapshot().engine_idle_share == pytest.approx(1 / 10)


def test_what_no_answer_tells_is_unknown() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished())
    m = metrics.snapshot()
    assert (m.queue_mean_s, m.queue_share, m.served_mean, m.queue_reported) == (None, None, None, 0)
    assert m.engine_idle_share is None


def answer(busy_s: float, in_flight: int) -> RowFinished:
    event = finished(latency_s=busy_s, in_flight=in_flight)
    return replace(event, timings=Timings(prompt_s=0.25 * busy_s, generate_s=0.75 * busy_s))


@pytest.mark.parametrize("pause_s", [10.0, 300.0])
def test_what_is_out_as_a_pause_begins_is_finished_in_it_and_no_more_is_in_work_than_was_out(
    pause_s: float,
) -> None:
    """Four requests of 10 s each: sent at once, paused after 1 s, answered at 10 s, and nothing else."""
    clock = FakeClock()
    metrics = hook(clock)
    for number in range(4):
        metrics.on_event(sent(in_flight=number + 1))
    clock.tick(1)
    metrics.on_event(RunPaused(reason="memory", message="vram: full"))
    clock.tick(9)
    for left in (3, 2, 1, 0):
        metrics.on_event(answer(10.0, left))
    assert metrics.snapshot().served_mean == pytest.approx(4.0)
    clock.tick(pause_s - 9)
    metrics.on_event(RunResumed(reason="memory", paused_s=pause_s))
    m = metrics.snapshot()
    assert m.served_mean == pytest.approx(4.0)
    assert m.engine_idle_share == pytest.approx(0.0)
    assert (m.paused_s, m.memory_pauses, m.memory_paused_s) == (pause_s, 1, pause_s)
    assert m.memory_pause_why == "vram: full"
    metrics.on_event(replace(sent(in_flight=1), idle_s=pause_s - 9))
    clock.tick(10)
    metrics.on_event(answer(10.0, 0))
    assert metrics.snapshot().served_mean == pytest.approx(2.5), "50 s of work in 20 s"


def test_refusals_are_counted_and_last_until_something_is_answered() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    refused = RowRetried(index=0, custom_id="row", attempt=1, code="engine_busy", wait_s=1.0, in_flight=0)
    metrics.on_event(refused)
    clock.tick(3)
    metrics.on_event(refused)
    clock.tick(2)
    metrics.on_event(finished(ok=False, usage=False, latency_s=None))
    assert (metrics.snapshot().refused, metrics.snapshot().refused_s) == (2, 5.0), "a failure is no answer"
    metrics.on_event(finished())
    clock.tick(60)
    metrics.on_event(replace(refused, code="engine_crashed"))
    assert (metrics.snapshot().refused, metrics.snapshot().refused_s) == (2, 5.0)


def test_a_storm_of_refusals_is_a_pause_whose_time_is_lost_and_its_latest_words_count_once() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=100)
    metrics.on_event(finished())
    refusal = RowRetried(index=0, custom_id="row", attempt=1, code="engine_busy", wait_s=1.0, in_flight=1)
    metrics.on_event(refusal)
    metrics.on_event(replace(refusal, index=1, in_flight=0))
    clock.tick(3)
    metrics.on_event(RunPaused(reason="refused", message="server busy"))
    clock.tick(5)
    metrics.on_event(replace(sent(in_flight=1), attempt=2))
    metrics.on_event(replace(refusal, in_flight=0))
    metrics.on_event(RunPaused(reason="refused", message="queue full", again=True))
    metrics.on_event(RunStalled(silent_s=120.0, in_flight=0))
    clock.tick(2)
    m = metrics.snapshot()
    assert (m.state, m.state_reason, m.state_message, m.state_s) == ("paused", "refused", "queue full", 7.0)
    assert (m.eta_s, m.paused_s, m.lost_s, m.recoveries) == (None, 7.0, 7.0, 0)
    assert (m.refused, m.refused_alone, m.refused_s) == (3, 2, 10.0)
    metrics.on_event(RunResumed(reason="refused", paused_s=7.0))
    clock.tick(60)
    m = metrics.snapshot()
    assert (m.state, m.paused_s, m.lost_s, m.refused_s) == ("running", 7.0, 7.0, 10.0)
    metrics.on_event(RunStalled(silent_s=120.0, in_flight=1))
    metrics.on_event(RunPaused(reason="engine", message="silent"))
    metrics.on_event(RunResumed(reason="engine", paused_s=1.0))
    assert metrics.snapshot().state == "stalled", "what was out still is"


def test_the_latest_reading_of_a_guard_that_pauses_is_no_second_pause() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(RunPaused(reason="memory", message="full"))
    metrics.on_event(RunPaused(reason="memory", message="fuller", again=True))
    m = metrics.snapshot()
    assert (m.memory_pauses, m.memory_pause_why, m.state_message) == (1, "full", "fuller")


def test_what_of_the_model_has_spilled_is_in_the_metrics_without_any_guard() -> None:
    metrics = hook(FakeClock())
    assert metrics.snapshot().spilled_bytes is None
    data = {"spilled_bytes": 3 * 2**30, "size_bytes": 12 * 2**30}
    metrics.on_event(Noticed(kind="spilled", message="", data=data))
    assert (metrics.snapshot().spilled_bytes, metrics.snapshot().spilled_share) == (3 * 2**30, 0.25)
