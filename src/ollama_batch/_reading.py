"""Reads answers as the run's response model, and asks again for those that do not fit it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from ollama_batch._fitting import Composer
from ollama_batch._row import Job
from ollama_batch.errors import EngineError, OutputUnparsedError
from ollama_batch.events import Event, RowRetried
from ollama_batch.records import made_json
from ollama_batch.structured.form import AnswerForm, Unfit
from ollama_batch.structured.reading import read
from ollama_batch.types import BatchResult, Completion, Message, ResultRecord

LARGE_CHARS: Final = 65_536
"""Text of this length is read beside the run's loop."""


class AnswerReader:
    """What a phase of a run does with the text of its answers. `form` None: nothing.

    A row is asked again `retries` times at most, each time behind its own prompt, its last answer and what
    is wrong with that; these are part of no conversation.
    """

    def __init__(
        self,
        form: AnswerForm[Any] | None,
        *,
        retries: int,
        composer: Composer,
        emit: Callable[[Event], None],
    ) -> None:
        self._form = form
        self._retries = retries
        self._composer = composer
        self._emit = emit

    async def read(self, job: Job, completion: Completion) -> Completion | OutputUnparsedError:
        """`completion`, with what it says in `job.answer`; or how it does not fit."""
        if self._form is None:
            return completion
        text = completion.output
        if text is None:
            return OutputUnparsedError("the answer is a tool call and has no text", completion)
        # A text that ends as JSON does may still have to be repaired, which takes longer.
        if len(text) < LARGE_CHARS and text.endswith("}"):
            job.answer = read(text, self._form)
        else:
            job.answer = await asyncio.to_thread(read, text, self._form)
        if job.answer.fault is None:
            return completion
        return OutputUnparsedError(f"the answer {job.answer.fault}", completion)

    def ask_again(self, job: Job, error: OutputUnparsedError) -> None:
        """Have the row asked again. Raises `error` if that has been done often enough, or cannot be done."""
        tool_call = error.completion.output is None  # what follows one is its result, and nothing else
        if tool_call or job.asked_again >= self._retries:
            raise error
        job.unparsed, job.due = error, True

    async def compose(self, job: Job) -> None:
        """Make the prompt that asks again. Raises `job.unparsed` if there is no room for it."""
        assert self._form is not None  # noqa: S101 - else nothing is ever asked again
        assert job.unparsed is not None  # noqa: S101 - set by `ask_again`
        job.first = job.prompt if job.first is None else job.first
        assert job.first is not None  # noqa: S101 - it was answered
        prompt = await self._composer.behind(job.first, complaint(job.unparsed, self._form))
        if prompt is None:
            raise job.unparsed
        job.prompt, job.due = prompt, False
        job.asked_again += 1
        self._emit(
            RowRetried(
                index=job.index,
                custom_id=job.custom_id,
                attempt=job.attempts,
                code=job.unparsed.code,
                wait_s=0.0,
            )
        )

    @staticmethod
    def met(job: Job, error: EngineError) -> None:
        """The row goes on after trouble. Raises `job.unparsed` if the prompt that asks again was too much for
        the engine: the first one was not, and is not to be cut for it.
        """
        if job.unparsed is not None and job.refusal is not None:
            raise job.unparsed from error


def complaint(error: OutputUnparsedError, form: AnswerForm[Any]) -> Sequence[Message]:
    """What is said behind a row's prompt when its answer did not fit."""
    schema = json.dumps(dict(form.schema), ensure_ascii=False, separators=(",", ":"))
    text = (
        f"This cannot be used: {error.message}. Answer again, with one JSON object and nothing else, that "
        f"fits this JSON schema:\n{schema}"
    )
    answer = {"role": "assistant", "content": error.completion.output or ""}
    return (answer, {"role": "user", "content": text})


def with_parsed(
    result: BatchResult[Any], record: ResultRecord, form: AnswerForm[Any] | None
) -> BatchResult[Any]:
    """A result of the journal with its `parsed`, made again by validating its text, or what that was repaired
    to at the time: None where a validator has changed meanwhile and refuses what it took then.
    """
    if form is None or not result.ok or result.output is None:
        return result
    try:
        if result.repaired:
            parsed = form.check(json.dumps(made_json(record), ensure_ascii=False))
        else:
            parsed = read(result.output, form).parsed
    except Unfit:
        parsed = None
    return replace(result, parsed=parsed)
