"""Whether so many rows will be done in a night, from a few of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from ollama_batch._items import duplicate_row
from ollama_batch._sizes import PromptSizes, needed_tokens
from ollama_batch.doctor.measure import answer
from ollama_batch.engines.base import Engine
from ollama_batch.engines.ollama_fields import OLLAMA_FIELDS
from ollama_batch.errors import ConfigError, EngineError
from ollama_batch.sources import FileSource, ScannedRow, open_sources
from ollama_batch.types import BatchRequest, ChatRequest, InvalidRow

SAMPLED: Final = 16
MADE_UP_WORDS: Final = 250
MADE_UP_TOKENS: Final = 128
ANSWER_TOKENS: Final = 1024
"""What `run` gives rows that set no limit."""

FILE_FACTOR: Final = 4.0
"""Journal, output and the file of what is done so far, by the bytes of the answers; measured, rounded up."""

FIXED_BYTES: Final = 2000
"""What a row takes on the disk beside its answer: its id, its place, its figures."""

_WORDS: Final = (
    *("river", "stone", "morning", "letter", "window", "garden", "winter", "engine", "market", "silver"),
    *("paper", "mountain", "candle", "harbour", "bridge", "forest", "island", "lantern", "valley", "meadow"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests to measure with, and what they stand for.

    `rows` is how many rows the files have (None: no file was given), `invalid` how many of their lines are
    none that a run would take, `first_invalid` the first of those. `num_ctx` is what a run chooses for all
    rows by itself.
    """

    requests: tuple[BatchRequest, ...]
    rows: int | None = None
    invalid: int = 0
    first_invalid: InvalidRow | None = None
    num_ctx: int | None = None

    @property
    def made_up(self) -> bool:
        """Whether these are no rows of the user's."""
        return self.rows is None

    @property
    def model(self) -> str | None:
        """The model that the rows name, if they do."""
        return next((each.params["model"] for each in self.requests if each.params.get("model")), None)


@dataclass(frozen=True, slots=True)
class Pace:
    """What the sampled rows took.

    `done` of `tried` rows were answered in `wall_s` seconds, `concurrency` at a time, each in `mean_s`
    seconds on average (`error` is twice the standard error of that mean, as a share of it: how far a
    sample of so few may be off). `prompt_tokens` and `completion_tokens` are means (None: not told),
    `row_bytes` what a row will take on the disk. `failures` are the reasons of those that a run would fail,
    answered or not.
    """

    tried: int
    done: int
    concurrency: int
    wall_s: float
    mean_s: float | None = None
    error: float = 0.0
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    row_bytes: int | None = None
    failures: tuple[str, ...] = ()

    def seconds_for(self, rows: int) -> tuple[float, float] | None:
        """How long `rows` rows take, from and to; None if no row was answered.

        At least as long as with all requests out at all times, at most as the sample took from its first
        request to its last answer, when fewer and fewer were out; less and more the error of the sample.
        """
        if not self.done or self.mean_s is None:
            return None
        least = rows * self.mean_s / self.concurrency
        most = max(least, rows * self.wall_s / self.done)
        return least * (1 - self.error), most * (1 + self.error)


def read_sample(paths: Sequence[Path], *, count: int = SAMPLED, seed: int = 0) -> Sample:
    """Rows from all over the files, each as likely as any other. Reads every line once.

    Raises InputError for a file that cannot be read, ConfigError for what is no regular file.
    """
    chance = random.Random(seed)  # noqa: S311 - a choice of rows, not a secret
    chosen: list[tuple[int, BatchRequest]] = []
    rows = invalid = 0
    first: InvalidRow | None = None
    sizes = PromptSizes()
    for source in open_sources(list(paths)):
        if not isinstance(source, FileSource):
            raise ConfigError(f"{source.name} is no regular file: the doctor reads the input once more")
        lines: dict[int, int] = {}  # by the hash of the id, which is less to hold than the id
        for row in source.scan(check=OLLAMA_FIELDS.check):
            if isinstance(row, ScannedRow):
                earlier = lines.setdefault(hash(row.custom_id), row.line)
                if earlier != row.line:
                    row = duplicate_row(source.name, row.to_record(0, 0), earlier)
            if not isinstance(row, ScannedRow):
                invalid += 1
                first = first or row
                continue
            place = rows if rows < count else chance.randrange(rows + 1)
            rows += 1
            sizes.add(row.custom_id, needed_tokens(row.request, ANSWER_TOKENS))
            if place < len(chosen):
                chosen[place] = (rows, row.request)
            elif place < count:
                chosen.append((rows, row.request))
    # In the order of the file: rows that begin alike often stand together, and the cache serves them.
    ordered = tuple(request for _, request in sorted(chosen, key=lambda each: each[0]))
    return Sample(ordered, rows, invalid, first, sizes.bucket() if rows else None)


def made_up_sample(count: int = SAMPLED) -> Sample:
    """Requests that have nothing in common, of which nothing is cached."""
    requests = []
    for number in range(count):
        chance = random.Random(number)  # noqa: S311 - made-up text, not a secret
        text = " ".join(chance.choices(_WORDS, k=MADE_UP_WORDS))
        content = f"{number}: write a short story with these words: {text}"
        message = {"role": "user", "content": content}
        requests.append(
            BatchRequest(
                custom_id=f"doctor-{number}", messages=[message], params={"max_tokens": MADE_UP_TOKENS}
            )
        )
    return Sample(tuple(requests))


async def measure_pace(
    engine: Engine, sample: Sample, model: str, *, num_ctx: int | None, concurrency: int, measure_s: float
) -> Pace:
    """Send the sample, `concurrency` at a time, until it is done or `measure_s` seconds have passed.

    What is out then has as much time again.
    """
    began = time.monotonic()
    waiting = [chat_of(each, model, num_ctx) for each in sample.requests]
    waiting.reverse()
    tried = 0
    times: list[float] = []
    tokens: list[tuple[int, int]] = []
    sizes: list[int] = []
    failures: list[str] = []
    last = began

    async def work() -> None:
        nonlocal tried, last
        while waiting and time.monotonic() - began < measure_s:
            request = waiting.pop()
            tried += 1
            try:
                found, completion = await answer(engine, request, deadline=began + 2 * measure_s)
            except EngineError as exc:
                failures.append(exc.code)
                continue
            if found.code is not None and not sample.made_up:
                failures.append(found.code)
            last = max(last, found.over)
            times.append(found.took_s)
            if completion.usage is not None:
                tokens.append((completion.usage.prompt_tokens, completion.usage.completion_tokens))
            sizes.append(len((completion.output or "").encode()) + len((completion.reasoning or "").encode()))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    pace = Pace(tried, len(times), min(concurrency, max(tried, 1)), last - began, failures=tuple(failures))
    if not times:
        return replace(pace, wall_s=time.monotonic() - began)
    return replace(
        pace,
        mean_s=fmean(times),
        error=error_of(times),
        prompt_tokens=fmean(each for each, _ in tokens) if tokens else None,
        completion_tokens=fmean(each for _, each in tokens) if tokens else None,
        row_bytes=round(FILE_FACTOR * fmean(sizes) + FIXED_BYTES),
    )


def error_of(times: Sequence[float]) -> float:
    """Twice the standard error of the mean of `times`, as a share of it, at most 0.5; 0.5 of one or two."""
    if len(times) < 3:
        return 0.5
    return min(0.5, 2 * stdev(times) / sqrt(len(times)) / fmean(times))


def chat_of(request: BatchRequest, model: str, num_ctx: int | None) -> ChatRequest:
    """A row as `run` would send it with no options of its own."""
    params: dict[str, Any] = dict(request.params)
    params.pop("model", None)
    limits = [params.pop("max_completion_tokens", None), params.pop("max_tokens", None)]
    return ChatRequest(
        custom_id=request.custom_id or "row",
        model=model,
        messages=request.messages,
        params=params,
        max_tokens=next((limit for limit in limits if limit is not None), ANSWER_TOKENS),
        num_ctx=num_ctx,
    )
