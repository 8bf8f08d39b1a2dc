"""The recovery ladder: what to do about trouble, given what has happened. No clock, no chance, no doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ollama_batch.control.action import RUNG_WORDS, Action, Do, Rung
from ollama_batch.control.history import BREAKER_ANSWERS, BREAKER_CRASHES, BREAKER_S, History
from ollama_batch.control.trouble import Kind, Trouble

SILENT: Final = 3
"""So many troubles without an answer between: healthy or not, the engine is asked a question."""

SUSPECT: Final = 2
"""A row that was out at so many crashes runs alone."""

POISON: Final = 3
"""A row that was out at so many, alone at the last, is quarantined, if others were answered meanwhile."""

UNDO_AFTER: Final = 500
"""So many clean answers take one rung back; twice as many each time it had to be taken again."""

UNDO_DOUBLINGS: Final = 6

LOADING_S, LOADING_MOST_S = 1.0, 10.0
PROBE_S, PROBE_MOST_S = 1.0, 60.0

NO_TIME_S: Final = 0.001
"""So little left of a patience is its end: waits are drawn, and would only come ever nearer to it."""

NUM_BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What a run can do about trouble, and how patient it is.

    `rungs` are those that would help this engine, in the order to be taken; concurrency needs not be named.
    `timeouts`, `lost` and `replies` are a row's repeats for each. `patience_s` is how long the engine may be
    away, or may refuse one row; `load_patience_s` how long it may load. Waits of rows begin with `wait_s` and
    double up to `wait_most_s`; what a server asks for is done up to `retry_after_most_s`.
    """

    rungs: Sequence[Rung] = (Rung.NUM_BATCH, Rung.UNLOAD_OTHERS, Rung.RESTART)
    timeouts: int = 1
    lost: int = 5
    replies: int = 3
    patience_s: float = 300.0
    load_patience_s: float = 600.0
    wait_s: float = 0.5
    wait_most_s: float = 30.0
    retry_after_most_s: float = 300.0


def decide(trouble: Trouble, history: History, ladder: Ladder) -> Action:
    """What to do about one row's trouble.

    No wait is longer than `ladder` and the constants above say, and no way leads round again without an
    answer, an attempt, a rung or a part of that patience spent.
    """
    match trouble.kind:
        case Kind.FATAL:
            return Action(do=Do.STOP, reason="every further row would meet this as well")
        case Kind.ROW:
            return Action(do=Do.FAIL, reason="the row itself is at fault")
        case Kind.CONTEXT:
            if trouble.spent:
                return Action(do=Do.FAIL, reason="even shortened, the prompt does not fit the context")
            return Action(do=Do.SHORTEN, reason="the prompt does not fit the context")
    if history.died(trouble):
        return _crash(trouble, history, ladder)
    if history.covers(trouble):
        return Action(do=Do.WAIT, reason="recovery from the crash is under way")
    match trouble.kind:
        case Kind.BUSY:
            return _refused(trouble, history, ladder)
        case Kind.LOADING:
            if trouble.refused_s >= ladder.load_patience_s:
                reason = f"the model was not loaded within {ladder.load_patience_s:g} s"
                return Action(do=Do.STOP, reason=reason)
            wait = _growing(LOADING_S, LOADING_MOST_S, trouble.spent)
            return Action(do=Do.WAIT, reason="the model is being loaded", wait_s=wait)
        case Kind.UNREACHABLE:
            if history.down_since is not None:
                return Action(do=Do.WAIT, reason="the engine is being waited for")
            return _pause("the engine cannot be reached", trouble.at, history, ladder)
    return _unanswered(trouble, history, ladder)


def probed(well: bool, *, at: float, history: History, ladder: Ladder) -> Action:
    """What to do after the probe of a pause: go on, ask again later, or end the run."""
    if well:
        return Action(do=Do.RESUME, reason="the engine answers again", limit=1 if history.crashed else None)
    away_s = at - (at if history.down_since is None else history.down_since)
    left_s = ladder.patience_s - away_s
    if left_s < NO_TIME_S:
        reason = f"the engine did not come back within {ladder.patience_s:g} s"
        return Action(do=Do.STOP, reason=reason)
    wait = min(_growing(PROBE_S, PROBE_MOST_S, history.probes + 1), left_s)
    return Action(do=Do.PROBE, reason="the engine does not answer yet", wait_s=wait)


def undo(history: History) -> Action | None:
    """The rung that may be taken back now: one at a time, the last first; None if there is none."""
    if not history.rungs or history.down_since is not None:
        return None
    rung = history.rungs[-1]
    again = min(history.taken.get(rung, 1) - 1, UNDO_DOUBLINGS)
    needed = UNDO_AFTER * 2**again
    if history.clean < needed:
        return None
    return Action(do=Do.UNDO, reason=f"{needed} answers without trouble", rung=rung)


def smaller_num_batch(num_batch: int | None) -> int | None:
    """The `num_batch` of the rung, None if the present one (None: the engine's own) is as small."""
    return NUM_BATCH if num_batch is None or num_batch > NUM_BATCH else None


def _refused(trouble: Trouble, history: History, ladder: Ladder) -> Action:
    if trouble.refused_s < ladder.patience_s:
        wait = _growing(ladder.wait_s, ladder.wait_most_s, trouble.spent)
        asked = trouble.retry_after_s
        if asked is not None:
            # The server knows best; where that has not helped, the longer of the two counts.
            asked = min(asked, ladder.retry_after_most_s)
            wait = max(wait, asked) if trouble.spent else asked
        return Action(do=Do.WAIT, reason="the engine is busy", wait_s=wait)
    refused = f"refused for {ladder.patience_s:g} s"
    if trouble.replied or history.last_answer_at > trouble.at - ladder.patience_s / 2:
        return Action(do=Do.FAIL, reason=f"{refused}, and the engine answers others")
    if trouble.replied is None:
        return Action(do=Do.ASK, reason=f"{refused}: the row or the engine?")
    return Action(do=Do.STOP, reason=f"busy for {ladder.patience_s:g} s, and nothing is answered")


def _unanswered(trouble: Trouble, history: History, ladder: Ladder) -> Action:
    """A timeout, a lost connection, a reply that is none: the row's, or the engine's?"""
    if history.down_since is not None:
        return Action(do=Do.AGAIN, reason="the engine is being asked")
    if trouble.kind is not Kind.REPLY and trouble.healthy is None:
        return Action(do=Do.PROBE, reason=f"{trouble.kind}: is the engine well?")
    repeats = {Kind.TIMEOUT: ladder.timeouts, Kind.LOST: ladder.lost}.get(trouble.kind, ladder.replies)
    if trouble.spent >= repeats:
        return _given_up(trouble, history, ladder)
    if history.unanswered + 1 >= SILENT:
        reason = f"{SILENT} troubles, and no answer between: {trouble.kind}"
        return replace(_pause(reason, trouble.at, history, ladder), returned=frozenset({trouble.row}))
    return Action(
        do=Do.AGAIN,
        reason=f"{trouble.kind}, and the engine is well",
        wait_s=_growing(ladder.wait_s, ladder.wait_most_s, trouble.spent),
        timeout_factor=2.0 if trouble.kind is Kind.TIMEOUT else 1.0,
    )


def _given_up(trouble: Trouble, history: History, ladder: Ladder) -> Action:
    """The row has no repeats left: it fails if the engine was seen to work meanwhile, or works now."""
    reason = f"{trouble.kind}, after {trouble.spent} repeats"
    if trouble.replied or history.last_answer_at > (
        trouble.at if trouble.sent_at is None else trouble.sent_at
    ):
        return Action(do=Do.FAIL, reason=f"{reason}, and the engine answers others")
    if trouble.replied is None:
        return Action(do=Do.ASK, reason=f"{reason}: the row or the engine?")
    paused = _pause(f"{reason}, and nothing else is answered", trouble.at, history, ladder)
    return replace(paused, returned=frozenset({trouble.row}))


def _pause(reason: str, at: float, history: History, ladder: Ladder) -> Action:
    """A pause that is no crash's: probed at once; waits grow and patience ends while no row is answered."""
    if history.silent_since is not None and at - history.silent_since >= ladder.patience_s:
        return Action(do=Do.STOP, reason=f"no answer for {ladder.patience_s:g} s: {reason}")
    wait = _growing(PROBE_S, PROBE_MOST_S, history.pauses - 1) if history.pauses else 0.0
    return Action(do=Do.PAUSE, reason=reason, wait_s=wait)


def _crash(trouble: Trouble, history: History, ladder: Ladder) -> Action:
    memory = trouble.kind is Kind.OUT_OF_MEMORY
    out = trouble.out
    if history.covers(trouble):
        if memory and history.crashes and not history.crashes[-1].memory:
            return _lack_of_memory(trouble, history, ladder, Action(do=Do.PAUSE, reason="it was memory"))
        return Action(do=Do.WAIT, reason="recovery from the crash is under way")
    suspected = {row: history.suspicion_after(row) for row in out}
    poison = frozenset(
        row
        for row, each in suspected.items()
        if trouble.alone and each.crashes >= POISON and history.answers > each.answers
    )
    if not poison and _breaks(trouble, history):
        reason = f"{BREAKER_CRASHES} crashes and fewer than {BREAKER_ANSWERS} answers between"
        return Action(do=Do.STOP, reason=reason)
    hangs = trouble.kind is Kind.TIMEOUT
    what = "the engine ran out of memory" if memory else "the engine crashed"
    what = "the engine does not answer" if hangs else what
    pause = Action(
        do=Do.PAUSE,
        reason=f"{what} for the third time with this row, alone" if poison else what,
        wait_s=PROBE_S,
        returned=out - poison,
        quarantined=poison,
        alone=frozenset(row for row, each in suspected.items() if each.crashes >= SUSPECT) - poison,
    )
    return pause if poison or not memory else _lack_of_memory(trouble, history, ladder, pause)


def _lack_of_memory(trouble: Trouble, history: History, ladder: Ladder, pause: Action) -> Action:
    """`pause`, with the next rung; where none is left the row runs alone, and the third time ends it."""
    rung: Rung | None = Rung.CONCURRENCY
    out = trouble.out
    if trouble.alone:
        rung = next((each for each in ladder.rungs if each not in history.rungs), None)
    if rung is None:
        if all(history.suspicion_after(row).crashes < POISON for row in out):
            return replace(pause, alone=out)
        return Action(do=Do.STOP, reason="out of memory with one request, and nothing left to give up")
    return replace(pause, reason=f"{pause.reason}; {RUNG_WORDS[rung]}", rung=rung)


def _breaks(trouble: Trouble, history: History) -> bool:
    """Whether this crash is one too many."""
    recent = [each for each in history.crashes if trouble.at - each.at < BREAKER_S]
    if len(recent) < BREAKER_CRASHES - 1:
        return False
    first = recent[1 - BREAKER_CRASHES]
    return history.answers - first.answers < BREAKER_ANSWERS


def _growing(first_s: float, most_s: float, before: int) -> float:
    return min(most_s, first_s * 2.0 ** min(before, 30))
