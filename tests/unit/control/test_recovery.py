"""The recovery ladder as a table: what has happened, what goes wrong now, what is done.

`test_troubled_runs.py` has the same decisions driving whole runs.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch import errors
from ollama_batch.control import (
    Action,
    Crash,
    Do,
    History,
    Kind,
    Ladder,
    Rung,
    Suspicion,
    Trouble,
    decide,
    kind_of,
    probed,
    smaller_num_batch,
    undo,
)
from ollama_batch.control.history import BREAKER_ANSWERS
from ollama_batch.control.recovery import UNDO_AFTER

NOW = 10_000.0
LADDER = Ladder()
ALL_RUNGS = tuple(LADDER.rungs)
ROW = 7
FOUR = frozenset({5, 6, ROW, 8})
ONE = frozenset({ROW})


def trouble(kind: Kind, **more: Any) -> Trouble:
    return Trouble(kind=kind, at=NOW, **{"row": ROW, "in_flight": FOUR, "sent_at": NOW - 1, **more})


def alone(kind: Kind, **more: Any) -> Trouble:
    return trouble(kind, in_flight=ONE, **more)


def suspected(crashes: int, *, since: int = 0) -> dict[int, Suspicion]:
    """The row was out at so many crashes, the first of which came after `since` answers."""
    return {ROW: Suspicion(crashes, since)}


def crashes(*ago_s: float, answers: int = 0, memory: bool = False) -> tuple[Crash, ...]:
    """Crashes so long ago, all after so many answers."""
    return tuple(Crash(NOW - ago, frozenset({99}), memory, answers) for ago in ago_s)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    trouble: Trouble
    history: History
    do: Do
    more: dict[str, Any] = field(default_factory=dict)


FRESH = History(answers=100, last_answer_at=NOW - 2)
BESIDE = replace(FRESH, last_answer_at=NOW - 0.5)
GIVEN_UP = trouble(Kind.TIMEOUT, healthy=True, spent=1)
REFUSED = trouble(Kind.BUSY, refused_since=NOW - 300)
STALE = replace(FRESH, last_answer_at=NOW - 200)
AWAY = replace(FRESH, down_since=NOW - 5)
CRASHED = replace(FRESH, down_since=NOW - 5, crashed=True, crashes=crashes(5))

TABLE = [
    # Its own fault: the row fails, or is made shorter, and is never sent again unchanged.
    Case("row: fails", trouble(Kind.ROW), FRESH, Do.FAIL),
    Case("context: is made to fit", trouble(Kind.CONTEXT), FRESH, Do.SHORTEN),
    Case("context, shortened before: fails", trouble(Kind.CONTEXT, spent=1), FRESH, Do.FAIL),
    Case("fatal: the run stops", trouble(Kind.FATAL), FRESH, Do.STOP),
    # Busy and loading cost a row nothing, but patience.
    Case("busy: waits", trouble(Kind.BUSY), FRESH, Do.WAIT, {"wait_s": 0.5}),
    Case("busy again: waits twice as long", trouble(Kind.BUSY, spent=3), FRESH, Do.WAIT, {"wait_s": 4.0}),
    Case("busy for long: waits 30 s", trouble(Kind.BUSY, spent=99), FRESH, Do.WAIT, {"wait_s": 30.0}),
    Case("busy: asked to wait", trouble(Kind.BUSY, retry_after_s=9.0), FRESH, Do.WAIT, {"wait_s": 9.0}),
    Case("busy: asked for a day", trouble(Kind.BUSY, retry_after_s=9e4), FRESH, Do.WAIT, {"wait_s": 300.0}),
    Case("busy past patience, others answered", trouble(Kind.BUSY, refused_since=NOW - 300), FRESH, Do.FAIL),
    Case("busy past patience, nobody answered: is it the row?", REFUSED, STALE, Do.ASK),
    Case("it is the row: the engine has replied", replace(REFUSED, replied=True), STALE, Do.FAIL),
    Case("it is not: the engine refuses everything", replace(REFUSED, replied=False), STALE, Do.STOP),
    Case(
        "busy: asked to wait less than we would",
        trouble(Kind.BUSY, retry_after_s=0.0),
        FRESH,
        Do.WAIT,
        {"wait_s": 0.0},
    ),
    Case(
        "busy again: that has not helped",
        trouble(Kind.BUSY, retry_after_s=0.0, spent=1),
        FRESH,
        Do.WAIT,
        {"wait_s": 1.0},
    ),
    Case("loading: asks each second", trouble(Kind.LOADING), FRESH, Do.WAIT, {"wait_s": 1.0}),
    Case("loading for long: each 10 s", trouble(Kind.LOADING, spent=9), FRESH, Do.WAIT, {"wait_s": 10.0}),
    Case("loading past patience", trouble(Kind.LOADING, refused_since=NOW - 600), FRESH, Do.STOP),
    # Not there: nothing was sent, so nothing is lost.
    Case("unreachable: is it, still?", trouble(Kind.UNREACHABLE), FRESH, Do.PAUSE, {"wait_s": 0.0}),
    Case("unreachable in a pause: waits", trouble(Kind.UNREACHABLE), AWAY, Do.WAIT),
    Case(
        "unreachable again and again without an answer: pauses get longer",
        trouble(Kind.UNREACHABLE),
        replace(FRESH, pauses=3, silent_since=NOW - 20),
        Do.PAUSE,
        {"wait_s": 4.0},
    ),
    Case(
        "unreachable past patience, however well between: stops",
        trouble(Kind.UNREACHABLE),
        replace(FRESH, pauses=9, silent_since=NOW - 300),
        Do.STOP,
    ),
    # A timeout: a slow row, or a stuck engine.
    Case("timeout: is the engine well?", trouble(Kind.TIMEOUT), FRESH, Do.PROBE),
    Case(
        "timeout, well: once more, with twice the time",
        trouble(Kind.TIMEOUT, healthy=True),
        FRESH,
        Do.AGAIN,
        {"timeout_factor": 2.0},
    ),
    Case(
        "timeout twice, and others were answered meanwhile: fails",
        trouble(Kind.TIMEOUT, healthy=True, spent=1),
        BESIDE,
        Do.FAIL,
    ),
    Case("timeout twice, and nobody answered: is it the row?", GIVEN_UP, FRESH, Do.ASK),
    Case("it is: the engine has replied", replace(GIVEN_UP, replied=True), FRESH, Do.FAIL),
    Case(
        "it is not: the engine is silent",
        replace(GIVEN_UP, replied=False),
        FRESH,
        Do.PAUSE,
        {"returned": ONE},
    ),
    Case(
        "timeout, not well: a crash",
        trouble(Kind.TIMEOUT, healthy=False),
        FRESH,
        Do.PAUSE,
        {"returned": FOUR},
    ),
    # A connection lost in mid-answer: a cable, or a crash.
    Case("lost: is the engine well?", trouble(Kind.LOST), FRESH, Do.PROBE),
    Case("lost, well: again", trouble(Kind.LOST, healthy=True), FRESH, Do.AGAIN),
    Case(
        "lost, but not the other one, well: again",
        trouble(Kind.LOST, healthy=True, in_flight=frozenset({ROW, 8})),
        FRESH,
        Do.AGAIN,
    ),
    Case(
        "lost six times, well, others answered: fails",
        trouble(Kind.LOST, healthy=True, spent=5),
        BESIDE,
        Do.FAIL,
    ),
    Case("lost, not well: a crash", trouble(Kind.LOST, healthy=False), FRESH, Do.PAUSE, {"returned": FOUR}),
    Case(
        "lost with half of the others, well: a crash, and back already",
        trouble(Kind.LOST, healthy=True, lost_too=frozenset({5})),
        FRESH,
        Do.PAUSE,
        {"returned": FOUR},
    ),
    Case(
        "lost alone, a suspect, well: it crashed the engine, which is back already",
        alone(Kind.LOST, healthy=True),
        replace(FRESH, suspicions=suspected(1)),
        Do.PAUSE,
        {"alone": ONE},
    ),
    Case(
        "lost alone, a suspect, and the engine still has the model: no crash",
        alone(Kind.LOST, healthy=True, kept=True),
        replace(FRESH, suspicions=suspected(2)),
        Do.AGAIN,
    ),
    Case(
        "lost alone, a suspect, well, and requests of other runs go on: no crash",
        alone(Kind.LOST, healthy=True, others=3),
        replace(FRESH, suspicions=suspected(1)),
        Do.AGAIN,
    ),
    Case(
        "lost alone, well, and another run's with it: a crash, and back already",
        alone(Kind.LOST, healthy=True, others_lost=1),
        FRESH,
        Do.PAUSE,
        {"returned": ONE},
    ),
    Case(
        "lost alone, well, with one of three of other runs: a crash",
        alone(Kind.LOST, healthy=True, others=3, others_lost=1),
        FRESH,
        Do.PAUSE,
        {"returned": ONE},
    ),
    Case(
        "lost alone, well, with one of four of other runs: again",
        alone(Kind.LOST, healthy=True, others=4, others_lost=1),
        FRESH,
        Do.AGAIN,
    ),
    # Replies that are none.
    Case("reply: again", trouble(Kind.REPLY), FRESH, Do.AGAIN, {"wait_s": 0.5}),
    Case("reply, the fourth, others answered: fails", trouble(Kind.REPLY, spent=3), BESIDE, Do.FAIL),
    # An engine that says it is well and answers nothing is asked a question.
    Case(
        "the third in a row without an answer: pauses, and asks",
        trouble(Kind.TIMEOUT, healthy=True),
        replace(FRESH, unanswered=2),
        Do.PAUSE,
        {"returned": ONE},
    ),
    Case(
        "the third in a row, of several kinds",
        trouble(Kind.REPLY, spent=1),
        replace(FRESH, unanswered=2),
        Do.PAUSE,
        {"returned": ONE},
    ),
    Case("one more while it is asked: again, later", trouble(Kind.TIMEOUT), AWAY, Do.AGAIN),
    # Crashes.
    Case(
        "crash: all rows that were out go back, nobody is suspected alone yet",
        trouble(Kind.CRASH),
        FRESH,
        Do.PAUSE,
        {"returned": FOUR, "alone": frozenset(), "rung": None, "wait_s": 1.0},
    ),
    Case("the same crash, told by the next row: known", trouble(Kind.CRASH), CRASHED, Do.WAIT),
    Case(
        "the same crash, told after the engine is back: known",
        trouble(Kind.CRASH, sent_at=NOW - 6),
        replace(FRESH, crashes=crashes(5)),
        Do.WAIT,
    ),
    Case(
        "a timeout of a row that was out at a crash: known",
        trouble(Kind.TIMEOUT, sent_at=NOW - 6),
        replace(FRESH, crashes=crashes(5)),
        Do.WAIT,
    ),
    Case(
        "crash, the second for a row: it runs alone",
        trouble(Kind.CRASH),
        replace(FRESH, suspicions=suspected(1)),
        Do.PAUSE,
        {"returned": FOUR, "alone": ONE},
    ),
    Case(
        "crash, the third, alone, and others were answered between: quarantined",
        alone(Kind.CRASH),
        replace(FRESH, suspicions=suspected(2, since=99)),
        Do.PAUSE,
        {"quarantined": ONE, "returned": frozenset(), "alone": frozenset()},
    ),
    Case(
        "crash, the third, alone, but nothing was answered between: it may be the engine",
        alone(Kind.CRASH),
        replace(FRESH, suspicions=suspected(2, since=100)),
        Do.PAUSE,
        {"quarantined": frozenset(), "alone": ONE},
    ),
    Case(
        "crash, the third, but not alone: it runs alone",
        trouble(Kind.CRASH),
        replace(FRESH, suspicions=suspected(2, since=99)),
        Do.PAUSE,
        {"quarantined": frozenset(), "alone": ONE},
    ),
    Case(
        "crash, the third, alone in its run, but requests of others were out: it runs alone",
        alone(Kind.CRASH, others=1),
        replace(FRESH, suspicions=suspected(2, since=99)),
        Do.PAUSE,
        {"quarantined": frozenset(), "alone": ONE},
    ),
    # The breaker.
    Case(
        "crash, the fifth in 10 minutes with 19 answers between: stops",
        trouble(Kind.CRASH),
        replace(FRESH, crashes=crashes(599, 400, 300, 200, answers=81)),
        Do.STOP,
    ),
    Case(
        "crash, the fifth, but 20 were answered between: goes on",
        trouble(Kind.CRASH),
        replace(FRESH, crashes=crashes(599, 400, 300, 200, answers=80)),
        Do.PAUSE,
    ),
    Case(
        "crash, the fifth, but the first was more than 10 minutes ago: goes on",
        trouble(Kind.CRASH),
        replace(FRESH, crashes=crashes(601, 400, 300, 200, answers=100)),
        Do.PAUSE,
    ),
    Case(
        "crash, the fifth, but now it is known whose fault they are: quarantined",
        alone(Kind.CRASH),
        replace(FRESH, suspicions=suspected(2, since=99), crashes=crashes(9, 8, 7, 6, answers=99)),
        Do.PAUSE,
        {"quarantined": ONE},
    ),
    # Out of memory: as a crash, and one rung.
    Case(
        "memory, several out: fewer at a time",
        trouble(Kind.OUT_OF_MEMORY),
        FRESH,
        Do.PAUSE,
        {"rung": Rung.CONCURRENCY, "returned": FOUR},
    ),
    Case(
        "memory, several out again: still fewer",
        trouble(Kind.OUT_OF_MEMORY),
        replace(FRESH, rungs=(Rung.NUM_BATCH,)),
        Do.PAUSE,
        {"rung": Rung.CONCURRENCY},
    ),
    Case(
        "memory, one out, and requests of other runs: fewer at a time",
        alone(Kind.OUT_OF_MEMORY, others=3),
        FRESH,
        Do.PAUSE,
        {"rung": Rung.CONCURRENCY},
    ),
    *(
        Case(
            f"memory, one out, {number} rungs taken: {rung}",
            alone(Kind.OUT_OF_MEMORY),
            replace(FRESH, rungs=ALL_RUNGS[:number]),
            Do.PAUSE,
            {"rung": rung, "returned": ONE},
        )
        for number, rung in enumerate(ALL_RUNGS)
    ),
    Case(
        "memory, one out, all rungs taken: once more, alone",
        alone(Kind.OUT_OF_MEMORY),
        replace(FRESH, rungs=ALL_RUNGS),
        Do.PAUSE,
        {"rung": None, "alone": ONE, "returned": ONE},
    ),
    Case(
        "memory, one out, all rungs taken, the third time and nobody was answered: stops",
        alone(Kind.OUT_OF_MEMORY),
        replace(FRESH, rungs=ALL_RUNGS, suspicions=suspected(2, since=100)),
        Do.STOP,
    ),
    Case(
        "memory, the third time with this row, alone, others answered: quarantined, no rung",
        alone(Kind.OUT_OF_MEMORY),
        replace(FRESH, suspicions=suspected(2, since=99)),
        Do.PAUSE,
        {"quarantined": ONE, "rung": None},
    ),
    Case(
        "a crash turns out to have been memory: the rung after all",
        trouble(Kind.OUT_OF_MEMORY),
        CRASHED,
        Do.PAUSE,
        {"rung": Rung.CONCURRENCY, "returned": frozenset()},
    ),
    Case(
        "memory, told by the next row: known",
        trouble(Kind.OUT_OF_MEMORY),
        replace(CRASHED, crashes=crashes(5, memory=True)),
        Do.WAIT,
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_the_table(case: Case) -> None:
    action = decide(case.trouble, case.history, LADDER)
    assert action.do is case.do
    assert action.reason
    for name, value in case.more.items():
        assert getattr(action, name) == value, name


def test_the_table_has_every_kind_and_every_act_that_trouble_leads_to() -> None:
    assert {case.trouble.kind for case in TABLE} == set(Kind)
    assert {case.do for case in TABLE} == set(Do) - {Do.RESUME, Do.UNDO}
    assert len({case.name for case in TABLE}) == len(TABLE)


# Probes, and what follows them


@pytest.mark.parametrize(
    ("well", "history", "do", "more"),
    [
        (True, AWAY, Do.RESUME, {"limit": None}),
        (True, CRASHED, Do.RESUME, {"limit": 1}),
        (False, AWAY, Do.PROBE, {"wait_s": 2.0}),
        (False, replace(AWAY, probes=2), Do.PROBE, {"wait_s": 8.0}),
        (False, replace(AWAY, probes=50), Do.PROBE, {"wait_s": 60.0}),
        (False, replace(AWAY, probes=50, down_since=NOW - 290), Do.PROBE, {"wait_s": 10.0}),
        (False, replace(AWAY, down_since=NOW - 300), Do.STOP, {}),
    ],
    ids=["well", "well after a crash", "not yet", "later", "each minute", "the last", "past patience"],
)
def test_a_pause_ends_with_an_answer_or_with_patience(
    well: bool, history: History, do: Do, more: dict[str, Any]
) -> None:
    action = probed(well, at=NOW, history=history, ladder=LADDER)
    assert action.do is do
    for name, value in more.items():
        assert getattr(action, name) == value, name


@pytest.mark.parametrize(
    ("history", "rung"),
    [
        (History(clean=9999), None),
        (History(clean=499, rungs=ALL_RUNGS[:2]), None),
        (History(clean=500, rungs=ALL_RUNGS[:2]), Rung.UNLOAD_OTHERS),
        (History(clean=500, rungs=ALL_RUNGS[:2], down_since=NOW), None),
        (History(clean=999, rungs=(Rung.NUM_BATCH,), taken={Rung.NUM_BATCH: 2}), None),
        (History(clean=1000, rungs=(Rung.NUM_BATCH,), taken={Rung.NUM_BATCH: 2}), Rung.NUM_BATCH),
        (History(clean=32_000, rungs=(Rung.NUM_BATCH,), taken={Rung.NUM_BATCH: 99}), Rung.NUM_BATCH),
    ],
    ids=[
        "none taken",
        "too early",
        "the last first",
        "not in a pause",
        "taken twice: later",
        "then",
        "bounded",
    ],
)
def test_a_rung_is_taken_back_after_500_clean_answers(history: History, rung: Rung | None) -> None:
    action = undo(history)
    assert (None if action is None else action.rung) == rung


def test_rungs_are_taken_back_one_at_a_time() -> None:
    history = History(rungs=ALL_RUNGS[:2])
    undone = []
    for answer in range(1100):
        history = history.answered(answer, NOW)
        if (action := undo(history)) is not None:
            undone.append((answer + 1, action.rung))
            history = history.undone()
    assert undone == [(500, Rung.UNLOAD_OTHERS), (1000, Rung.NUM_BATCH)]


def test_the_design_note_says_after_how_many_answers_rungs_are_taken_back_and_by_whom() -> None:
    root = Path(__file__).parents[3]
    note = " ".join((root / "docs/design/control.md").read_text().split())
    assert f"after {BREAKER_ANSWERS} clean answers (`BREAKER_ANSWERS`)" in note
    assert f"after {UNDO_AFTER} clean answers (`UNDO_AFTER`)" in note
    modules = (root / "src/ollama_batch").glob("*.py")
    asks = [path.name for path in modules if re.search(r"\bundo\b", path.read_text())]
    assert ("No run asks it yet" in note) == (not asks), asks


# The record


def happened(history: History, *troubles: Trouble) -> History:
    for each in troubles:
        history = history.after(each, decide(each, history, LADDER))
    return history


def test_a_crash_told_by_every_row_that_was_out_is_one_crash() -> None:
    history = happened(FRESH, *(replace(trouble(Kind.CRASH), row=row) for row in sorted(FOUR)))
    assert len(history.crashes) == 1
    assert {row: each.crashes for row, each in history.suspicions.items()} == dict.fromkeys(FOUR, 1)


def test_an_answered_row_is_suspected_no_more() -> None:
    history = happened(FRESH, trouble(Kind.CRASH)).answered(5, NOW)
    assert set(history.suspicions) == FOUR - {5}
    assert history.others_answered(ROW)
    assert set(history.failed(6).suspicions) == FOUR - {5, 6}


def test_an_answer_ends_a_row_of_troubles_and_of_pauses() -> None:
    timeouts = [trouble(Kind.TIMEOUT, healthy=True), trouble(Kind.TIMEOUT, healthy=True, row=5)]
    history = happened(FRESH, *timeouts)
    assert decide(timeouts[0], history, LADDER).do is Do.PAUSE
    assert decide(timeouts[0], history.answered(6, NOW), LADDER).do is Do.AGAIN

    history = happened(FRESH, trouble(Kind.UNREACHABLE))
    history = history.probed(probed(True, at=NOW, history=history, ladder=LADDER))
    later = replace(trouble(Kind.UNREACHABLE), at=NOW + 400)
    assert decide(later, history, LADDER).do is Do.STOP
    assert decide(later, history.answered(6, NOW), LADDER).do is Do.PAUSE


def test_a_pause_for_a_crash_and_its_probes_are_counted_until_it_ends() -> None:
    history = happened(replace(FRESH, clean=99), trouble(Kind.CRASH))
    assert (history.crashed, history.clean, history.pauses) == (True, 0, 1)
    waits = []
    for second in range(3):
        action = probed(False, at=NOW + second, history=history, ladder=LADDER)
        waits.append(action.wait_s)
        history = history.probed(action)
    assert waits == [2.0, 4.0, 8.0]
    history = history.probed(probed(True, at=NOW + 9, history=history, ladder=LADDER))
    assert (history.down_since, history.crashed, history.probes) == (None, False, 0)


def test_crashes_that_a_quarantined_row_explains_do_not_trip_the_breaker() -> None:
    history = FRESH
    for number in range(3):
        crash = replace(alone(Kind.CRASH), at=NOW + number, sent_at=NOW + number - 0.5)
        history = happened(history, crash)
        history = history.probed(probed(True, at=NOW, history=history, ladder=LADDER))
        history = history.answered(None, NOW + number + 0.2)
    assert history.crashes == ()
    assert history.suspicions == {}


def test_a_crash_that_was_memory_is_still_one_crash() -> None:
    history = happened(FRESH, trouble(Kind.CRASH), trouble(Kind.OUT_OF_MEMORY), trouble(Kind.OUT_OF_MEMORY))
    assert [crash.memory for crash in history.crashes] == [True]


def test_a_note_says_what_the_action_says() -> None:
    action = decide(trouble(Kind.OUT_OF_MEMORY), FRESH, LADDER)
    assert action.to_note() == {
        "do": "pause",
        "reason": "the engine ran out of memory; from now on fewer requests are out at a time",
        "wait_s": 1.0,
        "rung": "concurrency",
        "returned": [5, 6, 7, 8],
    }
    assert Action(do=Do.RESUME, reason="x", limit=1, timeout_factor=2.0).to_note() == {
        "do": "resume",
        "reason": "x",
        "limit": 1,
        "timeout_factor": 2.0,
    }


# What is given up


@pytest.mark.parametrize(("num_batch", "smaller"), [(None, 256), (2048, 256), (512, 256), (256, None)])
def test_the_smaller_batch(num_batch: int | None, smaller: int | None) -> None:
    assert smaller_num_batch(num_batch) == smaller


# Every error has its kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.EngineUnreachableError("x"), Kind.UNREACHABLE),
        (errors.EngineConnectionError("x"), Kind.LOST),
        (errors.EngineTimeoutError("x"), Kind.TIMEOUT),
        (errors.EngineBusyError("x"), Kind.BUSY),
        (errors.EngineLoadingError("x"), Kind.LOADING),
        (errors.EngineServerError("x"), Kind.REPLY),
        (errors.EngineCrashedError("x"), Kind.CRASH),
        (errors.EngineOutOfMemoryError("x"), Kind.OUT_OF_MEMORY),
        (errors.InvalidReplyError("x"), Kind.REPLY),
        (errors.EngineExitedError("x"), Kind.CRASH),
        (errors.EngineStoppedError("x"), Kind.FATAL),
        (errors.EngineAuthError("x"), Kind.FATAL),
        (errors.ModelNotFoundError("x"), Kind.FATAL),
        (errors.RequestRejectedError("x"), Kind.ROW),
        (errors.UnsupportedParamError("x"), Kind.ROW),
        (errors.ContextTooLargeError(9, 8), Kind.CONTEXT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_has_its_kind(error: errors.EngineError, kind: Kind) -> None:
    assert kind_of(error) is kind


def test_every_other_engine_error_is_a_useless_answer_and_so_the_rows_own() -> None:
    named = set(test_an_error_has_its_kind.pytestmark[0].args[1])  # type: ignore[attr-defined]  # set by pytest
    told = {type(error) for error, _ in named}
    for error in vars(errors).values():
        if inspect.isclass(error) and issubclass(error, errors.EngineError):
            abstract = error in (errors.EngineError, errors.OutcomeError)
            assert abstract or error in told or issubclass(error, errors.OutcomeError)


# Whatever happens


@st.composite
def anything(draw: st.DrawFn) -> tuple[Trouble, History]:
    rows = st.integers(0, 9)
    row = draw(rows)
    when = st.floats(0, 2000)
    history = History(
        answers=draw(st.integers(0, 60)),
        unanswered=draw(st.integers(0, 4)),
        last_answer_at=draw(when),
        crashes=tuple(
            Crash(at, draw(st.frozensets(rows)), draw(st.booleans()), draw(st.integers(0, 60)))
            for at in sorted(draw(st.lists(when, max_size=5)))
        ),
        suspicions=draw(st.dictionaries(rows, st.builds(Suspicion, st.integers(1, 3), st.integers(0, 60)))),
        rungs=ALL_RUNGS[: draw(st.integers(0, 3))],
        down_since=draw(st.none() | when),
        crashed=draw(st.booleans()),
        probes=draw(st.integers(0, 2000)),
        pauses=draw(st.integers(0, 2000)),
        silent_since=draw(st.none() | when),
    )
    return (
        Trouble(
            kind=draw(st.sampled_from(Kind)),
            at=2000.0,
            row=row,
            in_flight=draw(st.frozensets(rows)),
            sent_at=draw(st.none() | when),
            spent=draw(st.integers(0, 2000)),
            refused_since=draw(st.none() | when),
            retry_after_s=draw(st.none() | st.floats(0, 1e9)),
            healthy=draw(st.none() | st.booleans()),
            lost_too=draw(st.frozensets(rows)),
            replied=draw(st.none() | st.booleans()),
        ),
        history,
    )


@given(anything())
def test_every_decision_is_bounded_explained_and_about_rows_that_were_out(
    case: tuple[Trouble, History],
) -> None:
    met, history = case
    action = decide(met, history, LADDER)
    assert action == decide(met, history, LADDER)
    assert action.reason
    assert 0 <= action.wait_s <= 300
    named = action.returned | action.quarantined
    assert named <= met.out
    assert not action.returned & action.quarantined
    assert action.alone <= action.returned
    assert len(action.quarantined) <= 1
    if action.rung is not None and action.rung is not Rung.CONCURRENCY:
        assert action.rung not in history.rungs
    if action.do is Do.PROBE:  # is asked once: the answer leads on
        again = decide(replace(met, healthy=True), history, LADDER)
        assert again.do is not Do.PROBE
    if action.do is Do.ASK:
        again = decide(replace(met, replied=True), history, LADDER)
        assert again.do is Do.FAIL
    then = history.after(met, action)
    assert len(then.crashes) <= 5
    assert (then.down_since is not None) >= (action.do is Do.PAUSE)
