"""A run under way: its handle, and what is told while it goes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Literal, NamedTuple

from ollama_batch._gate import Gate
from ollama_batch._lanes import Lanes
from ollama_batch._portal import portal, result_of
from ollama_batch._stop import Stop
from ollama_batch._supervision import Supervision
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.engines.base import Engine
from ollama_batch.errors import OllamaBatchError, RunCancelledError, RunInterrupted
from ollama_batch.events import Event, Hook, RunEnding
from ollama_batch.metrics import BatchMetrics, MetricsHook
from ollama_batch.progress import make_progress
from ollama_batch.report import BatchReport
from ollama_batch.types import ParsedT

log = logging.getLogger("ollama_batch.run")

USER = "user"
ABORT_S = 30.0


class Ended(NamedTuple):
    """How a run ended: its report, and what to raise if it did not complete.

    The error travels as a value, because a KeyboardInterrupt raised on the run's loop would end the loop.
    """

    report: BatchReport[Any]
    error: OllamaBatchError | RunInterrupted | None

    def result(self) -> BatchReport[Any]:
        """The report of a completed run; raises the error of any other."""
        if self.error is not None:
            raise self.error
        return self.report


class Run(Generic[ParsedT]):
    """A run that goes on in the background; its methods may be called from any thread.

    `await run` and `run.wait()` give the BatchReport, or raise what ended the run early.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        hooks: Sequence[Hook],
        progress: Literal["auto", "plain", "none"] | Hook,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._metrics = MetricsHook()
        self._progress = make_progress(progress, metrics=self._metrics)
        self._shown = not isinstance(progress, str) or progress != "none"
        self._hooks = (self._metrics, self._progress, *hooks)
        self._blamed: dict[int, str] = {}
        self._stop = Stop(self._ending)
        self._gate = Gate(stop=self._stop, emit=self._emit)
        self._supervision = Supervision(supervisor, engine=engine, emit=self._emit)
        self._lanes: Lanes | None = None
        self._cancelled = False
        self._future: concurrent.futures.Future[Ended] = concurrent.futures.Future()

    @property
    def metrics(self) -> BatchMetrics:
        """How the run stands at this moment."""
        return self._metrics.snapshot()

    @property
    def done(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._future.done()

    def pause(self) -> None:
        """Send nothing more until `resume()`; requests that are out finish and are kept."""
        self._tell(self._gate.hold, USER, "paused")

    def resume(self) -> None:
        """Go on after `pause()`."""
        self._tell(self._gate.release, USER)

    def trim_conversations(self) -> int:
        """Have every conversation cut deep before its next request; returns how many were told to.

        0 where there is none: independent rows are left alone, and a run that has not begun to send, was
        cancelled or has ended sends nothing that could be cut.
        """
        lanes = self._lanes
        if lanes is None or self.done or self._cancelled or self._stop.draining.is_set():
            return 0
        self._tell(lanes.trim_all)
        return len(lanes)

    def cancel(self, *, now: bool = False) -> None:
        """End the run early and keep it resumable; `now` also gives up the requests that are out."""
        self._cancelled = True
        reason = RunCancelledError("cancelled; run again to go on")
        self._tell(self._stop.now if now else self._stop.drain, reason)

    def wait(self, timeout: float | None = None) -> BatchReport[ParsedT]:
        """Wait for the end of the run; async code awaits the run instead.

        Raises TimeoutError after `timeout` seconds (the run goes on), RunStoppedError if the run ended
        early, and whatever kept it from starting.
        """
        if portal().is_here and not self.done:
            raise RuntimeError("a hook cannot wait for a run: all runs wait for their hooks")
        if timeout is None:
            return result_of(self._future).result()
        return self._future.result(timeout).result()

    def __await__(self) -> Generator[Any, None, BatchReport[ParsedT]]:
        return self._ended().__await__()

    def __repr__(self) -> str:
        now = self.metrics
        of = "?" if now.total is None else now.total
        return f"<Run {now.state}: {now.completed} of {of} rows, {now.failed} failed>"

    async def _ended(self) -> BatchReport[ParsedT]:
        ended = await asyncio.shield(asyncio.wrap_future(self._future))
        return ended.result()

    def _emit(self, event: Event) -> None:
        """Tell every hook; one that fails is named in the log once and the run goes on."""
        for hook in self._hooks:
            try:
                hook.on_event(event)
            except Exception as error:
                if id(hook) not in self._blamed:
                    self._blamed[id(hook)] = type(error).__name__
                    log.exception("the hook %r failed; the run goes on", type(hook).__name__)

    def _ending(self, reason: OllamaBatchError | RunInterrupted) -> None:
        waiting = "waiting for the requests that are out"
        if isinstance(reason, RunInterrupted):
            message = f"{waiting}; interrupt once more to give them up"
            if not self._shown:  # whoever pressed Ctrl-C would be told nothing until they have finished
                log.warning("%s", message)
        else:
            message = f"{reason}; {waiting}"
        self._emit(RunEnding(message=message))

    def _drain(self, reason: OllamaBatchError | RunInterrupted, grace_s: float | None) -> None:
        self._tell(self._stop.drain, reason)
        if grace_s is not None:
            self._tell(portal().loop.call_later, grace_s, self._stop.now, reason)

    def _now(self, reason: OllamaBatchError | RunInterrupted) -> None:
        self._tell(self._stop.now, reason)

    def _give_up(self) -> None:
        if not self.done:
            self.cancel(now=True)

    def _abort(self) -> None:
        """Stop at once if the run still goes, and wait until its files are closed."""
        if not self.done:
            self._give_up()
            concurrent.futures.wait([self._future], ABORT_S)

    async def _aabort(self) -> None:
        """`_abort` for a running loop."""
        if not self.done:
            self.cancel(now=True)
            ended = asyncio.wrap_future(self._future)
            await asyncio.wait([ended], timeout=ABORT_S)
            if ended.done() and not ended.cancelled():
                ended.exception()  # seen: the run was given up on purpose

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        portal().loop.call_soon_threadsafe(what, *args)
