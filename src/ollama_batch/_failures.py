"""Whether a run still makes sense, judged by the rows that failed."""

from __future__ import annotations

from typing import Any

from ollama_batch._summary import NEW_RUN
from ollama_batch.errors import TooManyFailuresError
from ollama_batch.types import BatchResult

MENDED = f"mend that and begin {NEW_RUN}"
GO_ON = "the same call again goes on with the rows left, a larger max_failures= bears more"

HOPELESS_ROWS = 50
"""A run whose first rows all fail for one reason of their own is stopped after this many."""


class FailureWatch:
    """Counts results and says when to stop: at `max_failures`, or when the run looks hopeless.

    `max_failures` of 1 or more is a number of rows, below 1 a share of `total`; 0 stops at the first. A
    share of a stream, whose length is not known, is one of the rows so far, judged from the 50th on.
    None (the default) stops only a run whose first 50 rows all fail for one row-caused reason; with
    `ok_before`, good rows of earlier sessions, it is known to be worth going on.
    """

    def __init__(self, max_failures: float | None, *, ok_before: int = 0) -> None:
        self._max = max_failures
        self._ok = 0
        self._failed = 0
        self._ok_before = ok_before
        self._codes: set[str] = set()

    def add(self, result: BatchResult[Any], *, total: int | None) -> TooManyFailuresError | None:
        """Count `result`; the error to stop the run with, if it is to stop."""
        error = result.error
        if error is None:
            self._ok += 1
            return None
        self._failed += 1
        what, way = self._hopeless(error.code if error.row_caused else None), MENDED
        if self._max is not None:
            what, way = self._too_many(self._max, total), GO_ON
        if what is None:
            return None
        stopped = TooManyFailuresError(f"{what} with {error.code}: {error.message}; {way}")
        stopped.hopeless = self._max is None
        return stopped

    def _too_many(self, most: float, total: int | None) -> str | None:
        allowed = most
        if 0 < most < 1:
            seen = self._ok + self._failed
            if total is None and seen < HOPELESS_ROWS:
                return None
            allowed = most * (seen if total is None else total)
        if self._failed <= allowed:
            return None
        return f"{self._failed} rows failed, max_failures={most:g} allows {allowed:g}; the last"

    def _hopeless(self, code: str | None) -> str | None:
        self._codes.add(code or "")
        if self._ok or self._ok_before or self._failed < HOPELESS_ROWS:
            return None
        alike = len(self._codes) == 1 and "" not in self._codes
        return f"the first {self._failed} rows all failed" if alike else None
