"""What has happened to the engine so far, as far as a decision needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ollama_batch.control.action import Action, Do, Rung
from ollama_batch.control.trouble import Kind, Trouble

BREAKER_CRASHES: Final = 5
"""So many crashes, in `BREAKER_S` and with fewer than `BREAKER_ANSWERS` answers between, end a run."""

BREAKER_S: Final = 600.0
BREAKER_ANSWERS: Final = 20

PATIENT: Final = frozenset({Kind.TIMEOUT, Kind.LOST, Kind.REPLY})
"""Troubles that a healthy engine has as well: one says little, many without an answer say much."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A death of the engine: when, with which rows out, for want of memory or not, after how many answers."""

    at: float
    rows: frozenset[int]
    memory: bool
    answers: int


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A row that was out at `crashes` crashes; at the first of them the run had so many `answers`."""

    crashes: int
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The engine's record in one run. Never changed: each method returns the record after one happening more.

    `answers` counts rows that were answered, `clean` those since the last crash or rung, `unanswered` the
    troubles since the last answer or pause. `crashes` holds the latest that no quarantined row explains,
    `suspicions` the rows still pending that were out at a crash, `rungs` those that are taken, in order, and
    `taken` how often each ever was. `down_since` is when the present pause began, None while requests are
    sent; `crashed` says whether it is for a crash, `probes` how many in it were in vain. `pauses` counts
    those since the last answer to a row, the first of which began at `silent_since`. `lacked_memory` says of
    the latest crash, explained or not, that it was for want of memory.
    """

    answers: int = 0
    clean: int = 0
    unanswered: int = 0
    last_answer_at: float = float("-inf")
    crashes: tuple[Crash, ...] = ()
    suspicions: Mapping[int, Suspicion] = field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()
    taken: Mapping[Rung, int] = field(default_factory=dict)
    down_since: float | None = None
    crashed: bool = False
    probes: int = 0
    pauses: int = 0
    silent_since: float | None = None
    lacked_memory: bool = False

    def answered(self, row: int | None, at: float) -> History:
        """An answer came: to a row, or (None) to a question of the run's own when no other row can tell."""
        return replace(
            self,
            answers=self.answers + 1,
            clean=self.clean + 1,
            unanswered=0,
            pauses=0,
            silent_since=None,
            last_answer_at=at,
            suspicions=self._without((row,)) if row in self.suspicions else self.suspicions,
        )

    def failed(self, row: int) -> History:
        """A row has failed and is pending no more."""
        return replace(self, suspicions=self._without((row,))) if row in self.suspicions else self

    def after(self, trouble: Trouble, action: Action) -> History:
        """What `decide` decided about `trouble` is being done."""
        counts = trouble.kind in PATIENT and action.do in (Do.AGAIN, Do.FAIL)
        if action.do is not Do.PAUSE:
            return replace(self, unanswered=self.unanswered + 1) if counts else self
        then = self._paused(trouble.at)
        if self.died(trouble):
            then = then._was_memory() if self.covers(trouble) else then._crashed(trouble)
        if action.rung is not None and action.rung is not Rung.CONCURRENCY:
            times = {**then.taken, action.rung: then.taken.get(action.rung, 0) + 1}
            then = replace(then, rungs=(*then.rungs, action.rung), taken=times)
        if action.quarantined:
            unexplained = tuple(each for each in then.crashes if each.rows.isdisjoint(action.quarantined))
            return replace(then, crashes=unexplained, suspicions=then._without(action.quarantined))
        return then

    def probed(self, action: Action) -> History:
        """What `probed` decided about an answered or unanswered probe is being done."""
        if action.do is Do.RESUME:
            return replace(self, down_since=None, crashed=False, probes=0)
        return replace(self, probes=self.probes + 1)

    def undone(self) -> History:
        """The last rung has been taken back."""
        return replace(self, rungs=self.rungs[:-1], clean=0)

    def covers(self, trouble: Trouble) -> bool:
        """Whether the trouble belongs to a crash that is known: its row was sent before that."""
        if self.down_since is not None and self.crashed:
            return True
        return bool(self.crashes) and trouble.sent_at is not None and trouble.sent_at <= self.crashes[-1].at

    def died(self, trouble: Trouble) -> bool:
        """Whether the trouble means that the engine died: it says so, is not well, or dropped its requests.

        An engine may be back before it is asked. So a row that was out at a crash and is alone when its
        connection breaks is believed to have broken it, unless the engine still has its model; and so are
        many that lose theirs together, of one run or several.
        """
        if trouble.kind in (Kind.CRASH, Kind.OUT_OF_MEMORY):
            return True
        if trouble.kind not in (Kind.TIMEOUT, Kind.LOST) or trouble.healthy is None:
            return False
        if not trouble.healthy:
            return True
        if trouble.kind is Kind.TIMEOUT:
            return False
        lost = len(trouble.lost_too | {trouble.row}) + trouble.others_lost
        if lost > 1:
            return 2 * lost >= len(trouble.out) + trouble.others
        return trouble.alone and trouble.row in self.suspicions and not trouble.kept

    def others_answered(self, row: int) -> bool:
        """Whether anything was answered since the row was first out at a crash.

        Only then would one more crash, with the row alone, be its own: until then others go first.
        """
        known = self.suspicions.get(row)
        return known is None or self.answers > known.answers

    def suspicion_after(self, row: int) -> Suspicion:
        """What a row is suspected of if the engine has crashed now while it was out."""
        known = self.suspicions.get(row)
        if known is None:
            return Suspicion(1, self.answers)
        return Suspicion(known.crashes + 1, known.answers)

    def _paused(self, at: float) -> History:
        if self.down_since is not None:
            return self
        since = at if self.silent_since is None else self.silent_since
        return replace(
            self, down_since=at, probes=0, unanswered=0, pauses=self.pauses + 1, silent_since=since
        )

    def _crashed(self, trouble: Trouble) -> History:
        crash = Crash(trouble.at, trouble.out, trouble.kind is Kind.OUT_OF_MEMORY, self.answers)
        recent = [each for each in self.crashes if trouble.at - each.at < BREAKER_S]
        suspected = {row: self.suspicion_after(row) for row in trouble.out}
        return replace(
            self,
            clean=0,
            crashed=True,
            lacked_memory=crash.memory,
            crashes=(*recent, crash)[-BREAKER_CRASHES:],
            suspicions={**self.suspicions, **suspected},
        )

    def _was_memory(self) -> History:
        """The last crash turns out to have been for want of memory."""
        if not self.crashes:
            return self
        crash = replace(self.crashes[-1], memory=True)
        return replace(self, crashes=(*self.crashes[:-1], crash), lacked_memory=True)

    def _without(self, rows: Iterable[int | None]) -> Mapping[int, Suspicion]:
        gone = set(rows)
        return {row: each for row, each in self.suspicions.items() if row not in gone}
