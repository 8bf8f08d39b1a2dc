"""What went wrong, as far as a decision needs it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ollama_batch.errors import (
    ContextTooLargeError,
    EngineAuthError,
    EngineBusyError,
    EngineConnectionError,
    EngineCrashedError,
    EngineError,
    EngineExitedError,
    EngineLoadingError,
    EngineOutOfMemoryError,
    EngineStoppedError,
    EngineTimeoutError,
    EngineUnreachableError,
    ModelNotFoundError,
)


class Kind(StrEnum):
    """The classes of trouble that are handled alike."""

    BUSY = "busy"
    """Refused: the queue is full."""
    LOADING = "loading"
    """The server is up, its model is not."""
    TIMEOUT = "timeout"
    """No complete answer in time: a slow row, or an engine that is stuck."""
    LOST = "lost"
    """The connection broke in mid-answer: an engine that died, or a cable."""
    UNREACHABLE = "unreachable"
    """No connection at all: nothing was sent."""
    REPLY = "reply"
    """A reply that is no answer: 5xx, or not complete, or not valid."""
    CRASH = "crash"
    """The process that runs the model died."""
    OUT_OF_MEMORY = "out of memory"
    CONTEXT = "context"
    """Prompt and answer do not fit the context."""
    ROW = "row"
    """The row itself is at fault in another way."""
    FATAL = "fatal"
    """Every further row would meet it as well."""


# The first class that fits counts.
_KINDS: Final[tuple[tuple[type[EngineError], Kind], ...]] = (
    (EngineExitedError, Kind.CRASH),
    (EngineAuthError, Kind.FATAL),
    (EngineStoppedError, Kind.FATAL),
    (ModelNotFoundError, Kind.FATAL),
    (EngineBusyError, Kind.BUSY),
    (EngineLoadingError, Kind.LOADING),
    (EngineTimeoutError, Kind.TIMEOUT),
    (EngineConnectionError, Kind.LOST),
    (EngineUnreachableError, Kind.UNREACHABLE),
    (EngineOutOfMemoryError, Kind.OUT_OF_MEMORY),
    (EngineCrashedError, Kind.CRASH),
    (ContextTooLargeError, Kind.CONTEXT),
)


def kind_of(error: EngineError) -> Kind:
    """The kind of trouble that an engine's error is."""
    for each, kind in _KINDS:
        if isinstance(error, each):
            return kind
    return Kind.ROW if error.row_caused else Kind.REPLY


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One row met trouble: what, when, and what was out at that moment.

    `at` and `sent_at` are seconds of one monotonic clock. `row` is its index; `in_flight` holds those of all
    rows of the run that were out, `row` among them, `others` counts what else was out at the address. `spent`
    is how many times this row has been sent again for this kind of trouble already, `refused_since` when it
    was first refused (busy, loading) without anything else having come of it since, `retry_after_s` what the
    server asked to wait. After a `PROBE`, the same trouble is told again with `healthy`, the answer, `kept`:
    whether the engine is known to be the one it was, with its model loaded, and `lost_too`: other rows of
    `in_flight` whose connection has broken meanwhile, and `others_lost`: how many of other runs have, at
    about the same time; after an `ASK`, with `replied`.
    """

    kind: Kind
    at: float
    row: int
    in_flight: frozenset[int] = frozenset()
    others: int = 0
    sent_at: float | None = None
    spent: int = 0
    refused_since: float | None = None
    retry_after_s: float | None = None
    healthy: bool | None = None
    kept: bool = False
    lost_too: frozenset[int] = frozenset()
    others_lost: int = 0
    replied: bool | None = None

    @property
    def refused_s(self) -> float:
        """For how long the row has been refused."""
        return 0.0 if self.refused_since is None else self.at - self.refused_since

    @property
    def alone(self) -> bool:
        """Whether nothing else was out, as far as this process knows."""
        return len(self.out) == 1 and not self.others

    @property
    def out(self) -> frozenset[int]:
        """All rows that were out, this one included however it was told."""
        return self.in_flight | {self.row}
