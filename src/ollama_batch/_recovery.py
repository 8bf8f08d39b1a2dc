"""Carries out what the recovery ladder decides: rows wait, fail or go again; the run pauses and resumes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn

from ollama_batch._asking import TOLD_S, Asking
from ollama_batch._check import EngineCheck
from ollama_batch._gate import ENGINE, Gate
from ollama_batch._outage import Outage
from ollama_batch._portal import AddressLimit
from ollama_batch._record import RecoveryRecord
from ollama_batch._refusals import Refusals
from ollama_batch._relief import DONE_ONCE, Relief
from ollama_batch._row import Job, poison
from ollama_batch._stop import Abandoned, Stop
from ollama_batch._storm import Storm
from ollama_batch._supervision import Supervision
from ollama_batch._turns import Turns
from ollama_batch.control import Action, Do, Kind, Ladder, Rung, Trouble, decide, kind_of, probed, undo
from ollama_batch.control.history import BREAKER_ANSWERS
from ollama_batch.errors import EngineDownError, EngineError, EngineExitedError, EngineStoppedError
from ollama_batch.events import Event, RowRetried
from ollama_batch.retry import RetryPolicy

NO_ROW = -1
"""The row of a doubt that no row has brought up."""

SETTLE_S = 0.02
"""After a lost connection the others that the same death cuts are heard of within so many seconds."""

log = logging.getLogger("ollama_batch.run")


class Recovery:
    """What one phase of a run does about trouble, and what it remembers of it."""

    def __init__(
        self,
        *,
        check: EngineCheck,
        gate: Gate,
        stop: Stop,
        limit: AddressLimit,
        supervision: Supervision,
        relief: Relief | None = None,
        record: RecoveryRecord,
        retry: RetryPolicy,
        patience_s: float,
        load_patience_s: float,
        emit: Callable[[Event], None],
    ) -> None:
        self._check = check
        self._asking = Asking(check, gate=gate, stop=stop, supervision=supervision, patience_s=patience_s)
        self._gate = gate
        self._stop = stop
        self._limit = limit
        self._supervision = supervision
        supervision.patience_s = patience_s
        self._relief = relief
        self._due: list[Rung] = []
        self._record = record
        self._emit = emit
        self.turns = Turns(stop)
        self._outage = Outage(patience_s, load_patience_s)
        self._storm = Storm(
            gate, out=lambda: bool(self.turns.out), patience_s=patience_s, load_patience_s=load_patience_s
        )
        self._refusals = Refusals(stop, sent_at=self.turns.sent_at, accepted=self._accepted)
        self._ladder = Ladder(
            rungs=(),  # those there are when one is needed
            timeouts=retry.timeout,
            lost=retry.transport,
            replies=retry.server,
            patience_s=patience_s,
            load_patience_s=load_patience_s,
            wait_s=retry.wait_s,
            wait_most_s=retry.wait_max_s,
            retry_after_most_s=retry.retry_after_max_s,
        )
        self._ladders = {
            "reply": replace(self._ladder, replies=retry.reply),
            "none": replace(self._ladder, replies=0),  # what nobody knows is not repeated
        }
        self._history = record.history
        self._alone = {row for row, each in self._history.suspicions.items() if each.crashes > 1}
        self._at_work: set[int] = set()
        self._lost: dict[int, float] = {}
        self._pause: asyncio.Task[None] | None = None

    # What rows ask for, and tell

    def begin(self, row: int) -> None:
        """A worker has taken `row`."""
        self._at_work.add(row)

    def end(self, row: int) -> None:
        """The row has ended, or stays pending."""
        self._at_work.discard(row)
        self._lost.pop(row, None)
        self._refusals.left(row)
        self.turns.free(row)
        self.turns.move()

    async def wait_turn(self, row: int) -> None:
        """Return when `row` may be sent as far as other rows go; one that is to be alone claims that first.

        It goes after others, whose answers show whose fault the last crash was; if there are none, a question
        of our own has to do. Raises Abandoned when the run is to end.
        """
        if row not in self._alone:
            await self.turns.wait(row)
            return
        await self.turns.until(lambda: self._history.others_answered(row) or self._at_work <= self._alone)
        if not self._history.others_answered(row) and await self._asking.replies(of_use=True):
            self._history = self._history.answered(None, time.monotonic())
        await self.turns.claim(row)

    def answered(self, row: int) -> None:
        """`row` was answered, of use or not."""
        self._history = self._history.answered(row, time.monotonic())
        self._alone.discard(row)
        self._check.answered(row)
        self._outage.over()
        self._storm.over()
        self._refusals.answered()
        self._supervision.answered()
        if self._history.rungs and self._history.clean >= BREAKER_ANSWERS:
            self._take_back()

    async def meet(self, job: Job, error: EngineError) -> None:
        """Do what the ladder says about `error`, which `job` has met; return when it is to be sent again,
        with `refusal` set if its prompt was too much for the engine.

        Raises the error with which the row has failed, or Abandoned if it stays pending as the run is to end.
        """
        if self._stop.draining.is_set() and not error.row_caused:
            raise Abandoned from error
        trouble = self._trouble(job, error)
        rungs = () if self._relief is None else self._relief.rungs
        ladder = replace(self._ladders.get(error.budget, self._ladder), rungs=rungs)
        trouble, action = await self._decided(trouble, ladder, error)
        self.turns.free(job.index)  # not before: what others sent might have the model loaded again
        crashes = self._history.suspicion_after(job.index).crashes
        self._history = self._history.after(trouble, action)
        if action.do is Do.STOP:
            self._end(action, error)
        if action.do is Do.PAUSE:
            self._paused(action, job, trouble, error)
            if job.index in action.quarantined:
                self._alone.discard(job.index)
                raise poison(job, error, crashes) from error
        elif trouble.healthy is not None:
            self._sure()
        if action.do is Do.FAIL:
            self._history = self._history.failed(job.index)
            self._alone.discard(job.index)
            raise error
        if action.do is Do.SHORTEN:  # how often that is of use is the composer's to say
            job.refusal = error
            return
        if trouble.kind is Kind.OUT_OF_MEMORY and trouble.alone:
            job.refusal = error
        await self._send_again(job, trouble, action, error)

    def doubt(self, error: EngineError) -> None:
        """Look after the engine, because of an `error` that no row has met."""
        if isinstance(error, EngineStoppedError) and not self._supervision.revives(error):
            self._stop.drain(EngineDownError(self._supervision.last_words(error)))
            return
        trouble = Trouble(kind=Kind.UNREACHABLE, at=time.monotonic(), row=NO_ROW)
        self._forgive_pauses()
        action = decide(trouble, self._history, self._ladder)
        self._history = self._history.after(trouble, action)
        if action.do is Do.STOP:
            self._stop.drain(self._down(action, error))
        elif action.do is Do.PAUSE:
            self._watch(action, error)

    async def aclose(self) -> None:
        """End the pause, if there is one, and its hold."""
        self._outage.rest()
        self._storm.over()
        if self._pause is not None:
            self._pause.cancel()
            await asyncio.gather(self._pause, return_exceptions=True)
        if not self._stop.draining.is_set():
            self._gate.release(ENGINE)
        await self._record.kept()

    # Deciding

    def _trouble(self, job: Job, error: EngineError) -> Trouble:
        now, kind = time.monotonic(), kind_of(error)
        self._forgive_pauses()
        if kind in (Kind.BUSY, Kind.LOADING):
            since = job.refused_since or now
            job.refused_since = max(since, min(now, self._gate.resumed_at))
        else:
            job.refused_since = None
            self._refusals.left(job.index)
        if kind is Kind.TIMEOUT:
            self._check.timed_out()
        if kind is Kind.LOST:
            self._lost[job.index] = now
            self._limit.lost(now, self)
        return Trouble(
            kind=kind,
            at=now,
            row=job.index,
            in_flight=job.beside if job.prompt is not None else self.turns.out,
            others=max(0, job.out - len(job.beside)),
            sent_at=job.sent_at,
            spent=job.spent[kind, error.budget],
            refused_since=job.refused_since,
            retry_after_s=error.retry_after_s,
        )

    async def _decided(self, trouble: Trouble, ladder: Ladder, error: EngineError) -> tuple[Trouble, Action]:
        """What is to be done, with what the engine says if that matters."""
        if isinstance(error, EngineExitedError) and not self._supervision.revives(error):
            self._stop.drain(EngineDownError(self._supervision.last_words(error)))
            raise Abandoned from error
        action = decide(trouble, self._history, ladder)
        if action.do is Do.PROBE:
            if trouble.kind is Kind.LOST:
                await self._stop.sleep(SETTLE_S)
            suspected = trouble.row in self._history.suspicions
            unsure = partial(self._unsure, error, trouble.at)
            kept = await self._asking.kept(trouble, suspected=suspected, unsure=unsure)
            if kept is not False:
                self._sure()
            lost = frozenset(row for row in trouble.in_flight if self._lost.get(row, 0.0) >= trouble.at)
            trouble = replace(
                trouble,
                healthy=kept is not False,
                kept=kept is True and self._limit.taken_at <= (trouble.sent_at or 0.0),
                lost_too=lost - {trouble.row},
                others_lost=self._limit.others_lost(trouble.at - SETTLE_S, self),
            )
            action = decide(trouble, self._history, ladder)
        if action.do is Do.ASK:
            await self._gate.wait()
            trouble = replace(trouble, replied=await self._asking.replies())
            action = decide(trouble, self._history, ladder)
        return trouble, action

    def _unsure(self, error: EngineError, since: float) -> None:
        """The engine takes long to say whether it is well: if nothing is out, the run pauses for that."""
        if not self._limit.out:
            self._tell(error, since)

    def _sure(self) -> None:
        """Nothing is asked any more: end that pause, unless there is one to wait for."""
        if not self._gate.open and (self._pause is None or self._pause.done()):
            self._outage.rest()
            self._gate.release(ENGINE)

    # Doing

    def _take_back(self) -> None:
        """Of the last rung, what may be undone by now."""
        if self._history.rungs[-1] in DONE_ONCE:
            self._history = self._history.undone()  # it may help once more
            return
        action = undo(self._history)
        if action is not None and action.rung is not None and self._relief is not None:
            self._history = self._history.undone()
            self._relief.take_back(action.rung)
            self._record.keep(action, self._history, None)

    async def _send_again(self, job: Job, trouble: Trouble, action: Action, error: EngineError) -> None:
        """Wait as long as the row is to wait, and say so."""
        kind, asked_s = trouble.kind, 0.0
        job.spent[kind, error.budget] += action.do is not Do.WAIT or kind in (Kind.BUSY, Kind.LOADING)
        if action.timeout_factor != 1.0:
            job.patience = action.timeout_factor
        if error.retry_after_s is not None:
            asked_s = min(error.retry_after_s, self._ladder.retry_after_most_s)
        wait_s = 0.0 if action.do is Do.PAUSE else max(action.wait_s, asked_s)
        if wait_s > asked_s:
            wait_s = random.uniform(max(wait_s / 2, asked_s), wait_s)  # noqa: S311 - spreads rows, no secret
        self._emit(
            RowRetried(
                index=job.index,
                custom_id=job.custom_id,
                attempt=job.attempts,
                code=error.code,
                wait_s=wait_s,
                in_flight=len(self.turns.out),
            )
        )
        if kind in (Kind.BUSY, Kind.LOADING):
            if not self.turns.out:  # else others may be answered meanwhile
                self._outage.met(error, at=job.refused_since or trouble.at)
                self._storm.met(error, at=job.refused_since or trouble.at)
            await self._refusals.wait(job.index, wait_s, least_s=asked_s)
        elif wait_s:
            await self._stop.sleep(wait_s)

    def _paused(self, action: Action, job: Job, trouble: Trouble, error: EngineError) -> None:
        """Begin a pause, or let the present one be for this as well."""
        in_flight = None if action.rung is None else max(len(trouble.out), job.out)
        if action.rung is Rung.CONCURRENCY and in_flight is not None:
            self._limit.ran_out(in_flight=in_flight, sent_at=trouble.sent_at)
        elif action.rung is not None:
            self._due.append(action.rung)
        self._alone |= action.alone
        self.turns.move()
        if self._history.crashed or action.rung is not None:
            self._record.keep(action, self._history, error, in_flight=in_flight)
        self._watch(action, error)

    def _watch(self, action: Action, error: EngineError) -> None:
        if self._pause is None or self._pause.done():
            self._gate.shut(ENGINE)
            self._outage.met(error, at=self._history.down_since or time.monotonic())
            self._pause = asyncio.create_task(self._until_well(action, error))
            loop, since = asyncio.get_running_loop(), time.monotonic()
            telling = loop.call_later(TOLD_S, self._tell, error, since)
            self._pause.add_done_callback(lambda _: telling.cancel())

    async def _until_well(self, action: Action, error: EngineError) -> None:
        """Probe until the engine is well, or the run's patience is at its end."""
        since = time.monotonic()
        wait_s = 0.0 if isinstance(error, EngineExitedError) else action.wait_s
        latest: EngineError | None = None
        try:
            while True:
                if wait_s:
                    await self._stop.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - spreads probes
                while self._due and self._relief is not None:
                    await self._stop.unless_draining(self._relief.take(self._due.pop(0), error))
                exited, well = False, False
                said = await self._stop.unless_draining(self._check.explained(error))
                if said is not error:  # the question may take as long as what went before
                    self._tell(said, since)
                try:
                    well = await self._stop.unless_draining(self._check.healthy())
                    if well and not self._gate.held_beside(ENGINE):
                        left_s = since + self._ladder.patience_s - time.monotonic()
                        well = await self._stop.unless_draining(self._check.replies(max(left_s, 0.1)))
                except EngineExitedError as gone:
                    if not self._supervision.revives(gone):
                        raise
                    error, said, exited = gone, gone, True
                then = probed(well, at=time.monotonic(), history=self._history, ladder=self._ladder)
                if not well:
                    latest = self._check.failed or latest
                    if latest is None or said is not error:  # an explanation says more
                        self._tell(said, since)
                    else:
                        self._tell(latest, since, latest=True)
                if then.do is Do.RESUME:
                    break
                self._history = self._history.probed(then)
                if then.do is Do.STOP:
                    self._record.keep(then, self._history, said)
                    last = latest if said is error else None
                    self._stop.now(self._down(then, said, last))  # what is out will not be answered any more
                    return
                restart = self._supervision.restart_if_due(said, exited=exited, since=since)
                tried = await self._stop.unless_draining(restart)
                wait_s = then.wait_s
                if tried:  # it may be up in a moment: waits begin anew
                    self._history, wait_s = replace(self._history, probes=0), 0.0
        except Abandoned:
            return
        except EngineStoppedError as gone:
            self._stop.drain(EngineDownError(self._supervision.last_words(gone)))
            return
        except Exception as bug:  # nobody waits for this task: unsaid, the run would hang at the gate
            self._asking.broken(bug)
            return
        self._history = self._history.probed(then)
        self._outage.rest()  # whether it is over the rows will tell
        if then.limit is not None:
            silent = kind_of(error) is Kind.TIMEOUT
            why = "the engine did not answer" if silent else "the engine crashed"
            self._limit.crashed("the engine ran out of memory" if self._history.lacked_memory else why)
        self._gate.release(ENGINE)

    def _tell(self, error: EngineError, since: float, *, latest: bool = False) -> None:
        since = self._history.down_since or since
        left_s = since + self._ladder.patience_s - time.monotonic()
        self._gate.hold(ENGINE, str(error), stops_in_s=max(0.0, left_s), latest=latest)
        self._outage.met(error, at=since)

    def _accepted(self, sent_at: float) -> None:
        """The engine has taken a request again, after refusals."""
        self._outage.over()
        self._storm.over()
        self._limit.accepted(sent_at)

    def _forgive_pauses(self) -> None:
        """Silence while something else than the engine held the gate means nothing."""
        since, resumed_at = self._history.silent_since, self._gate.resumed_at
        if since is not None and resumed_at > since:
            self._history = replace(self._history, silent_since=resumed_at)

    def _end(self, action: Action, error: EngineError) -> NoReturn:
        self._record.keep(action, self._history, error)
        fatal = kind_of(error) is Kind.FATAL
        self._stop.drain(EngineDownError(str(error)) if fatal else self._down(action, error))
        raise Abandoned from error

    def _down(self, action: Action, error: EngineError, last: EngineError | None = None) -> EngineDownError:
        less = "" if self._relief is None else self._relief.last_resort(error)
        then = "" if last is None or str(last) == str(error) else f"; at last: {str(last).rstrip('.')}"
        why = f"{action.reason} ({str(error).rstrip('.')}{then})"
        return EngineDownError(
            f"{why}; see the engine's log, then run again to go on{less}{self._supervision.in_vain()}"
        )
