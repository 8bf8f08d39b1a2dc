"""Time that passes at once: an event loop whose clock jumps to the next timer, and what sends rows on it.

The pool of workers, the sender, the recovery, the steering and the limit of the address are the real ones;
the engine answers in its slots, and feed, prompts and journal are the least that the pool needs. There is no
thread and no socket.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest

from ollama_batch import _portal
from ollama_batch._check import EngineCheck
from ollama_batch._failures import FailureWatch
from ollama_batch._feed import Feed, Taken
from ollama_batch._fitting import Prompt
from ollama_batch._gate import Gate
from ollama_batch._gauge import Size
from ollama_batch._portal import AddressLimit
from ollama_batch._reading import AnswerReader
from ollama_batch._record import RecoveryRecord
from ollama_batch._recovery import Recovery
from ollama_batch._room import DiskRoom
from ollama_batch._sender import Sender
from ollama_batch._settings import SendSettings
from ollama_batch._steering import Steering
from ollama_batch._stop import Stop
from ollama_batch._supervision import Supervision
from ollama_batch._weights import Weights
from ollama_batch._width import RunWidth
from ollama_batch._workers import WorkerPool
from ollama_batch.control import QueueTarget
from ollama_batch.errors import EngineBusyError
from ollama_batch.events import Event, Hook
from ollama_batch.retry import RetryPolicy
from ollama_batch.types import BatchRequest, ChatRequest, Completion, EngineInfo, RowRecord, Timings
from trouble_support import completion

T = TypeVar("T")


class _NoWait(selectors.SelectSelector):
    """Waits for nothing: the clock of its loop jumps instead."""

    now = 1000.0  # not 0, which could be taken for "never"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("all tasks wait for each other")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which an hour passes as fast as what happens in it can be computed."""

    def __init__(self) -> None:
        self._virtual = _NoWait()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds of its own clock."""
        return self._virtual.now


@contextmanager
def virtual_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    """A loop whose clock is `time.monotonic` for everything that runs on it."""
    loop = VirtualLoop()
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", loop.time)
        patched.setattr(_portal, "QueueTarget", partial(QueueTarget, clock=loop.time))
        try:
            yield loop
        finally:
            loop.close()


class SlotEngine:
    """Answers `slots` requests side by side, each in `service_s` seconds on average, and tells the wait.

    While `refuses` it answers 503, at once; `refused` has the moments.
    """

    address = "virtual"

    def __init__(self, *, slots: int, service_s: float, seed: int = 0) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._service_s = service_s
        self._random = random.Random(seed)
        self.refuses = False
        self.refused: list[float] = []
        self.served: list[tuple[float, float]] = []
        """When each answer was begun and when it was there."""

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        came = time.monotonic()
        if self.refuses:
            self.refused.append(came)
            raise EngineBusyError("server busy", status=503)
        async with self._slots:
            began = time.monotonic()
            service_s = self._service_s * self._random.uniform(0.5, 1.5)
            await asyncio.sleep(service_s)
        self.served.append((began, time.monotonic()))
        answer = completion()
        timings = Timings(queue_s=began - came, prompt_s=0.0, generate_s=service_s)
        return Completion(body=answer.body, output="fine", finish_reason="stop", usage=None, timings=timings)

    def busy(self, begin: float, end: float) -> float:
        """How many slots were busy on average between two moments."""
        spans = ((max(began, begin), min(done, end)) for began, done in self.served)
        return sum(max(0.0, until - since) for since, until in spans) / (end - begin)


class _Endless(Feed):
    """Rows without end."""

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]  # it keeps none
        self._next = 0

    async def next(self, worker: int) -> Taken:
        index, self._next = self._next, self._next + 1
        row = RowRecord(index, 0, index + 1, str(index), b"")
        return row, BatchRequest.chat("?", custom_id=str(index))

    async def has_rows(self) -> bool:
        return True

    async def _refill(self) -> bool:
        return True


class _AsTheyAre:
    """The composer of prompts that all fit."""

    def __init__(self, settings: SendSettings) -> None:
        self._settings = settings

    async def compose(self, custom_id: str, row: RowRecord, request: BatchRequest) -> Prompt:
        return Prompt(row, request, self._settings.to_chat(custom_id, request), Size(1, "bytes"))

    async def shorten(self, prompt: Prompt, error: Exception) -> Prompt | None:
        return None

    async def check(self, prompt: Prompt, completion: Completion) -> None:
        return

    def settled(self, prompt: Prompt, result: Any) -> None:
        return

    async def close(self) -> None:
        return


class _Forgets:
    """A journal that keeps nothing."""

    async def commit(self, record: Any) -> None:
        return

    async def note(self, kind: str, data: dict[str, Any]) -> None:
        return


class VirtualRun:
    """One phase of a run, on the loop that is running; `width` as RunWidth has it, `hook` is told as well."""

    def __init__(
        self, engine: Any, width: RunWidth, *, retry: RetryPolicy | None = None, hook: Hook | None = None
    ) -> None:
        self.events: list[Event] = []

        def emit(event: Event) -> None:
            self.events.append(event)
            if hook is not None:
                hook.on_event(event)

        journal, limit = _Forgets(), AddressLimit()
        self.stop = Stop()
        self.gate = gate = Gate(stop=self.stop, emit=emit)
        policy = RetryPolicy() if retry is None else retry
        settings = SendSettings(
            model="m",
            defaults={},
            max_tokens=8,
            num_ctx=None,
            think=False,
            timeout_s=600.0,
            on_length="fail",
            patience_s=900.0,
        )
        info = EngineInfo("ollama", engine.address, None, "m")
        steering = Steering(
            limit,
            info=info,
            emit=emit,
            note=journal.note,
            noticed=lambda *args, **data: None,
        )
        width.changed = steering.changed
        self.recovery = recovery = Recovery(
            check=EngineCheck(engine, settings=settings, limit=limit),
            gate=gate,
            stop=self.stop,
            limit=limit,
            supervision=Supervision(None, engine=engine, emit=emit),
            record=RecoveryRecord((), emit=emit, note=journal.note),
            retry=policy,
            patience_s=settings.patience_s,
            load_patience_s=1800.0,
            emit=emit,
        )
        sender = Sender(
            engine=engine,
            settings=settings,
            retry=policy,
            limit=limit,
            steering=steering,
            recovery=recovery,
            gate=gate,
            stop=self.stop,
            emit=emit,
        )
        composer = _AsTheyAre(settings)
        self.pool = WorkerPool(
            width=width,
            feed=_Endless(),
            composer=composer,
            reader=AnswerReader(None, retries=0, composer=composer, emit=emit),
            sender=sender,
            journal=journal,  # type: ignore[arg-type]  # what the pool asks of one
            settings=settings,
            recovery=recovery,
            weights=Weights(engine, info=info, stop=self.stop, decide=journal.note),
            limit=limit,
            room=DiskRoom(gate=gate, stop=self.stop, patience_s=900.0),
            stop=self.stop,
            emit=emit,
            failures=FailureWatch(None),
            total=lambda: None,
            names=["virtual"],
        )


def run_on(loop: VirtualLoop, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is all that runs on the loop."""
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
