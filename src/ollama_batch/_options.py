"""The settings of a runner and of a run, checked once."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import IO, Any, Literal, TypeAlias, TypedDict

from ollama_batch._outputs import PathLike
from ollama_batch.errors import ConfigError
from ollama_batch.types import BatchRequest, Think

NUM_CTX_BUCKETS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
"""Context lengths, in tokens, that num_ctx="auto" chooses from."""

RUN_FIELDS = ("messages", "metadata", "max_tokens", "max_completion_tokens", "model", "stream")
"""Body fields that are a setting of the runner or of a row, never a default for all rows."""


def _refuse(name: str, value: object, rule: str) -> None:
    raise ConfigError(f"{name}={value!r}: must be {rule}")


def _whole(name: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        _refuse(name, value, f"a whole number, {least} or more")


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        _refuse(name, value, "a number of seconds above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What a BatchRunner was made with; see there for the meaning of each."""

    model: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    num_ctx: int | Literal["auto"] = "auto"
    max_tokens: int = 1024
    think: Think = False
    allow_models: frozenset[str] = frozenset()
    concurrency: int | Literal["auto"] = "auto"
    timeout: float = 600.0
    load_timeout: float = 1800.0
    recover_timeout: float = 900.0
    on_length: Literal["fail", "keep"] = "fail"
    unload_after: bool = False

    def __post_init__(self) -> None:
        if not str(self.model).strip():
            _refuse("model", self.model, 'the name of a model, as in "gemma3:12b"')
        for name in RUN_FIELDS:
            if name in self.defaults:
                where = "BatchRunner(max_tokens=)" if name.startswith("max_") else f"BatchRunner({name}=)"
                hint = (
                    f"use {where}"
                    if name in ("max_tokens", "max_completion_tokens", "model")
                    else "leave it out"
                )
                raise ConfigError(f"defaults={{{name!r}: ...}}: no default for all rows; {hint}")
        if self.num_ctx != "auto":
            _whole("num_ctx", self.num_ctx, 16)
        _whole("max_tokens", self.max_tokens)
        if self.think not in (True, False, "low", "medium", "high", "max"):
            _refuse("think", self.think, 'True, False, "low", "medium", "high" or "max"')
        if self.concurrency != "auto":
            _whole("concurrency", self.concurrency)
        for name in ("timeout", "load_timeout", "recover_timeout"):
            _seconds(name, getattr(self, name))
        if self.on_length not in ("fail", "keep"):
            _refuse("on_length", self.on_length, '"fail" or "keep"')

    def identity(self) -> dict[str, Any]:
        """The settings that change answers, compared when a run is resumed."""
        return {
            "model": self.model,
            "defaults": dict(self.defaults),
            "max_tokens": self.max_tokens,
            "think": self.think,
            "mode": "independent",
            "on_length": self.on_length,
        }


Item: TypeAlias = BatchRequest | Mapping[str, Any] | str
Requests: TypeAlias = PathLike | Sequence[PathLike] | IO[Any] | Iterable[Item] | AsyncIterable[Item]
"""What a run takes: path(s) or a glob, an open file, an iterable or async iterable of requests."""


class RunArguments(TypedDict, total=False):
    """What `run`, `arun`, `stream`, `iter_results` and `start` take beside the requests; all optional.

    `output`: the file for results (input order, OpenAI batch form); for several inputs a folder or one
    path each. Without it results are kept for the report only, in a temporary file.
    `errors`: the file for failed rows, by default `<output stem>.errors.jsonl`; made only if rows failed.
    `journal`: where the run is kept, "auto" = `<output>.run.db`; None = not durable.
    `partial`: let `<output>.partial.jsonl` grow in completion order while the run goes (default True).
    `on_invalid`: invalid rows refuse the whole run ("fail", the default: nothing is sent) or go to the
    error file ("skip").
    `retry_failed`: send the failed rows of earlier sessions again: True, or a set of error codes.
    `max_failures`: stop after more failed rows than this number, or share (below 1) of all rows; by default
    a run stops whose first 50 rows all fail for one reason of their own.
    `deadline`: stop after so many seconds, or at a time (with time zone).
    `limit`: only the first so many rows; a later run of the same with more, or without, goes on.
    `overwrite`: begin anew where another run, or a foreign file, is in the way; that run's journal is
    renamed, never deleted.
    """

    output: PathLike | Sequence[PathLike] | None
    errors: PathLike | Sequence[PathLike] | None
    journal: PathLike | Literal["auto"] | None
    partial: bool
    on_invalid: Literal["fail", "skip"]
    retry_failed: bool | Collection[str]
    max_failures: float | None
    deadline: float | dt.datetime | None
    limit: int | None
    overwrite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The checked arguments of a run, less its paths; see RunArguments for the meaning of each."""

    on_invalid: Literal["fail", "skip"] = "fail"
    retry_failed: bool | Collection[str] = False
    max_failures: float | None = None
    deadline: float | dt.datetime | None = None
    overwrite: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.on_invalid not in ("fail", "skip"):
            _refuse("on_invalid", self.on_invalid, '"fail" or "skip"')
        if isinstance(self.retry_failed, str):
            _refuse(
                "retry_failed",
                self.retry_failed,
                'True, False or a set of error codes such as {"request_timeout"}',
            )
        limit = self.max_failures
        if limit is not None and (isinstance(limit, bool) or not limit >= 0):
            _refuse("max_failures", limit, "a number of rows, or a share between 0 and 1")
        if isinstance(self.deadline, dt.datetime):
            if self.deadline.tzinfo is None:
                _refuse("deadline", self.deadline, "a time with a time zone, or a number of seconds")
        elif self.deadline is not None:
            _seconds("deadline", self.deadline)
        if self.limit is not None:
            _whole("limit", self.limit)

    @classmethod
    def of(cls, arguments: RunArguments) -> RunOptions:
        """Check `arguments`; raises ConfigError for a name or a value that is wrong."""
        for name in arguments:
            if name not in RunArguments.__annotations__:
                known = ", ".join(sorted(RunArguments.__annotations__))
                raise ConfigError(f"{name}= is no option of a run; those are {known}")
        mine = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in arguments.items() if name in mine})  # type: ignore[arg-type]  # the names were checked above

    @property
    def retry(self) -> frozenset[str] | Literal[True] | None:
        """Which failed rows count as pending again."""
        if isinstance(self.retry_failed, bool):
            return True if self.retry_failed else None
        return frozenset(self.retry_failed)

    def seconds_left(self) -> float | None:
        """Seconds until the deadline, counted from now."""
        if isinstance(self.deadline, dt.datetime):
            return max(0.0, (self.deadline - dt.datetime.now(dt.UTC)).total_seconds())
        return self.deadline
