"""Runs in trouble: rows, a quick runner, a hook that keeps every event, an engine without a wire."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest

from ollama_batch import BatchRequest, BatchRunner
from ollama_batch.control import recovery
from ollama_batch.events import Event, RowFinished, RowRetried, RowSent
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import FakeOllama
from ollama_batch.types import ChatRequest, Completion, EngineInfo


def quick_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ladder's waits be a hundredth."""
    for name, seconds in {"PROBE": (0.005, 0.02), "LOADING": (0.005, 0.02)}.items():
        monkeypatch.setattr(recovery, f"{name}_S", seconds[0])
        monkeypatch.setattr(recovery, f"{name}_MOST_S", seconds[1])


E = TypeVar("E")

QUICK = RetryPolicy(wait_s=0.002, wait_max_s=0.01)


def name(n: int) -> str:
    """The id of a row, which is also the key by which the fake server knows it."""
    return f"row-{n:04d}"


def rows(count: int, *, first: int = 0) -> list[BatchRequest]:
    return [BatchRequest.chat(name(n), custom_id=name(n)) for n in range(first, first + count)]


def quick_runner(fake: FakeOllama | None = None, **options: Any) -> BatchRunner:
    """A runner that loses no time by waiting."""
    settings: dict[str, Any] = {
        "model": "toy:1b",
        "num_ctx": 2048,
        "concurrency": 4,
        "retry": QUICK,
        "progress": "none",
    }
    if fake is not None:
        settings["base_url"] = fake.url
    return BatchRunner(**{**settings, **options})


class Recorder:
    """A hook that keeps what it is told; `on` may react to single events, on the run's loop."""

    def __init__(self, on: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self._on = on
        self._news = threading.Condition()

    def on_event(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()
        if self._on is not None:
            self._on(event)

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type[Event], count: int = 1, timeout: float = 30.0) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.all(kind)) >= count, timeout), f"no {kind.__name__}"

    def check_balance(self) -> int:
        """Sent = finished + retried + abandoned, for every row; returns how many were abandoned."""
        sent = Counter(event.index for event in self.all(RowSent))
        retried = Counter(event.index for event in self.all(RowRetried))
        finished = Counter(event.result.index for event in self.all(RowFinished))
        assert max(finished.values(), default=1) == 1
        left = {index: n - retried[index] - finished[index] for index, n in sent.items()}
        # A retry that was announced may never have been made: the run ended in its wait.
        assert all(-1 <= n <= 1 for n in left.values()), left
        assert all(n == 0 or not finished[index] for index, n in left.items()), left
        assert finished.keys() <= sent.keys()
        return sum(1 for index in sent if not finished[index])


def completion(text: str = "fine") -> Completion:
    message = {"role": "assistant", "content": text}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return Completion(body=body, output=text, finish_reason="stop", usage=None)


class ScriptedEngine:
    """An engine that does what `answer` says; `asked` is its ledger."""

    address = "scripted"

    def __init__(self, answer: Callable[[ChatRequest], Any]) -> None:
        self._answer = answer
        self.asked: list[str] = []

    def check_params(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        return None

    async def describe(self, model: str) -> EngineInfo:
        return EngineInfo("scripted", self.address, None, model)

    async def complete(self, request: ChatRequest, *, deadline: float) -> Completion:
        self.asked.append(request.custom_id)
        answer = self._answer(request)
        if hasattr(answer, "__await__"):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        return completion() if answer is None else answer

    async def aclose(self) -> None:
        pass
