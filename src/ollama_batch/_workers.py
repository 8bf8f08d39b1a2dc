"""A fixed number of workers: take a row, get it answered, make the result durable, take the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tenacity import RetryCallState

from ollama_batch._failures import FailureWatch
from ollama_batch._feed import Feed
from ollama_batch._gate import Gate
from ollama_batch._meeting import Meeting
from ollama_batch._options import RunnerOptions
from ollama_batch._points import reached
from ollama_batch._portal import AddressLimit
from ollama_batch._stop import Abandoned, Stop
from ollama_batch.engines.base import Engine
from ollama_batch.errors import (
    DiskFullError,
    EngineAuthError,
    EngineConnectionError,
    EngineDownError,
    EngineError,
    EngineStoppedError,
    EngineUnreachableError,
    ModelNotFoundError,
    OllamaBatchError,
    OutcomeError,
    OutputTruncatedError,
)
from ollama_batch.events import Event, RowFinished, RowRetried, RowSent
from ollama_batch.journal import RunJournal
from ollama_batch.records import encode_result
from ollama_batch.retry import RetryPolicy, RowRetry
from ollama_batch.types import (
    BatchRequest,
    BatchResult,
    ChatRequest,
    Completion,
    RowError,
    RowRecord,
    Think,
    Timings,
)

SUSPECT_ROWS = 5
"""So many rows that spent all repeats on engine trouble, with no answer in between, stop a run."""

FULL_DISK, FULL_DISK_RETRY_S = "disk", 1.0

FATAL = (EngineStoppedError, EngineAuthError, ModelNotFoundError)
"""Errors that every further row would meet as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSettings:
    """What turns a row into a request, the same for the whole run."""

    model: str
    defaults: Mapping[str, Any]
    max_tokens: int
    num_ctx: int | None
    think: Think
    timeout_s: float
    on_length: Literal["fail", "keep"]
    patience_s: float
    model_digest: str | None = None

    @classmethod
    def of(cls, options: RunnerOptions, *, model: str, meeting: Meeting) -> SendSettings:
        """The settings of one phase of a run."""
        return cls(
            model=model,
            defaults=options.defaults,
            max_tokens=options.max_tokens,
            num_ctx=meeting.num_ctx,
            think=options.think,
            timeout_s=options.timeout,
            on_length=options.on_length,
            patience_s=options.recover_timeout,
            model_digest=meeting.info.digest,
        )

    def to_chat(self, custom_id: str, request: BatchRequest) -> ChatRequest:
        """The request as an engine gets it; the row's own fields win over the defaults."""
        params = {**self.defaults, **request.params}
        limits = [params.pop("max_completion_tokens", None), params.pop("max_tokens", None)]
        return ChatRequest(
            custom_id=custom_id,
            model=params.pop("model", None) or self.model,
            messages=request.messages,
            params=params,
            max_tokens=next((limit for limit in limits if limit is not None), self.max_tokens),
            num_ctx=self.num_ctx,
            think=self.think,
        )


class _Job:
    """One row on its way: how often it was sent, since when, and how the last attempt went."""

    __slots__ = ("attempts", "begun", "latency_s", "request", "row")

    def __init__(self, row: RowRecord, request: ChatRequest) -> None:
        self.row = row
        self.request = request
        self.attempts = 0
        self.begun = time.monotonic()
        self.latency_s: float | None = None


class _Outcome(NamedTuple):
    """A result and where its time went."""

    result: BatchResult[Any]
    timings: Timings


class WorkerPool:
    """Answers every row of a feed with `width` workers, until it is empty or the run is to end."""

    def __init__(
        self,
        *,
        width: int,
        feed: Feed,
        engine: Engine,
        journal: RunJournal,
        settings: SendSettings,
        retry: RetryPolicy,
        limit: AddressLimit,
        gate: Gate,
        stop: Stop,
        emit: Callable[[Event], None],
        failures: FailureWatch,
        total: Callable[[], int | None],
    ) -> None:
        self._width = width
        self._feed = feed
        self._engine = engine
        self._journal = journal
        self._settings = settings
        self._retry = retry
        self._limit = limit
        self._gate = gate
        self._stop = stop
        self._emit = emit
        self._failures = failures
        self._total = total
        self._suspects: list[_Outcome] = []
        self.in_flight = 0
        self.last_finished = time.monotonic()
        self.last_answer = time.monotonic()

    async def run(self) -> None:
        """Work until the feed is empty; returns early, leaving rows pending, when the run is to end."""
        self._limit.join(self._width)
        workers = [asyncio.create_task(self._work()) for _ in range(self._width)]
        ending = asyncio.create_task(self._stop.stopping.wait())
        try:
            everyone = asyncio.gather(*workers)
            await asyncio.wait((everyone, ending), return_when=asyncio.FIRST_COMPLETED)
            if not everyone.done():
                for worker in workers:
                    worker.cancel()
            with suppress(asyncio.CancelledError):
                await everyone
            if not self._stop.draining.is_set():
                for suspect in self._suspects:
                    await self._record(suspect)
        finally:
            for task in (*workers, ending):
                task.cancel()
            await asyncio.gather(*workers, ending, return_exceptions=True)
            self._limit.leave(self._width)

    async def _work(self) -> None:
        with suppress(Abandoned):
            while not self._stop.draining.is_set():
                try:
                    taken = await self._feed.next()
                except OllamaBatchError as error:  # the input failed: keep what is out, then say so
                    self._stop.drain(error)
                    return
                if taken is None:
                    return
                await self._settle(await self._answer(*taken))

    async def _settle(self, outcome: _Outcome) -> None:
        """Record `outcome`, unless the engine may be to blame for it: then the next answer decides.

        An answer to another row shows that the engine works, so the suspects failed by themselves.
        Without one, `SUSPECT_ROWS` of them stop the run and stay pending.
        """
        error = outcome.result.error
        if error is None or error.row_caused:
            suspects, self._suspects = self._suspects, []
            for each in (*suspects, outcome):
                await self._record(each)
            return
        self._suspects.append(outcome)
        if len(self._suspects) >= SUSPECT_ROWS:
            self._suspects.clear()
            self._stop.drain(
                EngineDownError(
                    f"{SUSPECT_ROWS} rows in a row got no answer in spite of repeats, the last: "
                    f"{error.message} ({error.code}); see the engine's log, then run again to go on"
                )
            )

    async def _answer(self, row: RowRecord, request: BatchRequest) -> _Outcome:
        """The row's outcome, good or bad; raises Abandoned if the row is to stay pending."""
        custom_id = row.custom_id if row.custom_id is not None else str(row.index)
        job = _Job(row, self._settings.to_chat(custom_id, request))
        retry = RowRetry(
            self._retry,
            sleep=self._stop.sleep,
            before_sleep=lambda state: self._announce_retry(job, state),
        )
        completion: Completion | None = None
        failure: RowError | None = None
        try:
            completion = await retry.call(self._attempt, job)
        except EngineError as error:
            if self._stop.draining.is_set() and not error.row_caused:
                raise Abandoned from error
            if isinstance(error, OutcomeError):
                completion = error.completion
            if not (self._settings.on_length == "keep" and isinstance(error, OutputTruncatedError)):
                failure = error.to_row_error()
        result: BatchResult[Any] = BatchResult(
            custom_id=custom_id,
            ok=failure is None,
            output=None if completion is None else completion.output,
            reasoning=None if completion is None else completion.reasoning,
            error=failure,
            usage=None if completion is None else completion.usage,
            finish_reason=None if completion is None else completion.finish_reason,
            attempts=job.attempts,
            latency_s=job.latency_s,
            metadata=request.metadata,
            model_digest=self._settings.model_digest,
            index=row.index,
            body=None if completion is None else completion.body,
        )
        return _Outcome(result, Timings() if completion is None else completion.timings)

    async def _attempt(self, job: _Job) -> Completion:
        await self._gate.wait()
        async with self._limit:
            job.attempts += 1
            self.in_flight += 1
            self._emit(
                RowSent(
                    index=job.row.index,
                    custom_id=job.request.custom_id,
                    attempt=job.attempts,
                    in_flight=self.in_flight,
                )
            )
            reached("row.before_send")
            sent = time.monotonic()
            try:
                completion = await self._engine.complete(
                    job.request, deadline=sent + self._settings.timeout_s
                )
            except OutcomeError:
                self.last_answer = time.monotonic()
                raise
            except EngineError as error:
                self._notice(error)
                raise
            finally:
                job.latency_s = time.monotonic() - sent
                self.in_flight -= 1
            reached("row.after_reply")
            self.last_answer = time.monotonic()
            return completion

    def _notice(self, error: EngineError) -> None:
        """What one failed attempt says about the engine."""
        if isinstance(error, FATAL):
            self._stop.drain(EngineDownError(str(error)))
        if isinstance(error, EngineUnreachableError | EngineConnectionError | EngineStoppedError):
            self._gate.engine_trouble(error)
        silent_s = time.monotonic() - self.last_answer
        if not error.row_caused and silent_s > self._settings.patience_s:
            self._stop.drain(
                EngineDownError(
                    f"no answer from the engine for {silent_s:.0f} s ({error}); run again to go on"
                )
            )

    def _announce_retry(self, job: _Job, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self._emit(
            RowRetried(
                index=job.row.index,
                custom_id=job.request.custom_id,
                attempt=job.attempts,
                code=error.code if isinstance(error, EngineError) else "engine_error",
                wait_s=state.upcoming_sleep,
            )
        )

    async def _record(self, outcome: _Outcome) -> None:
        """Make the result durable, then tell; on a full disk wait for room and hold everything."""
        record = encode_result(outcome.result)
        waited_since = time.monotonic()
        while True:
            try:
                await self._journal.commit(record)
            except DiskFullError as error:
                self._gate.hold(FULL_DISK, f"{error}; waiting for room")
                if (
                    self._stop.stopping.is_set()
                    or time.monotonic() - waited_since > self._settings.patience_s
                ):
                    self._stop.now(error)
                    raise Abandoned from error
                await asyncio.sleep(FULL_DISK_RETRY_S)
            else:
                break
        self._gate.release(FULL_DISK)
        self.last_finished = time.monotonic()
        self._emit(RowFinished(result=outcome.result, timings=outcome.timings, in_flight=self.in_flight))
        enough = self._failures.add(outcome.result, total=self._total())
        if enough is not None:
            self._stop.drain(enough)
