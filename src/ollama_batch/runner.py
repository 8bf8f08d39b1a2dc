"""BatchRunner: the way of a request from input to output, readable from top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, Self
from weakref import WeakSet

from typing_extensions import Unpack

from ollama_batch._activity import Activity
from ollama_batch._failures import FailureWatch
from ollama_batch._feed import Feed
from ollama_batch._feeds import look_ahead, make_feed
from ollama_batch._gauge import StateDir
from ollama_batch._intake import row_check, take_in
from ollama_batch._job import Job
from ollama_batch._meeting import (
    load_model,
    meet_engine,
    once_free,
    refuse_other_settings,
    tell_context,
    visited,
)
from ollama_batch._opening import begin_anew, discard_if_new, open_journal, sources_of_run
from ollama_batch._options import (
    Requests,
    RunArguments,
    RunnerOptions,
    RunOptions,
    check_parts,
    checked_defaults,
    checked_form,
    checked_guards,
    checked_models,
    engine_or,
)
from ollama_batch._outputs import plan_places
from ollama_batch._phase import send_rows
from ollama_batch._portal import portal
from ollama_batch._record import KIND as RECOVERY
from ollama_batch._reporting import Reporter
from ollama_batch._results import ResultQueue
from ollama_batch._signals import stop_on_signals
from ollama_batch._stop import Abandoned
from ollama_batch._watch import deadline
from ollama_batch.concurrency import Concurrency
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.engines.base import Engine
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.errors import JournalMismatchError
from ollama_batch.events import Hook
from ollama_batch.journal import RunJournal
from ollama_batch.memory import Guard
from ollama_batch.metrics import MetricsHook
from ollama_batch.progress import make_progress
from ollama_batch.report import BatchReport
from ollama_batch.retry import RetryPolicy
from ollama_batch.run import Ended, Run
from ollama_batch.structured.form import JsonSchema
from ollama_batch.tokens import TokenCounter
from ollama_batch.trim import TrimStrategy
from ollama_batch.types import BatchResult, ParsedT, Think


class BatchRunner(Generic[ParsedT]):
    """Runs chat requests through one engine: durable, resumable, observable.

    `model`: the model every row is sent to. A row may name it, and others as below.
    `allow_models`: others that rows may name (files only: the models then run one after another).
    `row_models`: "ignore" sends every row to `model`, whatever it names; "check" refuses other names.
    `engine`: what answers, by default Ollama. `base_url`: where that is (else OLLAMA_HOST).
    `defaults`: OpenAI body fields for rows that do not set them, such as `{"temperature": 0}`.
    `num_ctx`: context length in tokens, the same for every request; "auto" takes the smallest of 4,096,
    8,192, 16,384 ... that holds all rows but one in a thousand (of a stream its first rows, and unless these
    are all, one size more). For servers that set it themselves and do not tell, say it here.
    `max_tokens`: answer limit, in tokens, of rows without one of their own.
    `think`: whether, and how hard, reasoning models think.
    `response_model`: what every answer must be, a pydantic model (or JsonSchema): engines are told, results
    are checked and `parsed`. `output_retries`: how often a row is asked again whose answer does not fit.
    `mode`: "independent", every request on its own; or "conversation", requests share a few growing
    conversations, each after those before it. `conversation`: how many, and when they are trimmed.
    `trim`: what makes a prompt shorter that does not fit (None: its row fails; a conversation has
    HybridTrim). `counter`: what counts tokens (None: the best on this machine). `state_dir`: where what was
    learned of a model is kept between runs ("auto": the user's state folder; None: nowhere).
    `order`: "prefix" sends requests that begin alike together, each group to one slot, whose cache serves it:
    all of a file, of others what has come (4,096 ahead). "input" keeps the order; results always do.
    `concurrency`: requests out at a time. "auto" finds out how many keep every slot of the engine busy, from
    one more than the slots where it tells them (as many, with several groups), 4 for Ollama, 16 for others.
    Concurrency(min=, max=) bounds it, a number fixes it. Runs on one address share the larger limit.
    `guards`: what watches memory and slows the run down, or pauses it (None: VramGuard() and RamGuard(), who
    do nothing about memory that was in use before the first request; () for none).
    `timeout`: seconds for one attempt, from sending to the complete answer, the wait in the server's own
    queue included. `load_timeout`: seconds for loading the model. `recover_timeout`: seconds the run
    waits for an engine that is down or silent, or for disk room, before it stops.
    `supervisor`: what may restart the engine, and how often (None: `Supervisor()`, engines of the run's own).
    `on_length`: an answer cut off by its limit fails its row ("fail"; its text is kept) or counts ("keep").
    `retry`: how often a row is sent again, see RetryPolicy.
    `keep_alive`: how long Ollama keeps the model between requests, -1 = during the whole run; afterwards it
    is set to 5 minutes. `unload_after`: unload it after the run. `hooks`: objects told of every event.
    `progress`: "auto" (a bar in a terminal, a cell in a notebook, else lines), "plain", "none", or a hook.

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
        response_model: type[ParsedT] | JsonSchema | None = None,
        output_retries: int = 1,
        mode: Literal["independent", "conversation"] = "independent",
        conversation: ConversationPolicy | None = None,
        trim: TrimStrategy | None = None,
        counter: TokenCounter | None = None,
        state_dir: StateDir = "auto",
        allow_models: Collection[str] = (),
        row_models: Literal["check", "ignore"] = "check",
        order: Literal["prefix", "input"] = "prefix",
        concurrency: int | Literal["auto"] | Concurrency = "auto",
        guards: Collection[Guard] | None = None,
        timeout: float = 600.0,
        load_timeout: float = 1800.0,
        recover_timeout: float = 900.0,
        supervisor: Supervisor | None = None,
        on_length: Literal["fail", "keep"] = "fail",
        retry: RetryPolicy | None = None,
        keep_alive: float | str = -1,
        unload_after: bool = False,
        hooks: Sequence[Hook] = (),
        progress: Literal["auto", "plain", "none"] | Hook = "auto",
    ) -> None:
        self.options = RunnerOptions(
            model=model,
            defaults=checked_defaults(defaults),
            num_ctx=num_ctx,
            max_tokens=max_tokens,
            think=think,
            form=checked_form(response_model),
            output_retries=output_retries,
            mode=mode,
            conversation=conversation,
            trim=trim,
            counter=counter,
            state_dir=state_dir,
            guards=checked_guards(guards),
            allow_models=checked_models(allow_models),
            row_models=row_models,
            order=order,
            concurrency=concurrency,
            timeout=timeout,
            load_timeout=load_timeout,
            recover_timeout=recover_timeout,
            on_length=on_length,
            unload_after=unload_after,
        )
        self.retry = RetryPolicy() if retry is None else retry
        self._supervisor = Supervisor() if supervisor is None else supervisor
        self.engine = engine
        self._default_engine = partial(OllamaEngine, base_url, keep_alive=keep_alive)
        engine = engine_or(self._default_engine, engine, as_usual=base_url is None and keep_alive == -1)
        self._hooks = tuple(hooks)
        check_parts(engine, self.options, self.retry, self._hooks, self._supervisor)
        make_progress(progress, metrics=MetricsHook())  # refuses what it does not know
        self._progress = progress
        self._under_way: WeakSet[Run[ParsedT]] = WeakSet()

    def run(self, requests: Requests, **arguments: Unpack[RunArguments]) -> BatchReport[ParsedT]:
        """Run all `requests`; the report comes once every row has a result.

        `requests`: path(s) or a glob of OpenAI batch files, an open file, or any (async) iterable of
        BatchRequest, dict or str; see RunArguments for the rest. An iterable without items makes an empty
        report, an empty file is an error. Works in scripts and in notebooks. The first Ctrl-C (or SIGTERM)
        lets requests that are out finish, the second stops at once; running the same again goes on.

        Raises ConfigError, InputError (nothing was sent, or of an iterable the rows before), OutputError,
        JournalError, EngineError if the engine cannot be met, and, with the `.report` so far,
        RunStoppedError or RunInterrupted.
        """
        with stop_on_signals() as begun:
            run = self._begin(requests, arguments, None, waits=True)
            try:
                begun(run._drain, run._now)
                return run.wait()
            finally:
                run._abort()  # only if a signal handler of somebody else's got us here

    async def arun(self, requests: Requests, **arguments: Unpack[RunArguments]) -> BatchReport[ParsedT]:
        """`run` for async code; cancelling it stops the run, which stays resumable."""
        run = self.start(requests, **arguments)
        try:
            return await run
        finally:
            await run._aabort()

    async def stream(
        self, requests: Requests, **arguments: Unpack[RunArguments]
    ) -> AsyncIterator[BatchResult[ParsedT]]:
        """Results as they finish, good and failed; those of earlier sessions come first.

        When the reader lags by 1,000 results the run waits for it. Leaving the loop early stops the run.
        Raises at its end what `run` raises.
        """
        results = ResultQueue(self.options.form)
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
    ) -> Iterator[BatchResult[ParsedT]]:
        """`stream` for code that is not async; signals are treated as `run` treats them."""
        results = ResultQueue(self.options.form)
        with stop_on_signals() as begun:
            run = self._begin(requests, arguments, results, waits=True)
            try:
                begun(run._drain, run._now)
                while batch := portal().call(results.take()):
                    yield from batch
                run.wait()
            finally:
                run._abort()

    def start(self, requests: Requests, **arguments: Unpack[RunArguments]) -> Run[ParsedT]:
        """Begin the run in the background and return its handle at once.

        Raises ConfigError, and InputError for what can be told without reading the input.
        """
        return self._begin(requests, arguments, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        runs = list(self._under_way)
        for run in runs:
            run._give_up()
        for run in runs:
            run._abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(run._aabort() for run in list(self._under_way)))

    def _begin(
        self,
        requests: Requests,
        arguments: RunArguments,
        results: ResultQueue | None,
        *,
        waits: bool = False,
    ) -> Run[ParsedT]:
        """Start a run; `waits` says that the caller's thread will wait for it."""
        options = RunOptions.of(arguments)
        sources = sources_of_run(requests, waits=waits, phases=bool(self.options.allow_models))
        places = plan_places(
            [source.name for source in sources],
            output=arguments.get("output"),
            errors=arguments.get("errors"),
            journal=arguments.get("journal", "auto"),
            partial=arguments.get("partial", True),
        )
        engine = self._default_engine() if self.engine is None else self.engine
        activity = Activity()
        hooks = (*self._hooks, activity) if results is None else (*self._hooks, activity, results)
        run = Run(engine=engine, hooks=hooks, progress=self._progress, supervisor=self._supervisor)
        if results is not None:
            results.gate = run._gate
        job = Job(run, engine, sources, places, options, results, activity)
        run._future = portal().submit(self._show(job))
        self._under_way.add(run)
        return run

    async def _show(self, job: Job) -> Ended:
        """The run with its progress on display, to its very end."""
        job.run._progress.start()
        try:
            with deadline(job.run._stop, job.options.seconds_left()):
                return await self._execute(job)
        finally:
            job.run._progress.stop()

    async def _execute(self, job: Job) -> Ended:
        """All that happens in a run, in order; every step is explained where it is defined."""
        run, stop, identity = job.run, job.run._stop, self.options.identity()
        reporter = Reporter(
            run,
            self.options,
            names=[source.name for source in job.sources],
            places=job.places,
            arguments=job.options,
            streams=job.streams,
            activity=job.activity,
        )
        journal: RunJournal | None = None
        try:
            journal = await asyncio.to_thread(
                open_journal, job.places, job.sources, identity=identity, overwrite=job.options.overwrite
            )
            reporter.opened(journal)
            try:
                await self._work(job, journal, reporter)
            except JournalMismatchError as mismatch:
                job.explain(mismatch)
                if not job.may_begin_anew(journal) or reporter.started:
                    raise
                journal = await asyncio.to_thread(begin_anew, journal, job.places, identity=identity)
                reporter.opened(journal)
                await self._work(job, journal, reporter)
            if stop.reason is None:
                await asyncio.to_thread(job.export, journal)
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
            if job.results is not None:
                job.results.end()
        return await reporter.ended()

    async def _work(self, job: Job, journal: RunJournal, reporter: Reporter) -> None:
        """Take the input in, meet the engine if there is something to send, send it model by model."""
        refuse_other_settings(journal, self.options, job.engine)
        stop, check = job.run._stop, row_check(self.options, job.engine.check_params)
        intake = await stop.unless_draining(
            take_in(
                job.sources,
                journal,
                options=self.options,
                check=check,
                on_invalid=job.options.on_invalid,
                limit=job.options.limit,
                noticed=reporter.noticed,
            )
        )
        reporter.took_in(intake)
        failures = FailureWatch(job.options.max_failures, ok_before=journal.counts().ok)
        feeds: dict[str, Feed] = {}
        for model in intake.phases(self.options.model):
            feed = await make_feed(
                journal,
                job.sources,
                job.options,
                model=model,
                runner=self.options,
                check=check,
                found=reporter.found,
                failed=reporter.failed,
                noticed=reporter.noticed,
            )
            if await stop.unless_draining(feed.has_rows()):
                feeds[model] = feed
        await stop.unless_draining(
            look_ahead(feeds.values(), intake, options=self.options, journal=journal, engine=job.engine)
        )
        meet = partial(meet_engine, options=self.options, journal=journal, intake=intake)
        once_not_busy = partial(once_free, sleep=stop.sleep, patience_s=self.options.recover_timeout)
        revived = job.run._supervision.revived  # it may have died since its last run
        meeting_all = partial(once_not_busy, partial(meet, job.engine, list(feeds)))
        meetings = await stop.unless_draining(revived(meeting_all))
        troubles = await asyncio.to_thread(journal.notes, RECOVERY)
        for model, feed in feeds.items():
            num_ctx = meetings[model].num_ctx
            async with visited(job.engine, model, num_ctx=num_ctx, options=self.options, stop=stop):
                load = partial(
                    load_model, options=self.options, journal=journal, several_heads=feed.several_heads
                )
                loading = partial(once_not_busy, partial(load, job.engine, model, meetings[model]))
                meeting = await stop.unless_draining(revived(loading))
                feed.keep_to(meeting.info)
                reporter.met(meeting)
                tell_context(intake, meeting, options=self.options, noticed=reporter.noticed)
                await self._replay(job, journal)
                await send_rows(
                    model,
                    feed,
                    meeting,
                    job=job,
                    journal=journal,
                    options=self.options,
                    retry=self.retry,
                    failures=failures,
                    total=lambda: intake.total,
                    noticed=reporter.noticed,
                    troubles=troubles,
                )
        if not feeds:
            reporter.start()
            await self._replay(job, journal)

    async def _replay(self, job: Job, journal: RunJournal) -> None:
        if job.results is not None:
            await job.run._stop.unless_draining(job.results.replay(journal, retry=job.options.retry))
