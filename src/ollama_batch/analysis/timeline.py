"""A run over the time it worked: what it got through, how long answers took, how full the context was."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ollama_batch.analysis.numbers import Numbers, quantile
from ollama_batch.analysis.rows import ResultRow

SPANS: Final = 72
"""A run is cut into at most so many spans of equal length, fewer if it has few rows."""

STOP_S: Final = 600.0
"""Where no journal tells the sessions apart, a run that answered nothing for so many seconds was stopped."""

_ROWS_A_SPAN: Final = 8


@dataclass(frozen=True, slots=True)
class Stretch:
    """One session: it began `offset_s` seconds of work after the run did, after a stop of `stopped_s`."""

    offset_s: float
    length_s: float
    stopped_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """What finished from `start_s` to `end_s` seconds of work. None: no row in it tells.

    Rates are per second of the span. Latencies are of answered rows, in seconds; `context_` is prompt and
    answer together, in tokens.
    """

    start_s: float
    end_s: float
    rows: int
    failed: int
    rows_per_s: float
    completion_tokens_per_s: float | None
    latency_p10_s: float | None
    latency_median_s: float | None
    latency_p90_s: float | None
    context_median: float | None
    context_high: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in use at one moment, `at_s` seconds of work after the beginning; bytes."""

    at_s: float
    used_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """A run over its working time: the sessions one after another, the stops between them left out.

    `started_at` is in seconds since the epoch, `length_s` the working time in seconds, `clock` what told the
    time ("journal", or "answers" for the time each answer bears, in whole seconds).
    """

    started_at: float
    length_s: float
    clock: str
    stretches: tuple[Stretch, ...]
    spans: tuple[Span, ...]
    memory: tuple[Memory, ...] = ()


class TimelineTally:
    """Takes rows in any order; about 50 bytes a row."""

    def __init__(self) -> None:
        self._at = Numbers()
        self._session = array("i")
        self._ok = array("b")
        self._latency, self._context, self._tokens = Numbers(), Numbers(), Numbers()

    def add(self, row: ResultRow) -> None:
        """Count `row`, if it is known when it finished."""
        if row.finished_at is None:
            return
        self._at.add(row.finished_at)
        self._session.append(row.session or 0)
        self._ok.append(row.ok)
        self._latency.add(row.latency_s if row.ok else None)
        self._context.add(row.context_tokens if row.ok else None)
        told = [usage.completion_tokens for usage in (*row.earlier_usage, row.usage) if usage is not None]
        self._tokens.add(sum(told) if told else None)

    def timeline(self, clock: str, memory: Iterable[tuple[float, int, int | None]] = ()) -> Timeline | None:
        """The run so far; None if no row has a time. `memory`: moment, bytes in use, bytes in all."""
        if not self._at.values:
            return None
        if clock == "answers":
            self._tell_sessions_apart()
        sessions = self._sessions()
        stretches: list[Stretch] = []
        offsets: dict[int, float] = {}
        offset, ended = 0.0, None
        for number, (first, last) in sessions:
            # A clock that was put back between two sessions makes no stop of less than nothing.
            stopped = 0.0 if ended is None else max(0.0, first - ended)
            stretches.append(Stretch(offset, last - first, stopped))
            offsets[number] = offset - first
            offset, ended = offset + last - first, last
        length = max(offset, 0.001)
        return Timeline(
            sessions[0][1][0],
            length,
            clock,
            tuple(stretches),
            tuple(self._spans(offsets, length)),
            tuple(_placed(memory, sessions, offsets)),
        )

    def _tell_sessions_apart(self) -> None:
        at, session = self._at.values, 0
        order = sorted(range(len(at)), key=at.__getitem__)
        for before, index in zip([order[0], *order], order, strict=False):
            session += at[index] - at[before] > STOP_S
            self._session[index] = session

    def _sessions(self) -> list[tuple[int, tuple[float, float]]]:
        """Each session's beginning (the first row was sent) and end, in their order."""
        found: dict[int, tuple[float, float]] = {}
        for at, session, latency in zip(self._at.values, self._session, self._latency.values, strict=True):
            begun = at if math.isnan(latency) else at - latency
            low, high = found.get(session, (begun, at))
            found[session] = min(low, begun), max(high, at)
        return sorted(found.items())

    def _spans(self, offsets: dict[int, float], length: float) -> Iterator[Span]:
        number = max(1, min(SPANS, len(self._at.values) // _ROWS_A_SPAN))
        width = length / number
        inside: list[array[int]] = [array("L") for _ in range(number)]
        for index, (at, session) in enumerate(zip(self._at.values, self._session, strict=True)):
            place = int((at + offsets[session]) / width)
            inside[min(max(place, 0), number - 1)].append(index)
        for n, indices in enumerate(inside):
            latency = sorted(_known(self._latency, indices))
            context = sorted(_known(self._context, indices))
            tokens = _known(self._tokens, indices)
            yield Span(
                start_s=n * width,
                end_s=(n + 1) * width,
                rows=len(indices),
                failed=sum(not self._ok[index] for index in indices),
                rows_per_s=len(indices) / width,
                completion_tokens_per_s=sum(tokens) / width if tokens or not indices else None,
                latency_p10_s=quantile(latency, 0.1) if latency else None,
                latency_median_s=quantile(latency, 0.5) if latency else None,
                latency_p90_s=quantile(latency, 0.9) if latency else None,
                context_median=quantile(context, 0.5) if context else None,
                context_high=context[-1] if context else None,
            )


def _known(numbers: Numbers, indices: Iterable[int]) -> list[float]:
    values = (numbers.values[index] for index in indices)
    return [value for value in values if not math.isnan(value)]


def _placed(
    memory: Iterable[tuple[float, int, int | None]],
    sessions: Sequence[tuple[int, tuple[float, float]]],
    offsets: dict[int, float],
) -> Iterator[Memory]:
    """What was measured while a session worked, in the time of the work."""
    for at, used, total in sorted(memory):
        for number, (first, last) in sessions:
            if first - 1 <= at <= last + 1:
                yield Memory(min(max(at, first), last) + offsets[number], used, total)
                break
