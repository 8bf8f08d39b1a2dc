"""How many requests may be out: as many as keep every slot busy, with a small queue behind them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ollama_batch.control._alone import Alone
from ollama_batch.control._climb import Climb
from ollama_batch.control._refused import Refused
from ollama_batch.control._round import Round
from ollama_batch.control.memory_bound import MemoryBound

ROUND: Final = 8
"""A round has at least so many answers, and at least as many as the limit."""

FIRST_ROUND: Final = 2
"""The same while the limit doubles and waits are told: that nobody waits is soon seen."""

BLIND_ROUND: Final = 3
"""Where no queue is told, a round has so many times the limit, for a rate that can be compared."""

BLIND_CLIMB: Final = (4, 2)
"""The same while that climbs: the least answers, and how many times the limit."""

IN_USE: Final = 0.8
"""A limit is judged only if so large a share of it was out."""

GROWTH: Final = 0.1
"""By this share the limit grows once it has found its range; before that it doubles."""

CEILING_ROUNDS: Final = 30
"""Rounds for which a limit that was refused is not tried again."""

COOLDOWN_S: Final = 5.0
"""After a refusal nothing changes for so long, or for the Retry-After."""

COOLDOWN_MOST_S: Final = 300.0

BUSY_SHARE: Final = 0.7
"""What is left of the limit after a refusal."""

ROUNDING_S: Final = 1e-6

ENOUGH, MANY = 0.5, 2.5
"""With fewer waiting the limit grows, with more (or a quarter of the limit) it shrinks. One and two requests
more than there are slots lie well between: the limit does not go to and fro between them."""

WAITING_S: Final = 5.0
"""Where the server's own count of waiting requests was told so lately, a round waits for the next."""

ALONE: Final = 0.5
"""More than so many waiting, or a 32nd of the limit, are too many where none is to wait."""

OVERHEAD: Final = 0.5
"""If the engine works for less than this share of the time of requests, more must raise the pace to stay."""

WORTH: Final = 0.05
"""By this share at least."""

KEPT: Final = 200
"""So many changes are remembered."""


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One change of the limit: when (seconds of the clock), why, from what to what.

    `queue` is how many requests waited for a slot on average, `wait_share` for which share of their time,
    `rate` the work done in a second, as far as that was known and was the reason. `given_up` is the user's
    own lower bound, told once, where memory does not hold that many.
    """

    at: float
    why: str
    before: int
    after: int
    queue: float | None = None
    rate: float | None = None
    wait_share: float | None = None
    given_up: int | None = None

    def __str__(self) -> str:
        told = "" if self.queue is None else f"; {self.queue:.1f} waiting"
        return f"{self.before} -> {self.after}: {self.why}{told}"


class QueueTarget:
    """The limit of requests that are out to one engine, steered by what it says of its queue.

    Guarantees, whatever it is told: `1 <= limit <= highest`, and no more than any cap. The limit does not
    grow while it is not in use, nor during the cooldown after a refusal; one refusal cuts it, those of the
    same cooldown do not. Once memory has run out, `MemoryBound` says how many may be tried, and when.
    `lowest` bounds what is given up for a queue or a refusal, and for memory until that fails at so many;
    crashes and caps go below it.

    `slots` is how many requests the engine works on at once, where it says so: then a queue alone never takes
    the limit below them. While `spare` is False no request is to wait, because each wants a slot's cache to
    itself: then the limit is the number of slots, and one more is tried now and then where it is not told.

    It decides once a round of answers, and counts only answers that were sent under the present limit. No
    input or output, no task, no lock: whoever owns it reads `limit` before sending and tells what came back.
    """

    def __init__(
        self,
        *,
        lowest: int = 1,
        highest: int = 256,
        start: int | None = None,
        slots: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= lowest <= highest:
            raise ValueError(f"QueueTarget({lowest=}, {highest=}): must be 1 <= lowest <= highest")
        self._lowest = lowest
        self._highest = highest
        self._slots = slots
        self._clock = clock
        self._limit = min(max(lowest if start is None else start, lowest), highest)
        self._doubling = True
        self._caps: dict[str, int] = {}
        self._since = clock()
        self._cooling_until = float("-inf")
        self._known = 1  # up to here the limit doubles again after refusals
        self._refused = False  # since the last good round
        self._round = Round()
        self._rounds = 0
        self._held: tuple[int, int] | None = None  # a ceiling for some rounds: the limit, and the last round
        self._climb = Climb()
        self._waiting_at = float("-inf")
        self._alone = Alone()
        self._grown: tuple[int, float] | None = None  # the limit before it grew, and the pace then
        self.spare = True
        """Whether a small queue is to stand behind the slots."""
        self._before: Refused | None = None
        self._memory = MemoryBound()
        self._lowest_fits = True  # as far as is known
        self.changes: deque[LimitChange] = deque(maxlen=KEPT)
        """The latest changes, the oldest first."""
        self.queue: float | None = None
        """How many requests waited for a slot in the last round, on average; None if nobody tells."""

    @property
    def limit(self) -> int:
        """How many requests may be out now."""
        return self._limit

    @property
    def highest(self) -> int:
        """The least of the user's bound and all caps."""
        return min(self._highest, *self._caps.values(), self._highest)

    def bound(self, *, lowest: int, highest: int) -> None:
        """Other bounds from now on; raises ValueError as making one does."""
        if not 1 <= lowest <= highest:
            raise ValueError(f"QueueTarget({lowest=}, {highest=}): must be 1 <= lowest <= highest")
        self._lowest, self._highest = lowest, highest
        if self._limit > self.highest:
            self._set(self.highest, "the bound is lower now", self._clock())

    # What came back

    def on_complete(
        self,
        *,
        latency_s: float,
        in_flight: int,
        queue_s: float | None = None,
        work: float = 1.0,
        served_s: float | None = None,
    ) -> None:
        """An answer came now, `latency_s` after it was sent, with `in_flight` requests out (itself included).

        `queue_s` is how long it waited for a slot, if the engine tells. `latency_s` is to be without the
        time of loading a model, `served_s` the part of it for which the engine worked on it, if that is told.
        `work` is what the answer cost, in a unit that is the same for all answers; it counts only where
        nothing is told of the queue.
        """
        now = self._clock()
        self.on_accepted(now - latency_s)
        if now < self._cooling_until or now - latency_s < self._since - ROUNDING_S:
            return
        self._round.add(
            latency_s=latency_s, in_flight=in_flight, queue_s=queue_s, work=work, served_s=served_s
        )
        if self._round.answers >= self._enough() and not self._to_be_told(now):
            self._judge(now)

    def on_waiting(self, waiting: int) -> None:
        """The server says now that so many requests wait; counts where answers do not tell."""
        now = self._clock()
        self._waiting_at = now
        if now >= self._cooling_until:
            self._round.add_waiting(waiting)

    # Trouble

    def on_busy(self, retry_after_s: float | None = None, *, in_flight: int | None = None) -> None:
        """The engine refused a request (429, 503); `in_flight` counts it as well."""
        if self._clock() < self._cooling_until:
            return
        if self._before is None:
            self._before = Refused(self._limit, self._held)
        elif in_flight == 1:
            self._before.all_since = True
        self._cut("the engine is busy", retry_after_s, in_flight)

    def on_accepted(self, sent_at: float) -> None:
        """A request that was sent then has been answered, or is worked on: it was not refused."""
        before = self._before
        if before is None or sent_at < self._since - ROUNDING_S:
            return
        self._before = None
        if before.all_since:
            self._held = before.ceiling
            self._set(max(self._limit, before.limit), "the engine takes requests again", self._clock())

    def on_timeout(self) -> None:
        """A request got no answer in time: no growth this round; two in one round count as a refusal."""
        self._round.timeouts += 1
        if self._round.timeouts >= 2:
            self._cut("two requests got no answer in time", None, None)
            self._round.timeouts = 0

    def on_oom(self, *, in_flight: int) -> None:
        """The engine ran out of memory with so many requests out: fewer from now on."""
        now, memory, lowest = self._clock(), self._memory, self._lowest
        memory.failed(in_flight, now, trusted=lowest if lowest > 1 else 0)
        self._climb.restart()
        self._before = None
        given_up = None
        if self._lowest_fits and 1 < lowest >= in_flight:
            self._lowest_fits, given_up = False, lowest
        less = max(min(self._limit // 2, memory.proven), memory.trusted)
        self._set(min(self._limit, less), "the engine ran out of memory", now, given_up=given_up)

    def on_crash(self, why: str = "the engine crashed") -> None:
        """The engine was gone and is back: begin with one request, and double; `why` is told with it.

        After a lack of memory it begins with `lowest`, unless memory has failed at so many.
        """
        self._doubling = True
        self._climb.restart()
        self._before = None
        first = max(1, self._memory.trusted) if self._memory.unanswered else 1
        self._set(min(self._limit, first), why, self._clock())

    def cap(self, limit: int | None, reason: str) -> None:
        """Never more than `limit` until told otherwise for the same `reason`; None takes the cap back."""
        if limit is None:
            self._caps.pop(reason, None)
        else:
            self._caps[reason] = max(1, limit)
        if self._limit > self.highest:
            self._climb.restart(hold=True)
            self._set(self.highest, reason, self._clock())

    # Decisions

    def _enough(self) -> int:
        """How many answers a round has."""
        if self._round.queue is None:
            least, times = BLIND_CLIMB if self._climb.climbing else (ROUND, BLIND_ROUND)
            return max(least, times * self._limit)
        if self._doubling and self._limit < self._memory.fits:
            return self._limit  # it has been there: back after a crash
        return max(FIRST_ROUND if self._doubling or self._limit < self._known else ROUND, self._limit)

    def _to_be_told(self, now: float) -> bool:
        """Whether the server's count of waiting requests, which this round has not had, is about to come."""
        return self._round.queue is None and now - self._waiting_at < WAITING_S

    def _judge(self, now: float) -> None:
        """End the round: what it says of the limit."""
        done = self._round
        self._round = Round()
        self._rounds += 1
        queue = self.queue = done.queue
        alone, in_use = queue is not None and not self.spare, done.in_flight >= IN_USE * self._limit
        wait = queue is not None and queue > self._most_waiting()
        if alone and self._alone.doubts(self._limit, wait=wait, in_use=in_use):
            return
        if not in_use:
            if queue is not None and queue > self._most_waiting():
                # Somebody else's requests are in the queue as well.
                (self._leave_alone if alone else self._shrink)(done, queue, now)
            return
        self._refused = False
        self._memory.went_well(done.peak, limit=self._limit, answers=done.answers, now=now)
        if self._limit == self._memory.most:
            self._doubling = False
        if queue is None:
            self._judge_by_rate(done, now)
        elif queue > self._most_waiting():
            (self._leave_alone if alone else self._shrink)(done, queue, now)
        elif queue >= (1.0 if self._doubling else ENOUGH):
            self._doubling = False
        elif not done.timeouts and self._pays(done, now):
            self._grow(done, queue, now)

    def _judge_by_rate(self, done: Round, now: float) -> None:
        highest = self._limit if done.timeouts else self._ceiling(now)
        found = self._climb.judge(
            self._limit, done.rate, lowest=min(self._lowest, self._limit), highest=highest
        )
        if found is not None:
            self._set(*found, now, seen=done)

    def _most_waiting(self) -> float:
        return max(MANY, self._limit / 4) if self.spare else max(ALONE, self._limit / 32)

    def _least(self) -> int:
        """What a queue alone never takes the limit below."""
        slots = 0 if self._slots is None else self._slots + self.spare
        return min(self._limit, max(self._lowest, slots))

    def _shrink(self, done: Round, queue: float, now: float) -> None:
        self._doubling = False
        less = self._limit - max(1, int((queue - 1) / 2))
        self._set(max(self._least(), less), "more wait than need be", now, seen=done)

    def _leave_alone(self, done: Round, queue: float, now: float) -> None:
        """As many as are worked on; one more is tried again later, and later still each time that fails."""
        self._doubling = False
        less = self._limit - 1  # a little queue is known too roughly for more
        if queue > max(MANY, self._limit / 4):
            less = min(less, round(done.in_flight - queue))
        less = max(self._least(), less)
        self._alone.left(self._limit, less, round_=self._rounds)
        self._set(less, "each that waits takes another's slot", now, seen=done)

    def _grow(self, done: Round, queue: float, now: float) -> None:
        wanted = self._limit + (max(1, int(self._limit * GROWTH)) if self.spare else 1)
        if self._doubling:
            wanted = 2 * self._limit
        elif self._limit < self._known:
            wanted = min(2 * self._limit, self._known)
        wanted = min(wanted, self._ceiling(now))
        if wanted > self._limit:
            self._grown = (self._limit, done.pace)
            self._set(wanted, "no slot should be without work", now, seen=done)

    def _pays(self, done: Round, now: float) -> bool:
        """Whether the engine is what limits the pace, or the last growth has raised it; else take it back.

        Requests that are on their way, or wait for this process, look like ones that keep a slot busy.
        """
        grown, self._grown = self._grown, None
        if grown is None or done.served_share >= OVERHEAD or done.pace >= (1 + WORTH) * grown[1]:
            return True
        self._doubling = False
        self._held = (grown[0], self._rounds + CEILING_ROUNDS)
        less = min(self._limit, max(self._lowest, grown[0]))
        self._set(less, "more did not raise the pace", now, seen=done)
        return False

    def _ceiling(self, now: float) -> int:
        """The most that may be tried now."""
        if self._held is not None and self._rounds > self._held[1]:
            self._held = None
        ceilings = [self.highest]
        if self._held is not None:
            ceilings.append(self._held[0])
        if not self.spare:
            if self._slots is not None:
                ceilings.append(self._slots)
            elif (alone := self._alone.ceiling(self._rounds)) is not None:
                ceilings.append(alone)
        held = self._memory.ceiling(now)
        return min(ceilings) if held is None else min(held, *ceilings)

    def _cut(self, why: str, retry_after_s: float | None, in_flight: int | None) -> None:
        now = self._clock()
        if now < self._cooling_until:
            return
        self._cooling_until = now + min(max(retry_after_s or 0.0, COOLDOWN_S), COOLDOWN_MOST_S)
        less = int(self._limit * BUSY_SHARE)
        if in_flight is not None and in_flight > 1:
            less = min(less, in_flight - 1)
        less = min(self._limit, max(self._lowest, less))
        if not self._refused:  # later refusals say that it goes on, not what fits
            self._known = less
            if in_flight is not None and in_flight > 1:
                self._held = (in_flight - 1, self._rounds + CEILING_ROUNDS)
        self._refused = True
        self._doubling = False
        self._climb.restart(hold=True)
        self._set(less, why, now)

    def _set(
        self, limit: int, why: str, now: float, *, seen: Round | None = None, given_up: int | None = None
    ) -> None:
        """Begin a new round under `limit`, made to fit the bounds; `seen`: the round that was the reason."""
        after = max(1, min(limit, self.highest, self._memory.most or limit))
        self._since = now
        self._round = Round()
        if after == self._limit:
            return
        change = LimitChange(now, why, self._limit, after, given_up=given_up)
        if seen is not None and seen.queue is None:
            change = replace(change, rate=seen.rate)
        elif seen is not None:
            change = replace(change, queue=seen.queue, wait_share=seen.wait_share)
        self.changes.append(change)
        self._limit = after
