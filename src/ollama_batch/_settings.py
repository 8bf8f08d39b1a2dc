"""What turns a row into a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ollama_batch._meeting import Meeting
from ollama_batch._options import RunnerOptions
from ollama_batch._sizes import own_limit
from ollama_batch.types import BatchRequest, ChatRequest, Message, Think

TEST_QUESTION = "Say OK."
"""What the engine is asked when rows fail and none is answered: is it the rows, or the engine?"""


TEMPLATE_FIELDS: Final = ("chat_template_kwargs", "chat_template")
"""Body fields that change what a prompt is made of beside its messages and tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSettings:
    """What turns a row into a request, the same for the whole run."""

    model: str
    defaults: Mapping[str, Any]
    max_tokens: int
    num_ctx: int | None
    think: Think
    timeout_s: float
    on_length: Literal["fail", "keep"]
    patience_s: float
    model_digest: str | None = None

    @classmethod
    def of(cls, options: RunnerOptions, *, model: str, meeting: Meeting) -> SendSettings:
        """The settings of one phase of a run."""
        return cls(
            model=model,
            defaults=options.body_defaults,
            max_tokens=options.max_tokens,
            num_ctx=meeting.num_ctx,
            think=options.think,
            timeout_s=options.timeout,
            on_length=options.on_length,
            patience_s=options.recover_timeout,
            model_digest=meeting.info.digest,
        )

    def to_chat(self, custom_id: str, request: BatchRequest) -> ChatRequest:
        """The request as an engine gets it; the row's own fields win over the defaults."""
        params = {**self.defaults, **request.params}
        params.pop("model", None)  # a row's own is that of the phase, or is not to count
        own = own_limit(params)
        for name in ("max_completion_tokens", "max_tokens"):
            params.pop(name, None)
        return ChatRequest(
            custom_id=custom_id,
            model=self.model,
            messages=request.messages,
            params=params,
            max_tokens=self.max_tokens if own is None else own,
            own_limit=own is not None,
            num_ctx=self.num_ctx,
            think=self.think,
        )

    def test_chat(self) -> ChatRequest:
        """A request that any working engine answers; the load options are those of the rows."""
        return ChatRequest(
            custom_id="test",
            model=self.model,
            messages=({"role": "user", "content": TEST_QUESTION},),
            params={},
            max_tokens=4,
            num_ctx=self.num_ctx,
        )

    def counting_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> ChatRequest:
        """A request that costs no more than evaluating its prompt, made as those of rows are."""
        params = {name: self.defaults[name] for name in TEMPLATE_FIELDS if name in self.defaults}
        return ChatRequest(
            custom_id="count",
            model=self.model,
            messages=messages,
            params={**params, "tools": tools} if tools else params,
            max_tokens=1,
            num_ctx=self.num_ctx,
            think=self.think,
        )
