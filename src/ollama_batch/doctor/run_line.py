"""The command line of the run that the examination is for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunLine:
    """What is known of a run: its files, its output (None: not told), and options that are given already."""

    inputs: Sequence[str] = ()
    output: str | None = None
    options: Sequence[str] = ()

    def adding(self, *options: str, output: str | None = None) -> str:
        """The line with further `options`; IN and OUT stand for what is not known."""
        where = output or self.output or "OUT"
        words = ("ollama-batch", "run", *(self.inputs or ("IN",)), "-o", where, *self.options, *options)
        return shlex.join(words)
