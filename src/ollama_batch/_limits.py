"""How long a prompt may be here, as far as it was seen: what worked, what failed, kept between runs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ollama_batch.tokens.state import read_state, state_file, write_state

log = logging.getLogger("ollama_batch.run")

STATE_VERSION: Final = 2
KNOWN_WITHIN: Final = 0.02
"""The limit lies between what worked and what failed; that near to each other, what worked is the limit."""

SETTLED, NEAR = 20, 0.95
"""So many prompts that came near what worked, and not beyond, say that none will: that is the limit."""

NEAR_ENOUGH: Final = 0.1
"""A later run does not search on for what little lies between: each try costs a row a refusal."""

COUNTED_WITHIN: Final = 0.05
"""The length of a refused prompt is ours to tell, where the engine does not: right within this."""

FORESEEN_WITHIN: Final = 0.01
"""A prompt comes out longer than foreseen by up to this; at the very limit that would be a refusal."""

FORGET_S: Final = 7 * 86400.0
"""Failures are believed for a week: a card is shared with others, and servers are updated."""


class LearnedLimit:
    """The longest prompt that works, in tokens, found by halving between what worked and what failed.

    `key` is what it depends on (weights, context length ...): another key knows nothing of it. Without a
    failure there is no limit. What `restore` or the file in `folder` tell is believed for a week.
    """

    def __init__(
        self, key: Mapping[str, Any], *, folder: Path | None, now: Callable[[], float] = time.time
    ) -> None:
        self._key = dict(key)
        self._now = now
        self._path = None if folder is None else state_file(folder, "limits", self._key)
        self._worked = 0
        self._failed: int | None = None
        self._failed_at = 0.0
        self._without_news = 0
        if self._path is not None:
            self._load(self._path)

    @property
    def ceiling(self) -> int | None:
        """The longest prompt to try next, in tokens; None while nothing has failed."""
        if self._failed is None:
            return None
        return self._below(self._failed, settled=self._without_news >= SETTLED)

    @property
    def longest(self) -> int:
        """The longest prompt that worked, in tokens; 0 if none has."""
        return self._worked

    @property
    def too_long(self) -> int | None:
        """The shortest prompt that was too long, in tokens; None while nothing has failed."""
        return self._failed

    def ceiling_below(self, tokens: int) -> int:
        """The longest prompt to try after one of so many tokens has failed, if that were a proof.

        It changes nothing: what a single row meets is not always a limit of all.
        """
        return self._below(tokens if self._failed is None else min(tokens, self._failed))

    def _below(self, failed: int, *, settled: bool = False) -> int:
        worked = min(self._worked, failed - 1)
        if settled or failed - worked <= max(1, KNOWN_WITHIN * failed):
            return max(1, math.floor((1 - FORESEEN_WITHIN) * worked))
        return max(1, (worked + failed) // 2)

    def worked(self, tokens: int) -> None:
        """A prompt of so many tokens was answered."""
        if tokens > self._worked:
            self._without_news = 0
        elif tokens >= NEAR * self._worked:
            self._without_news += 1
        self._worked = max(self._worked, tokens)
        if self._failed is not None and self._worked >= self._failed:
            # By a little, the refused prompt was longer than we thought; by more, whatever it was is over.
            little = self._worked <= (1 + COUNTED_WITHIN) * self._failed
            self._failed = self._worked + 1 if little else None

    def failed(self, tokens: int) -> None:
        """A prompt of so many tokens is proven too long for the engine, whatever its context length says.

        What counts as a proof is `_evidence`'s to say.
        """
        self._failed = tokens if self._failed is None else min(self._failed, tokens)
        self._failed_at = self._now()
        self._without_news = 0
        # Counted by different means: what worked may come out longer than what failed.
        self._worked = min(self._worked, self._failed - 1)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_dict` said in an earlier session of the run."""
        worked, failed, at = state["worked"], state["failed"], float(state["failed_at"])
        if self._now() - at < FORGET_S:
            self._worked, self._failed_at = int(worked), at
            self._without_news = int(state["without_news"])
            self._failed = None if failed is None else int(failed)

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON data; of use only after a failure."""
        return {
            "worked": self._worked,
            "failed": self._failed,
            "failed_at": self._failed_at,
            "without_news": self._without_news,
        }

    def save(self) -> None:
        """Keep it for later runs; a limit that was never met is not worth a file."""
        if self._path is not None and (self._failed is not None or self._path.exists()):
            write_state(self._path, {"key": self._key, **self.to_dict()}, version=STATE_VERSION)

    def _load(self, path: Path) -> None:
        state = read_state(path, version=STATE_VERSION, key=self._key)
        if state is None:
            return
        try:
            self.restore(state)
            if self._failed is not None and self._failed - self._worked <= NEAR_ENOUGH * self._failed:
                self._without_news = SETTLED
        except (KeyError, TypeError, ValueError) as error:
            log.warning("ignored the learned limit in %s: %s", path, error)
