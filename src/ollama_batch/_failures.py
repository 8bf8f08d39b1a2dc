"""Whether a run still makes sense, judged by the rows that failed."""

from __future__ import annotations

from typing import Any

from ollama_batch.errors import TooManyFailuresError
from ollama_batch.types import BatchResult

HOPELESS_ROWS = 50
"""A run whose first rows all fail for one reason of their own is stopped after this many."""


class FailureWatch:
    """Counts results and says when to stop: at `max_failures`, or when the run looks hopeless.

    `max_failures` of 1 or more is a number of rows, below 1 a share of `total`; None (the default)
    stops only a run whose first 50 rows all fail for one row-caused reason. 0 stops at the first.
    """

    def __init__(self, max_failures: float | None) -> None:
        self._max = max_failures
        self._ok = 0
        self._failed = 0
        self._codes: set[str] = set()

    def add(self, result: BatchResult[Any], *, total: int | None) -> TooManyFailuresError | None:
        """Count `result`; the error to stop the run with, if it is to stop."""
        error = result.error
        if error is None:
            self._ok += 1
            return None
        self._failed += 1
        if self._max is not None:
            share = 0 < self._max < 1 and total is not None
            allowed = self._max * total if share and total is not None else self._max
            if self._failed <= allowed:
                return None
            what = f"{self._failed} rows failed, max_failures={self._max:g} allows {allowed:g}; the last"
        else:
            self._codes.add(error.code if error.row_caused else "")
            hopeless = self._ok == 0 and self._failed >= HOPELESS_ROWS and len(self._codes) == 1
            if not hopeless or "" in self._codes:
                return None
            what = f"the first {self._failed} rows all failed"
        return TooManyFailuresError(f"{what} with {error.code}: {error.message}")
