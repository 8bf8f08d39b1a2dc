"""Results on their way from the run's loop to whoever reads `stream()` or `iter_results()`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Literal

from ollama_batch._gate import Gate
from ollama_batch._reporting import read_results
from ollama_batch.events import Event, RowFinished
from ollama_batch.journal import RunJournal
from ollama_batch.structured.form import AnswerForm
from ollama_batch.types import BatchResult

CONSUMER = "consumer"
HIGH, LOW = 1000, 500


class ResultQueue:
    """A hook that keeps finished results until they are read, and holds the run when the reader lags.

    At most 1,000 results (plus those in flight) wait; sending goes on when half of them were read.
    What was finished before `replay` comes from the journal, `parsed` anew if there is a `form`. Lives on
    the run's loop.
    """

    def __init__(self, form: AnswerForm[Any] | None = None) -> None:
        self._form = form
        self.gate: Gate | None = None
        self._waiting: deque[BatchResult[Any]] = deque()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._replayed = False
        self._ended = False

    def on_event(self, event: Event) -> None:
        """Keep the result of a finished row."""
        if isinstance(event, RowFinished) and self._replayed:
            self._put(event.result)
            if len(self._waiting) >= HIGH and self.gate is not None:
                self.gate.hold(CONSUMER, f"{HIGH} results wait to be read")

    def _put(self, result: BatchResult[Any]) -> None:
        self._waiting.append(result)
        self._news.set()

    async def replay(self, journal: RunJournal, *, retry: frozenset[str] | Literal[True] | None) -> None:
        """Add the results there are, never more than the queue may hold, less those that `retry` replaces."""
        if self._replayed:
            return
        for result in read_results(journal, retry=retry, form=self._form):
            self._put(result)
            while len(self._waiting) >= HIGH:
                self._taken.clear()
                await self._taken.wait()
        self._replayed = True

    def end(self) -> None:
        """No result will follow."""
        self._ended = True
        self._news.set()

    async def take(self) -> list[BatchResult[Any]]:
        """All that wait, at least one and at most 500; empty at the end."""
        while not self._waiting and not self._ended:
            self._news.clear()
            await self._news.wait()
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), LOW))]
        self._taken.set()
        if len(self._waiting) <= LOW and self.gate is not None:
            self.gate.release(CONSUMER)
        return taken
