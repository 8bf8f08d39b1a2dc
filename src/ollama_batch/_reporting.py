"""From what happens in a run to its report."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ollama_batch._intake import Intake
from ollama_batch._meeting import Meeting
from ollama_batch._options import RunnerOptions
from ollama_batch._outputs import Place, Places
from ollama_batch.errors import OllamaBatchError, RunInterrupted, RunStoppedError
from ollama_batch.events import Decision, Event, RowFinished, RowsFound, RunFinished, RunStarted
from ollama_batch.journal import RunJournal
from ollama_batch.records import decode_result
from ollama_batch.report import BatchReport, ErrorExample, RowCounts, SourceFiles
from ollama_batch.run import Ended, Run
from ollama_batch.types import BatchResult, EngineInfo, RowError

EXAMPLES = 3


class Reporter:
    """Follows one run: tells when it begins, keeps what the report needs, makes the report at its end."""

    def __init__(self, run: Run, options: RunnerOptions, *, names: Sequence[str], places: Places) -> None:
        self._run = run
        self._options = options
        self._names = names
        self._places = places
        self._began = time.monotonic()
        self._began_at = datetime.now(UTC)
        self._intake = Intake()
        self._meeting: Meeting | None = None
        self._complete = False
        self._journal: RunJournal | None = None
        self._notes: list[str] = []
        self._errors: dict[str, tuple[list[str], RowError]] = {}

    def on_event(self, event: Event) -> None:
        """A hook of the run: keeps examples of what failed, and decisions."""
        if isinstance(event, RowFinished) and event.result.error is not None:
            error = event.result.error
            ids, _ = self._errors.setdefault(error.code, ([], error))
            if len(ids) < EXAMPLES:
                ids.append(event.result.custom_id)
        elif isinstance(event, Decision):
            self._notes.append(event.message)

    def opened(self, journal: RunJournal) -> None:
        """The journal is open."""
        self._journal = journal

    def begin(self, intake: Intake) -> None:
        """The input is known (files) or about to come (streams)."""
        self._intake = intake
        self._complete = intake.total is not None

    def met(self, meeting: Meeting) -> None:
        """The engine is ready; a run over several models meets it once for each."""
        first, self._meeting = self._meeting is None, meeting
        note = meeting.info.details.get("note")
        if isinstance(note, str):
            self._notes.append(note)
        if first:
            self._tell_start()

    def found(self, rows: int, complete: bool) -> None:
        """A stream has given so many rows."""
        self._complete = complete
        self._run._emit(RowsFound(total=rows, complete=complete))

    def broke(self, error: BaseException) -> None:
        """The run ends with an error that is no orderly stop."""
        self._run._emit(
            RunFinished(outcome="stopped", error=str(error), duration_s=time.monotonic() - self._began)
        )

    def end(self) -> Ended:
        """Tell the end and make the report; the journal's file is closed, a temporary one stays readable."""
        journal, error = self._journal, self._run._stop.reason
        outcome = "completed"
        if error is not None:
            outcome = "interrupted" if isinstance(error, RunInterrupted) else "stopped"
        duration_s = time.monotonic() - self._began
        assert journal is not None  # noqa: S101 - a run without a journal ends in `broke`
        if self._meeting is None:
            self._tell_start()  # nothing was sent
        self._run._emit(
            RunFinished(outcome=outcome, error=None if error is None else str(error), duration_s=duration_s)
        )
        report = self._report(journal, outcome, error, duration_s)
        if journal.durable:
            journal.close()
        else:
            weakref.finalize(report, journal.close)
        if isinstance(error, RunStoppedError | RunInterrupted):
            error.report = report
        return Ended(report, error)

    def _tell_start(self) -> None:
        journal, meeting, place = self._journal, self._meeting, self._places.sources[0]
        assert journal is not None  # noqa: S101 - set by begin()
        counts = journal.counts()
        self._run._emit(
            RunStarted(
                run_id=journal.run_id,
                model=self._options.model,
                engine=None if meeting is None else meeting.info,
                total=self._intake.total,
                resumed=counts.done,
                resumed_failed=counts.failed,
                concurrency=0 if meeting is None else meeting.width,
                num_ctx=None if meeting is None else meeting.num_ctx,
                max_tokens=self._options.max_tokens,
                durable=journal.durable,
                journal=None if journal.path is None else str(journal.path),
                output=None if place.output is None else str(place.output),
            )
        )

    def _report(
        self,
        journal: RunJournal,
        outcome: str,
        error: OllamaBatchError | RunInterrupted | None,
        duration_s: float,
    ) -> BatchReport[Any]:
        counts, metrics, meeting = journal.counts(), self._run.metrics, self._meeting
        engine = journal.get("engine") if meeting is None else None
        return BatchReport(
            outcome=outcome,
            reason=None if error is None else str(error),
            run_id=journal.run_id,
            model=self._options.model,
            engine=meeting.info if meeting is not None else engine and EngineInfo(**engine),
            counts=RowCounts(
                total=counts.rows if self._complete else None,
                ok=counts.ok,
                failed=counts.failed,
                resumed=metrics.resumed,
                sent=metrics.sent - metrics.retried,
            ),
            metrics=metrics,
            durable=journal.durable,
            journal=None if journal.path is None else str(journal.path),
            files=[_files(*each) for each in zip(self._names, self._places.sources, strict=True)],
            concurrency=None if meeting is None else meeting.width,
            num_ctx=journal.identity.get("num_ctx") if meeting is None else meeting.num_ctx,
            max_tokens=self._options.max_tokens,
            started_at=self._began_at,
            duration_s=duration_s,
            notes=tuple(dict.fromkeys(self._notes)),
            error_examples=[
                self._example(code, count)
                for code, count in sorted(counts.codes.items(), key=lambda item: -item[1])
            ],
            read_results=lambda: read_results(journal),
        )

    def _example(self, code: str, count: int) -> ErrorExample:
        ids, error = self._errors.get(code, ([], None))
        return ErrorExample(
            code=code, count=count, custom_ids=tuple(ids), message="" if error is None else error.message
        )


def read_results(journal: RunJournal) -> Iterator[BatchResult[Any]]:
    """Every result of the journal, in input order; a durable one is opened again, beside its writer."""
    if journal.path is None:
        for row, record in journal.results():
            yield decode_result(record, row.custom_id)
        return
    with RunJournal.open_readonly(journal.path) as reader:
        for row, record in reader.results():
            yield decode_result(record, row.custom_id)


def _files(name: str, place: Place) -> SourceFiles:
    return SourceFiles(
        source=name,
        output=_if_there(place.output),
        errors=_if_there(place.errors),
        partial=_if_there(place.partial),
    )


def _if_there(path: Path | None) -> str | None:
    return str(path) if path is not None and path.exists() else None
