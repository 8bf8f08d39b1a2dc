"""An engine whose count of a prompt is known by construction, and what asks it: for tests of fitting."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ollama_batch import EngineInfo
from ollama_batch._context import Context
from ollama_batch._gauge import PromptGauge
from ollama_batch.errors import EngineError, OutputTruncatedError, RequestRejectedError
from ollama_batch.tokens._texts import compact_json, texts_of
from ollama_batch.types import Completion, Message, Usage
from tokens_support import WordCounter

T = TypeVar("T")

PER_MESSAGE, PER_PROMPT = 5, 7


def true_tokens(messages: Sequence[Message], ratio: float = 1.3) -> int:
    """How the scripted engine counts: more tokens than words, and what its template adds."""
    words = sum(len(text.split()) for message in messages for text in texts_of(message))
    return math.ceil(ratio * words) + PER_MESSAGE * len(messages) + PER_PROMPT


def answer(tokens: int | None, text: str = "x") -> Completion:
    """An answer to a prompt that has so many tokens, or of which nobody says how many."""
    usage = None if tokens is None else Usage(prompt_tokens=tokens, completion_tokens=1)
    return Completion(body={}, output=text, finish_reason="stop", usage=usage)


class Scripted:
    """Evaluates prompts as told, one token each, and keeps a ledger of what it was asked.

    `count` says how many tokens it reports; `trouble` are errors it raises first, one a question.
    """

    def __init__(
        self,
        count: Callable[[Sequence[Message]], int | None] = true_tokens,
        *,
        trouble: Sequence[EngineError] = (),
        counts_exactly: bool = False,
    ) -> None:
        self.count = count
        self.trouble = list(trouble)
        self.counts_exactly = counts_exactly
        self.refuses: list[Message] | None = None
        self.evaluated: list[list[Message]] = []
        self.counted: list[list[Message]] = []
        self.opened = asyncio.Event()
        self.opened.set()

    async def evaluate(self, messages: Sequence[Message], tools: Any) -> Completion:
        self.evaluated.append(list(messages))
        await self.opened.wait()
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble.pop(0)
        tokens = self.count(messages)
        if tokens is not None and tools:
            tokens += math.ceil(1.3 * len(compact_json(tools).split()))
        raise OutputTruncatedError("cut off", answer(tokens))

    async def patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        return await question()

    async def count_prompt(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float,
    ) -> int:
        self.counted.append(list(messages))
        if self.trouble:
            raise self.trouble.pop(0)
        if messages == self.refuses:
            raise RequestRejectedError("odd roles")
        found = self.count(messages)
        assert found is not None
        return found


class Decisions:
    """What was decided, as the run would journal it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []

    async def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.seen.append((kind, message, data))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.seen]


class Bench:
    """A gauge on a scripted engine, with a counter that keeps a ledger."""

    def __init__(
        self,
        engine: Scripted | None = None,
        *,
        context: int | None = 4000,
        sure: bool = True,
        state_dir: Any = None,
        digest: str | None = "sha256:d",
        kind: str = "ollama",
        base: Any = None,
    ) -> None:
        self.engine = Scripted() if engine is None else engine
        self.counter = WordCounter() if base is None else base
        self.decisions = Decisions()
        self.gauge = PromptGauge(
            info=EngineInfo(
                engine=kind,
                address="http://127.0.0.1:1",
                version=None,
                model="m",
                digest=digest,
                slots=None,
                tokenizes=self.engine.counts_exactly,
            ),
            allowed=Context(context, "num_ctx" if kind == "ollama" else "told"),
            sure=sure,
            base=self.counter,
            state_dir=state_dir,
            tokenizer=self.engine,
            asking=self.engine,
            decide=self.decisions,
        )


def words(count: int, word: str = "committee", seed: int = 0) -> list[Message]:
    """One message of so many words, that a seed makes different."""
    return [{"role": "user", "content": " ".join([f"r{seed}", *[word] * (count - 1)])}]
