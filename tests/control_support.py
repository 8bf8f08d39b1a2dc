"""An engine with slots, simulated without a clock of its own: what a limit of concurrency is judged by.

Its slots, served first come first, its steps, which grow with the sequences in them, and its prefill, which
halts them, are those of a llama.cpp server. Time passes from one event to the next: thousands of answers take
a tenth of a second.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from ollama_batch.control import QueueTarget

Told = Literal["wait", "waiting", "nothing"]
"""What the engine says of its queue: each answer's wait, how many wait, or nothing."""

Clock = list[float]
RELOAD_S = 5.0
REFUSED_S = 0.5
TIMEOUT_S = 0.5


@dataclass(slots=True)
class Sent:
    """A request that is with the engine."""

    row: int
    prompt: int
    tokens: int
    sent_at: float
    started_at: float = 0.0


@dataclass(kw_only=True)
class SimulatedEngine:
    """Serves `slots` requests side by side, the others in the order they came."""

    slots: int
    step_s: float = 0.010
    sequence_s: float = 0.0004
    prefill_per_s: float = 2000.0
    queue_limit: int | None = None
    out_of_memory_above: int | None = None
    refuses: tuple[float, float] = (0.0, 0.0)
    """From when to when everything that is sent is refused."""
    now: float = 0.0
    waiting: deque[Sent] = field(default_factory=deque)
    _steps: float = 0.0
    _prefill_s: float = 0.0
    _running: list[tuple[float, int, Sent]] = field(default_factory=list)

    def send(self, request: Sent) -> Literal["accepted", "busy"]:
        """Take a request, unless the queue is full."""
        if self.refuses[0] <= self.now < self.refuses[1]:
            return "busy"
        if (
            self.queue_limit is not None
            and len(self._running) >= self.slots
            and len(self.waiting) >= self.queue_limit
        ):
            return "busy"
        self.waiting.append(request)
        return "accepted"

    def admit(self) -> bool:
        """Give free slots to those that wait; False if that was more than the memory holds."""
        while self.waiting and len(self._running) < self.slots:
            request = self.waiting.popleft()
            request.started_at = self.now
            self._prefill_s += request.prompt / self.prefill_per_s
            heapq.heappush(self._running, (self._steps + request.tokens, request.row, request))
        limit = self.out_of_memory_above
        return limit is None or len(self._running) <= limit

    def next_at(self) -> float:
        """When the next answer is complete, if nothing changes before."""
        if not self._running:
            return float("inf")
        return self.now + self._prefill_s + (self._running[0][0] - self._steps) * self._step()

    def advance(self, to: float) -> None:
        """Let time pass."""
        passed = to - self.now
        halted = min(passed, self._prefill_s)
        self._prefill_s -= halted
        if self._running:
            self._steps += (passed - halted) / self._step()
        self.now = to

    def finish(self) -> Sent:
        """The answer that is complete now."""
        self._steps = self._running[0][0]
        return heapq.heappop(self._running)[2]

    def restart(self) -> None:
        """Lose everything, and be back after the reload."""
        self.waiting.clear()
        self._running.clear()
        self._prefill_s = 0.0
        self.now += RELOAD_S

    def _step(self) -> float:
        return self.step_s + self.sequence_s * len(self._running)


@dataclass(kw_only=True)
class Outcome:
    """What a simulated run came to."""

    tokens: int = 0
    seconds: float = 0.0
    limits: list[int] = field(default_factory=list)
    """The limit after each completion."""
    finished: list[tuple[float, int]] = field(default_factory=list)
    """When each answer came, and its tokens."""
    refused: int = 0
    out_of_memory: list[tuple[float, int, int]] = field(default_factory=list)
    """When memory ran out, how many requests were out, and after how many completions."""
    ended: Counter[int] = field(default_factory=Counter)
    """How often each row was answered."""

    @property
    def rate(self) -> float:
        """Tokens answered in a second."""
        return self.tokens / self.seconds


def simulate(
    engine: SimulatedEngine,
    limit: QueueTarget | int,
    *,
    clock: Clock,
    seed: int,
    completions: int,
    told: Told = "wait",
    slots_after: Mapping[int, int] | None = None,
    demand: int | None = None,
    prompts: tuple[int, int] = (600, 600),
    mean_tokens: float = 300.0,
) -> Outcome:
    """Answer so many rows as fast as the limit allows.

    `clock` is what the limit reads. `slots_after` changes the slots after so many completions; never more
    than `demand` requests are out. Answers have exponential lengths, the same rows for the same seed.
    """
    random_ = random.Random(seed)
    lengths = iter(lambda: (random_.randint(*prompts), 1 + int(random_.expovariate(1 / mean_tokens))), None)
    rows: deque[Sent] = deque()
    out: dict[int, Sent] = {}
    outcome = Outcome()
    made = 0
    blocked_until = 0.0
    target = limit if isinstance(limit, QueueTarget) else None
    while len(outcome.limits) < completions:
        now = clock[0] = engine.now
        allowed = target.limit if target is not None else limit
        allowed = min(allowed, demand or allowed)
        while len(out) < allowed and now >= blocked_until:
            if not rows:
                rows.extend(Sent(made + n, *pair, 0.0) for n, pair in enumerate(islice(lengths, 64)))
                made += 64
            request = rows.popleft()
            request.sent_at = now
            if engine.send(request) == "busy":
                rows.appendleft(request)
                outcome.refused += 1
                blocked_until = now + REFUSED_S
                if target is not None:
                    target.on_busy(in_flight=len(out) + 1)
                break
            out[request.row] = request
        else:
            if not engine.admit():
                outcome.out_of_memory.append((now, len(out), len(outcome.limits)))
                engine.restart()
                clock[0] = engine.now
                if target is not None:
                    target.on_oom(in_flight=len(out))
                rows.extendleft(reversed(out.values()))
                out.clear()
                continue
            at = engine.next_at()
            timer = blocked_until if now < blocked_until else float("inf")
            if timer < at:
                engine.advance(timer)
                continue
            engine.advance(at)
            done = engine.finish()
            now = clock[0] = engine.now
            in_flight = len(out)
            del out[done.row]
            queue = len(engine.waiting)
            engine.admit()
            outcome.tokens += done.tokens
            outcome.finished.append((now, done.tokens))
            outcome.ended[done.row] += 1
            if target is not None:
                if told == "waiting":
                    target.on_waiting(queue)
                target.on_complete(
                    latency_s=now - done.sent_at,
                    in_flight=in_flight,
                    queue_s=done.started_at - done.sent_at if told == "wait" else None,
                    work=done.tokens + done.prompt / 10,
                )
            outcome.limits.append(target.limit if target is not None else allowed)
            if slots_after is not None and len(outcome.limits) in slots_after:
                engine.slots = slots_after[len(outcome.limits)]
                engine.admit()
    outcome.seconds = engine.now
    return outcome
