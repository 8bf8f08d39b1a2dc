"""A candidate of an export that got no evaluation, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ollama_batch._text import plain
from ollama_batch.aris._store import Left, Taken

_WHY: Final = {
    Left.MISSING: ("no_result", "the results have none of this candidate"),
    Left.REPEATED: ("repeated_id", "a candidate before has the same id"),
    Left.PENDING: ("pending", "the run has no result of it yet"),
    Left.NAMELESS: ("no_id", "the candidate has no id"),
}
_NO_REQUEST: Final = ("no_request", "the run has no request for this candidate")


@dataclass(frozen=True, slots=True)
class UnevaluatedCandidate:
    """A candidate without an evaluation among the results that were written back.

    `position` is its number in the export, its line in a JSONL export, from 1. `code` is that of the row if
    it failed ("output_unparsed": there is an answer, which is no evaluation), else "no_request" (a run that
    is known whole has no row of it), "no_result" (the results have none), "pending" (the run has not
    answered it yet), "repeated_id" or "no_id"; `message` says it in words. `earlier`: the export has an
    earlier evaluation of it, which stays.
    """

    position: int
    custom_id: str | None
    code: str
    message: str
    earlier: bool

    def __str__(self) -> str:
        name = "a candidate without an id" if self.custom_id is None else self.custom_id
        return plain(f"{self.position}: {name}: {self.message} ({self.code})", 400)


def why_not(
    position: int, custom_id: str | None, taken: Taken, *, earlier: bool, complete: bool
) -> UnevaluatedCandidate:
    """The candidate that got `taken`; `complete`: every row that there is to come is known."""
    left = taken.left
    if left is Left.MISSING and complete:
        code, message = _NO_REQUEST
    else:
        code, message = taken.why if left is None else _WHY.get(left, taken.why)
    return UnevaluatedCandidate(position, custom_id, code, message, earlier)
