"""As many workers as a run has width: take a row, get it answered, make the result durable, take the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ollama_batch._failures import FailureWatch
from ollama_batch._feed import Feed
from ollama_batch._fitting import Composer, Prompt
from ollama_batch._portal import AddressLimit
from ollama_batch._reading import AnswerReader
from ollama_batch._recovery import Recovery
from ollama_batch._room import DiskRoom
from ollama_batch._row import Job
from ollama_batch._sender import Sender
from ollama_batch._settings import SendSettings
from ollama_batch._stop import Abandoned, Stop
from ollama_batch._weights import Weights
from ollama_batch._width import RunWidth
from ollama_batch.errors import (
    EngineError,
    JournalError,
    OllamaBatchError,
    OutcomeError,
    OutputTruncatedError,
    OutputUnparsedError,
)
from ollama_batch.events import Event, RowFinished, RowLeft
from ollama_batch.journal import RunJournal
from ollama_batch.ordering import head_name
from ollama_batch.records import EARLIER, LEFT, encode_result, told
from ollama_batch.types import BatchRequest, BatchResult, Completion, RowError, RowRecord, Timings, Usage

T = TypeVar("T")

CANCEL_AGAIN_S = 0.5


class _Outcome(NamedTuple):
    """The result of a row, and where the time of its answers went, that of the last and of those before it.
    `made`: the JSON that its text was repaired to.
    """

    row: RowRecord
    result: BatchResult[Any]
    timings: Timings
    earlier_timings: tuple[Timings, ...]
    prompt: Prompt | None
    made: str | None


class WorkerPool:
    """Answers every row of a feed with `width.now` workers, until it is empty or the run is to end.

    When the width grows, workers are added; when it shrinks, those that come back first stand aside before
    they take another row, so that nothing that is out is given up and what is left keeps its slots.
    """

    def __init__(
        self,
        *,
        width: RunWidth,
        feed: Feed,
        composer: Composer,
        reader: AnswerReader,
        sender: Sender,
        journal: RunJournal,
        settings: SendSettings,
        recovery: Recovery,
        weights: Weights,
        limit: AddressLimit,
        room: DiskRoom,
        stop: Stop,
        emit: Callable[[Event], None],
        failures: FailureWatch,
        total: Callable[[], int | None],
        names: Sequence[str],
    ) -> None:
        self._width = width
        self._feed = feed
        self._composer = composer
        self._reader = reader
        self._sender = sender
        self._journal = journal
        self._settings = settings
        self._recovery = recovery
        self._weights = weights
        self._limit = limit
        self._stop = stop
        self._emit = emit
        self._failures = failures
        self._total = total
        self._names = names
        self._room = room
        self._workers: list[asyncio.Task[None]] = []
        self._working = 0
        self._moved = asyncio.Event()
        self._aside: deque[asyncio.Future[None]] = deque()
        self._fetching: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._left: list[Usage | None] = []
        self.last_finished = time.monotonic()

    @property
    def in_flight(self) -> int:
        """How many requests are out."""
        return self._sender.in_flight

    async def run(self) -> None:
        """Work until the feed is empty; returns early, leaving rows pending, when the run is to end.

        What a worker raises ends the others and is raised here.
        """
        self._limit.join(self._width)
        self._width.moved = self._width_moved
        workers = self._workers
        cutter = asyncio.create_task(self._cut_short())
        try:
            await self._all_work()
        finally:
            for task in (*workers, cutter):
                task.cancel()
            await asyncio.gather(*workers, cutter, return_exceptions=True)
            self._width.moved = None
            self._limit.leave(self._width)
            await self._feed.aclose()
            if self._left:
                with suppress(JournalError):  # no room, or closed by now: figures are worth no more than rows
                    await self._journal.note(LEFT, {EARLIER: [told(usage) for usage in self._left]})

    async def _all_work(self) -> None:
        """Have as many workers as the width says; return when all have ended, raise when one has failed."""
        while True:
            self._moved.clear()
            # One that has ended has found the feed empty, or the run ending: no other would find more.
            while len(self._workers) < self._width.now and not any(each.done() for each in self._workers):
                self._working += 1
                self._workers.append(asyncio.create_task(self._work(len(self._workers))))
            moved = asyncio.create_task(self._moved.wait())
            try:
                await asyncio.wait((moved, *self._workers), return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
            for worker in self._workers:
                if worker.done() and not worker.cancelled():
                    worker.result()
            if all(worker.done() for worker in self._workers):
                return
            if any(worker.done() for worker in self._workers):
                await _all_of(self._workers)
                return

    def _width_moved(self) -> None:
        self._moved.set()
        self._stand_in()

    async def _stand_aside(self, number: int) -> None:
        """Take no row while fewer are wanted at a time; what this worker served is free for the others."""
        self._feed.leave(number)
        self._working -= 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._aside.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.done() or turn.cancelled():
                self._working += 1  # as if it had come back, to end
            raise

    def _stand_in(self) -> None:
        """Let those that stand aside work again, as many as there is room for, the first first."""
        while self._aside and self._working < self._width.now:
            turn = self._aside.popleft()
            if not turn.done():
                self._working += 1
                turn.set_result(None)

    async def _cut_short(self) -> None:
        """As the run ends, cancel what would wait too long; never a worker that is keeping a result.

        Again and again: somebody's code may swallow a cancellation, as `asyncio.wait_for` did before 3.12.
        """
        await self._stop.draining.wait()
        await self._feed.aclose()
        while True:
            stopping = self._stop.stopping.is_set()
            for worker in (*self._fetching, *(self._asking if stopping else ())):
                worker.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_AGAIN_S):
                    await (asyncio.Event() if stopping else self._stop.stopping).wait()

    async def _work(self, number: int) -> None:
        try:
            await self._work_on(number)
        finally:
            self._working -= 1
            self._stand_in()

    async def _work_on(self, number: int) -> None:
        with suppress(Abandoned):
            while not self._stop.draining.is_set():
                if self._working > self._width.now:
                    await _listed(self._fetching, self._stand_aside(number))
                    continue
                try:
                    taken = await _listed(self._fetching, self._feed.next(number))
                except OllamaBatchError as error:  # the input failed: keep what is out, then say so
                    self._stop.drain(error)
                    return
                if taken is None:
                    return
                try:
                    await self._record(await self._answer(*taken))
                finally:
                    self._feed.finished(taken[0])

    async def _answer(self, row: RowRecord, request: BatchRequest) -> _Outcome:
        """The row's outcome, good or bad; raises Abandoned if the row is to stay pending."""
        custom_id = row.custom_id if row.custom_id is not None else str(row.index)
        job = Job(row.index, custom_id, where=f"{self._names[row.source]}:{row.line}")
        completion: Completion | None = None
        failure: RowError | None = None
        try:
            completion = await _listed(self._asking, self._ask(job, row, request))
        except EngineError as error:
            if self._stop.draining.is_set() and not error.row_caused:
                self._leave(job)
                raise Abandoned from error
            if isinstance(error, OutcomeError):
                completion = error.completion
            if not (self._settings.on_length == "keep" and isinstance(error, OutputTruncatedError)):
                failure = error.to_row_error()
        except (Abandoned, asyncio.CancelledError):
            self._leave(job)
            raise
        if completion is not None:
            try:
                await _listed(self._asking, self._weights.confirm(custom_id, completion))
            except (Abandoned, asyncio.CancelledError):
                self._leave(job)
                raise
        answer = job.answer if failure is None else None
        earlier = [each for each in job.answers if each is not completion]
        result: BatchResult[Any] = BatchResult(
            custom_id=custom_id,
            ok=failure is None,
            output=None if completion is None else completion.output,
            parsed=None if answer is None else answer.parsed,
            repaired=answer is not None and answer.repaired,
            asked_again=job.asked_again,
            earlier_usage=tuple(each.usage for each in earlier),
            reasoning=None if completion is None else completion.reasoning,
            error=failure,
            usage=None if completion is None else completion.usage,
            finish_reason=None if completion is None else completion.finish_reason,
            attempts=job.attempts - job.unsent,
            latency_s=job.latency_s,
            trim=None if job.prompt is None else job.prompt.trim,
            metadata=request.metadata,
            model_digest=self._settings.model_digest,
            index=row.index,
            lane=row.lane,
            body=None if completion is None else completion.body,
        )
        timings = Timings() if completion is None else completion.timings
        before = tuple(each.timings for each in earlier)
        return _Outcome(row, result, timings, before, job.prompt, None if answer is None else answer.json)

    def _leave(self, job: Job) -> None:
        """The row stays pending; answers that it had all the same are told and kept."""
        if not job.answers:
            return
        usage = [each.usage for each in job.answers]
        self._left += usage
        times = [each.timings for each in job.answers]
        self._emit(
            RowLeft(index=job.index, custom_id=job.custom_id, earlier_usage=usage, earlier_timings=times)
        )

    async def _ask(self, job: Job, row: RowRecord, request: BatchRequest) -> Completion:
        """Make the row's prompt and have it answered, sent again as recovery says; a shorter one if the
        engine has no room for it, one that asks again if the answer does not fit.
        """
        self._recovery.begin(job.index)
        try:
            while True:
                error = await self._try(job, row, request)
                if not isinstance(error, EngineError):
                    return error
                if isinstance(error, OutputUnparsedError):
                    self._reader.ask_again(job, error)
                    continue
                await self._recovery.meet(job, error)
                self._reader.met(job, error)
        finally:
            self._recovery.end(job.index)

    async def _try(self, job: Job, row: RowRecord, request: BatchRequest) -> Completion | EngineError:
        """The answer to one attempt, or the trouble that it met. Raises the error of an answer of no use."""
        useless: OutcomeError | None = None
        try:
            if job.prompt is None:
                job.prompt = await self._composer.compose(job.custom_id, row, request)
            elif job.refusal is not None:
                job.prompt = await self._shorten(job.prompt, job.refusal)
                job.refusal = None
            elif job.due:
                await self._reader.compose(job)
            completion = await self._sender.send(job)
        except OutcomeError as error:
            if error is job.unparsed:
                raise
            completion, useless = error.completion, error
        except EngineError as error:
            if error.row_caused and (job.prompt is None or error is job.refusal):
                raise
            return error
        assert job.prompt is not None  # noqa: S101 - it was just sent
        job.answers.append(completion)
        await self._composer.check(job.prompt, completion)
        if useless is not None:
            raise useless
        return await self._reader.read(job, completion)

    async def _shorten(self, prompt: Prompt, refusal: EngineError) -> Prompt:
        """A shorter prompt, if there is one. Raises `refusal` if it would be refused again as it is."""
        shorter = await self._composer.shorten(prompt, refusal)
        if shorter is None and refusal.row_caused:
            raise refusal
        return prompt if shorter is None else shorter

    async def _record(self, outcome: _Outcome) -> None:
        """Make the result durable, then tell."""
        await self._room.keep(partial(self._journal.commit, encode_result(outcome.result, made=outcome.made)))
        if outcome.prompt is not None:
            self._composer.settled(outcome.prompt, outcome.result)
        self.last_finished = time.monotonic()
        self._emit(
            RowFinished(
                result=outcome.result,
                timings=outcome.timings,
                earlier_timings=outcome.earlier_timings,
                in_flight=self.in_flight,
                head=head_name(outcome.row.order),
            )
        )
        enough = self._failures.add(outcome.result, total=self._total())
        if enough is not None:
            self._stop.drain(enough)


async def _all_of(workers: list[asyncio.Task[None]]) -> None:
    """Return when all have ended, raise as soon as one has failed; being cancelled is an end as well."""
    ended, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    for worker in ended:
        if not worker.cancelled():
            worker.result()


async def _listed(tasks: set[asyncio.Task[None]], work: Awaitable[T]) -> T:
    """The result of `work`; while it goes on, this task is among `tasks`."""
    task: asyncio.Task[None] | None = asyncio.current_task()
    assert task is not None  # noqa: S101 - workers are tasks
    tasks.add(task)
    try:
        return await work
    finally:
        tasks.discard(task)
