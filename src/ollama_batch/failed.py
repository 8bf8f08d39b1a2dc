"""The failed rows of a run as they were given, so that they can be run again with other settings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_batch._new_file import new_file
from ollama_batch._points import reached
from ollama_batch.errors import ConfigError, OutputError
from ollama_batch.journal import ReadOnlyJournal, RunJournal
from ollama_batch.sources import FileSource

JOURNALS = "*.run.db"


@dataclass(frozen=True, slots=True)
class FailedRows:
    """What `export_failed` wrote: so many `rows` to `output`, which is made only if there are any.

    `invalid` lines were no valid requests and are left out: there is nothing in them that could be run again.
    """

    output: Path
    rows: int
    invalid: int


def export_failed(
    journal: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    codes: Collection[str] | None = None,
    overwrite: bool = False,
) -> FailedRows:
    """Write the lines of the failed rows, byte for byte as they were given, to `output`, an input for a run.

    `journal` is the journal of a run, or the folder it is in. `codes`: only rows that failed with one of
    these. The lines are read from the run's input files, which must still be there with these lines in them.
    Works beside a run that goes on.

    Raises JournalError if there is no journal, ConfigError if the rows came from no file (send them again
    with `retry_failed`) or two inputs have a failed row of one id, InputError if a file has changed, and
    OutputError if `output` exists (unless `overwrite`), or cannot be written.
    """
    if isinstance(codes, str):
        raise ConfigError(f"codes={codes!r}: must be a list of error codes, as in [{codes!r}]")
    place = Path(output)
    with RunJournal.open_readonly(_journal_in(Path(journal))) as opened:
        sources = [_source(opened, each) for each in opened.get("sources") or []]
        if place.resolve() in {source.path.resolve() for source in sources}:
            raise OutputError(f"{place} is an input of this run: give another name")
        counts: Counter[str] = Counter()
        try:
            reached("failed.begin")
            with new_file(place, overwrite=overwrite, empty=False) as file:
                for line in _lines(opened, sources, codes, counts):
                    file.write(line + b"\n")
        finally:
            for source in sources:
                source.close()
    return FailedRows(place, counts["rows"], counts["invalid"])


def _journal_in(place: Path) -> Path:
    if not place.is_dir():
        return place
    found = sorted(place.glob(JOURNALS))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"there is no journal ({JOURNALS}) in the folder {place}")
    raise ConfigError(f"{place} has several journals, say which: {', '.join(path.name for path in found)}")


def _source(journal: ReadOnlyJournal, known: dict[str, Any]) -> FileSource:
    if "path" not in known:
        raise ConfigError(
            f"the rows of this run came from {known['name']}, which nobody can read again: run the same "
            "items with retry_failed=True"
        )
    path = Path(known["path"])
    beside = journal.path.parent / path  # a relative one, and a process that is elsewhere
    return FileSource(beside if not path.exists() and beside.exists() else path)


def _lines(
    journal: ReadOnlyJournal,
    sources: list[FileSource],
    codes: Collection[str] | None,
    counts: Counter[str],
) -> Iterator[bytes]:
    """The failed rows' lines in input order; `counts` learns how many there are, and how many are none."""
    seen: set[str] = set()
    for row, record in journal.results(ok=False):
        if codes is not None and record.code not in codes:
            continue
        if row.custom_id is None:
            counts["invalid"] += 1
            continue
        if len(sources) > 1:
            if row.custom_id in seen:
                raise ConfigError(
                    f"two inputs have a failed row {row.custom_id!r}, and one file must not: give codes= "
                    "that tell them apart, or run the inputs one by one"
                )
            seen.add(row.custom_id)
        counts["rows"] += 1
        yield from sources[row.source].lines([row])
