"""Opening the sources and the journal of a run, and making sure that its files are its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ollama_batch._ending import note_fault
from ollama_batch._outputs import Place, Places
from ollama_batch.errors import (
    ConfigError,
    DiskFullError,
    JournalCorruptError,
    JournalError,
    JournalMismatchError,
    OutputError,
)
from ollama_batch.journal import RunJournal, put_back, set_aside
from ollama_batch.sources import FileSource, Source, open_sources

SPARE_BYTES = 64 * 2**20
"""Room there must be beyond what the input suggests."""

REPLACED = "replaced"
"""The journal's key for where the one is now that had its place before."""

RESULT_BYTES = 2048
"""Room a row that is done has taken already, at least: a short answer in journal and partial output."""


def sources_of_run(requests: object, *, waits: bool, phases: bool) -> list[Source]:
    """The sources that `requests` stands for; `waits` says that the caller's thread will wait for the run,
    `phases` that it sends to several models. Raises ConfigError for what cannot be one run, InputError.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if waits and isinstance(requests, AsyncIterable) and loop is not None:
        raise ConfigError(
            "an async iterable is read on the loop that runs here, which this call would stop: "
            "use `await runner.arun(...)` or `runner.stream(...)`"
        )
    sources = open_sources(requests, loop=loop)
    if len({isinstance(source, FileSource) for source in sources}) > 1:
        raise ConfigError("files and pipes cannot be inputs of one run: run them one after another")
    if phases and not all(isinstance(source, FileSource) for source in sources):
        raise ConfigError("allow_models= needs files: the models run one after another")
    return sources


def open_journal(
    places: Places, sources: Sequence[Source], *, identity: dict[str, Any], overwrite: bool
) -> RunJournal:
    """Create or resume the journal of a run, after looking at every file it will write.

    With `overwrite` a journal that is another run's, damaged, or of a run that has finished makes room for a
    new one, and output files of others may be replaced. Raises OutputError and JournalError, naming what is
    in the way.
    """
    _check_paths(places, sources)
    try:
        journal = _open(places, identity)
    except (JournalMismatchError, JournalCorruptError):
        if not overwrite or places.journal is None:
            raise
        journal = _open_anew(places, identity, places.journal)
    else:
        if overwrite and _is_finished(journal):
            assert journal.path is not None  # noqa: S101 - a temporary journal was not there before
            journal.close()
            journal = _open_anew(places, identity, journal.path)
    try:
        if not overwrite:
            _refuse_foreign(journal, places)
        _check_room(journal, sources)
        _note_places(journal, places)
    except BaseException as error:
        note_fault(journal, error)
        discard_if_new(journal)
        raise
    return journal


def begin_anew(journal: RunJournal, places: Places, *, identity: dict[str, Any]) -> RunJournal:
    """Set `journal` aside, for a run that may overwrite and is another one, and make a new one."""
    assert journal.path is not None  # noqa: S101 - a temporary journal was not there before
    journal.close()
    fresh = _open_anew(places, identity, journal.path)
    _note_places(fresh, places)
    return fresh


def discard_if_new(journal: RunJournal) -> None:
    """Close the journal, and leave none behind that says nothing: one that it replaced comes back."""
    if journal.resumed:
        journal.close()
        return
    replaced = journal.get(REPLACED)
    if journal.discard() and replaced is not None and journal.path is not None:
        with suppress(JournalError):  # somebody else began a run there: the old one is safe where it is
            put_back(Path(replaced), journal.path)


def _is_finished(journal: RunJournal) -> bool:
    return journal.resumed and journal.get("state") == "finished" and not journal.counts().pending


def _open_anew(places: Places, identity: dict[str, Any], path: Path) -> RunJournal:
    """A new journal at `path`; the one there is set aside, and stays there even if this fails half-way."""
    old = set_aside(path)
    journal = _open(places, identity)
    if old is not None:
        journal.put(REPLACED, str(old))
    return journal


def _open(places: Places, identity: dict[str, Any]) -> RunJournal:
    return RunJournal.open(
        places.journal, identity=identity, partial=[place.partial for place in places.sources]
    )


def _note_places(journal: RunJournal, places: Places) -> None:
    journal.put("places", [_paths(place) for place in places.sources])


def _paths(place: Place) -> dict[str, str | None]:
    return {
        "output": None if place.output is None else str(place.output.absolute()),
        "errors": None if place.errors is None else str(place.errors.absolute()),
    }


def _check_paths(places: Places, sources: Sequence[Source]) -> None:
    inputs = {_input(source).resolve() for source in sources}
    for path in places.files:
        if path.resolve() in inputs:
            raise OutputError(
                f"{path} is an input of this run, and would be written to; give output= another name"
            )
    for place in places.sources:
        for path in place.files:
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give output= a file name in it")
            if not path.parent.is_dir():
                raise OutputError(
                    f"the folder {path.parent} does not exist; make it, or give another output="
                )
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise OutputError(f"no file can be made in {path.parent}: permission denied")


def _input(source: Source) -> Path:
    # An open file is called by its path, which it will still be read from; "<list>" is the path of nothing.
    return source.path if isinstance(source, FileSource) else Path(source.name)


def _refuse_foreign(journal: RunJournal, places: Places) -> None:
    for place in places.sources:
        for path in (place.output, place.errors):
            if path is not None and os.path.lexists(path) and not journal.owns(path):
                when = "when the run completes" if path == place.output else "if rows fail"
                raise OutputError(
                    f"{path} exists and is not what this run wrote; move it, give another output=, or say "
                    f"overwrite=True: then it is replaced {when}"
                )
        if place.partial is not None and not journal.resumed and os.path.lexists(place.partial):
            raise OutputError(
                f"{place.partial} exists, and the journal it came from is gone; move it, give another "
                "output=, or say overwrite=True: then it is replaced"
            )


def _check_room(journal: RunJournal, sources: Sequence[Source]) -> None:
    if not journal.durable:
        return
    # Answers are rarely longer than what was asked.
    size = sum(source.stat()[0] for source in sources if isinstance(source, FileSource))
    needed = SPARE_BYTES + max(0, size - journal.counts().done * RESULT_BYTES)
    free = journal.free_bytes()
    if free < needed:
        raise DiskFullError(
            f"{free / 2**20:.0f} MiB are free where the journal {journal.path} is, about "
            f"{needed / 2**20:.0f} MiB are needed; make room, or give another output=",
            str(journal.path),
        )
