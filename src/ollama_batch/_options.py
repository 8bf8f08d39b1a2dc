"""The settings of a runner and of a run, checked once."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import IO, Any, Literal, TypeAlias, TypedDict

from ollama_batch._gauge import StateDir
from ollama_batch._outputs import PathLike
from ollama_batch.concurrency import MOST_AT_ONCE, Concurrency
from ollama_batch.control.supervisor import Supervisor
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.engines.base import Engine
from ollama_batch.errors import ConfigError
from ollama_batch.memory import Guard
from ollama_batch.retry import RetryPolicy
from ollama_batch.structured.form import AnswerForm, response_format
from ollama_batch.tokens import TokenCounter
from ollama_batch.trim import HybridTrim, TrimStrategy
from ollama_batch.types import BatchRequest, Think

RUN_FIELDS = ("messages", "metadata", "max_tokens", "max_completion_tokens", "model", "stream")
"""Body fields that are a setting of the runner or of a row, never a default for all rows."""


def _refuse(name: str, value: object, rule: str) -> None:
    raise ConfigError(f"{name}={value!r}: must be {rule}")


def _whole(name: str, value: object, least: int = 1, most: int = 2**31 - 1) -> None:
    if type(value) is not int or not least <= value <= most:
        _refuse(name, value, f"a whole number from {least:,} to {most:,}")


def _name(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        _refuse(name, value, 'the name of a model, as in "gemma3:12b"')


def _share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        _refuse(name, value, "a number of rows, or a share between 0 and 1")


def _or_auto(name: str, value: object, least: int, most: int) -> None:
    whole = type(value) is int and least <= value <= most
    if value != "auto" and not whole:
        _refuse(name, value, f'"auto" or a whole number from {least:,} to {most:,}')


def _truth(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(name, value, "True or False")


def _instance(name: str, value: object, kind: type[Any], example: str) -> None:
    if value is not None and (isinstance(value, type) or not isinstance(value, kind)):
        _refuse(name, value, f"a {kind.__name__}, {example}")


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
    row_models: Literal["check", "ignore"] = "check"
    order: Literal["prefix", "input"] = "prefix"
    concurrency: int | Literal["auto"] | Concurrency = "auto"
    timeout: float = 600.0
    load_timeout: float = 1800.0
    recover_timeout: float = 900.0
    on_length: Literal["fail", "keep"] = "fail"
    unload_after: bool = False
    mode: Literal["independent", "conversation"] = "independent"
    conversation: ConversationPolicy | None = None
    trim: TrimStrategy | None = None
    counter: TokenCounter | None = None
    state_dir: StateDir = "auto"
    guards: tuple[Guard, ...] | None = None
    form: AnswerForm[Any] | None = None
    output_retries: int = 1

    def __post_init__(self) -> None:
        for model in (self.model, *self.allow_models):
            _name("model", model)
        for name in RUN_FIELDS:
            if name in self.defaults:
                where = "BatchRunner(max_tokens=)" if name.startswith("max_") else f"BatchRunner({name}=)"
                hint = (
                    f"use {where}"
                    if name in ("max_tokens", "max_completion_tokens", "model")
                    else "leave it out"
                )
                raise ConfigError(f"defaults={{{name!r}: ...}}: no default for all rows; {hint}")
        if self.row_models not in ("check", "ignore"):
            _refuse("row_models", self.row_models, '"check" or "ignore"')
        if self.row_models == "ignore" and self.allow_models:
            raise ConfigError(
                'row_models="ignore" sends every row to the model of the run: leave it or allow_models= out'
            )
        _or_auto("num_ctx", self.num_ctx, 16, 2**31 - 1)
        _whole("max_tokens", self.max_tokens)
        if self.num_ctx != "auto" and self.num_ctx <= self.max_tokens:
            raise ConfigError(
                f"num_ctx={self.num_ctx}, max_tokens={self.max_tokens}: the context holds prompt and answer, "
                "so num_ctx must be larger than max_tokens"
            )
        # 1 == True, but is another setting when written down and compared.
        if not isinstance(self.think, bool) and self.think not in ("low", "medium", "high", "max"):
            _refuse("think", self.think, 'True, False, "low", "medium", "high" or "max"')
        if not isinstance(self.concurrency, Concurrency):
            _or_auto("concurrency", self.concurrency, 1, MOST_AT_ONCE)
        for name in ("timeout", "load_timeout", "recover_timeout"):
            _seconds(name, getattr(self, name))
        if self.order not in ("prefix", "input"):
            _refuse("order", self.order, '"prefix" or "input"')
        if self.on_length not in ("fail", "keep"):
            _refuse("on_length", self.on_length, '"fail" or "keep"')
        if self.form is not None and self.on_length == "keep":
            raise ConfigError('on_length="keep" counts what was cut off, which fits no response_model=')
        _whole("output_retries", self.output_retries, least=0, most=100)
        _truth("unload_after", self.unload_after)
        self._check_context()

    def _check_context(self) -> None:
        """How prompts are made: the mode, and what goes with it."""
        if self.mode not in ("independent", "conversation"):
            _refuse("mode", self.mode, '"independent" or "conversation"')
        if self.conversation is not None and self.mode == "independent":
            raise ConfigError('conversation= is for mode="conversation": add that, or leave it out')
        if self.mode == "conversation" and self.allow_models:
            raise ConfigError("a conversation is held with one model: leave allow_models= out")
        _instance("conversation", self.conversation, ConversationPolicy, "as in ConversationPolicy(lanes=8)")
        _instance("trim", self.trim, TrimStrategy, "as in HybridTrim()")
        _instance("counter", self.counter, TokenCounter, "as in default_counter()")
        folder: object = self.state_dir
        if folder is not None and not isinstance(folder, str | os.PathLike):
            _refuse("state_dir", folder, '"auto", a folder, or None')

    @property
    def policy(self) -> ConversationPolicy | None:
        """How conversations are held; None for independent rows."""
        if self.mode == "independent":
            return None
        return ConversationPolicy() if self.conversation is None else self.conversation

    @property
    def strategy(self) -> TrimStrategy | None:
        """What makes prompts shorter; None: nothing does."""
        if self.trim is None and self.mode == "conversation":
            return HybridTrim()
        return self.trim

    @property
    def body_defaults(self) -> dict[str, Any]:
        """Body fields of rows that do not set them: `defaults`, and the format of a response model."""
        if self.form is None:
            return dict(self.defaults)
        return {"response_format": response_format(self.form), **self.defaults}

    def identity(self) -> dict[str, Any]:
        """The settings that change answers, compared when a run is resumed."""
        settings = {
            "model": self.model,
            "defaults": dict(self.defaults),
            "max_tokens": self.max_tokens,
            "think": self.think,
            "mode": self.mode,
            "on_length": self.on_length,
        }
        # The rest only where it is not as usual, so that a run of the usual kind needs no word of it.
        if self.row_models != "check":
            settings["row_models"] = self.row_models
        if self.policy is not None:
            settings["conversation"] = described(self.policy)
        if self.strategy is not None:
            settings["trim"] = described(self.strategy)
        if self.form is not None:
            settings["response_model"] = self.form.identity()
        return settings


def described(thing: object) -> Any:
    """A setting as JSON, the same in every process: objects by their class and fields, functions by name."""
    if is_dataclass(thing) and not isinstance(thing, type):
        named = {field.name: described(getattr(thing, field.name)) for field in fields(thing)}
        return {"class": type(thing).__qualname__, **named}
    if thing is None or isinstance(thing, str | int | float | bool):
        return thing
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def engine_or(default: Callable[[], Engine], engine: Engine | None, *, as_usual: bool) -> Engine:
    """`engine`, or the default one; `as_usual`: nothing was said of that. Raises ConfigError for both."""
    if engine is None:
        return default()
    if not as_usual:
        raise ConfigError(
            "base_url= and keep_alive= are for the default engine; give them to the one you pass instead"
        )
    return engine


def check_parts(
    engine: Engine, options: RunnerOptions, retry: object, hooks: Sequence[object], supervisor: object
) -> None:
    """Raise ConfigError unless each is what a runner can work with, and the engine can honour `options`."""
    if isinstance(engine, type) or not callable(getattr(engine, "complete", None)):
        raise ConfigError(f"engine={engine!r}: must be an engine, as in OllamaEngine(url)")
    refused = engine.check_params({**options.body_defaults, "messages": []})
    if refused is not None and refused[0] != "messages":
        raise ConfigError(f"defaults[{refused[0]!r}]: {refused[1]}")
    if not isinstance(retry, RetryPolicy):
        raise ConfigError(f"retry={retry!r}: must be a RetryPolicy, as in RetryPolicy(server=5)")
    if not isinstance(supervisor, Supervisor):
        raise ConfigError(f"supervisor={supervisor!r}: must be a Supervisor, as in Supervisor(most=3)")
    for hook in hooks:
        if isinstance(hook, type) or not callable(getattr(hook, "on_event", None)):
            raise ConfigError(f"hooks: {hook!r} has no on_event(event)")


def checked_guards(guards: object) -> tuple[Guard, ...] | None:
    """`guards` as a tuple; None for the usual ones. Raises ConfigError for what is no guard."""
    if guards is None:
        return None
    if not isinstance(guards, Collection) or isinstance(guards, str):
        _refuse("guards", guards, "guards in a list, as in [VramGuard()]; () for none")
    found: list[Guard] = list(guards)  # type: ignore[call-overload]  # checked above
    for guard in found:
        if isinstance(guard, type) or not callable(getattr(guard, "decide", None)):
            raise ConfigError(f"guards: {guard!r} has no decide(sample)")
    return tuple(found)


def checked_defaults(defaults: object) -> dict[str, Any]:
    """A copy of `defaults` made of JSON's own types; raises ConfigError if it is no such thing."""
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        _refuse("defaults", defaults, 'body fields and their values, as in {"temperature": 0}')
    assert isinstance(defaults, Mapping)  # noqa: S101 - checked above
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(defaults), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"defaults={defaults!r}: cannot be written as JSON ({error})") from error
    return copy


def checked_form(response_model: object) -> AnswerForm[Any] | None:
    """The form of `response_model`. Raises ConfigError, MissingExtraError."""
    if response_model is None:
        return None
    from ollama_batch.structured import form_of

    return form_of(response_model)


def checked_models(models: object) -> frozenset[str]:
    """The names in `models`; raises ConfigError for a single one, whose letters are no models."""
    if isinstance(models, str) or not isinstance(models, Collection):
        _refuse("allow_models", models, 'a list of names, as in ["gemma3:12b"]')
    assert isinstance(models, Collection)  # noqa: S101 - checked above
    try:
        return frozenset(models)
    except TypeError as error:
        raise ConfigError(f"allow_models={models!r}: must be a list of names") from error


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
    `max_failures`: stop after more failed rows than this number, or share (below 1) of all rows (skipped
    ones not counted); by default a run stops whose first 50 rows all fail for one reason of their own.
    `deadline`: stop after so many seconds, validation and loading included, or at a time (with time zone).
    `limit`: only the first so many rows; a later run of the same with more, or without, goes on.
    `overwrite`: begin anew where another run, a finished one (also of the same settings) or a foreign file
    is in the way; that run's journal is renamed, never deleted, and comes back if nothing was done in its
    place. The same run, unfinished, is resumed. Other items of an iterable than an unfinished run began with
    are refused all the same: which they are shows only while they come.
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
        again = self.retry_failed
        codes = isinstance(again, Collection) and not isinstance(again, str | bytes)
        if not isinstance(again, bool) and not (codes and all(isinstance(code, str) for code in again)):
            _refuse("retry_failed", again, 'True, False or a set of error codes such as {"request_timeout"}')
        if self.max_failures is not None:
            _share("max_failures", self.max_failures)
        if isinstance(self.deadline, dt.datetime):
            if self.deadline.tzinfo is None:
                _refuse("deadline", self.deadline, "a time with a time zone, or a number of seconds")
        elif self.deadline is not None:
            _seconds("deadline", self.deadline)
        if self.limit is not None:
            _whole("limit", self.limit)
        _truth("overwrite", self.overwrite)

    @classmethod
    def of(cls, arguments: RunArguments) -> RunOptions:
        """Check `arguments`; raises ConfigError for a name or a value that is wrong."""
        for name in arguments:
            if name not in RunArguments.__annotations__:
                known = ", ".join(sorted(RunArguments.__annotations__))
                raise ConfigError(
                    f"{name}= is no option of a run; those are {known}. A body field goes to "
                    f"BatchRunner(defaults={{{name!r}: ...}}) for all rows, or to "
                    f"BatchRequest.chat(..., {name}=...) for one"
                )
        _truth("partial", arguments.get("partial", True))
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
