"""One row on its way to an answer."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

from ollama_batch._fitting import Prompt
from ollama_batch.control import Kind, kind_of
from ollama_batch.errors import EngineError, OutputUnparsedError
from ollama_batch.structured.reading import Answer
from ollama_batch.types import Completion

log = logging.getLogger("ollama_batch.run")


class Job:
    """One row on its way: how often it was handed to the engine, how the last attempt went, and what trouble
    has cost it. `where` is its place in the input, for people.

    `unsent` of the `attempts` never left, because nothing listened. `beside` are the rows that were out when
    the last attempt ended, this one included, `out` all requests at the address. `spent` counts how often it
    was sent again for each kind of trouble, `refused_since` is when it was first refused without anything
    else having come of it; `refusal` says that the prompt is too much for the
    engine and is to be made shorter; `patience` is how many times the deadline it gets. `answers` are those
    that came so far, whatever became of them.

    With a response model, `answer` is what the last answer says. `asked_again` counts how often it was asked
    for once more because that, `unparsed`, did not fit; `due` says that this is to be done now, behind the
    row's `first` prompt.
    """

    __slots__ = (
        "answer",
        "answers",
        "asked_again",
        "attempts",
        "beside",
        "custom_id",
        "due",
        "first",
        "index",
        "latency_s",
        "out",
        "patience",
        "prompt",
        "refusal",
        "refused_since",
        "sent_at",
        "spent",
        "unparsed",
        "unsent",
        "where",
    )

    def __init__(self, index: int, custom_id: str, *, where: str = "") -> None:
        self.index = index
        self.where = where
        self.custom_id = custom_id
        self.prompt: Prompt | None = None
        self.attempts = 0
        self.unsent = 0
        self.latency_s: float | None = None
        self.sent_at: float | None = None
        self.beside: frozenset[int] = frozenset()
        self.out = 0
        self.spent: Counter[tuple[Kind, str]] = Counter()
        self.refused_since: float | None = None
        self.refusal: EngineError | None = None
        self.patience = 1.0
        self.answers: list[Completion] = []
        self.answer: Answer[Any] | None = None
        self.asked_again = 0
        self.unparsed: OutputUnparsedError | None = None
        self.due = False
        self.first: Prompt | None = None


def poison(job: Job, error: EngineError, crashes: int) -> EngineError:
    """The error of a row that is quarantined: what it met, and why it is not sent any more. Says so in the
    log, with its place.
    """
    what = "stopped answering" if kind_of(error) is Kind.TIMEOUT else "died"
    said, deaths = copy.copy(error), f"the engine has {what} {crashes} times with"
    last = "the last time with it alone, and answered others between"
    said.message = f"{error.message}; {deaths} this row, {last}"
    log.warning(
        "row %s%s is quarantined: %s it, %s. This run does not send it again; its error is in the error "
        "file, and ollama-batch export-failed writes its request from the journal (.run.db) of the run",
        job.custom_id,
        f" ({job.where})" if job.where else "",
        deaths,
        last,
    )
    return said
