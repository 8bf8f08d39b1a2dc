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
        again = all(isinstance(source, FileSource) for source in self.sources)
        return self.options.overwrite and journal.resumed and again

    def export(self, journal: RunJournal) -> None:
        """Write the output and error file of every source, in input order, each atomically."""
        for number, place in enumerate(self.places.sources):
            if place.output is not None:
                journal.export(number, place.output, place.errors)
