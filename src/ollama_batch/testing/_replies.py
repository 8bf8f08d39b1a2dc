"""What a prepared answer is for a request, and what a function that should give it has raised instead."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ollama_batch.testing._asks import Refusal
from ollama_batch.testing.config import FakeReply, Reply


class Replies:
    """The `reply` of a fake server, asked for each request. What it raises is kept for the test."""

    def __init__(self, reply: Reply | None) -> None:
        self._reply = reply
        self._lock = threading.Lock()
        self._first: BaseException | None = None
        self._raised = 0

    def to(self, body: Mapping[str, Any]) -> FakeReply:
        """The answer to `body`, an empty one if it is left to the fake.

        Raises Refusal, which names it, if the function raises, or gives what is no answer.
        """
        try:
            said = self._reply(body) if callable(self._reply) else self._reply
            if isinstance(said, FakeReply):
                return said
            if said is None or isinstance(said, str):
                return FakeReply(said)
            raise TypeError(f"reply gave a {type(said).__name__}: must be a str, a FakeReply or None")
        except BaseException as error:  # pytest's own failures are no Exceptions
            with self._lock:
                self._raised += 1
                if self._first is None:
                    self._first = error
            raise Refusal(500, f"the reply function of FakeOllama raised {_named(error)}") from error

    def take_error(self) -> BaseException | None:
        """The first that was raised since this was asked last, with how many there were as a note."""
        with self._lock:
            error, raised = self._first, self._raised
            self._first, self._raised = None, 0
        if error is not None and raised > 1:
            error.add_note(f"the first of {raised:,} times that the reply function of FakeOllama raised")
        return error


def _named(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
