"""Hours with a hidden limit of memory: what is beyond it is tried seldom, and never twice in a row."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import pytest

from ollama_batch._restraint import Restraint
from ollama_batch.control import QueueTarget
from ollama_batch.control.memory_bound import FULL_ROUNDS, FULL_ROUNDS_MOST, FULL_S, PROBE_S

EVERY_S = 0.05
"""Seconds between two answers: so quick that rounds alone would have more tried every few seconds."""

HOURS = 1.5
ROUND = 8


class Width(Protocol):
    """How many may be out, found or fixed; told what came back."""

    @property
    def limit(self) -> int: ...

    def ran_out(self, out: int) -> None: ...

    def answered(self, out: int) -> None: ...


class Auto:
    """A number that the run finds."""

    round_of = 1  # a round is so many times the limit

    def __init__(self, clock: list[float]) -> None:
        self._target = QueueTarget(start=4, clock=lambda: clock[0])

    @property
    def limit(self) -> int:
        return self._target.limit

    def ran_out(self, out: int) -> None:
        self._target.on_oom(in_flight=out)
        self._target.on_crash()

    def answered(self, out: int) -> None:
        self._target.on_complete(latency_s=0.0, in_flight=out, queue_s=0.0)


class Fixed:
    """`concurrency=32`."""

    round_of = 2

    def __init__(self, clock: list[float]) -> None:
        self._restraint = Restraint(clock=lambda: clock[0])

    @property
    def limit(self) -> int:
        return self._restraint.limit or 32

    def ran_out(self, out: int) -> None:
        self._restraint.ran_out(out)
        self._restraint.crashed()

    def answered(self, out: int) -> None:
        self._restraint.answered(32, out)


@pytest.mark.parametrize("kind", [Auto, Fixed])
@pytest.mark.parametrize("fits", [1, 2, 3, 7, 20])
def test_a_hidden_limit_is_never_hit_twice_in_a_row_and_ever_more_seldom(
    kind: type[Auto] | type[Fixed], fits: int
) -> None:
    clock = [0.0]
    width: Width = kind(clock)
    failures: list[tuple[float, int, int]] = []  # when, with how many out, after how many answers
    answers = settled = 0
    while clock[0] < HOURS * 3600:
        out = width.limit
        if out > fits:
            failures.append((clock[0], out, answers))
            width.ran_out(out)
            continue
        clock[0] += EVERY_S
        answers += 1
        width.answered(out)
        settled += out == fits

    # Something went well between any two; from the second on, for 15 s at least.
    assert all(later > before for (_, _, before), (_, _, later) in pairwise(failures))
    search = [each for each in failures if each[1] > fits + 1]
    assert all(after - before >= PROBE_S for (before, *_), (after, *_) in pairwise(failures[1:]))
    assert len(search) <= 4

    # One more than fits: found out once, and then tried anew after 50 good rounds at least and a minute, and
    # after twice as many each time, up to 3,200.
    tries = [each for each in failures if each[1] == fits + 1]
    least = max(ROUND, kind.round_of * fits)
    assert len(tries) >= 3
    for n, ((before, _, had), (after, _, have)) in enumerate(pairwise(tries)):
        assert after - before >= FULL_S
        rounds = min(FULL_ROUNDS * 2**n, FULL_ROUNDS_MOST)
        assert have - had >= (rounds - 1) * least  # the first is shorter, as the limit doubles then

    # Quick as the answers are, that makes 10 in the hour that begins with the first, and then ever fewer.
    begin = failures[0][0]
    assert len([at for at, *_ in failures if at < begin + 3600]) <= 10
    assert len([at for at, *_ in failures if begin + 1800 <= at]) <= 3 * (HOURS - 0.5)

    # It costs next to nothing: all but a few in a hundred of the answers came with as many out as fit.
    assert settled > 0.97 * answers
