"""What one run works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ollama_batch._activity import Activity
from ollama_batch._options import RunOptions
from ollama_batch._outputs import Places
from ollama_batch._results import ResultQueue
from ollama_batch.engines.base import Engine
from ollama_batch.errors import JournalMismatchError
from ollama_batch.journal import RunJournal
from ollama_batch.run import Run
from ollama_batch.sources import FileSource, Source


@dataclass(frozen=True, slots=True)
class Job:
    """A run with its sources, files and options, from its start to its end."""

    run: Run[Any]
    engine: Engine
    sources: Sequence[Source]
    places: Places
    options: RunOptions
    results: ResultQueue | None
    activity: Activity

    def may_begin_anew(self, journal: RunJournal) -> bool:
        """Whether a journal that is another run's may make room; a stream can be read only once."""
        return self.options.overwrite and journal.resumed and not self.streams

    def explain(self, mismatch: JournalMismatchError) -> None:
        """Say in `mismatch` why overwrite=True does not help, where it was given and does not."""
        if self.options.overwrite and self.streams:
            mismatch.message += (
                ". Here overwrite=True does not do that, since rows that do not come from files are read "
                "only once: give another output"
            )

    @property
    def streams(self) -> bool:
        """Whether rows come from what can be read only once, rather than from files."""
        return not all(isinstance(source, FileSource) for source in self.sources)

    def export(self, journal: RunJournal) -> None:
        """Write the output and error file of every source, in input order, each atomically."""
        for number, place in enumerate(self.places.sources):
            if place.output is not None:
                journal.export(number, place.output, place.errors)
