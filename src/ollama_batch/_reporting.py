"""From what happens in a run to its report."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ollama_batch._activity import Activity
from ollama_batch._context import UNKNOWN, Context
from ollama_batch._ending import note_ending, note_fault
from ollama_batch._error_examples import error_examples
from ollama_batch._intake import Intake
from ollama_batch._load_note import LOAD, load_note
from ollama_batch._meeting import NUM_CTX, TOLD, Meeting, context_of
from ollama_batch._next_steps import next_steps
from ollama_batch._opening import discard_if_new
from ollama_batch._options import RunnerOptions, RunOptions
from ollama_batch._outputs import Place, Places
from ollama_batch._reading import with_parsed
from ollama_batch._summary import what_next
from ollama_batch.errors import (
    InputError,
    JournalError,
    OllamaBatchError,
    RunInterrupted,
    TooManyFailuresError,
)
from ollama_batch.events import Noticed, RowFinished, RowsFound, RunFinished, RunStarted
from ollama_batch.journal import JournalCounts, RunJournal
from ollama_batch.records import decode_result
from ollama_batch.report import BatchReport, RowCounts, SourceFiles
from ollama_batch.run import Ended, Run
from ollama_batch.structured.form import AnswerForm
from ollama_batch.types import BatchResult, EngineInfo, ResultRecord, RowRecord, Timings

log = logging.getLogger("ollama_batch.run")


class Reporter:
    """Follows one run: tells when it begins, keeps what the report needs, makes the report at its end."""

    def __init__(
        self,
        run: Run,
        options: RunnerOptions,
        *,
        names: Sequence[str],
        places: Places,
        arguments: RunOptions,
        streams: bool,
        activity: Activity,
    ) -> None:
        self._run = run
        self._arguments = arguments
        self._streams = streams
        self._activity = activity
        self._options = options
        self._names = names
        self._places = places
        self._began = time.monotonic()
        self._began_at = datetime.now(UTC)
        self._intake = Intake()
        self._meeting: Meeting | None = None
        self._complete = False
        self._journal: RunJournal | None = None
        self._before = JournalCounts()
        self._again = 0
        self._notes: list[str] = []
        self._early: list[Noticed] = []
        self.started = False

    def opened(self, journal: RunJournal) -> None:
        """The journal is open: what it has was done in earlier sessions."""
        self._journal = journal
        self._before = journal.counts()
        self._again = journal.count_again(self._arguments.retry)
        self._activity.follow(journal)

    def took_in(self, intake: Intake) -> None:
        """The input is known (files) or about to come (streams)."""
        self._intake = intake
        self._complete = intake.total is not None

    def met(self, meeting: Meeting) -> None:
        """The engine is ready; a run over several models meets it once for each."""
        self._meeting = meeting
        note = meeting.info.details.get("note")
        if isinstance(note, str):
            self._notes.append(note)
        self.start()

    def noticed(self, kind: str, message: str, **data: Any) -> None:
        """Something worth knowing was found: told to the hooks (once the run has begun), log and report."""
        self._notes.append(message)
        log.warning("%s", message)
        event = Noticed(kind=kind, message=message, data=data)
        if self.started:
            self._run._emit(event)
        else:
            self._early.append(event)

    def found(self, rows: int, complete: bool, limited: int = 0) -> None:
        """A stream has given so many rows, of which `limited` have a max_tokens of their own."""
        self._complete = complete
        self._intake.limited = limited
        self._intake.total = rows if complete else None
        if self.started:
            self._run._emit(RowsFound(total=rows, complete=complete))

    def failed(self, result: BatchResult[Any]) -> None:
        """An item of a stream was no valid request, and is in the journal."""
        if self.started:  # else `start` finds it there
            self._tell(result, in_flight=self._run.metrics.in_flight)

    def _tell(self, result: BatchResult[Any], *, in_flight: int) -> None:
        self._run._emit(RowFinished(result=result, timings=Timings(), in_flight=in_flight))

    def broke(self, error: BaseException) -> None:
        """The run ends with an error that is no orderly stop."""
        if self._journal is not None:
            note_fault(self._journal, error)
        self._run._emit(
            RunFinished(outcome="stopped", error=str(error), duration_s=time.monotonic() - self._began)
        )

    def end(self) -> tuple[str, float]:
        """Tell the end: outcome and duration in seconds, for the report."""
        error = self._run._stop.reason
        outcome = "completed"
        if error is not None:
            outcome = "interrupted" if isinstance(error, RunInterrupted) else "stopped"
        duration_s = time.monotonic() - self._began
        self.start()  # if nothing was sent
        self._run._emit(
            RunFinished(outcome=outcome, error=None if error is None else str(error), duration_s=duration_s)
        )
        return outcome, duration_s

    async def ended(self) -> Ended:
        """Tell the end, keep the figures of the session in its journal, and make the report."""
        outcome, duration_s = self.end()
        m = self._run.metrics
        if self._journal is not None and m.sent:
            try:
                await self._journal.note(LOAD, load_note(m))
            except JournalError as error:  # no room: the report has them too
                log.debug("the figures could not be noted: %s", type(error).__name__)
        return await asyncio.to_thread(self.report, outcome, duration_s)

    def report(self, outcome: str, duration_s: float) -> Ended:
        """Make the report; the journal's file is closed, a temporary one stays readable. Blocks."""
        journal, error = self._journal, self._run._stop.reason
        assert journal is not None  # noqa: S101 - a run without a journal ends in `broke`
        try:
            report = self._report(journal, outcome, error, duration_s)
            if report.reason is not None and journal.durable:
                note_ending(journal, report.reason, what_next(report))
        except BaseException:
            journal.close()
            raise
        if not journal.durable:
            weakref.finalize(report, journal.close)
        elif isinstance(error, InputError):
            discard_if_new(journal)
        else:
            journal.close()
        if error is not None:
            error.report = report
        return Ended(report, error)

    def start(self) -> None:
        """Tell that the run begins, once, and which rows were found invalid before that."""
        journal, meeting, place = self._journal, self._meeting, self._places.sources[0]
        if self.started:
            return
        self.started = True
        assert journal is not None  # noqa: S101 - set by opened()
        self._run._emit(
            RunStarted(
                run_id=journal.run_id,
                model=self._options.model,
                engine=None if meeting is None else meeting.info,
                total=self._intake.total,
                resumed=self._before.done - self._again,
                resumed_failed=self._before.failed - self._again,
                concurrency=0 if meeting is None else meeting.width,
                num_ctx=None if meeting is None else meeting.num_ctx,
                context=None if meeting is None else meeting.context.tokens,
                max_tokens=self._options.max_tokens,
                durable=journal.durable,
                journal=None if journal.path is None else str(journal.path),
                output=None if place.output is None else str(place.output),
            )
        )
        for event in self._early:
            self._run._emit(event)
        if journal.counts().done > self._before.done:
            for row, record in journal.fresh_results():
                self._tell(decode_result(record, row.custom_id), in_flight=0)

    def _report(
        self,
        journal: RunJournal,
        outcome: str,
        error: OllamaBatchError | RunInterrupted | None,
        duration_s: float,
    ) -> BatchReport[Any]:
        counts, metrics, meeting = journal.counts(), self._run.metrics, self._meeting
        told = journal.get("engine") if meeting is None else None
        engine = meeting.info if meeting is not None else EngineInfo(**told) if told else None
        context, policy = self._context(journal, engine), self._options.policy
        return BatchReport(
            outcome=outcome,
            reason=None if error is None else str(error),
            next_steps=next_steps(
                error,
                left=counts.rows - counts.ok - counts.failed if self._complete else None,
                streams=self._streams,
                deadline=self._arguments.deadline,
            ),
            hopeless=isinstance(error, TooManyFailuresError) and error.hopeless,
            run_id=journal.run_id,
            model=self._options.model,
            engine=engine,
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
            concurrency=None if meeting is None else (metrics.concurrency or meeting.width),
            num_ctx=journal.identity.get(NUM_CTX) if meeting is None else meeting.num_ctx,
            num_ctx_why=None if meeting is None else meeting.num_ctx_why,
            max_tokens=self._options.max_tokens,
            own_max_tokens=self._intake.limited,
            context=context.tokens,
            context_by=None if context.tokens is None else context.source,
            trim=None if self._options.strategy is None else type(self._options.strategy).__name__,
            lanes=None if policy is None else policy.lanes,
            conversation_limit=None if policy is None else policy.limit,
            started_at=self._began_at,
            duration_s=duration_s,
            notes=tuple(dict.fromkeys((*self._notes, *self._engine_trouble(), *self._hooks_that_raised()))),
            error_examples=error_examples(journal, counts, self._names),
            read_results=lambda: read_results(journal, form=self._options.form),
        )

    def _context(self, journal: RunJournal, engine: EngineInfo | None) -> Context:
        """What prompt and answer may have, from an earlier session where none was needed in this one."""
        if self._meeting is not None or engine is None:
            return UNKNOWN if self._meeting is None else self._meeting.context
        pins = journal.identity
        return context_of(self._options, engine, pins.get(NUM_CTX), told=pins.get(TOLD))

    def _engine_trouble(self) -> Iterator[str]:
        width = 1 if self._meeting is None else self._meeting.width
        lack = self._activity.lack_of_memory(self._run.metrics.concurrency or width)
        if lack is not None:
            yield lack
        if self._activity.restarts is not None:
            yield self._activity.restarts

    def _hooks_that_raised(self) -> Iterator[str]:
        for hook in self._run._hooks:
            error = self._run._blamed.get(id(hook))
            if error is not None:
                yield f"the hook {type(hook).__name__} raised {error} and may have missed events; see the log"


def read_results(
    journal: RunJournal,
    *,
    retry: frozenset[str] | Literal[True] | None = None,
    form: AnswerForm[Any] | None = None,
) -> Iterator[BatchResult[Any]]:
    """Every result of the journal, in input order, less the failed ones that `retry` sends again; with
    `parsed` if there is a `form`.

    A durable journal is opened once more, beside its writer, and may be closed.
    """
    if journal.path is None:
        yield from _decoded(journal.results(), retry, form)
        return
    with RunJournal.open_readonly(journal.path) as reader:
        yield from _decoded(reader.results(), retry, form)


def _decoded(
    pairs: Iterable[tuple[RowRecord, ResultRecord]],
    retry: frozenset[str] | Literal[True] | None,
    form: AnswerForm[Any] | None,
) -> Iterator[BatchResult[Any]]:
    refused = 0
    for row, record in pairs:
        again = retry is not None and (retry is True or record.code in retry)
        if record.ok or row.custom_id is None or not again:
            result = with_parsed(decode_result(record, row.custom_id), record, form)
            if form is not None and result.ok and result.parsed is None:
                refused += 1
                if refused == 1:
                    log.warning(
                        "row %s was answered, but %s does not take that any more: its `parsed` is None; no "
                        "further row is named",
                        result.custom_id,
                        form.name,
                    )
            yield result


def _files(name: str, place: Place) -> SourceFiles:
    return SourceFiles(
        source=name,
        output=_if_there(place.output),
        errors=_if_there(place.errors),
        partial=_if_there(place.partial),
    )


def _if_there(path: Path | None) -> str | None:
    return str(path) if path is not None and path.exists() else None
