"""What went wrong in a run, as its report says it."""

from __future__ import annotations

from collections.abc import Iterator

from ollama_batch._text import count, duration
from ollama_batch.metrics import BatchMetrics


def trouble_in_words(m: BatchMetrics) -> Iterator[str]:
    """A sentence for each kind of trouble there was: the engine's, memory's, a full queue."""
    if m.recoveries or m.restarts or m.quarantined or m.lost_s:
        yield _engine(m)
    if m.memory_pauses:
        yield _memory(m)
    if m.refused:
        yield _refused(m)


def _engine(m: BatchMetrics) -> str:
    lost = f"{duration(m.lost_s)} lost, in which the engine kept the run from sending"
    if not (m.recoveries or m.restarts or m.quarantined):
        return lost
    named = [
        (m.recoveries, "recovery", "recoveries"),
        (m.restarts, "restart", "restarts"),
        *([(m.quarantined, "row quarantined", "rows quarantined")] if m.quarantined else []),
    ]
    told = ", ".join(f"{count(number)} {one if number == 1 else more}" for number, one, more in named)
    return f"{told}; {lost}"


def _memory(m: BatchMetrics) -> str:
    times = "once" if m.memory_pauses == 1 else f"{count(m.memory_pauses)} times"
    latest = "" if m.memory_pauses == 1 else "the latest: "
    return (
        f"paused {times} by a memory guard, {duration(m.memory_paused_s)} in all "
        f"({latest}{m.memory_pause_why})"
    )


def _refused(m: BatchMetrics) -> str:
    many = "1 request" if m.refused == 1 else f"{count(m.refused)} requests"
    helps = "Others use it as well, or fewer requests at a time would do (concurrency=)"
    if m.refused_alone == m.refused:
        helps = (
            "This run had no other out: the engine is busy with others, or its limit of requests that wait "
            "is too small (Ollama: OLLAMA_MAX_QUEUE)"
        )
    return (
        f"{many} refused, as the engine was busy (429, 503), after which nothing was answered for "
        f"{duration(m.refused_s)}: its queue was full. {helps}"
    )
