"""What short requests tell of a server: how many it works on at once, what that gains, who else is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from ollama_batch.engines.base import Engine
from ollama_batch.errors import EngineError, OutcomeError
from ollama_batch.types import ChatRequest, Completion

ALONE_TOKENS: Final = 16
AT_ONCE: Final = 8
"""So many requests are sent side by side: a server with more slots than that needs no advice."""

SIDE_S: Final = 2.0
"""About how long an answer takes that is sent beside others: long against what starting it takes."""

LEAST_S: Final = 0.02
"""Answers faster than this tell nothing of what goes on at once."""

LASTING: Final = 0.4

QUESTION: Final = "Count from 1 to 100, with a word on each number. Begin at number {}."


@dataclass(frozen=True, slots=True)
class Answered:
    """One answered request: when it was sent and was over (seconds of the monotonic clock), its tokens, and
    how long the engine worked on it and let it wait (None: not told). `code` says why a run would not take
    the answer: it was cut off by its token limit, for instance.
    """

    sent: float
    over: float
    tokens: int
    busy_s: float | None
    queue_s: float | None
    code: str | None = None

    @property
    def took_s(self) -> float:
        """Seconds from sending to the complete answer."""
        return self.over - self.sent

    @property
    def worked(self) -> tuple[float, float] | None:
        """From when to when the engine worked on it."""
        if self.busy_s is None:
            return None
        return self.over - min(self.busy_s, self.took_s), self.over


@dataclass(frozen=True, slots=True)
class Parallel:
    """What the short requests told.

    `slots` is how many were worked on at once (None: `unknown` says why), of `sent`. `alone` and `together`
    are tokens a second of one request and of all side by side. `waited_s` is how long a request that was
    sent alone waited for a slot: somebody else had it (None: the engine does not tell).
    """

    sent: int
    slots: int | None
    unknown: str | None
    alone: float
    together: float | None
    waited_s: float | None
    took_s: float

    @property
    def gain(self) -> float | None:
        """Tokens a second side by side, against those of one request."""
        return self.together / self.alone if self.together is not None and self.alone else None


async def answer(engine: Engine, request: ChatRequest, *, deadline: float) -> tuple[Answered, Completion]:
    """The answer to `request`, also one that a run would not take. Raises EngineErrors other than that."""
    sent = time.monotonic()
    code = None
    try:
        found = await engine.complete(request, deadline=deadline)
    except OutcomeError as exc:
        found, code = exc.completion, exc.code
    over = time.monotonic()
    spent = found.timings
    busy = None if spent.generate_s is None else (spent.prompt_s or 0.0) + spent.generate_s
    tokens = found.usage.completion_tokens if found.usage is not None else 0
    return Answered(sent, over, tokens, busy, spent.queue_s, code), found


async def measure_parallel(
    engine: Engine, model: str, *, num_ctx: int | None, deadline: float, at_once: int = AT_ONCE
) -> Parallel:
    """What short requests tell, one alone and then `at_once` side by side; the model is loaded already.

    Raises EngineError if not even one is answered by `deadline`.
    """

    def request(number: int, tokens: int) -> ChatRequest:
        message = {"role": "user", "content": QUESTION.format(number)}
        return ChatRequest(
            custom_id=f"doctor-{number}",
            model=model,
            messages=(message,),
            params={"temperature": 0},
            max_tokens=tokens,
            num_ctx=num_ctx,
        )

    async def one(number: int, tokens: int) -> Answered:
        return (await answer(engine, request(number, tokens), deadline=deadline))[0]

    first = await one(0, ALONE_TOKENS)  # the first after a load is slower than all others
    alone = await one(1, ALONE_TOKENS)
    waits = [each.queue_s for each in (first, alone) if each.queue_s is not None]
    waited = min(waits, default=None)
    pace = alone.tokens / alone.took_s if alone.tokens else 0.0
    tokens = min(max(round(pace * SIDE_S), ALONE_TOKENS // 2), 4 * ALONE_TOKENS)
    told = await asyncio.gather(
        *(one(number, tokens) for number in range(2, at_once + 2)), return_exceptions=True
    )
    for each in told:
        if isinstance(each, BaseException) and not isinstance(each, EngineError):
            raise each
    answered = [each for each in told if isinstance(each, Answered)]
    together = None
    if len(answered) == at_once:
        span = max(each.over for each in answered) - min(each.sent for each in answered)
        together = sum(each.tokens for each in answered) / span if span > 0 else None
    slots, unknown = _slots(answered, at_once)
    return Parallel(at_once, slots, unknown, pace, together, waited, alone.took_s)


def _slots(answered: Sequence[Answered], sent: int) -> tuple[int | None, str | None]:
    if len(answered) < max(2, sent // 2):
        return None, f"only {len(answered)} of {sent} requests sent side by side were answered"
    spans = [each.worked for each in answered]
    worked = [span for span in spans if span is not None]
    if len(worked) < len(spans):
        return None, "the engine does not tell how long it worked on a request"
    if fmean(end - start for start, end in worked) < LEAST_S:
        return None, "it answers too fast to tell how many it works on at once"
    return overlap(worked), None


def overlap(spans: Sequence[tuple[float, float]]) -> int:
    """The most of `spans` (start, end) that go on at once for 40 % of their mean length at a stretch.

    Clocks err and answers are read late: that one seems to begin before another has ended says nothing.
    """
    if not spans:
        return 0
    least = LASTING * fmean(end - start for start, end in spans)
    steps = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    for many in range(len(spans), 1, -1):
        now, since = 0, 0.0
        for at, step in steps:
            if now == many and step < 0 and at - since >= least:
                return many
            if now == many - 1 and step > 0:
                since = at
            now += step
    return 1
