"""The data of a run: requests, results and usage. Imports nothing else of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI form: `role`, `content`, and what the role allows beside them."""

Think: TypeAlias = bool | Literal["low", "medium", "high", "max"]
"""Whether, and how hard, a reasoning model thinks before it answers."""

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]

ParsedT = TypeVar("ParsedT", default=Any)

CHAT_URL = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """One chat request of a batch.

    `messages` are plain OpenAI messages. `params` holds every other field of the OpenAI chat body
    (`temperature`, `max_tokens`, `response_format`, `model` ...). `metadata` is yours: it is carried
    to the result unchanged and never sent to the engine. Without a `custom_id` the position of the
    request in its source, counted from 0, becomes its id.
    """

    messages: Sequence[Message]
    custom_id: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def chat(
        cls,
        text: str,
        *,
        system: str | None = None,
        custom_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> BatchRequest:
        """A request with one user message, after an optional system message."""
        head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        return cls(
            messages=[*head, {"role": "user", "content": text}],
            custom_id=custom_id,
            params=params,
            metadata=metadata or {},
        )

    @classmethod
    def from_openai(cls, line: Mapping[str, Any]) -> BatchRequest:
        """A request from one decoded line of an OpenAI batch file.

        Expects a valid line: `ollama_batch.jsonl.parse_line` is the strict reader that names what is
        wrong with any other. Raises KeyError if `body` or `messages` is missing.
        """
        body = dict(line["body"])
        messages = body.pop("messages")
        metadata = body.pop("metadata", None) or {}
        return cls(messages=messages, custom_id=line.get("custom_id"), params=body, metadata=metadata)

    def to_openai(self) -> dict[str, Any]:
        """This request as one line of an OpenAI batch file, ready for `json.dumps`."""
        body: dict[str, Any] = {**self.params, "messages": list(self.messages)}
        if self.metadata:
            body["metadata"] = dict(self.metadata)
        return {"custom_id": self.custom_id, "method": "POST", "url": CHAT_URL, "body": body}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, or of many added up.

    `cached_tokens` is the part of `prompt_tokens` that the engine took from its prefix cache, and
    `reasoning_tokens` the part of `completion_tokens` spent on thinking; `None` says that the engine
    did not report it, which is not 0. `source` tells whether the engine counted or we estimated.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: Literal["engine", "estimate"] = "engine"

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def to_openai(self) -> dict[str, Any]:
        """The `usage` object of an OpenAI chat completion; what is unknown is left out."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage

    @classmethod
    def from_openai(cls, usage: Mapping[str, Any]) -> Usage:
        """Usage from the `usage` object of an OpenAI chat completion."""
        prompt_details = usage.get("prompt_tokens_details") or {}
        completion_details = usage.get("completion_tokens_details") or {}
        return cls(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=prompt_details.get("cached_tokens"),
            reasoning_tokens=completion_details.get("reasoning_tokens"),
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one answer went, in seconds, as far as the engine tells; `None` = not told."""

    queue_s: float | None = None
    load_s: float | None = None
    prompt_s: float | None = None
    generate_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What an engine is given: one request with every setting of the run resolved.

    `params` are the OpenAI body fields of the row laid over the defaults of the run, without
    `model`, `messages`, `metadata`, `max_tokens` and `max_completion_tokens`; an engine has accepted them
    with `check_params` before. `max_tokens` is positive; `own_limit`: the row has set it itself. `num_ctx` is
    the context length in tokens to load the model with, or None where the server decides. `think` is the
    run's setting; a `reasoning_effort` among the params wins over it.
    """

    custom_id: str
    model: str
    messages: Sequence[Message]
    params: Mapping[str, Any]
    max_tokens: int
    own_limit: bool = False
    num_ctx: int | None = None
    think: Think = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A complete answer of an engine.

    `body` is the answer as an OpenAI `chat.completion` object, which is what output files hold; the
    other fields are a view of it, plus what OpenAI's form has no place for. `output` is the text of
    the first choice, `None` if there is none (a tool call, for instance).
    """

    body: Mapping[str, Any]
    output: str | None
    finish_reason: str
    usage: Usage | None
    reasoning: str | None = None
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no answer: a stable `code`, a `message` for people, an HTTP `status` if there was one.

    `row_caused` is False when the engine was to blame and the same row may well succeed later.
    """

    code: str
    message: str
    status: int | None = None
    param: str | None = None
    row_caused: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult(Generic[ParsedT]):
    """The outcome of one request: exactly one for each request of a finished run.

    `ok` rows have `error is None`. A failed row may still carry `output` (an answer cut off by its
    token limit, say). `attempts` counts the times the request was sent; `latency_s` is the time of
    the last attempt, from sending to the complete answer. `index` is the position in the input,
    `lane` the number of the conversation it was part of (None: of none). `trim` says what was left out
    of the prompt, None if nothing was. With a response model, `parsed` is what `output` says, `repaired`
    that `output` is not JSON as it stands, `asked_again` how often an answer did not fit and was asked
    for once more. `usage` is that of the last answer; `earlier_usage` has one for each answer before it,
    which did not fit (None: the engine did not tell), so that the row took the sum of them all.
    """

    custom_id: str
    ok: bool
    output: str | None = None
    parsed: ParsedT | None = None
    reasoning: str | None = None
    error: RowError | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    attempts: int = 0
    latency_s: float | None = None
    trim: Mapping[str, Any] | None = None
    repaired: bool = False
    asked_again: int = 0
    earlier_usage: Sequence[Usage | None] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    model_digest: str | None = None
    index: int = 0
    lane: int | None = None
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who answers: recorded in the run, and compared when it is resumed.

    `digest` identifies the weights (None if the server has no such notion), `slots` is how many
    requests the server runs side by side (None = not told), `context_length` the longest context
    in tokens a request may use or, before loading, the one the model was trained with;
    `context_fixed` says that the server was started with it and no request can change it.
    `shares_prefixes`: what one slot has cached serves all of them (vLLM, SGLang). `tokenizes`: it
    counts prompts exactly when asked (`count_prompt`).
    """

    engine: str
    address: str
    version: str | None
    model: str
    digest: str | None = None
    slots: int | None = None
    context_length: int | None = None
    context_fixed: bool = False
    shares_prefixes: bool = False
    tokenizes: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a server says it holds in memory for a model.

    `size_bytes` is all of it (weights, context of every slot, compute buffers), `vram_bytes` the part on
    the GPU; the rest has spilled into host memory. None: the server does not say. `context_length` is of one
    slot. `overdue_s`: for so many seconds it should have been gone (None: it may stay, or that is not told).
    """

    model: str
    size_bytes: int | None
    vram_bytes: int | None
    context_length: int | None = None
    digest: str | None = None
    overdue_s: float | None = None


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A line or item that is no valid request: where it is, which rule it breaks, what to do.

    `file` is the name of the source, `line` counts from 1 and counts blank lines too. `field` is the
    offending field as a path ("body.messages[0].role"), `code` the stable name of the rule.
    """

    file: str
    line: int
    code: str
    message: str
    custom_id: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        who = f" [{self.custom_id}]" if self.custom_id is not None else ""
        what = f" {self.field}:" if self.field else ""
        return f"{where}{who}{what} {self.message} ({self.code})"


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One row of the input as the journal knows it.

    `index` is the position over all sources, from 0; `source` the number of its source. `line` is the
    1-based line (or item) number, `offset` and `length` its bytes in the file (0 for streams).
    `fingerprint` is a 16-byte BLAKE2b digest of what was read: equal bytes, equal row. A line that is
    no valid request, kept so that the error file can name it, has no `custom_id` here. `order` sorts rows
    by what their requests begin with (`ollama_batch.ordering`). `lane` is where the row belongs in a
    conversation, None where that is not known or there is none.
    """

    index: int
    source: int
    line: int
    custom_id: str | None
    fingerprint: bytes
    offset: int = 0
    length: int = 0
    order: bytes = b""
    lane: int | None = None

    def in_lane(self, lane: int) -> RowRecord:
        """This row, known to belong to `lane`."""
        return replace(self, lane=lane)


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """One finished row as the journal keeps it.

    `line` is the row's line of the output or error file (OpenAI batch form, UTF-8, no newline), lane and
    trim included; `info` is a JSON object with what else that form has no place for (latency, usage source,
    metadata ...). `code` is the error code of a failed row, None for an ok one.
    """

    index: int
    ok: bool
    code: str | None
    attempts: int
    line: bytes
    info: bytes
