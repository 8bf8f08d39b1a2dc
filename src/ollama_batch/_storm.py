"""Says that a run is as good as paused while the engine refuses all that is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from ollama_batch._gate import Gate
from ollama_batch._text import plain
from ollama_batch.errors import EngineError, EngineLoadingError

TOLD_S: Final = 2.0
"""Refusals that are over sooner are told by their rows alone."""


class Storm:
    """The time in which the engine has answered nothing and refused everything. It is told as a pause of the
    run; what is sent, and when, is not its matter. Bound to the running loop.

    `met` begins it, or says that it goes on; `over` ends it. `out` says whether a request is out, which may
    be answered. The run stops `patience_s` seconds after a row was first refused, `load_patience_s` while
    the model is being loaded.
    """

    def __init__(
        self, gate: Gate, *, out: Callable[[], bool], patience_s: float, load_patience_s: float
    ) -> None:
        self._gate = gate
        self._out = out
        self._patience_s = patience_s
        self._load_patience_s = load_patience_s
        self._since: float | None = None
        self._error = EngineError("")
        self._refused_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def met(self, error: EngineError, *, at: float) -> None:
        """The engine refuses a row with `error`, since `at` (`time.monotonic()`), and nothing is out."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._timer = asyncio.get_running_loop().call_later(TOLD_S, self._due)
        self._error, self._refused_at = error, at
        if now - self._since >= TOLD_S:
            self._tell()

    def over(self) -> None:
        """Something was answered, or taken."""
        if self._since is None:
            return
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._gate.taken()

    def _due(self) -> None:
        if not self._out():  # else it is taken, or refused and told then
            self._tell()

    def _tell(self) -> None:
        loading = isinstance(self._error, EngineLoadingError)
        patience_s = self._load_patience_s if loading else self._patience_s
        said = plain(str(self._error), 300).rstrip(".")
        self._gate.refused(
            f"the engine refuses requests ({said}); one at a time is tried",
            stops_in_s=max(0.0, self._refused_at + patience_s - time.monotonic()),
        )
