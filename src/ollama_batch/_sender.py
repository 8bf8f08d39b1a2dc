"""Sends requests, one attempt at a time: through the gate, within the address's limit."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar

from ollama_batch._fitting import Prompt
from ollama_batch._gate import Gate
from ollama_batch._meeting import Meeting
from ollama_batch._options import RunnerOptions
from ollama_batch._points import reached
from ollama_batch._portal import AddressLimit
from ollama_batch._steering import Steering
from ollama_batch._stop import Stop
from ollama_batch.engines.base import Engine
from ollama_batch.errors import (
    EngineAuthError,
    EngineConnectionError,
    EngineDownError,
    EngineError,
    EngineExitedError,
    EngineStoppedError,
    EngineUnreachableError,
    ModelNotFoundError,
)
from ollama_batch.events import Event, RowSent
from ollama_batch.retry import RetryPolicy, RowRetry
from ollama_batch.types import BatchRequest, ChatRequest, Completion, Message, Think

T = TypeVar("T")

FATAL = (EngineAuthError, EngineStoppedError, ModelNotFoundError)
"""Errors that every further row would meet as well."""

AWAY = (EngineUnreachableError, EngineConnectionError, EngineExitedError)
"""Errors that make the gate look after the engine."""

TEST_QUESTION = "Say OK."
"""What the engine is asked when rows fail and none is answered: is it the rows, or the engine?"""


TEMPLATE_FIELDS: Final = ("chat_template_kwargs", "chat_template")
"""Body fields that change what a prompt is made of beside its messages and tools."""


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
        params.pop("model", None)  # a row's own is that of the phase, or is not to count
        limits = [params.pop("max_completion_tokens", None), params.pop("max_tokens", None)]
        return ChatRequest(
            custom_id=custom_id,
            model=self.model,
            messages=request.messages,
            params=params,
            max_tokens=next((limit for limit in limits if limit is not None), self.max_tokens),
            num_ctx=self.num_ctx,
            think=self.think,
        )

    def test_chat(self) -> ChatRequest:
        """A request that any working engine answers; the load options are those of the rows."""
        return ChatRequest(
            custom_id="test",
            model=self.model,
            messages=({"role": "user", "content": TEST_QUESTION},),
            params={},
            max_tokens=4,
            num_ctx=self.num_ctx,
        )

    def counting_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> ChatRequest:
        """A request that costs no more than evaluating its prompt, made as those of rows are."""
        params = {name: self.defaults[name] for name in TEMPLATE_FIELDS if name in self.defaults}
        return ChatRequest(
            custom_id="count",
            model=self.model,
            messages=messages,
            params={**params, "tools": tools} if tools else params,
            max_tokens=1,
            num_ctx=self.num_ctx,
            think=self.think,
        )


class Job:
    """One row on its way: how often it was handed to the engine, and how the last attempt went.

    `unsent` of the `attempts` never left, because nothing listened.
    """

    __slots__ = ("attempts", "custom_id", "index", "latency_s", "prompt", "unsent")

    def __init__(self, index: int, custom_id: str) -> None:
        self.index = index
        self.custom_id = custom_id
        self.prompt: Prompt | None = None
        self.attempts = 0
        self.unsent = 0
        self.latency_s: float | None = None


class Sender:
    """Makes attempts, and draws from each what it says about the engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: SendSettings,
        retry: RetryPolicy,
        limit: AddressLimit,
        steering: Steering,
        gate: Gate,
        stop: Stop,
        emit: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._retry = retry
        self._limit = limit
        self._steering = steering
        self._gate = gate
        self._stop = stop
        self._emit = emit
        self._answers = 0
        self._trouble_since: float | None = None
        self._idle_since: float | None = None
        self.in_flight = 0

    async def send(self, job: Job) -> Completion:
        """One attempt; waits for the gate and for a place first. Raises EngineError, or Abandoned."""
        while True:
            await self._gate.wait()
            async with self._limit:
                if self._gate.open and not self._stop.draining.is_set():
                    return await self._attempt(job)
                # Runs that share an address wait for each other, and the gate may have closed meanwhile.

    async def engine_answers(self) -> bool:
        """Whether the engine answers anything at all: a row by now, or a question of our own."""
        answers = self._answers

        async def ask(request: ChatRequest) -> None:
            await self._gate.wait()
            async with self._limit:
                await self._complete(request)

        retry = RowRetry(self._retry, sleep=self._stop.sleep, patience_s=0.0)
        try:
            await retry.call(ask, self._settings.test_chat())
        except EngineError as error:
            return error.row_caused or self._answers > answers
        return True

    async def evaluate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> Completion:
        """Have a prompt of ours evaluated, for what the engine counts. Raises EngineError, Abandoned."""
        chat = self._settings.counting_chat(messages, tools)
        return await self.patiently(partial(self._complete, chat))

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
                            self._gate.engine_trouble(error)
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
        sent = time.monotonic()
        try:
            completion = await self._complete(job.prompt.chat)
            self._steering.answered(completion, time.monotonic() - sent)
        except EngineUnreachableError:
            job.unsent += 1
            raise
        except EngineError as error:
            self._steering.failed(error, time.monotonic() - sent)
            raise
        finally:
            now = time.monotonic()
            job.latency_s = now - sent
            self.in_flight -= 1
            if not self.in_flight:
                self._idle_since = now
        reached("row.after_reply")
        return completion

    def _idle_s(self) -> float:
        """For how long nothing was out until now."""
        return 0.0 if self._idle_since is None else time.monotonic() - self._idle_since

    async def _complete(self, request: ChatRequest) -> Completion:
        try:
            completion = await self._engine.complete(
                request, deadline=time.monotonic() + self._settings.timeout_s
            )
        except EngineError as error:
            if error.row_caused:
                self._answered()
            else:
                self._failed(error)
            raise
        self._answered()
        return completion

    def _answered(self) -> None:
        self._answers += 1
        self._trouble_since = None
        self._gate.engine_answered()

    def _failed(self, error: EngineError) -> None:
        """What one failed attempt says about the engine."""
        if isinstance(error, AWAY):
            self._gate.engine_trouble(error)
        elif isinstance(error, FATAL):
            self._stop.drain(EngineDownError(str(error)))
        if error.budget == "busy":
            return  # each row is patient with that for itself
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
        silent_s = now - max(self._trouble_since, self._gate.resumed_at)
        if silent_s > self._settings.patience_s:
            self._stop.drain(
                EngineDownError(
                    f"no answer from the engine for {silent_s:.0f} s ({error}); run again to go on"
                )
            )
