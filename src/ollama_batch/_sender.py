"""Sends requests, one attempt at a time: through the gate, in turn, within the address's limit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ollama_batch._gate import Gate
from ollama_batch._points import reached
from ollama_batch._portal import AddressLimit
from ollama_batch._recovery import Recovery
from ollama_batch._row import Job
from ollama_batch._settings import SendSettings
from ollama_batch._steering import Steering
from ollama_batch._stop import Stop
from ollama_batch.engines.base import Engine
from ollama_batch.errors import (
    EngineConnectionError,
    EngineError,
    EngineExitedError,
    EngineUnreachableError,
    OutcomeError,
)
from ollama_batch.events import Event, RowSent
from ollama_batch.retry import RetryPolicy, RowRetry
from ollama_batch.types import ChatRequest, Completion, Message

T = TypeVar("T")

AWAY = (EngineUnreachableError, EngineConnectionError, EngineExitedError)
"""Errors of questions of our own that make us look after the engine."""


class Sender:
    """Makes attempts, and tells what comes back to those who draw something from it."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: SendSettings,
        retry: RetryPolicy,
        limit: AddressLimit,
        steering: Steering,
        recovery: Recovery,
        gate: Gate,
        stop: Stop,
        emit: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._retry = retry
        self._limit = limit
        self._steering = steering
        self._recovery = recovery
        self._gate = gate
        self._stop = stop
        self._emit = emit
        self._idle_since: float | None = None
        self.in_flight = 0

    async def send(self, job: Job) -> Completion:
        """One attempt; waits for the gate, its turn and a place first. Raises EngineError, or Abandoned."""
        recovery = self._recovery
        while True:
            await self._gate.wait()
            await recovery.wait_turn(job.index)
            # Alone at the address, too: another run's row may be what kills the engine.
            async with self._limit.alone() if recovery.turns.is_alone(job.index) else self._limit:
                if self._gate.open and recovery.turns.may_go(job.index) and not self._stop.draining.is_set():
                    return await self._attempt(job)
                # Runs that share an address wait for each other, and the gate may have closed meanwhile.

    async def evaluate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> Completion:
        """Have a prompt of ours evaluated, for what the engine counts. Raises EngineError, Abandoned."""
        chat = self._settings.counting_chat(messages, tools)
        return await self.patiently(partial(self._evaluated, chat))

    async def patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        """The result of `question()`, which is asked as rows are sent: through the gate, within the limit,
        repeated as their policy allows. Raises EngineError, Abandoned.
        """

        async def ask(question: Callable[[], Awaitable[T]]) -> T:
            while True:
                await self._gate.wait()
                async with self._limit:
                    if self._gate.open and not self._stop.draining.is_set():
                        try:
                            return await question()
                        except AWAY as error:
                            self._recovery.doubt(error)
                            raise

        retry = RowRetry(self._retry, sleep=self._stop.sleep, patience_s=self._settings.patience_s)
        return await retry.call(ask, question)

    async def _attempt(self, job: Job) -> Completion:
        assert job.prompt is not None  # noqa: S101 - made before anything is sent
        job.attempts += 1
        self.in_flight += 1
        idle_s, self._idle_since = self._idle_s(), None
        self._emit(
            RowSent(
                index=job.index,
                custom_id=job.custom_id,
                attempt=job.attempts,
                in_flight=self.in_flight,
                idle_s=idle_s,
            )
        )
        reached("row.before_send")
        turns = self._recovery.turns
        sent = job.sent_at = time.monotonic()
        turns.sent(job.index)
        try:
            deadline = sent + job.patience * self._settings.timeout_s
            completion = await self._engine.complete(job.prompt.chat, deadline=deadline)
            self._steering.answered(completion, time.monotonic() - sent)
            self._recovery.answered(job.index)
        except EngineError as error:
            job.beside, job.out = turns.out, self._limit.out
            if isinstance(error, EngineUnreachableError):
                job.unsent += 1
            else:
                self._steering.failed(error, time.monotonic() - sent)
            if isinstance(error, OutcomeError):
                self._recovery.answered(job.index)
            raise
        finally:
            now = time.monotonic()
            job.latency_s = now - sent
            self.in_flight -= 1
            turns.back(job.index)
            if not self.in_flight:
                self._idle_since = now
        reached("row.after_reply")
        return completion

    def _idle_s(self) -> float:
        """For how long nothing was out until now."""
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since

    async def _evaluated(self, chat: ChatRequest) -> Completion:
        return await self._engine.complete(chat, deadline=time.monotonic() + self._settings.timeout_s)
