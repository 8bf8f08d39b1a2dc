"""A run that does what the recovery ladder decides, with an engine that has every trouble there is.

Neither has a clock or a socket. The engine counts its deaths, the run what became of each row: what the tests
compare with.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ollama_batch.control import (
    Action,
    Do,
    History,
    Kind,
    Ladder,
    QueueTarget,
    Rung,
    Trouble,
    decide,
    probed,
    undo,
)

Nature = Literal["ok", "poison", "hangs", "rejected", "too long", "fits shortened", "garbage", "dropped"]
"""What becomes of a row whenever it runs; one that is garbage or dropped is answered the third time."""

Span = tuple[float, float]
STEPS = 20_000
ANSWER_S = 1.0
TIMEOUT_S = 30.0


@dataclass(kw_only=True)
class TroubledEngine:
    """Dies, hides, refuses and lies as it is told; spans are (from, to) seconds."""

    fits: int | None = None
    tells: Literal["crash", "lost"] = "crash"
    back_after_s: float = 3.0
    dies_at: Sequence[float] = ()
    unreachable: Sequence[Span] = ()
    busy: Sequence[Span] = ()
    loading: Sequence[Span] = ()
    lying: Sequence[Span] = ()
    """Healthy, as far as it says, and answers nothing."""
    deaths: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    down_until: float = 0.0
    _due: int = 0

    def within(self, spans: Sequence[Span], now: float) -> bool:
        return any(begin <= now < end for begin, end in spans)

    def healthy(self, now: float) -> bool:
        return now >= self.down_until and not self.within(self.unreachable, now)

    def answers(self, now: float) -> bool:
        """Whether a question of one token is answered."""
        return self.healthy(now) and not any(
            self.within(spans, now) for spans in (self.busy, self.loading, self.lying)
        )

    def refuses(self, now: float) -> Kind | None:
        """What a request meets before it runs."""
        if not self.healthy(now):
            return Kind.UNREACHABLE
        if self.within(self.loading, now):
            return Kind.LOADING
        return Kind.BUSY if self.within(self.busy, now) else None

    def dies(self, now: float, out: Mapping[int, Nature]) -> Kind | None:
        """How it dies of what runs now, if it does."""
        kind: Kind | None = None
        if self.fits is not None and len(out) > self.fits:
            kind = Kind.OUT_OF_MEMORY
        elif "poison" in out.values():
            kind = Kind.CRASH
        elif self._due < len(self.dies_at) and now >= self.dies_at[self._due]:
            self._due += 1
            kind = Kind.CRASH
        if kind is not None:
            self.deaths.append((now, frozenset(out)))
            self.down_until = now + self.back_after_s
            if kind is Kind.CRASH and self.tells == "lost":
                kind = Kind.LOST
        return kind


class TroubledRun:
    """Sends rows until each has ended or the run is to stop."""

    def __init__(
        self,
        natures: Sequence[Nature],
        engine: TroubledEngine,
        *,
        limit: int = 8,
        ladder: Ladder | None = None,
        seed: int = 0,
    ) -> None:
        self.natures = dict(enumerate(natures))
        self.engine = engine
        self.ladder = ladder or Ladder()
        self.now = 0.0
        self.target = QueueTarget(start=limit, highest=limit, clock=lambda: self.now)
        self.history = History()
        self.pending = list(self.natures)
        self.out: dict[int, float] = {}  # row -> when it was sent
        self.isolated: set[int] = set()
        self.answered: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.quarantined: Counter[int] = Counter()
        self.attempts: Counter[int] = Counter()
        self.stopped: str | None = None
        self.actions: list[Action] = []
        self._random = random.Random(seed)
        self._ready: dict[int, float] = {}
        self._spent: defaultdict[tuple[int, Kind], int] = defaultdict(int)
        self._refused: dict[int, float] = {}
        self._misbehaved: Counter[int] = Counter()
        self._wait_s = 0.0

    def run(self) -> None:
        for _ in range(STEPS):
            if self.stopped is not None or not (self.pending or self.out):
                return
            if self.history.down_since is not None:
                self._probe()
            else:
                self._send()
                self._work()
        raise AssertionError(f"no end after {STEPS} steps: {self.actions[-5:]}")

    @property
    def ended(self) -> Counter[int]:
        return self.answered + self.failed + self.quarantined

    # The engine's side

    def _send(self) -> None:
        while len(self.out) < self.target.limit and self.history.down_since is None and self.stopped is None:
            row = self._next()
            if row is None:
                return
            self.pending.remove(row)
            self.out[row] = self.now
            refusal = self.engine.refuses(self.now)
            if refusal is not None:
                self._tell(refusal, row, frozenset(self.out))

    def _next(self) -> int | None:
        ready = [row for row in self.pending if self._ready.get(row, 0.0) <= self.now]
        others = [row for row in ready if row not in self.isolated]
        if others and not (self.isolated & self.out.keys()):
            return others[0]
        if self.out:
            return None
        if ready:
            row = next(iter(ready))
            if not self.history.others_answered(row) and self.engine.answers(self.now):
                self.history = self.history.answered(None, self.now)
            return row
        if self.pending:
            self.now = min(self._ready[row] for row in self.pending)
        return None

    def _work(self) -> None:
        """The next thing that happens to what is out."""
        if not self.out or self.history.down_since is not None:
            self._leave_out()
            return
        out = {row: self.natures[row] for row in self.out}
        death = self.engine.dies(self.now, out)
        if death is not None:
            rows = frozenset(out)
            if death is Kind.OUT_OF_MEMORY:
                self.target.on_oom(in_flight=len(rows))
            for row in self._random.sample(sorted(rows), len(rows)):
                self._tell(death, row, rows)
            return
        if self.engine.within(self.engine.lying, self.now):
            self.now += TIMEOUT_S
            rows = frozenset(out)
            for row in sorted(rows):
                self._tell(Kind.TIMEOUT, row, rows)
            return
        row = self._random.choice(sorted(out))
        self._finish(row, out[row])

    def _leave_out(self) -> None:
        """What was out when a pause began that is no crash's: taken back, for nothing has come of it yet."""
        for row in list(self.out):
            self.out.pop(row)
            self.pending.insert(0, row)

    def _finish(self, row: int, nature: Nature) -> None:
        rows = frozenset(self.out)
        if nature == "hangs":
            self.now += TIMEOUT_S
            self._tell(Kind.TIMEOUT, row, rows)
            return
        self.now += ANSWER_S
        if nature == "rejected":
            self._tell(Kind.ROW, row, rows)
        elif nature in ("too long", "fits shortened") and not (
            nature == "fits shortened" and self._spent[row, Kind.CONTEXT]
        ):
            self._tell(Kind.CONTEXT, row, rows)
        elif nature in ("garbage", "dropped") and self._misbehaved[row] < 2:
            self._misbehaved[row] += 1
            self._tell(Kind.REPLY if nature == "garbage" else Kind.LOST, row, rows)
        else:
            sent_at = self.out.pop(row)
            self.answered[row] += 1
            self.isolated.discard(row)
            self.history = self.history.answered(row, self.now)
            in_flight = len(rows)
            self.target.on_complete(latency_s=self.now - sent_at, in_flight=in_flight, queue_s=0.0)
            action = undo(self.history)
            if action is not None:
                self.history = self.history.undone()
                self.actions.append(action)
                if self.engine.fits is not None:
                    self.engine.fits -= 1

    # What is decided, and done

    def _tell(self, kind: Kind, row: int, rows: frozenset[int]) -> None:
        if self.stopped is not None:
            return
        refused = kind in (Kind.BUSY, Kind.LOADING)
        trouble = Trouble(
            kind=kind,
            at=self.now,
            row=row,
            in_flight=rows,
            sent_at=self.out.get(row),
            spent=self._spent[row, kind],
            refused_since=self._refused.setdefault(row, self.now)
            if refused
            else self._refused.pop(row, None),
        )
        action = decide(trouble, self.history, self.ladder)
        if action.do is Do.PROBE:
            self.now += 0.01
            lost = (
                rows if kind is Kind.LOST and self.engine.deaths and self.engine.deaths[-1][1] == rows else ()
            )
            healthy = self.engine.healthy(self.now)
            trouble = replace(trouble, healthy=healthy, lost_too=frozenset(lost))
            action = decide(trouble, self.history, self.ladder)
        if action.do is Do.ASK:
            self.now += 0.01
            trouble = replace(trouble, replied=self.engine.answers(self.now))
            action = decide(trouble, self.history, self.ladder)
        assert action.do not in (Do.PROBE, Do.ASK), action
        self.history = self.history.after(trouble, action)
        self.actions.append(action)
        self._do(action, trouble)

    def _do(self, action: Action, trouble: Trouble) -> None:
        row, kind = trouble.row, trouble.kind
        if action.do is Do.STOP:
            self._stop(action)
        elif action.do is Do.FAIL:
            self.failed[row] += 1
            self.history = self.history.failed(row)
            self._gone(row)
        elif action.do in (Do.WAIT, Do.AGAIN, Do.SHORTEN):
            self._spent[row, kind] += 1
            self.attempts[row] += action.do is not Do.WAIT
            self._back(row, action.wait_s)
        elif action.do is Do.PAUSE:
            self._wait_s = action.wait_s
            self.isolated |= action.alone
            for each in action.returned:
                self.attempts[each] += 1
                self._spent[each, kind] += each == row
                self._back(each, 0.0)
            for each in action.quarantined:
                self.quarantined[each] += 1
                self._gone(each)
            if row in self.out:
                self._back(row, 0.0)
            if action.rung not in (None, Rung.CONCURRENCY) and self.engine.fits is not None:
                self.engine.fits += 1

    def _stop(self, action: Action) -> None:
        self.stopped = action.reason
        self.pending += self.out
        self.out.clear()

    def _back(self, row: int, wait_s: float) -> None:
        if row in self.out:
            del self.out[row]
            self.pending.insert(0, row)
        self._ready[row] = self.now + wait_s

    def _gone(self, row: int) -> None:
        self.out.pop(row, None)
        self.isolated.discard(row)

    def _probe(self) -> None:
        self.now += max(self._wait_s, 0.01)
        well = self.engine.answers(self.now)
        action = probed(well, at=self.now, history=self.history, ladder=self.ladder)
        self.history = self.history.probed(action)
        self.actions.append(action)
        self._wait_s = action.wait_s
        if action.do is Do.STOP:
            self._stop(action)
        elif action.do is Do.RESUME and action.limit is not None:
            self.target.on_crash()
