"""Prepared replies: what a server may send instead of an answer, and what each of them is.

Every shape has two forms, that of Ollama's `/api/chat` and that of `/v1/chat/completions`. `code` is the
error it is, None for an answer; `again` says whether the row is sent again for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollama_batch.testing import Fault

TEXT = "forty-two"
DROP = object()
CALL = {"function": {"name": "look_up", "arguments": {"id": 7}}}
GPT_CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"id": 7}'}}
LOOP = "again and " * 60
SPACES = '{"score": 4' + "\n" * 900
OVERFLOW = {
    "code": 400,
    "message": "request (5000 tokens) exceeds the available context size (2048 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 5000,
    "n_ctx": 2048,
}
HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
OOM = "an error was encountered while running the model: CUDA error: out of memory"


def native(content: Any = TEXT, message: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A complete answer of `/api/chat`, with `changes`."""
    body: dict[str, Any] = {
        "model": "toy:1b",
        "created_at": "2026-08-21T10:00:00.123456789Z",
        "message": {"role": "assistant", "content": content, **(message or {})},
        "done": True,
        "done_reason": "stop",
        "total_duration": 10_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 2_000_000,
        "eval_count": 7,
        "eval_duration": 3_000_000,
        **changes,
    }
    body["message"] = _kept(body["message"])
    return _kept(body)


def gpt(
    content: Any = TEXT, finish: Any = "stop", message: Mapping[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A complete `chat.completion`, with `changes`."""
    said = _kept({"role": "assistant", "content": content, **(message or {})})
    choice = _kept({"index": 0, "message": said, "finish_reason": finish})
    body = {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1_787_000_000,
        "model": "toy:1b",
        "choices": [choice],
        "usage": {"prompt_tokens": 26, "completion_tokens": 7, "total_tokens": 33},
        **changes,
    }
    return _kept(body)


def _kept(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not DROP} if isinstance(value, dict) else value


def two(body: Mapping[str, Any]) -> str:
    return json.dumps(body) * 2


def with_literal(body: Mapping[str, Any], count: str, literal: str) -> str:
    """`body` with a count replaced by what Python's json would not write."""
    return json.dumps(body).replace(f'"{count}": 26', f'"{count}": {literal}')


@dataclass(frozen=True, slots=True)
class Shape:
    """A prepared reply. `status` and `headers` are those of the reply; a `Fault` does what bytes cannot."""

    name: str
    native: Mapping[str, Any] | str | Fault
    gpt: Mapping[str, Any] | str | Fault
    code: str | None
    again: bool = False
    status: int = 200
    output: str | None = TEXT

    def fault(self, form: str, **conditions: Any) -> Fault:
        """What makes a fake server reply so to the row of this name."""
        made = self.native if form == "native" else self.gpt
        if isinstance(made, Fault):
            return Fault(made.kind, match=self.match, **conditions)
        return Fault("status", status=self.status, body=made, match=self.match, **conditions)

    @property
    def match(self) -> str:
        """The first line of the row that gets it."""
        return f"[{self.name}]"


def same(name: str, body: Mapping[str, Any] | str, code: str | None, again: bool, status: int) -> Shape:
    return Shape(name, body, body, code, again, status)


def fault(name: str, kind: str, code: str | None, again: bool) -> Shape:
    return Shape(name, Fault(kind), Fault(kind), code, again)


INVALID, EMPTY, CUT = "invalid_reply", "output_empty", "output_truncated"
ONLY = "output_reasoning_only"

ANSWERS = [
    Shape("plain", native(), gpt(), None),
    Shape("unknown fields", native(x=[1], y={"z": None}), gpt(x=[1], service_tier="auto"), None),
    Shape("an error that is null", native(error=None), gpt(error=None), None),
    Shape(
        "no counts",
        native(prompt_eval_count=DROP, eval_count=DROP, total_duration=DROP),
        gpt(usage=DROP),
        None,
    ),
    Shape("reasoning and text", native(message={"thinking": "hm"}), gpt(message={"reasoning": "hm"}), None),
    Shape(
        "thinking left in the text",
        native("<think>hm</think>" + TEXT),
        gpt("<think>hm</think>" + TEXT),
        None,
        output="<think>hm</think>" + TEXT,
    ),
    Shape(
        "tool calls only",
        native("", message={"tool_calls": [CALL]}),
        gpt(None, "tool_calls", message={"tool_calls": [GPT_CALL]}),
        None,
        output=None,
    ),
    Shape(
        "declined in words",
        native("I'm sorry, but I can't help with that."),
        gpt("I'm sorry, but I can't help with that."),
        None,
        output="I'm sorry, but I can't help with that.",
    ),
    Shape("no reason given, but done", native(done_reason=DROP), gpt(finish="eos_token"), None),
]

USELESS = [
    Shape("empty", native(""), gpt(""), EMPTY),
    Shape("white space", native("\n\n \t\n"), gpt("\n\n \t\n"), EMPTY),
    Shape("content null", native(None), gpt(None), EMPTY),
    Shape("content missing", native(DROP), gpt(DROP), EMPTY),
    Shape(
        "reasoning only",
        native("", message={"thinking": "let me see"}),
        gpt(None, message={"reasoning_content": "let me see"}),
        ONLY,
    ),
    Shape("thinking in the text only", native("<think>hm</think>\n"), gpt("<think>hm</think>\n"), ONLY),
    Shape(
        "thinking only, behind a byte order mark",
        native("\ufeff <think>hm</think>"),
        gpt("\ufeff <think>hm</think>"),
        ONLY,
    ),
    Shape("a byte order mark only", native("\ufeff\n"), gpt("\ufeff\n"), EMPTY),
    Shape("thinking that never ends", native("<think>hm, so"), gpt("<think>hm, so"), ONLY),
    Shape(
        "no tool calls", native("", message={"tool_calls": []}), gpt("", message={"tool_calls": []}), EMPTY
    ),
    Shape(
        "thinking ate the budget",
        native("", message={"thinking": "let me see"}, done_reason="length"),
        gpt(None, "length", message={"reasoning": "let me see"}),
        CUT,
    ),
    Shape("cut by the limit", native(TEXT, done_reason="length"), gpt(TEXT, "length"), CUT),
    Shape("cut before any text", native("", done_reason="length"), gpt("", "length"), CUT),
    Shape("runaway", native(LOOP, done_reason="length"), gpt(LOOP, "length"), CUT),
    Shape("runaway of white space", native(SPACES, done_reason="length"), gpt(SPACES, "length"), CUT),
    Shape(
        "cut in a tool call",
        native("", message={"tool_calls": [CALL]}, done_reason="length"),
        gpt(None, "length", message={"tool_calls": [GPT_CALL]}),
        CUT,
    ),
    Shape(
        "cut, in other words",
        native(TEXT, done_reason="length"),
        gpt(TEXT, "max_tokens"),
        CUT,
    ),
    Shape(
        "withheld",
        native("", done_reason="content_filter"),
        gpt("", "content_filter"),
        "output_refused",
    ),
    Shape(
        "refused in a field of its own",
        native("", done_reason="content_filter"),
        gpt(None, message={"refusal": "I can't help with that."}),
        "output_refused",
    ),
]

NO_ANSWERS = [
    Shape("not done", native(done=False), gpt(finish=None), INVALID, True),
    Shape("done missing", native(done=DROP), gpt(finish=DROP), INVALID, True),
    Shape("done in words", native(done="true"), gpt(finish=True), INVALID, True),
    Shape(
        "repeated until the server gave up",
        native(LOOP, done=False, done_reason=DROP, eval_count=DROP, prompt_eval_count=DROP),
        gpt(LOOP, None),
        INVALID,
        True,
    ),
    Shape("broken off", native(done_reason="abort"), gpt(finish="abort"), INVALID, True),
    Shape("ended by an error", native(done_reason="error"), gpt(finish="error"), INVALID, True),
    Shape("a load instead", native(done_reason="load"), gpt(choices=[]), INVALID, True),
    Shape(
        "a zero body",
        '{"model":"","created_at":"0001-01-01T00:00:00Z","message":{"role":"","content":""},"done":false}',
        {"id": "", "object": "", "created": 0, "model": "", "choices": None},
        INVALID,
        True,
    ),
    Shape(
        "message missing",
        {name: value for name, value in native().items() if name != "message"},
        gpt(choices=[{"index": 0, "finish_reason": "stop"}]),
        INVALID,
        True,
    ),
    Shape(
        "message is text",
        {**native(), "message": TEXT},
        gpt(choices=[{"index": 0, "message": TEXT, "finish_reason": "stop"}]),
        INVALID,
        True,
    ),
    Shape("content is a number", native(42), gpt(42), INVALID, True),
    Shape(
        "content in parts",
        native([{"type": "text", "text": TEXT}]),
        gpt([{"type": "text", "text": TEXT}]),
        INVALID,
        True,
    ),
    Shape(
        "tool calls that are none",
        native("", message={"tool_calls": [{"function": None}]}),
        gpt(None, "tool_calls", message={"tool_calls": [{"function": None}]}),
        INVALID,
        True,
    ),
    Shape(
        "tool calls in words",
        native("", message={"tool_calls": "look_up(7)"}),
        gpt(None, "tool_calls", message={"tool_calls": "look_up(7)"}),
        INVALID,
        True,
    ),
    Shape(
        "counts that are NaN",
        with_literal(native(), "prompt_eval_count", "NaN"),
        with_literal(gpt(), "prompt_tokens", "NaN"),
        INVALID,
        True,
    ),
    Shape(
        "counts below zero",
        native(prompt_eval_count=-1),
        gpt(usage={"prompt_tokens": -1, "completion_tokens": 7}),
        INVALID,
        True,
    ),
    Shape(
        "counts in words",
        native(eval_count="7"),
        gpt(usage={"prompt_tokens": 26, "completion_tokens": "7"}),
        INVALID,
        True,
    ),
    Shape("another model", native(model="other:1b"), gpt(choices={}), INVALID, True),
    Shape("two documents", two(native()), two(gpt()), INVALID, True),
    Shape(
        "a stream that was not asked for",
        json.dumps(native("forty", done=False)) + "\n" + json.dumps(native("-two")) + "\n",
        f"data: {json.dumps(gpt())}\n\ndata: [DONE]\n\n",
        INVALID,
        True,
    ),
    Shape("half a document", json.dumps(native())[:60], json.dumps(gpt())[:60], INVALID, True),
    Shape(
        "half a character",
        json.dumps(native()).replace(TEXT, "\\ud83d"),
        json.dumps(gpt()).replace(TEXT, "\\ud83d"),
        INVALID,
        True,
    ),
    fault("bytes that are no text", "bad_utf8", INVALID, True),
    same("no body", "", INVALID, True, 200),
    same("a list", "[]", INVALID, True, 200),
    same("null", "null", INVALID, True, 200),
    same("words", '"forty-two"', INVALID, True, 200),
    same("plain text", "forty-two", INVALID, True, 200),
    same("somebody else's object", '{"detail": "Not Found"}', INVALID, True, 200),
    same("a page with status 200", HTML, INVALID, True, 200),
    same("a page with status 502", HTML, "engine_error", True, 502),
    same("a page with status 404", "404 page not found", INVALID, True, 404),
    same("nothing, with status 500", "", "engine_error", True, 500),
    fault("cut short", "cut", "connection_lost", True),
    fault("reset in mid-answer", "reset_mid", "connection_lost", True),
]

ERRORS = [
    same("an error with status 200", {"error": "something broke"}, "engine_error", True, 200),
    same("an error object with status 200", {"error": {"message": "broke"}}, "engine_error", True, 200),
    Shape(
        "an error beside an answer",
        native(error="broke"),
        gpt(error={"message": "broke"}),
        "engine_error",
        True,
    ),
    same("busy with status 200", {"error": BUSY}, "engine_busy", True, 200),
    same("busy", {"error": BUSY}, "engine_busy", True, 503),
    same("too many requests", {"error": "too many requests"}, "engine_busy", True, 429),
    same("loading", {"error": {"message": "Loading model", "code": 503}}, "engine_loading", True, 503),
    same("out of memory", {"error": OOM}, "out_of_memory", True, 500),
    same("out of memory with status 200", {"error": OOM}, "out_of_memory", True, 200),
    same(
        "a crash",
        {"error": "an error was encountered while running the model: unexpected EOF"},
        "engine_crashed",
        True,
        500,
    ),
    same(
        "JSON in the error",
        {"error": json.dumps({"error": OVERFLOW})},
        "context_length_exceeded",
        False,
        400,
    ),
    same(
        "JSON in JSON in the error",
        {"error": json.dumps({"error": json.dumps({"error": OVERFLOW})})},
        "context_length_exceeded",
        False,
        400,
    ),
    same(
        "JSON in the error with status 200",
        {"error": json.dumps({"error": OVERFLOW})},
        "context_length_exceeded",
        False,
        200,
    ),
    same(
        "a row at fault with status 500",
        {"error": 'invalid format: "x"; expected "json" or a valid JSON Schema object'},
        "request_rejected",
        False,
        500,
    ),
    same(
        "a row at fault", {"error": {"message": "bad value", "param": "stop"}}, "request_rejected", False, 400
    ),
    same(
        "cannot think", {"error": '"toy:1b" does not support thinking'}, "unsupported_parameter", False, 400
    ),
]

SHAPES = [*ANSWERS, *USELESS, *NO_ANSWERS, *ERRORS]
