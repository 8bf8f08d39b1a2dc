"""The limit of requests that are out: how near it comes to the best, what it follows, what it never does.

The simulated engine's own counts and clock are what everything here is measured by.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control_support import Outcome, SimulatedEngine, Told, simulate
from ollama_batch.control import QueueTarget
from ollama_batch.control.limit import COOLDOWN_S, ROUND
from ollama_batch.control.memory_bound import PROBE_S

SEEDS = range(10)
ANSWERS = 3000
PROMPTS = (600, 600)


def adaptive(
    slots: int,
    seed: int,
    *,
    told: Told = "wait",
    start: int | None = None,
    queue_limit: int | None = None,
    out_of_memory_above: int | None = None,
    answers: int = ANSWERS,
    slots_after: dict[int, int] | None = None,
    demand: int | None = None,
    prompts: tuple[int, int] = PROMPTS,
) -> tuple[Outcome, QueueTarget]:
    clock = [0.0]
    target = QueueTarget(start=start, clock=lambda: clock[0])
    engine = SimulatedEngine(slots=slots, queue_limit=queue_limit, out_of_memory_above=out_of_memory_above)
    outcome = simulate(
        engine,
        target,
        clock=clock,
        seed=seed,
        completions=answers,
        told=told,
        slots_after=slots_after,
        demand=demand,
        prompts=prompts,
    )
    return outcome, target


@cache
def best_rate(slots: int, seed: int, prompts: tuple[int, int] = PROMPTS) -> float:
    """The best of the fixed limits about the number of slots, on the same rows."""
    fixed = {max(1, slots - 1), slots, slots + 1, slots + slots // 4, 2 * slots}
    return max(
        simulate(
            SimulatedEngine(slots=slots),
            limit,
            clock=[0.0],
            seed=seed,
            completions=ANSWERS,
            prompts=prompts,
        ).rate
        for limit in fixed
    )


# How good it is


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("told", ["wait", "waiting", "nothing"])
def test_the_rate_is_near_that_of_the_best_fixed_limit(slots: int, told: Told) -> None:
    shares = [adaptive(slots, seed, told=told)[0].rate / best_rate(slots, seed) for seed in SEEDS]
    print(f"{slots} slots, {told} told: mean {mean(shares):.4f}, worst {min(shares):.4f}")
    assert mean(shares) >= 0.97
    assert min(shares) >= 0.95


@pytest.mark.parametrize("slots", [1, 8, 32])
def test_prompts_of_very_different_lengths_do_not_mislead_it(slots: int) -> None:
    prompts = (100, 3000)
    for seed in range(3):
        outcome, _ = adaptive(slots, seed, prompts=prompts)
        assert outcome.rate >= 0.97 * best_rate(slots, seed, prompts)


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("told", ["wait", "waiting"])
def test_it_settles_where_slots_are_full_and_few_requests_wait(slots: int, told: Told) -> None:
    for seed in SEEDS:
        outcome, _ = adaptive(slots, seed, told=told)
        settled = outcome.limits[ANSWERS // 2 :]
        assert min(settled) >= slots
        assert max(settled) <= slots + max(3, slots // 2)


@pytest.mark.parametrize(("before", "after"), [(16, 4), (4, 16)])
@pytest.mark.parametrize("told", ["wait", "waiting"])
def test_other_slots_are_followed_within_600_answers(before: int, after: int, told: Told) -> None:
    for seed in SEEDS:
        outcome, _ = adaptive(before, seed, told=told, slots_after={1500: after})
        there = [after <= limit <= after + max(3, after // 2) for limit in outcome.limits]
        print(f"{before} -> {after}, {told} told: {there.index(True, 1500) - 1500} answers")
        assert all(there[2100:])


def answered_per_s(outcome: Outcome, first: int) -> float:
    """Tokens in a second, from the answer of that number on."""
    since, _ = outcome.finished[first]
    return sum(tokens for _, tokens in outcome.finished[first + 1 :]) / (outcome.finished[-1][0] - since)


@pytest.mark.parametrize(("before", "after"), [(16, 4), (4, 16)])
def test_where_nothing_is_told_other_slots_are_followed_within_600_answers_by_the_rate(
    before: int, after: int
) -> None:
    step, answers = 1500, 5000
    shares = []
    for seed in range(20):
        outcome, _ = adaptive(before, seed, told="nothing", slots_after={step: after}, answers=answers)
        found = (limit <= 2 * after if after < before else limit >= after for limit in outcome.limits[step:])
        followed = next(n for n, there in enumerate(found) if there)
        assert followed <= 600

        # No slot is left without work for it, compared with a limit made for the new slots on the same rows.
        fixed = simulate(
            SimulatedEngine(slots=before),
            after + 1,
            clock=[0.0],
            seed=seed,
            completions=answers,
            slots_after={step: after},
        )
        shares.append(answered_per_s(outcome, step + 600) / answered_per_s(fixed, step + 600))

        # But more than need be may be out for long: in 100 seeds up to 32 with 4 slots, up to 64 with 16.
        usual = median(outcome.limits[step + 1500 :])
        print(f"{before} -> {after}, seed {seed}: {followed} answers, rate {shares[-1]:.3f}, {usual:g} out")
        assert after <= usual <= 4 * max(before, after)
    assert mean(shares) >= 0.98
    assert min(shares) >= 0.96


@pytest.mark.parametrize("queue_limit", [0, 1, 2, 8])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_an_engine_that_refuses_what_it_cannot_queue_is_kept_busy_and_seldom_asked_in_vain(
    slots: int, queue_limit: int
) -> None:
    for seed in range(3):
        outcome, _ = adaptive(slots, seed, queue_limit=queue_limit)
        assert outcome.rate >= 0.95 * best_rate(slots, seed)
        assert outcome.refused <= ANSWERS / 100


@pytest.mark.parametrize("slots", [4, 16])
def test_a_minute_of_refusals_is_over_ten_seconds_after_it_has_ended(slots: int) -> None:
    clock = [0.0]
    target = QueueTarget(clock=lambda: clock[0])
    engine = SimulatedEngine(  # ten times as fast as the others
        slots=slots, step_s=0.001, sequence_s=0.00004, prefill_per_s=20_000.0, refuses=(100.0, 160.0)
    )
    outcome = simulate(engine, target, clock=clock, seed=1, completions=200 * slots + 3000)

    def rate(begin: float, end: float) -> float:
        return sum(tokens for at, tokens in outcome.finished if begin <= at < end) / (end - begin)

    assert rate(120, 160) == 0
    assert outcome.refused <= 2 * 60
    assert rate(170, 200) >= 0.9 * rate(60, 100)
    since, until = (sum(at < moment for at, _ in outcome.finished) for moment in (100, 160))
    assert min(outcome.limits[until:]) >= min(outcome.limits[since // 2 : since])
    assert max(outcome.limits[since : since + 2 * slots]) >= int(0.7 * slots)


@pytest.mark.parametrize("told", ["wait", "nothing"])
def test_a_limit_that_is_not_in_use_does_not_grow(told: Told) -> None:
    outcome, _ = adaptive(16, 0, told=told, demand=3)
    assert max(outcome.limits) <= 4


# Memory


@pytest.mark.parametrize("start", [None, 16])
@pytest.mark.parametrize("fits", [1, 2, 3, 7, 20])
def test_a_hidden_limit_of_memory_is_respected(fits: int, start: int | None) -> None:
    for seed in SEEDS:
        outcome, target = adaptive(32, seed, out_of_memory_above=fits, start=start, answers=4000)
        failures = outcome.out_of_memory
        assert failures
        assert outcome.limits[-1] <= fits

        # Never twice in a row: a minute and a round of answers, with fewer out, lie between.
        for (before, _, answers), (after, _, later) in pairwise(failures):
            assert after - before >= PROBE_S
            assert later - answers >= ROUND

        # Every row was answered, once, however often memory ran out.
        assert set(outcome.ended.values()) == {1}

        # Within ten changes it is at what fits, and is soon back there from each try of more.
        fitting = [change.after <= fits for change in target.changes]
        found = [change.why for change in target.changes].index("the engine ran out of memory")
        assert found < 10
        assert fitting[found]
        assert all(any(pair) for pair in pairwise(fitting[found:]))
        beyond = [change.at for change in list(target.changes)[found:] if change.after > fits]
        assert all(after - before >= PROBE_S for before, after in pairwise(beyond))

        # Failing gets rarer: each vain try of one more is paid for by twice as many answers.
        assert len(failures) <= 8


def test_memory_that_has_become_free_is_used_again() -> None:
    clock = [0.0]
    target = QueueTarget(clock=lambda: clock[0])
    engine = SimulatedEngine(slots=8, out_of_memory_above=3)
    simulate(engine, target, clock=clock, seed=1, completions=100)
    assert target.limit <= 3
    engine = SimulatedEngine(slots=8, now=clock[0])
    outcome = simulate(engine, target, clock=clock, seed=2, completions=3000)
    assert outcome.out_of_memory == []
    assert target.limit >= 5


def test_what_memory_holds_no_more_is_not_trusted() -> None:
    client = settled(16)
    client.target.on_oom(in_flight=16)
    assert client.target.limit == 8
    for _ in range(5):
        client.answers(8)
        assert client.target.limit == 8
    client.now += PROBE_S
    client.answers(8)
    assert client.target.limit == 9
    client.target.on_oom(in_flight=9)
    assert client.target.limit == 4


# One decision at a time


class Client:
    """Tells a target of answers, all of which take a second, by a clock that the test moves."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.target = QueueTarget(clock=lambda: self.now, **options)

    def answers(self, count: int, *, waited: float | None = 0.0, in_flight: int | None = None) -> None:
        """So many answers to requests sent after everything that was told before."""
        self.now += 2.0
        for _ in range(count):
            self.target.on_complete(
                latency_s=1.0,
                in_flight=self.target.limit if in_flight is None else in_flight,
                queue_s=waited,
            )


def settled(limit: int) -> Client:
    """A client whose limit has found its range."""
    client = Client(start=limit)
    client.answers(limit, waited=1.5 / limit)
    assert client.target.limit == limit
    return client


def test_answers_that_were_sent_under_another_limit_say_nothing() -> None:
    client = Client()
    client.answers(2)
    assert client.target.limit == 2
    for _ in range(50):  # sent a second ago, when the limit was 1
        client.target.on_complete(latency_s=1.0, in_flight=2, queue_s=0.0)
    assert client.target.limit == 2


def test_the_limit_doubles_until_something_waits_and_grows_by_a_tenth_after() -> None:
    client = Client()
    for expected in (2, 4, 8, 16, 32):
        client.answers(max(2, client.target.limit))
        assert client.target.limit == expected
    client.answers(32, waited=0.1)
    assert client.target.limit == 32
    client.answers(32)
    assert client.target.limit == 35


def test_half_of_what_waits_too_much_is_taken_back() -> None:
    client = settled(16)
    client.answers(16, waited=0.75)  # 12 of 16 wait
    assert client.target.limit == 11
    assert client.target.queue == pytest.approx(12.0)


def test_a_queue_that_others_fill_shrinks_a_limit_that_is_not_in_use() -> None:
    client = settled(20)
    client.answers(20, waited=0.9, in_flight=10)  # 9 wait
    assert client.target.limit == 16
    client.answers(16, waited=0.2, in_flight=10)
    assert client.target.limit == 16


def test_one_refusal_cuts_and_the_others_of_its_cooldown_do_not() -> None:
    client = settled(20)
    for _ in range(5):
        client.target.on_busy()
    assert client.target.limit == 14
    client.answers(100)  # within the cooldown: two seconds later
    assert client.target.limit == 14
    client.now += COOLDOWN_S
    client.answers(14)
    assert client.target.limit == 15
    client.target.on_busy()
    assert client.target.limit == 10


def test_what_was_refused_is_not_tried_again_for_some_rounds() -> None:
    client = settled(20)
    client.target.on_busy(in_flight=12)
    assert client.target.limit == 11
    client.now += COOLDOWN_S
    for _ in range(20):
        client.answers(11)
        assert client.target.limit == 11
    for _ in range(20):
        client.answers(20)
    assert client.target.limit > 11


def test_refusals_that_go_on_are_no_news_of_what_fits() -> None:
    client = settled(20)
    for _ in range(10):
        client.target.on_busy(in_flight=client.target.limit)
        client.now += COOLDOWN_S
    assert client.target.limit == 1
    client.answers(1)
    assert client.target.limit == 20


def test_refusals_beside_requests_that_are_worked_on_say_what_fits() -> None:
    client = settled(20)
    for _ in range(3):
        client.target.on_busy(in_flight=client.target.limit)
        client.now += COOLDOWN_S
    assert client.target.limit == 6
    for _ in range(2):
        client.answers(max(2, client.target.limit))
    assert client.target.limit == 14


def test_a_retry_after_lengthens_the_cooldown() -> None:
    client = settled(20)
    client.target.on_busy(60.0)
    client.now += 50
    client.answers(20)
    assert client.target.limit == 14
    client.now += 10
    client.answers(20)
    assert client.target.limit == 15


def test_a_timeout_stops_growth_for_a_round_and_two_are_a_refusal() -> None:
    client = Client(start=16)
    client.now += 1
    client.target.on_timeout()
    client.answers(16)
    assert client.target.limit == 16
    client.answers(16)
    assert client.target.limit == 32
    client.target.on_timeout()
    client.target.on_timeout()
    assert client.target.limit == 22
    assert client.target.changes[-1].why == "two requests got no answer in time"


def test_where_nothing_is_told_a_refusal_ends_a_trial() -> None:
    client = Client(start=4)
    client.answers(12, waited=None)
    assert client.target.limit == 8
    client.target.on_busy()
    assert client.target.limit == 5
    client.now += COOLDOWN_S
    for _ in range(20):
        client.answers(15, waited=None)
        assert client.target.limit == 5


def test_where_nothing_is_told_a_timeout_stops_growth_as_well() -> None:
    client = Client(start=4)
    client.now += 1
    client.target.on_timeout()
    client.answers(12, waited=None)
    assert client.target.limit <= 4


def test_after_a_crash_it_begins_with_one_and_doubles() -> None:
    client = settled(20)
    client.target.on_crash()
    assert client.target.limit == 1
    client.answers(2)
    client.answers(2)
    assert client.target.limit == 4


def test_a_cap_holds_until_it_is_taken_back() -> None:
    client = settled(20)
    client.target.cap(6, "VRAM")
    client.target.cap(9, "slots")
    assert client.target.limit == 6
    client.answers(8)
    assert client.target.limit == 6
    client.target.cap(None, "VRAM")
    for _ in range(10):
        client.answers(9)
    assert client.target.limit == 9
    assert client.target.changes[0].why == "VRAM"


def test_the_users_bounds_hold_but_memory_goes_below() -> None:
    client = Client(lowest=4, highest=8)
    for _ in range(5):
        client.answers(8)
    assert client.target.limit == 8
    for _ in range(5):
        client.answers(8, waited=1.0)
    assert client.target.limit == 4
    client.target.on_busy()
    assert client.target.limit == 4
    client.target.on_oom(in_flight=4)
    assert client.target.limit <= 2


@pytest.mark.parametrize(("lowest", "highest"), [(0, 4), (5, 4)])
def test_bounds_that_make_no_sense_are_refused(lowest: int, highest: int) -> None:
    with pytest.raises(ValueError, match="lowest"):
        QueueTarget(lowest=lowest, highest=highest)


def test_a_change_says_why() -> None:
    client = Client()
    client.answers(2)
    client.answers(2, waited=0.6)
    assert str(client.target.changes[0]) == "1 -> 2: no slot should be without work; 0.0 waiting"
    client.target.on_oom(in_flight=2)
    assert str(client.target.changes[1]) == "2 -> 1: the engine ran out of memory"


def test_an_engine_that_becomes_slower_is_searched_anew_where_it_tells_nothing() -> None:
    for seed in SEEDS:
        _, target = adaptive(16, seed, told="nothing", slots_after={1500: 4})
        later = [change.why for change in target.changes]
        assert "the rate fell" in later


# Properties


def play(client: Client, kind: str, number: int) -> None:
    target = client.target
    acts: dict[str, Callable[[], object]] = {
        "free": lambda: client.answers(number),
        "waited": lambda: client.answers(number, waited=0.5),
        "idle": lambda: client.answers(number, in_flight=1),
        "waiting": lambda: target.on_waiting(number),
        "busy": lambda: target.on_busy(in_flight=number),
        "timeout": target.on_timeout,
        "oom": lambda: target.on_oom(in_flight=number),
        "crash": target.on_crash,
        "cap": lambda: target.cap(number, "guard"),
        "uncap": lambda: target.cap(None, "guard"),
        "later": lambda: setattr(client, "now", client.now + number),
        "unseen": lambda: [
            target.on_complete(latency_s=1.0, in_flight=target.limit, work=number) for _ in range(number)
        ],
    }
    acts[kind]()


KINDS = (
    "free", "waited", "idle", "waiting", "busy", "timeout", "oom", "crash", "cap", "uncap", "later", "unseen",
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 100)), max_size=80),
    st.integers(1, 8),
    st.integers(8, 64),
)
@example([*[("timeout", 1)] * 2, ("free", 1), ("free", 1), ("busy", 1), ("free", 1), ("free", 7)], 1, 8)
def test_whatever_is_told_the_bounds_hold_and_every_change_is_explained(
    told: list[tuple[str, int]], lowest: int, highest: int
) -> None:
    client = Client(lowest=lowest, highest=highest)
    target = client.target
    cap = highest
    cooling_until = unsure_until = 0.0
    first = target.limit
    for kind, number in told:
        before = target.limit
        count = len(target.changes)
        play(client, kind, number)
        cap = min(number, highest) if kind == "cap" else highest if kind == "uncap" else cap
        assert 1 <= target.limit <= cap
        if kind in ("busy", "timeout", "oom", "crash", "cap"):
            assert target.limit <= before
        if kind in ("waiting", "uncap", "later"):
            assert target.limit == before
        if client.now < cooling_until and kind not in ("oom", "crash", "cap"):
            assert target.limit == before
        whys = [change.why for change in list(target.changes)[count:]]
        # Two timeouts at the lowest limit begin a cool-down of which no change tells.
        if kind == "timeout":
            unsure_until = client.now + COOLDOWN_S
        refused = kind == "busy" and client.now >= unsure_until
        if client.now >= cooling_until and (refused or "two requests got no answer in time" in whys):
            cooling_until = client.now + COOLDOWN_S
        if target.limit != before:
            assert len(target.changes) > count
    chain = [first, *(change.after for change in target.changes)]
    assert [change.before for change in target.changes] == chain[:-1]
    assert chain[-1] == target.limit
    assert all(change.why for change in target.changes)


@given(st.integers(2, 60), st.integers(0, 60))
def test_what_memory_failed_at_is_not_allowed_soon_again(failed: int, more: int) -> None:
    client = Client(start=64)
    client.target.on_oom(in_flight=failed)
    for _ in range(more):
        client.now += PROBE_S / 2
        client.answers(max(ROUND, client.target.limit))
        if more < 50:
            assert client.target.limit < failed


# Slots that are known, or wanted singly


def test_a_queue_alone_never_takes_it_below_the_slots_that_are_told() -> None:
    client = Client(start=9, slots=8)
    for _ in range(20):
        client.answers(16, waited=0.9)
    assert client.target.limit == 9
    client.target.on_busy(in_flight=9)
    assert client.target.limit == 6


def alone(engine: SimulatedEngine, seed: int, answers: int, **options: Any) -> Outcome:
    """A run in which none is to wait."""
    clock = [0.0]
    target = QueueTarget(start=4, clock=lambda: clock[0])
    target.spare = False
    return simulate(engine, target, clock=clock, seed=seed, completions=answers, **options)


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16])
def test_where_none_is_to_wait_the_limit_is_the_number_of_slots(slots: int) -> None:
    for seed in range(3):
        outcome = alone(SimulatedEngine(slots=slots), seed, ANSWERS)
        later = outcome.limits[ANSWERS // 3 :]
        assert set(later) <= {slots, slots + 1}
        assert later.count(slots + 1) <= 0.12 * len(later)


def test_where_none_is_to_wait_other_slots_are_followed() -> None:
    for before, after in ((8, 2), (2, 8)):
        outcome = alone(SimulatedEngine(slots=before), 1, 8000, slots_after={1000: after})
        assert set(outcome.limits[-500:]) <= {after, after + 1}


def a_round(client: Client, *, slots: int) -> int:
    """The limit after a round, in which as many wait as there are not slots for."""
    client.answers(ROUND, waited=max(0.0, 1 - slots / client.target.limit))
    return client.target.limit


def test_where_none_is_to_wait_a_moment_in_which_all_stood_still_costs_no_slot() -> None:
    client = Client(start=2)
    client.target.spare = False
    still = 0
    for _ in range(300):
        if [a_round(client, slots=2), a_round(client, slots=2)] == [2, 2]:
            still += 1
            client.answers(ROUND, waited=0.9)
            assert client.target.limit == 2
    assert still > 100


def test_where_none_is_to_wait_a_slot_that_was_lost_is_soon_used_again_when_it_is_back() -> None:
    client = Client(start=2)
    client.target.spare = False
    for _ in range(5):  # the fifth time as soon as the first
        assert any([a_round(client, slots=2) for _ in range(4)] == [2, 2, 2, 2] for _ in range(100))
        assert (a_round(client, slots=1), a_round(client, slots=1)) == (2, 1)
        assert next(n for n in range(100) if a_round(client, slots=2) == 2) == 30


def test_slots_that_are_told_are_not_exceeded_where_none_is_to_wait() -> None:
    client = Client(start=4, slots=4)
    client.target.spare = False
    for _ in range(100):
        client.answers(8)
        assert client.target.limit == 4
    client.target.spare = True
    client.answers(8)
    assert client.target.limit > 4


def test_more_requests_that_only_wait_for_this_process_are_taken_back() -> None:
    """The engine works for a tenth of the time of requests, and twice as many take twice as long."""
    client = Client(start=4)
    for _ in range(6):
        took = client.target.limit / 4
        client.now += 2 * took
        for _ in range(client.target.limit):
            client.target.on_complete(
                latency_s=took, in_flight=client.target.limit, queue_s=0.0, served_s=took / 10
            )
    assert client.target.limit == 4
    assert [change.after for change in client.target.changes] == [8, 4]


def test_a_long_way_to_the_engine_is_filled() -> None:
    """The engine works for a tenth of the time of requests as well, but twice as many are answered."""
    client = Client(start=4, highest=64)
    for _ in range(6):
        client.now += 2.0
        for _ in range(client.target.limit):
            client.target.on_complete(latency_s=1.0, in_flight=client.target.limit, queue_s=0.0, served_s=0.1)
    assert client.target.limit == 64


def test_a_round_waits_for_a_count_that_is_told_now_and_then() -> None:
    client = Client(start=4)
    client.now += 2.0
    client.target.on_waiting(0)
    client.answers(40, waited=None)
    assert client.target.limit == 8
    client.answers(40, waited=None)
    assert client.target.limit == 8
    client.target.on_waiting(0)
    client.answers(1, waited=None)
    assert client.target.limit == 16


def test_other_bounds_hold_at_once() -> None:
    client = settled(20)
    client.target.bound(lowest=1, highest=5)
    assert client.target.limit == 5
    with pytest.raises(ValueError, match="lowest"):
        client.target.bound(lowest=3, highest=2)
