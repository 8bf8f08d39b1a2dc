"""How a run that stopped goes on, where the same call alone does not do it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from ollama_batch._text import count
from ollama_batch.errors import (
    DeadlineReachedError,
    DiskFullError,
    EngineDownError,
    InputChangedError,
    InputError,
    MemoryShortError,
    ModelChangedError,
    OllamaBatchError,
    RunInterrupted,
    TooManyFailuresError,
)


def same_call(left: int | None) -> str:
    """What the same call does again, with so many rows left (None: not known)."""
    if left == 0:  # it was to send failed rows again, or to write the output
        return "the same call again: nothing done is sent again"
    rows = "the rest" if left is None else "the row left" if left == 1 else f"the {count(left)} rows left"
    return f"the same call again: it sends {rows}, nothing done is sent again"


def next_steps(
    error: OllamaBatchError | RunInterrupted | None,
    *,
    left: int | None,
    streams: bool,
    deadline: float | dt.datetime | None,
) -> tuple[str, ...]:
    """The ways to go on after `error`, the first first; () where the same call alone is one.

    `streams`: the rows did not come from files, so that a journal in the way is not set aside in mid-call.
    """
    return tuple(_steps(error, again=same_call(left), streams=streams, deadline=deadline))


def _steps(
    error: OllamaBatchError | RunInterrupted | None,
    *,
    again: str,
    streams: bool,
    deadline: float | dt.datetime | None,
) -> Iterator[str]:
    ways = "another output=" if streams else "another output=, or overwrite=True"
    anew = f"begin a new run ({ways})"
    match error:
        case ModelChangedError():
            yield (
                "put the model that the run began with back under its name (ollama cp, or ollama pull of the "
                f"tag that has its digest) and run {again}"
            )
            yield f"or {anew} with the model as it is now: the same call is refused with that"
        case InputChangedError():
            yield f"if rows were only added, or the input is as it was, run {again}"
            yield f"or {anew} with the input as it is now: the same call refuses rows that have changed"
        case InputError():
            yield f'mend the input where the reason says (or say on_invalid="skip") and run {again}'
        case MemoryShortError():
            yield f"free memory, or give guards= other limits, then run {again}"
        case EngineDownError():
            yield f"mend what the reason says of the engine, then run {again}"
        case DiskFullError():
            yield f"make room on the disk, then run {again}"
        case DeadlineReachedError() if isinstance(deadline, dt.datetime):
            yield f"with a later deadline=, run {again}"
        case TooManyFailuresError():
            yield f"run {again}; a larger max_failures= bears more"
