"""Errands that nobody waits for: done in the background, one after another."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

log = logging.getLogger("ollama_batch.hooks")

MOST: Final = 8
"""So many errands may wait; a further one is dropped, and the log says so."""


class Outbox:
    """Does errands in a thread that ends when there are none left.

    An errand keeps to a deadline of its own. The process waits at its exit for those that are left, at most
    `exit_s` seconds. One that raises is logged.
    """

    def __init__(self, name: str, *, exit_s: float) -> None:
        self._name = name
        self._exit_s = exit_s
        self._waiting: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._idle = threading.Condition()  # of the two above
        self._promised = False

    def put(self, errand: Callable[[], None]) -> None:
        """Have `errand` done; returns at once."""
        with self._idle:
            if len(self._waiting) >= MOST:
                log.warning("%s: %d notices wait already; this one is dropped", self._name, MOST)
                return
            self._waiting.append(errand)
            if not self._promised:
                self._promised = True
                atexit.register(self.wait, self._exit_s)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"ollama-batch-{self._name}", daemon=True
                )
                self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all is done; False if that takes more than `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        with self._idle:
            return self._idle.wait_for(lambda: self._thread is None, max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._waiting:
                    self._thread = None
                    self._idle.notify_all()
                    return
                errand = self._waiting.popleft()
            try:
                errand()
            except Exception as error:
                # Not its text: that may hold an address with a secret in it.
                log.warning("%s failed: %s", self._name, type(error).__name__)
