"""How many requests may be out: as many as keep every slot busy, with a small queue behind them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ollama_batch.control._climb import Climb
from ollama_batch.control._round import Round

ROUND: Final = 8
"""A round has at least so many answers, and at least as many as the limit."""

FIRST_ROUND: Final = 2
"""The same while the limit doubles and waits are told: that nobody waits is soon seen."""

BLIND_ROUND: Final = 3
"""Where no queue is told, a round has so many times the limit, for a rate that can be compared."""

IN_USE: Final = 0.8
"""A limit is judged only if so large a share of it was out."""

GROWTH: Final = 0.1
"""By this share the limit grows once it has found its range; before that it doubles."""

CEILING_ROUNDS: Final = 30
"""Rounds for which a limit that was refused is not tried again."""

MEMORY_ROUNDS: Final = 50
"""Rounds without trouble before memory is tried with one request more; doubled each time that fails."""

MEMORY_ROUNDS_MOST: Final = 3200

PROBE_S: Final = 60.0
"""Once memory has run out, what is not proven to fit is tried at most this often."""

COOLDOWN_S: Final = 5.0
"""After a refusal nothing changes for so long, or for the Retry-After."""

COOLDOWN_MOST_S: Final = 300.0

BUSY_SHARE: Final = 0.7
"""What is left of the limit after a refusal."""

ROUNDING_S: Final = 1e-6

KEPT: Final = 200
"""So many changes are remembered."""


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One change of the limit: when (seconds of the clock), why, from what to what.

    `queue` is how many requests waited for a slot on average, `rate` the work done in a second, as far as
    that was known and was the reason.
    """

    at: float
    why: str
    before: int
    after: int
    queue: float | None = None
    rate: float | None = None

    def __str__(self) -> str:
        told = "" if self.queue is None else f"; {self.queue:.1f} waiting"
        return f"{self.before} -> {self.after}: {self.why}{told}"


class QueueTarget:
    """The limit of requests that are out to one engine, steered by what it says of its queue.

    Guarantees, whatever it is told: `1 <= limit <= highest`, and no more than any cap. The limit does not
    grow while it is not in use, nor during the cooldown after a refusal; one refusal cuts it, those of the
    same cooldown do not. Once memory has run out with n requests out, n are not allowed again before
    `MEMORY_ROUNDS` rounds have gone well with n - 1, and what is not proven to fit is tried once in `PROBE_S`
    seconds at most. `lowest` bounds what is given up for a queue or a refusal; memory, crashes and caps go
    below it.

    It decides once a round of answers, and counts only answers that were sent under the present limit. No
    input or output, no task, no lock: whoever owns it reads `limit` before sending and tells what came back.
    """

    def __init__(
        self,
        *,
        lowest: int = 1,
        highest: int = 256,
        start: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= lowest <= highest:
            raise ValueError(f"QueueTarget({lowest=}, {highest=}): must be 1 <= lowest <= highest")
        self._lowest = lowest
        self._highest = highest
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
        self._memory: int | None = None  # what fits, as far as failures have shown
        self._memory_rounds = MEMORY_ROUNDS
        self._rounds_there = 0
        self._proven = 1
        self._probed_at = float("-inf")
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

    # What came back

    def on_complete(
        self, *, latency_s: float, in_flight: int, queue_s: float | None = None, work: float = 1.0
    ) -> None:
        """An answer came now, `latency_s` after it was sent, with `in_flight` requests out (itself included).

        `queue_s` is how long it waited for a slot, if the engine tells. `latency_s` is to be without the
        time of loading a model. `work` is what the answer cost, in a unit that is the same for all answers;
        it counts only where nothing is told of the queue.
        """
        now = self._clock()
        if now < self._cooling_until or now - latency_s < self._since - ROUNDING_S:
            return
        self._round.add(latency_s=latency_s, in_flight=in_flight, queue_s=queue_s, work=work)
        if self._round.answers >= self._enough():
            self._judge(now)

    def on_waiting(self, waiting: int) -> None:
        """The server says now that so many requests wait; counts where answers do not tell."""
        now = self._clock()
        if now >= self._cooling_until:
            self._round.add_waiting(waiting)

    # Trouble

    def on_busy(self, retry_after_s: float | None = None, *, in_flight: int | None = None) -> None:
        """The engine refused a request (429, 503); `in_flight` counts it as well."""
        self._cut("the engine is busy", retry_after_s, in_flight)

    def on_timeout(self) -> None:
        """A request got no answer in time: no growth this round; two in one round count as a refusal."""
        self._round.timeouts += 1
        if self._round.timeouts >= 2:
            self._cut("two requests got no answer in time", None, None)
            self._round.timeouts = 0

    def on_oom(self, *, in_flight: int) -> None:
        """The engine ran out of memory with so many requests out: fewer from now on."""
        now = self._clock()
        if self._memory is not None and in_flight > self._proven:
            self._memory_rounds = min(2 * self._memory_rounds, MEMORY_ROUNDS_MOST)
        if in_flight <= self._proven:
            self._proven = max(1, in_flight // 2)  # it did fit, and does no more
        self._memory = max(1, min(in_flight - 1, self._memory or in_flight))
        self._rounds_there = 0
        self._probed_at = now
        self._climb.restart()
        self._set(min(self._limit // 2, self._proven), "the engine ran out of memory", now)

    def on_crash(self) -> None:
        """The engine was gone and is back: begin with one request, and double."""
        self._doubling = True
        self._climb.restart()
        self._set(1, "the engine crashed", self._clock())

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
            return max(ROUND, BLIND_ROUND * self._limit)
        return max(FIRST_ROUND if self._doubling or self._limit < self._known else ROUND, self._limit)

    def _judge(self, now: float) -> None:
        """End the round: what it says of the limit."""
        done = self._round
        self._round = Round()
        self._rounds += 1
        queue = self.queue = done.queue
        if done.in_flight < IN_USE * self._limit:
            if queue is not None and queue > self._most_waiting():
                self._shrink(queue, now)  # somebody else's requests are in the queue as well
            return
        self._refused = False
        self._proven = max(self._proven, min(done.peak, self._limit))
        self._grow_memory(now)
        if queue is None:
            self._judge_by_rate(done, now)
        elif queue > self._most_waiting():
            self._shrink(queue, now)
        elif queue >= 1:
            self._doubling = False
        elif not done.timeouts:
            self._grow(queue, now)

    def _judge_by_rate(self, done: Round, now: float) -> None:
        highest = self._limit if done.timeouts else self._ceiling(now)
        found = self._climb.judge(
            self._limit, done.rate, lowest=min(self._lowest, self._limit), highest=highest
        )
        if found is not None:
            self._set(*found, now, rate=done.rate)

    def _most_waiting(self) -> float:
        return max(2.0, self._limit / 4)

    def _shrink(self, queue: float, now: float) -> None:
        self._doubling = False
        less = self._limit - max(1, int((queue - 1) / 2))
        self._set(min(self._limit, max(self._lowest, less)), "more wait than need be", now, queue=queue)

    def _grow(self, queue: float, now: float) -> None:
        wanted = self._limit + max(1, int(self._limit * GROWTH))
        if self._doubling:
            wanted = 2 * self._limit
        elif self._limit < self._known:
            wanted = min(2 * self._limit, self._known)
        wanted = min(wanted, self._ceiling(now))
        if wanted > self._limit:
            self._set(wanted, "no slot should be without work", now, queue=queue)

    def _ceiling(self, now: float) -> int:
        """The most that may be tried now."""
        if self._held is not None and self._rounds > self._held[1]:
            self._held = None
        ceilings = [self.highest]
        if self._held is not None:
            ceilings.append(self._held[0])
        if self._memory is not None:
            gap = max(0, self._memory - self._proven)
            careful = 0 if now - self._probed_at < PROBE_S else -(-gap // 4)
            ceilings.append(min(self._memory, self._proven + careful))
        return min(ceilings)

    def _grow_memory(self, now: float) -> None:
        """After many good rounds at the most that memory seems to hold, allow one more."""
        if self._memory is None or self._limit < self._memory:
            return
        self._doubling = False
        self._rounds_there += 1
        if self._rounds_there >= self._memory_rounds and now - self._probed_at >= PROBE_S:
            self._memory += 1
            self._rounds_there = 0

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
        self, limit: int, why: str, now: float, *, queue: float | None = None, rate: float | None = None
    ) -> None:
        """Begin a new round under `limit`, made to fit the bounds."""
        ceiling = self.highest if self._memory is None else min(self.highest, self._memory)
        after = max(1, min(limit, ceiling))
        if self._memory is not None and after > max(self._limit, self._proven):
            self._probed_at = now
        self._since = now
        self._round = Round()
        if after != self._limit:
            self.changes.append(LimitChange(now, why, self._limit, after, queue, rate))
            self._limit = after
