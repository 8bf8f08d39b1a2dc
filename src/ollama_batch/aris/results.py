"""Results as evaluations: of a run in memory, of a journal, of a result file in OpenAI's form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from ollama_batch._text import plain
from ollama_batch.errors import ConfigError, InputError
from ollama_batch.journal import RunJournal
from ollama_batch.journal.place import is_database
from ollama_batch.jsonl import (
    LineError,
    OutputLine,
    fault_of,
    first_choice,
    parse_output_line,
    read_lines,
)
from ollama_batch.records import EXTENSION
from ollama_batch.structured.form import AnswerForm, form_of
from ollama_batch.structured.reading import read
from ollama_batch.types import BatchResult, RowError

UNPARSED: Final = "output_unparsed"
"""The code of a row that has an answer, which is no evaluation."""

_SILENT: Final = "the row failed and does not say why"

PathLike: TypeAlias = str | os.PathLike[str]
Results: TypeAlias = PathLike | Iterable[BatchResult[Any]] | Sequence[PathLike]
"""A journal, a result file (ours, or of OpenAI's form), several of these, or results as a run gives them."""

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FailedEvaluation:
    """A row without an evaluation: `code` and `message` of the failed row.

    `code` is "output_unparsed" where there is an answer and it is no evaluation; `message` then says which
    rule it breaks and holds nothing of the answer. `custom_id` is None for a line that was no request.
    """

    custom_id: str | None
    code: str
    message: str

    def __str__(self) -> str:
        name = "a row without an id" if self.custom_id is None else self.custom_id
        return plain(f"{name}: {self.message} ({self.code})", 400)


def read_evaluations(
    results: Results, model: type[ModelT]
) -> Iterator[tuple[str, ModelT] | FailedEvaluation]:
    """Each result as its id and evaluation, or why it has none; one at a time, in the order they come.

    What a run has parsed counts; where nothing was parsed, the text is read by the rules of a run with
    `response_model=model`. Raises InputError for a file that cannot be read or has a line that is no result,
    ConfigError for an item that is none, and MissingExtraError for a text without the extra `structured`.
    """
    form = cache(partial(form_of, model))
    files = result_files(results)
    found = chain.from_iterable(map(_of_file, files)) if files else cast("Iterable[Any]", results)
    for result in found:
        if not isinstance(result, BatchResult):
            raise ConfigError(
                f"results= has a {type(result).__name__}: must be the path of a journal or result file, a "
                "list of such paths, or BatchResults, as report.results() gives them"
            )
        yield _evaluated(result, model, form)


def result_files(results: Results | Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that `results` are read from, none if they are no paths.

    To a single result file belongs the error file that a run writes beside it (OUT.errors.jsonl), if there
    is one. Raises InputError for a file that cannot be read.
    """
    if not isinstance(results, str | os.PathLike):
        paths = results if isinstance(results, list | tuple) else ()
        if not all(isinstance(each, str | os.PathLike) for each in paths):
            return ()
        return tuple(Path(each) for each in paths)
    path = Path(results)
    beside = path.with_name(f"{path.name.removesuffix('.jsonl')}.errors.jsonl")
    return (path, beside) if beside.is_file() and not _is_journal(path) else (path,)


@dataclass(frozen=True, slots=True)
class Pending:
    """What is still to come of the runs whose journals are read.

    `rows` have no result yet. `complete`: all rows of all results are known, since the files are journals
    whose input was read to its end; a candidate that is in none has no request.
    """

    rows: int
    complete: bool


def still_to_come(files: Sequence[Path]) -> Pending:
    """What is still to come of the runs among `files`. Raises InputError, JournalError."""
    rows, complete = 0, bool(files)
    for path in files:
        if not _is_journal(path):
            complete = False
            continue
        with RunJournal.open_readonly(path) as journal:
            rows += journal.counts().pending
            complete &= journal.state == "finished" or journal.get("intake") is not None
    return Pending(rows, complete)


def pending_ids(files: Sequence[Path]) -> Iterator[str]:
    """The ids of the rows without a result in the journals among `files`."""
    for path in files:
        if _is_journal(path):
            with RunJournal.open_readonly(path) as journal:
                yield from (custom_id for custom_id in journal.pending() if custom_id)


def _is_journal(path: Path) -> bool:
    try:
        return is_database(path)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc


def _evaluated(
    result: BatchResult[Any], model: type[ModelT], form: Callable[[], AnswerForm[Any]]
) -> tuple[str, ModelT] | FailedEvaluation:
    if not result.ok or not result.custom_id:
        error = result.error or RowError("failed", _SILENT)
        return FailedEvaluation(result.custom_id or None, error.code, error.message)
    parsed = result.parsed
    try:
        if parsed is None:
            if result.output is None:
                return FailedEvaluation(result.custom_id, UNPARSED, "the answer has no text")
            answer = read(result.output, form())
            if answer.parsed is None:
                return FailedEvaluation(result.custom_id, UNPARSED, f"the answer {answer.fault}")
            return result.custom_id, answer.parsed
        if isinstance(parsed, model):
            return result.custom_id, parsed
        value = parsed.model_dump(by_alias=True) if isinstance(parsed, BaseModel) else parsed
        return result.custom_id, model.model_validate(value)
    except ValidationError as exc:
        return FailedEvaluation(result.custom_id, UNPARSED, _broken_rule(exc))


def _broken_rule(exc: ValidationError) -> str:
    """The first rule that is broken, where, and how many more; without what stands there."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"


def _of_file(path: Path) -> Iterator[BatchResult[Any]]:
    try:
        if not _is_journal(path):
            with path.open("rb") as file:
                for line in read_lines(file):
                    if line.too_long:
                        raise InputError(f"{path}:{line.line} is longer than a line of results may be")
                    yield _of_line(line.raw, f"{path}:{line.line}")
            return
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    with RunJournal.open_readonly(path) as journal:
        for row, record in journal.results():  # a line has what was repaired, too
            yield _of_line(record.line, f"{path}, row {row.index}")


def _of_line(raw: bytes, where: str) -> BatchResult[Any]:
    try:
        line = parse_output_line(raw)
    except LineError as exc:
        unnamed = _unnamed(raw)
        if unnamed is None:
            raise InputError(
                f"{where} is {exc}: give the journal of a run, or a file of results in the form of OpenAI's"
            ) from exc
        return unnamed
    if not line.ok:
        return BatchResult(custom_id=line.custom_id, ok=False, error=_fault(line))
    extension = orjson.loads(raw).get(EXTENSION)
    content = first_choice(line.body or {})[1].get("content")
    return BatchResult(
        custom_id=line.custom_id,
        ok=True,
        output=content if isinstance(content, str) else None,
        parsed=extension.get("parsed") if isinstance(extension, Mapping) else None,
    )


def _unnamed(raw: bytes) -> BatchResult[Any] | None:
    """The failed row of a line that was no request and so has no id."""
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(line, dict) or line.get("custom_id", "") is not None or "response" not in line:
        return None
    named = parse_output_line(orjson.dumps({**line, "custom_id": "-"}))
    return BatchResult(custom_id="", ok=False, error=_fault(named))


def _fault(line: OutputLine) -> RowError:
    code, message = fault_of(line.error, line.status, unnamed="failed")
    silent = not (line.error or {}).get("message")
    return RowError(code, _SILENT if silent else message, line.status)
