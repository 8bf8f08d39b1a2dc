"""Where the rows of an analysis come from: a journal, result files, or the report of a run in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import orjson

from ollama_batch.analysis.rows import ResultRow, is_request, row_of_line, row_of_result
from ollama_batch.errors import ConfigError
from ollama_batch.journal import Note, RunJournal
from ollama_batch.journal.place import is_database
from ollama_batch.jsonl import Limits, read_lines
from ollama_batch.records import decode_result, made_json
from ollama_batch.report import BatchReport

PathLike: TypeAlias = str | os.PathLike[str]
Results: TypeAlias = "PathLike | Sequence[PathLike] | BatchReport[Any]"
"""What can be analysed: a journal (RUN.db), one or more result files, or a report."""

_LIMITS: Final = Limits(max_line_bytes=256 * 2**20)
_NAMED: Final = 5
"""So many unreadable lines are named."""


@dataclass(slots=True)
class RunSource:
    """The finished rows of one run, to be read any number of times.

    `kind` says where they are; `files` is empty for a report in memory. `notes` is what the journal has noted
    down, `absent` an error file that was asked for and is not there. After a reading `unreadable` counts the
    lines that are none of a result file, and `unreadable_at` names the first of them.
    """

    name: str
    kind: Literal["journal", "files", "memory"]
    files: tuple[Path, ...] = ()
    report: BatchReport[Any] | None = None
    run_id: str | None = None
    state: str | None = None
    total: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    absent: Path | None = None
    unreadable: int = 0
    unreadable_at: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[ResultRow]:
        """Every row, one at a time, in input order (of several files: one file after another).

        Raises JournalError, JournalCorruptError or ConfigError if they cannot be read any more, ConfigError
        also for a file of requests.
        """
        self.unreadable, self.unreadable_at = 0, []
        if self.kind == "journal":
            yield from _journal_rows(self.files[0])
        elif self.report is not None:
            yield from (row_of_result(result, parsed=result.parsed) for result in self.report.results())
        else:
            for file in self.files:
                yield from self._file_rows(file)

    def _file_rows(self, file: Path) -> Iterator[ResultRow]:
        asked, found = 0, False
        try:
            with file.open("rb") as lines:
                for raw in read_lines(lines, limits=_LIMITS):
                    line = None if raw.too_long else _decode(raw.raw)
                    row = None if line is None else row_of_line(line)
                    if row is None:
                        asked += line is not None and is_request(line)
                        self.unreadable += 1
                        if len(self.unreadable_at) < _NAMED:
                            self.unreadable_at.append(f"{file.name}:{raw.line}")
                    else:
                        found = True
                        yield row
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        if asked and not found:
            raise ConfigError(
                f"{file} holds requests, no results: give what a run of them wrote, its output or its "
                "journal (OUT.run.db)"
            )


def open_run(results: Results, *, errors: PathLike | Literal["auto"] | None = "auto") -> RunSource:
    """Where `results` are. A file is a journal or a result file by its content, whatever its name.

    `errors` is the file of the failed rows that belongs to one result file, empty if it is not there; "auto"
    takes the one that a run writes beside its output (OUT.errors.jsonl), if it is there. Raises ConfigError
    for what cannot be read or holds no results, JournalError for a journal that cannot.
    """
    if isinstance(results, BatchReport):
        if results.journal is None:
            return RunSource(
                "a run in memory",
                "memory",
                report=results,
                run_id=results.run_id,
                state=results.outcome,
                total=results.counts.total,
                settings={"model": results.model, "num_ctx": results.num_ctx},
            )
        results = results.journal
    single = isinstance(results, str | os.PathLike)
    paths = [Path(results)] if isinstance(results, str | os.PathLike) else [Path(each) for each in results]
    if not paths:
        raise ConfigError("no result file was given: name a journal (OUT.run.db) or result files")
    journals = [path for path in paths if _is_journal(path)]
    if journals and len(paths) > 1:
        raise ConfigError(f"{journals[0]} is a journal, which has all rows of its run: give it alone")
    if journals:
        return _journal(paths[0])
    absent = None
    if single and errors == "auto":
        beside = paths[0].with_name(f"{paths[0].name.removesuffix('.jsonl')}.errors.jsonl")
        paths += [beside] if beside.is_file() else []
    elif errors not in ("auto", None):
        given = Path(errors)
        if not given.exists():  # a run makes one only if rows failed
            absent = given
        elif _is_journal(given):
            raise ConfigError(f"errors={given} is a journal: give it alone, it has all rows of its run")
        else:
            paths.append(given)
    return RunSource(" + ".join(path.name for path in paths), "files", tuple(paths), absent=absent)


def _is_journal(path: Path) -> bool:
    try:
        return is_database(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _journal(path: Path) -> RunSource:
    with RunJournal.open_readonly(path) as journal:
        known = journal.state == "finished" or journal.get("intake") is not None
        engine = journal.get("engine") or {}
        settings = {
            **journal.identity,
            "server": " ".join(str(engine[key]) for key in ("engine", "version") if engine.get(key)) or None,
        }
        return RunSource(
            path.name,
            "journal",
            (path,),
            run_id=journal.run_id,
            state=journal.state,
            total=journal.counts().rows if known else None,
            settings=settings,
            notes=journal.notes(),
        )


def _journal_rows(path: Path) -> Iterator[ResultRow]:
    with RunJournal.open_readonly(path) as journal:
        moments, replaced = journal.moments(), journal.replaced()
        moment, former = next(moments, None), next(replaced, None)
        for row, record in journal.results():
            while moment is not None and moment.index < record.index:
                moment = next(moments, None)
            seen = moment if moment is not None and moment.index == record.index else None
            before = []
            while former is not None and former.index <= record.index:
                if former.index == record.index:
                    with suppress(ValueError, KeyError, TypeError):  # it has no checksum
                        before.append(decode_result(former, row.custom_id))
                former = next(replaced, None)
            result = decode_result(record, row.custom_id)
            yield row_of_result(
                result,
                parsed=made_json(record) if result.repaired else result.parsed,
                finished_at=None if seen is None else seen.at,
                session=None if seen is None else seen.session,
                replaced=before,
            )


def _decode(raw: bytes) -> Mapping[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, Mapping) else None
