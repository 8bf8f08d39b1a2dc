"""A completion in the making."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"\s*\S+")


@dataclass(slots=True)
class Answer:
    """What will be answered. Durations are nanoseconds; `cached` is None where it is not reported."""

    model: str
    text: str
    thinking: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    done: bool = True
    done_reason: str = "stop"
    prompt_tokens: int = 0
    cached: int | None = None
    eval_tokens: int = 0
    total_ns: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    fault: str = ""
    body: str | Mapping[str, Any] | None = None
    status: int = 200
    decode_s: float = 0.0


def limit(answer: Answer, num_predict: int, num_ctx: int, shift: bool) -> None:
    """Cut an answer at the token limit, where a token is a word."""
    room = num_predict if 0 < num_predict < 10 * num_ctx else 10 * num_ctx
    if not shift:
        room = min(room, max(num_ctx - answer.prompt_tokens, 0))
    thinking, text = len(answer.thinking.split()), len(answer.text.split())
    answer.eval_tokens = thinking + text
    if answer.eval_tokens > room:
        answer.done_reason = "length"
        answer.eval_tokens = room
        answer.thinking = "".join(_WORD.findall(answer.thinking)[:room])
        answer.text = "".join(_WORD.findall(answer.text)[: max(room - thinking, 0)])
