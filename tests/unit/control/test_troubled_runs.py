"""Whole runs that the recovery ladder drives: each row ends once, the guilty alone pay, and all runs end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch.control import Do, Rung
from ollama_batch.control.memory_bound import PROBE_S
from recovery_support import Nature, TroubledEngine, TroubledRun

NATURES: tuple[Nature, ...] = (
    "ok",
    "ok",
    "ok",
    "poison",
    "hangs",
    "rejected",
    "too long",
    "fits shortened",
    "garbage",
    "dropped",
)
GUILTY = {"poison", "hangs", "rejected", "too long"}


def ran(natures: list[Nature], engine: TroubledEngine, *, limit: int = 8, seed: int = 0) -> TroubledRun:
    run = TroubledRun(natures, engine, limit=limit, seed=seed)
    run.run()
    return run


def spans(longest: int, most: int = 2) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(
        st.tuples(st.integers(0, 200), st.integers(1, longest)).map(lambda s: (float(s[0]), float(sum(s)))),
        max_size=most,
    )


@st.composite
def engines(draw: st.DrawFn) -> TroubledEngine:
    return TroubledEngine(
        fits=draw(st.none() | st.integers(0, 9)),
        tells=draw(st.sampled_from(["crash", "lost"])),
        back_after_s=draw(st.sampled_from([0.0, 3.0, 40.0, 1e9])),
        dies_at=sorted(draw(st.lists(st.floats(0, 300), max_size=8))),
        unreachable=draw(spans(400)),
        busy=draw(spans(400)),
        loading=draw(spans(700)),
        lying=draw(spans(400)),
    )


@given(
    st.lists(st.sampled_from(NATURES), min_size=1, max_size=40),
    engines(),
    st.integers(1, 16),
    st.integers(0, 99),
)
def test_every_row_ends_once_or_is_pending_at_a_stop_whatever_the_engine_does(
    natures: list[Nature], engine: TroubledEngine, limit: int, seed: int
) -> None:
    run = ran(natures, engine, limit=limit, seed=seed)  # has its own bound of steps
    assert set(run.ended.values()) <= {1}
    assert run.out == {}
    assert sorted([*run.ended, *run.pending]) == list(range(len(natures)))
    assert (run.stopped is None) == (not run.pending)
    assert all(0 <= action.wait_s <= 300 for action in run.actions)
    assert not any(natures[row] in ("rejected", "too long", "poison") for row in run.answered)
    # An attempt is a repeat or a crash; both are counted.
    assert max(run.attempts.values(), default=0) <= 25


@given(
    st.lists(st.sampled_from(NATURES), min_size=1, max_size=40),
    st.sampled_from(["crash", "lost"]),
    st.sampled_from([0.0, 3.0]),
    st.integers(1, 16),
    st.integers(0, 99),
)
def test_rows_fail_only_by_their_own_fault_when_the_engine_has_none(
    natures: list[Nature], tells: str, back_after_s: float, limit: int, seed: int
) -> None:
    engine = TroubledEngine(tells=tells, back_after_s=back_after_s)  # type: ignore[arg-type]  # one of the two
    run = ran(natures, engine, limit=limit, seed=seed)
    poisoned = {row for row, nature in enumerate(natures) if nature == "poison"}
    # One that was out at a crash and then loses its connection, alone, time and again looks just like poison.
    looks_guilty = {row for row, nature in enumerate(natures) if nature == "dropped"}
    assert set(run.quarantined) <= poisoned | looks_guilty
    assert {natures[row] for row in run.failed} <= GUILTY
    if run.stopped is None:
        assert {natures[row] for row in run.answered}.isdisjoint(GUILTY)


@pytest.mark.parametrize("tells", ["crash", "lost"])
@pytest.mark.parametrize("back_after_s", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("place", [0, 3, 11, 29])
@pytest.mark.parametrize("limit", [1, 2, 8])
def test_a_poison_row_is_found_within_three_deaths_and_its_neighbours_are_unharmed(
    tells: str, back_after_s: float, place: int, limit: int
) -> None:
    natures: list[Nature] = ["ok"] * 30
    natures[place] = "poison"
    for seed in range(5):
        engine = TroubledEngine(tells=tells, back_after_s=back_after_s)  # type: ignore[arg-type]  # one of the two
        run = ran(natures, engine, limit=limit, seed=seed)
        assert run.stopped is None
        assert run.quarantined + run.failed == {place: 1}
        assert len(run.answered) == 29
        # One that is always alone, on an engine that does not list its models, may be hit by a bad cable.
        assert len(engine.deaths) <= (6 if tells == "lost" and limit == 1 else 3)


@pytest.mark.parametrize("limit", [8, 32])
@pytest.mark.parametrize("fits", [1, 2, 3, 7, 20])
def test_no_row_fails_for_want_of_memory_while_one_request_fits(fits: int, limit: int) -> None:
    for seed in range(3):
        engine = TroubledEngine(fits=fits)
        run = ran(["ok"] * 1500, engine, limit=limit, seed=seed)
        assert run.stopped is None
        assert len(run.answered) == 1500
        assert engine.fits == fits  # no other rung was needed
        assert run.target.limit <= max(fits, 1)
        # After the first, memory is tried beyond what fits once a minute at the most.
        assert all(after - before >= PROBE_S for (before, _), (after, _) in pairwise(engine.deaths[1:]))
        assert all(len(rows) > fits for _, rows in engine.deaths)
        assert bool(engine.deaths) == (limit > fits)


def test_where_not_even_one_request_fits_the_rungs_are_taken_in_turn_and_back() -> None:
    engine = TroubledEngine(fits=-1)  # one request fits after two rungs
    run = ran(["ok"] * 5000, engine, limit=4)
    assert run.stopped is None
    assert len(run.answered) == 5000
    rungs = [action.rung for action in run.actions if action.rung is not None and action.do is Do.PAUSE]
    others = [rung for rung in rungs if rung is not Rung.CONCURRENCY]
    assert others[:2] == [Rung.NUM_BATCH, Rung.UNLOAD_OTHERS]
    # Both are needed: going without the last is tried in vain after 500, 1,000 and 2,000 answers.
    undone = [action.rung for action in run.actions if action.do is Do.UNDO]
    assert undone == others[2:] == [Rung.UNLOAD_OTHERS] * len(undone)
    assert 2 <= len(undone) <= 3


def test_where_nothing_ever_fits_the_run_stops_with_every_row_pending() -> None:
    run = ran(["ok"] * 20, TroubledEngine(fits=-100))
    assert run.stopped is not None
    assert sorted(run.pending) == list(range(20))


def test_an_engine_that_dies_under_every_row_stops_the_run_and_no_row_pays() -> None:
    engine = TroubledEngine(dies_at=[0.0] * 100)
    run = ran(["ok"] * 20, engine)
    assert run.stopped is not None
    assert len(engine.deaths) <= 5
    assert run.ended == {}


@pytest.mark.parametrize("every_s", [10.0, 30.0])
def test_an_engine_that_is_killed_again_and_again_is_outlived(every_s: float) -> None:
    engine = TroubledEngine(dies_at=[every_s * n for n in range(1, 21)], back_after_s=2.0)
    run = ran(["ok"] * 400, engine, limit=8)
    assert run.stopped is None
    assert len(run.answered) == 400
    assert len(engine.deaths) >= 13


def test_an_engine_that_lies_about_its_health_costs_no_row_anything() -> None:
    engine = TroubledEngine(lying=[(10.0, 150.0)])
    run = ran(["ok"] * 100, engine)
    assert run.stopped is None
    assert len(run.answered) == 100
    waits = [action for action in run.actions if action.do is Do.PROBE]
    assert waits  # it was asked until it answered, and no row was sent meanwhile
    assert max(run.attempts.values()) == 1


@pytest.mark.parametrize("trouble", ["unreachable", "busy", "loading"])
def test_an_engine_that_is_away_for_a_while_costs_no_row_an_attempt(trouble: str) -> None:
    engine = TroubledEngine(**{trouble: [(5.0, 120.0)]})  # type: ignore[arg-type]  # a name of a span
    run = ran(["ok"] * 100, engine)
    assert run.stopped is None
    assert len(run.answered) == 100
    assert run.attempts.total() == 0


@pytest.mark.parametrize("trouble", ["unreachable", "busy", "loading", "lying"])
def test_an_engine_that_is_away_for_good_stops_the_run_with_every_row_pending(trouble: str) -> None:
    engine = TroubledEngine(**{trouble: [(5.0, 1e9)]})  # type: ignore[arg-type]  # a name of a span
    run = ran(["ok"] * 100, engine)
    assert run.stopped is not None
    assert run.now < 3600
    assert not run.failed
    assert len(run.answered) + len(run.pending) == 100
