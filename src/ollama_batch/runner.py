"""BatchRunner: the way of a request from input to output, readable from top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self
from weakref import WeakSet

from typing_extensions import Unpack

from ollama_batch._failures import FailureWatch
from ollama_batch._feed import make_feed
from ollama_batch._intake import Intake, row_check, take_in
from ollama_batch._meeting import meet_engine, part_from_engine
from ollama_batch._opening import discard_if_new, open_journal
from ollama_batch._options import Requests, RunArguments, RunnerOptions, RunOptions
from ollama_batch._outputs import Places, plan_places
from ollama_batch._portal import portal
from ollama_batch._reporting import Reporter
from ollama_batch._results import ResultQueue
from ollama_batch._signals import stop_on_signals
from ollama_batch._stop import Abandoned
from ollama_batch._watch import watched
from ollama_batch._workers import SendSettings, WorkerPool
from ollama_batch.engines.base import Engine
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import ConfigError
from ollama_batch.events import Hook
from ollama_batch.journal import RunJournal
from ollama_batch.report import BatchReport
from ollama_batch.retry import RetryPolicy
from ollama_batch.run import Ended, Run
from ollama_batch.sources import FileSource, Source, open_sources
from ollama_batch.types import BatchResult, Think


class BatchRunner:
    """Runs chat requests through one engine: durable, resumable, observable.

    `model`: the model every row is sent to. A row may name it; others only if `allow_models` lists them
    (files only: the models then run one after another).
    `engine`: what answers; by default Ollama at `base_url`, else at OLLAMA_HOST, else on this machine.
    `defaults`: OpenAI body fields for rows that do not set them, such as `{"temperature": 0}`.
    `num_ctx`: context length in tokens, the same for every request; "auto" takes the smallest of 4,096,
    8,192, 16,384 ... that holds the largest row of a file (8,192 for other sources).
    `max_tokens`: answer limit, in tokens, of rows without one of their own.
    `think`: whether, and how hard, reasoning models think.
    `concurrency`: requests out at a time; "auto" is one more than the engine's slots where it tells
    them, 4 for Ollama, 16 for other servers. Runs on one address share the larger of their limits.
    `timeout`: seconds for one attempt, from sending to the complete answer, the wait in the server's own
    queue included. `load_timeout`: seconds for loading the model. `recover_timeout`: seconds the run
    waits for an engine that is down or silent, or for disk room, before it stops.
    `on_length`: an answer cut off by its token limit fails its row ("fail": the text is kept in the
    error file) or counts as an answer ("keep").
    `retry`: see RetryPolicy. `keep_alive`: how long Ollama keeps the model between requests, -1 = during
    the whole run; afterwards it is set to 5 minutes, or the model unloaded with `unload_after`.
    `hooks`: are told every event. `progress`: "auto", "plain", "none".

    A runner may be used for many runs, one after another or at once, and as a (async) context manager,
    which stops what still runs on leaving. An `engine` you pass in is yours to close. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        model: str,
        engine: Engine | None = None,
        base_url: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        num_ctx: int | Literal["auto"] = "auto",
        max_tokens: int = 1024,
        think: Think = False,
        allow_models: Collection[str] = (),
        concurrency: int | Literal["auto"] = "auto",
        timeout: float = 600.0,
        load_timeout: float = 1800.0,
        recover_timeout: float = 900.0,
        on_length: Literal["fail", "keep"] = "fail",
        retry: RetryPolicy | None = None,
        keep_alive: float | str = -1,
        unload_after: bool = False,
        hooks: Sequence[Hook] = (),
        progress: Literal["auto", "plain", "none"] | Hook = "auto",
    ) -> None:
        self.options = RunnerOptions(
            model=model,
            defaults=dict(defaults or {}),
            num_ctx=num_ctx,
            max_tokens=max_tokens,
            think=think,
            allow_models=frozenset(allow_models),
            concurrency=concurrency,
            timeout=timeout,
            load_timeout=load_timeout,
            recover_timeout=recover_timeout,
            on_length=on_length,
            unload_after=unload_after,
        )
        self.retry = RetryPolicy() if retry is None else retry
        self.engine = engine
        if engine is not None and base_url is not None:
            raise ConfigError("base_url= is for the default engine; give it to the engine you pass instead")
        self._default_engine = partial(OllamaEngine, base_url, keep_alive=keep_alive)
        refused = (engine or self._default_engine()).check_params({**self.options.defaults, "messages": []})
        if refused is not None and refused[0] != "messages":
            raise ConfigError(f"defaults[{refused[0]!r}]: {refused[1]}")
        self._hooks = tuple(hooks)
        self._progress = progress
        self._under_way: WeakSet[Run] = WeakSet()

    # The ways to call it

    def run(self, requests: Requests, **arguments: Unpack[RunArguments]) -> BatchReport[Any]:
        """Run all `requests`; the report comes once every row has a result.

        `requests`: path(s) or a glob of OpenAI batch files, an open file, or any (async) iterable of
        BatchRequest, dict or str; see RunArguments for the rest. Works in scripts and in notebooks. The
        first Ctrl-C (or SIGTERM) lets requests that are out finish, the second stops at once; running
        the same again goes on.

        Raises ConfigError, InputError (nothing was sent), OutputError, JournalError, EngineError if the
        engine cannot be met, and, with the `.report` so far, RunStoppedError or RunInterrupted.
        """
        run = self.start(requests, **arguments)
        with stop_on_signals(run._drain, run._now):
            try:
                return run.wait()
            finally:
                run._abort()  # only if a signal handler of somebody else's got us here

    async def arun(self, requests: Requests, **arguments: Unpack[RunArguments]) -> BatchReport[Any]:
        """`run` for async code; cancelling it stops the run, which stays resumable."""
        run = self.start(requests, **arguments)
        try:
            return await run
        finally:
            await run._aabort()

    async def stream(
        self, requests: Requests, **arguments: Unpack[RunArguments]
    ) -> AsyncIterator[BatchResult[Any]]:
        """Results as they finish, good and failed; those of earlier sessions come first.

        When the reader lags by 1,000 results the run waits for it. Leaving the loop early stops the run.
        Raises at its end what `run` raises.
        """
        results = ResultQueue()
        run = self._begin(requests, arguments, results)
        try:
            while batch := await asyncio.wrap_future(portal().submit(results.take())):
                for result in batch:
                    yield result
            await run
        finally:
            await run._aabort()

    def iter_results(
        self, requests: Requests, **arguments: Unpack[RunArguments]
    ) -> Iterator[BatchResult[Any]]:
        """`stream` for code that is not async; signals are treated as `run` treats them."""
        results = ResultQueue()
        run = self._begin(requests, arguments, results)
        with stop_on_signals(run._drain, run._now):
            try:
                while batch := portal().call(results.take()):
                    yield from batch
                run.wait()
            finally:
                run._abort()

    def start(self, requests: Requests, **arguments: Unpack[RunArguments]) -> Run:
        """Begin the run in the background and return its handle at once.

        Raises ConfigError, and InputError for what can be told without reading the input.
        """
        return self._begin(requests, arguments, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for run in list(self._under_way):
            run._abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for run in list(self._under_way):
            await run._aabort()

    # The way of a request

    def _begin(self, requests: Requests, arguments: RunArguments, results: ResultQueue | None) -> Run:
        options = RunOptions.of(arguments)
        engine = self._default_engine() if self.engine is None else self.engine
        sources = open_sources(requests, loop=_running_loop())
        if self.options.allow_models and not all(isinstance(source, FileSource) for source in sources):
            raise ConfigError("allow_models= needs files: the models run one after another")
        places = plan_places(
            [source.name for source in sources],
            output=arguments.get("output"),
            errors=arguments.get("errors"),
            journal=arguments.get("journal", "auto"),
            partial=arguments.get("partial", True),
        )
        hooks = self._hooks if results is None else (*self._hooks, results)
        run = Run(
            engine=engine, hooks=hooks, progress=self._progress, patience_s=self.options.recover_timeout
        )
        if results is not None:
            results.gate = run._gate
        job = _Job(run, engine, sources, places, options, results)
        run._future = portal().submit(self._execute(job))
        self._under_way.add(run)
        return run

    async def _execute(self, job: _Job) -> Ended:
        """All that happens in a run, in order; every step is explained where it is defined."""
        run, stop = job.run, job.run._stop
        run._progress.start()
        reporter = Reporter(
            run, self.options, names=[source.name for source in job.sources], places=job.places
        )
        journal: RunJournal | None = None
        try:
            journal = await asyncio.to_thread(
                open_journal,
                job.places,
                job.sources,
                identity=self.options.identity(),
                overwrite=job.options.overwrite,
            )
            reporter.opened(journal)
            intake = await stop.unless_draining(self._take_in(job, journal))
            reporter.begin(intake)
            if job.results is not None:
                await stop.unless_draining(job.results.replay(journal))
            for model in await self._models_to_run(job, journal, intake):
                await self._send(model, job, journal, intake, reporter)
            if stop.reason is None:
                await asyncio.to_thread(_export, journal, job.places)
                journal.put("state", "finished")
        except Abandoned:
            pass  # asked to end before anything was sent; the reason is in `stop`
        except BaseException as error:
            reporter.broke(error)
            if journal is not None:
                await asyncio.to_thread(discard_if_new, journal)
            raise
        finally:
            for source in job.sources:
                await source.aclose()
            if self.engine is None:
                await job.engine.aclose()
            run._progress.stop()
            if job.results is not None:
                job.results.end()
        return await asyncio.to_thread(reporter.end)

    async def _take_in(self, job: _Job, journal: RunJournal) -> Intake:
        return await take_in(
            job.sources,
            journal,
            options=self.options,
            check=row_check(self.options, job.engine.check_params),
            on_invalid=job.options.on_invalid,
            limit=job.options.limit,
        )

    async def _models_to_run(self, job: _Job, journal: RunJournal, intake: Intake) -> list[str]:
        """The models that have rows to be sent, the runner's own first; none if all is done."""
        if intake.total is None:
            return [self.options.model]
        if not await journal.pending(after=-1, limit=1, retry=job.options.retry):
            return []
        others = sorted(self.options.allow_models & set(intake.models) - {self.options.model})
        return [self.options.model, *others] if self.options.model in intake.models else others

    async def _send(
        self, model: str, job: _Job, journal: RunJournal, intake: Intake, reporter: Reporter
    ) -> None:
        """Send every pending row of `model`; returns early when the run is to end."""
        run, settings, stop = job.run, self.options, job.run._stop
        meeting = await stop.unless_draining(
            meet_engine(job.engine, model, options=settings, journal=journal, intake=intake)
        )
        await journal.note("session", meeting.to_note(model))
        reporter.met(meeting)
        feed = make_feed(
            journal,
            job.sources,
            job.options,
            model=model,
            runner=settings,
            at_once=meeting.width,
            check=row_check(settings, job.engine.check_params),
            found=reporter.found,
        )
        pool = WorkerPool(
            width=meeting.width,
            feed=feed,
            engine=job.engine,
            journal=journal,
            settings=SendSettings.of(settings, model=model, meeting=meeting),
            retry=self.retry,
            limit=portal().limit(job.engine.address),
            gate=run._gate,
            stop=stop,
            emit=run._emit,
            failures=FailureWatch(job.options.max_failures),
            total=lambda: intake.total,
        )
        try:
            async with watched(
                pool,
                engine=job.engine,
                gate=run._gate,
                stop=stop,
                emit=run._emit,
                seconds_left=job.options.seconds_left(),
            ):
                await pool.run()
        finally:
            await part_from_engine(job.engine, model, num_ctx=meeting.num_ctx, options=settings)


@dataclass(frozen=True, slots=True)
class _Job:
    """What one run works on."""

    run: Run
    engine: Engine
    sources: Sequence[Source]
    places: Places
    options: RunOptions
    results: ResultQueue | None


def _export(journal: RunJournal, places: Places) -> None:
    """Write the output and error file of every source, in input order, each atomically."""
    for number, place in enumerate(places.sources):
        if place.output is not None:
            journal.export(number, place.output, place.errors)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
