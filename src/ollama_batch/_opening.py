"""Opening the journal of a run, and making sure that its files are its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollama_batch._outputs import Place, Places
from ollama_batch.errors import DiskFullError, JournalCorruptError, JournalMismatchError, OutputError
from ollama_batch.journal import RunJournal
from ollama_batch.sources import FileSource, Source

RESULT_BYTES = 2048
"""Room a row takes in journal and output together, at least, before it is known (a short answer, twice)."""

SPARE_BYTES = 64 * 2**20


def open_journal(
    places: Places, sources: Sequence[Source], *, identity: dict[str, Any], overwrite: bool
) -> RunJournal:
    """Create or resume the journal of a run, after looking at every file it will write.

    With `overwrite` a journal that is another run's, or damaged, makes room for a new one, and output files
    of others may be replaced. Raises OutputError and JournalError, naming what is in the way.
    """
    _check_paths(places, sources)
    partial = [place.partial for place in places.sources]
    if places.journal is None:
        journal = RunJournal.open(None, identity=identity, partial=partial)
    else:
        try:
            journal = RunJournal.open(places.journal, identity=identity, partial=partial)
        except (JournalMismatchError, JournalCorruptError):
            if not overwrite:
                raise
            set_aside(places.journal)
            journal = RunJournal.open(places.journal, identity=identity, partial=partial)
    try:
        journal.put("places", [_paths(place) for place in places.sources])
        if not overwrite:
            _refuse_foreign(journal, places)
        _check_room(journal, sources)
    except BaseException:
        discard_if_new(journal)
        raise
    return journal


def discard_if_new(journal: RunJournal) -> None:
    """Close the journal, and leave none behind that says nothing."""
    if journal.resumed or journal.counts().done:
        journal.close()
    else:
        journal.discard()


def set_aside(path: Path) -> Path:
    """Rename a journal and its log out of the way, so that nothing is lost; returns the new name."""
    n = 1
    while (new := path.with_name(f"{path.name}.old{n}")).exists():
        n += 1
    for tail in ("", "-wal", "-shm"):
        old = path.with_name(path.name + tail)
        if old.exists():
            old.replace(new.with_name(new.name + tail))
    return new


def _paths(place: Place) -> dict[str, str | None]:
    return {
        "output": None if place.output is None else str(place.output.absolute()),
        "errors": None if place.errors is None else str(place.errors.absolute()),
    }


def _check_paths(places: Places, sources: Sequence[Source]) -> None:
    inputs = {source.path.resolve() for source in sources if isinstance(source, FileSource)}
    for place in places.sources:
        for path in (place.output, place.errors):
            if path is None:
                continue
            if path.resolve() in inputs:
                raise OutputError(f"{path} is an input of this run; give output= another name")
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give output= a file name in it")
            if not path.parent.is_dir():
                raise OutputError(
                    f"the folder {path.parent} does not exist; make it, or give another output="
                )


def _refuse_foreign(journal: RunJournal, places: Places) -> None:
    for place in places.sources:
        for path in (place.output, place.errors):
            if path is not None and path.exists() and not journal.owns(path):
                raise OutputError(
                    f"{path} exists and is not what this run wrote; move it, give another output=, "
                    "or overwrite=True (--overwrite)"
                )


def _check_room(journal: RunJournal, sources: Sequence[Source]) -> None:
    if not journal.durable:
        return
    # A row of input is rarely under 256 bytes; so many results must at least fit.
    size = sum(source.stat()[0] for source in sources if isinstance(source, FileSource))
    needed = SPARE_BYTES + min(size, size // 256 * RESULT_BYTES) - journal.counts().done * RESULT_BYTES
    free = journal.free_bytes()
    if free < needed:
        raise DiskFullError(
            f"{free / 2**20:.0f} MiB are free where the journal {journal.path} is, about "
            f"{needed / 2**20:.0f} MiB are needed; make room, or give another output=",
            str(journal.path),
        )
