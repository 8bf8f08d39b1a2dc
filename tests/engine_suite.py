"""What every engine must do: the same checks for each, on a fake, an embedded or a real server.

Each check is an async function that takes a `Subject`; `CHECKS` lists them all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from ollama_batch import errors as e
from ollama_batch.engines.base import Engine, Loadable, Probed
from ollama_batch.types import ChatRequest, Completion

SYSTEM = {"role": "system", "content": "You answer in one short sentence."}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine under test and what may be asked of it."""

    engine: Engine
    model: str
    num_ctx: int
    """The context length of its requests."""

    reports_overflow: bool = True
    """Whether a prompt that is too long is an error, as it is not through Ollama's /v1 routes."""

    deadline_s: float = 120.0
    params: dict[str, Any] = field(default_factory=dict)

    def request(self, text: str = "Name a colour.", **changes: Any) -> ChatRequest:
        """A small request to this engine."""
        settings: dict[str, Any] = {
            "custom_id": "r1",
            "model": self.model,
            "messages": [SYSTEM, {"role": "user", "content": text}],
            "params": {"seed": 1, "temperature": 0.0, **self.params},
            "max_tokens": 256,
            "num_ctx": self.num_ctx,
        }
        return ChatRequest(**{**settings, **changes})

    async def ask(self, text: str = "Name a colour.", **changes: Any) -> Completion:
        """The answer to a small request; one that the limit cut off is an answer too."""
        try:
            return await self.engine.complete(self.request(text, **changes), deadline=self.deadline())
        except e.OutputTruncatedError as exc:
            return exc.completion

    def deadline(self) -> float:
        """When the patience with one request ends."""
        return time.monotonic() + self.deadline_s


async def answers_in_openai_form(subject: Subject) -> None:
    completion = await subject.ask()
    parsed = ChatCompletion.model_validate(completion.body)
    assert parsed.object == "chat.completion"
    assert parsed.choices[0].message.content == completion.output
    assert parsed.choices[0].finish_reason == completion.finish_reason
    assert completion.output
    assert completion.finish_reason in ("stop", "length")


async def counts_tokens(subject: Subject) -> None:
    short = await subject.ask("Hi.")
    long = await subject.ask("Hi. " + "And a good day to you. " * 20)
    assert short.usage is not None
    assert long.usage is not None
    assert short.usage.source == "engine"
    assert 0 < short.usage.prompt_tokens < long.usage.prompt_tokens
    assert 0 < short.usage.completion_tokens <= 256
    for usage in (short.usage, long.usage):
        assert usage.cached_tokens is None or 0 <= usage.cached_tokens <= usage.prompt_tokens


async def a_cut_off_answer_is_no_success(subject: Subject) -> None:
    request = subject.request("Tell a long story about the sea.", max_tokens=3)
    with pytest.raises(e.OutputTruncatedError) as caught:
        await subject.engine.complete(request, deadline=subject.deadline())
    completion = caught.value.completion
    assert completion.finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 3
    assert not caught.value.retryable


async def a_prompt_that_does_not_fit_is_refused(subject: Subject) -> None:
    if not subject.reports_overflow:
        pytest.skip("this server cuts long prompts in silence")
    text = "one more word and " * subject.num_ctx
    with pytest.raises(e.ContextTooLargeError) as caught:
        await subject.engine.complete(subject.request(text), deadline=subject.deadline())
    assert caught.value.row_caused
    assert caught.value.limit is None or caught.value.limit <= subject.num_ctx
    assert caught.value.tokens is None or caught.value.tokens > subject.num_ctx


async def many_requests_side_by_side_are_all_answered(subject: Subject) -> None:
    # Of growing length, so that each is known to have its own answer; ids of Ollama's /v1 are not unique.
    prompts = ["Say yes." + " Please, do say it." * n for n in range(12)]
    answers = await asyncio.gather(*(subject.ask(prompt, max_tokens=16) for prompt in prompts))
    lengths = [answer.usage.prompt_tokens for answer in answers if answer.usage is not None]
    assert len(lengths) == 12
    assert lengths == sorted(set(lengths))


async def the_deadline_is_kept(subject: Subject) -> None:
    begun = time.monotonic()
    with pytest.raises(e.EngineTimeoutError):
        await subject.engine.complete(
            subject.request("Count to a million.", max_tokens=1000), deadline=begun - 1.0
        )
    assert time.monotonic() - begun < 5.0


async def a_cancelled_request_leaves_the_engine_usable(subject: Subject) -> None:
    task = asyncio.create_task(subject.ask("Tell a long story.", max_tokens=200))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await subject.ask(max_tokens=16)).body


async def describes_itself(subject: Subject) -> None:
    info = await subject.engine.describe(subject.model)
    assert info.model == subject.model
    assert info.address
    assert info.version
    assert info.slots is None or info.slots > 0
    assert info.context_length is None or info.context_length > 0


async def an_unknown_model_is_told(subject: Subject) -> None:
    with pytest.raises(e.ModelNotFoundError):
        await subject.engine.describe("no-such-model-anywhere:0b")


async def loads_and_releases(subject: Subject) -> None:
    engine = subject.engine
    if not isinstance(engine, Loadable):
        pytest.skip("this engine loads nothing")
    info = await engine.load(subject.model, num_ctx=subject.num_ctx, deadline=time.monotonic() + 600.0)
    assert info.model == subject.model
    assert (await subject.ask(max_tokens=16)).body
    await engine.release(subject.model, num_ctx=subject.num_ctx)
    assert (await subject.ask(max_tokens=16)).body


async def is_healthy(subject: Subject) -> None:
    assert isinstance(subject.engine, Probed)
    await subject.ask(max_tokens=4)
    assert await subject.engine.healthy()


async def refuses_fields_it_does_not_know(subject: Subject) -> None:
    body = {"model": subject.model, "messages": [SYSTEM], "temperature": 0.0}
    assert subject.engine.check_params(body) is None
    complaint = subject.engine.check_params({**body, "temprature": 0.0})
    assert complaint is not None
    assert complaint[0] == "temprature"


async def serves_another_loop(subject: Subject) -> None:
    await subject.ask(max_tokens=4)
    answer = await asyncio.to_thread(lambda: asyncio.run(subject.ask(max_tokens=4)))
    assert answer.body


async def a_closed_engine_says_so(subject: Subject) -> None:
    await subject.ask(max_tokens=4)
    await subject.engine.aclose()
    await subject.engine.aclose()
    with pytest.raises(e.EngineStoppedError):
        await subject.ask()


CHECKS: tuple[Callable[[Subject], Awaitable[None]], ...] = (
    answers_in_openai_form,
    counts_tokens,
    a_cut_off_answer_is_no_success,
    a_prompt_that_does_not_fit_is_refused,
    many_requests_side_by_side_are_all_answered,
    the_deadline_is_kept,
    a_cancelled_request_leaves_the_engine_usable,
    describes_itself,
    an_unknown_model_is_told,
    loads_and_releases,
    is_healthy,
    refuses_fields_it_does_not_know,
    serves_another_loop,
    a_closed_engine_says_so,
)
