"""One row of a run as its analysis sees it: from a journal, or from a line of anybody's result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_batch._usage import saved_tokens
from ollama_batch.jsonl import fault_of, first_choice
from ollama_batch.records import EXTENSION, earlier_usage
from ollama_batch.types import BatchResult, Usage

_OK = 200
_HTTP_ERROR = 400


@dataclass(slots=True, kw_only=True)
class ResultRow:
    """What is known of one finished row; None is what nobody recorded.

    `finished_at` is in seconds since the epoch: when the result was committed, or, from a result file, the
    time that the answer itself bears. `session` numbers the part of the run it belongs to. `parsed` is the
    answer as an object, where the run recorded it. `usage` is that of the last answer, `earlier_usage` has
    those of the answers before it that did not fit, `replaced_usage` those of all answers that it had before
    it was sent again as a failed row.
    """

    custom_id: str
    ok: bool
    output: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    attempts: int | None = None
    latency_s: float | None = None
    finished_at: float | None = None
    session: int | None = None
    usage: Usage | None = None
    earlier_usage: Sequence[Usage | None] = ()
    replaced_usage: Sequence[Usage | None] = ()
    asked_again: int = 0
    lane: int | None = None
    trimmed_tokens: int | None = None
    repaired: bool = False
    model: str | None = None
    parsed: Any = None

    @property
    def context_tokens(self) -> int | None:
        """Tokens of prompt and answer together: what the row took of the context."""
        return None if self.usage is None else self.usage.total_tokens


def row_of_result(
    result: BatchResult[Any],
    *,
    parsed: Any = None,
    finished_at: float | None = None,
    session: int | None = None,
    replaced: Sequence[BatchResult[Any]] = (),
) -> ResultRow:
    """A result of ours; `parsed` is its answer as an object, where that is recorded, `replaced` the failed
    results that its row had before.
    """
    error = result.error
    return ResultRow(
        custom_id=result.custom_id,
        ok=result.ok,
        output=result.output,
        reasoning=result.reasoning,
        finish_reason=result.finish_reason,
        error_code=None if error is None else error.code,
        error_message=None if error is None else error.message,
        attempts=result.attempts,
        latency_s=result.latency_s,
        finished_at=finished_at,
        session=session,
        usage=result.usage,
        earlier_usage=result.earlier_usage,
        replaced_usage=[usage for each in replaced for usage in (*each.earlier_usage, each.usage)],
        asked_again=result.asked_again + sum(each.asked_again for each in replaced),
        lane=result.lane,
        trimmed_tokens=None if result.trim is None else saved_tokens(result.trim),
        repaired=result.repaired,
        model=_text(None if result.body is None else result.body.get("model")),
        parsed=parsed,
    )


def row_of_line(line: Mapping[str, Any]) -> ResultRow | None:
    """The row of one line in OpenAI's batch output form; None if it is no such line.

    It is ok with status 200 and no error, as OpenAI's own failed lines are told from answers. Of several
    choices the first counts. Of a repaired answer our own lines have what it was repaired to.
    """
    if not line.keys() & {"response", "error"}:
        return None
    response, fault = _object(line.get("response")), line.get("error")
    status, body = response.get("status_code"), _object(response.get("body"))
    ok = fault is None and status == _OK and bool(body)
    code = message = None
    if not ok:
        if isinstance(status, int) and status >= _HTTP_ERROR and fault is None:
            fault, body = body.get("error"), {}
        code, message = fault_of(fault, status, unnamed="unknown")
    choice, said = first_choice(body)
    extension = _object(line.get(EXTENSION))
    trim = extension.get("trim")
    created = body.get("created")
    lane, asked_again = extension.get("lane"), extension.get("asked_again")
    return ResultRow(
        custom_id=_text(line.get("custom_id")) or "",
        ok=ok,
        output=_text(said.get("content")) or _text(choice.get("text")),
        reasoning=_text(said.get("reasoning")) or _text(said.get("reasoning_content")),
        finish_reason=_text(choice.get("finish_reason")),
        error_code=code,
        error_message=message,
        finished_at=_moment(created),
        usage=_usage(body.get("usage")),
        earlier_usage=earlier_usage(extension),
        asked_again=asked_again if isinstance(asked_again, int) else 0,
        lane=lane if isinstance(lane, int) else None,
        trimmed_tokens=saved_tokens(trim) if isinstance(trim, Mapping) else None,
        repaired=extension.get("parsed") is not None,
        model=_text(body.get("model")),
        parsed=extension.get("parsed"),
    )


def is_request(line: Mapping[str, Any]) -> bool:
    """Whether a line that holds no result asks for one: in OpenAI's batch input form, or a bare body."""
    return isinstance(line.get("body"), Mapping) or isinstance(line.get("messages"), list)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _moment(value: Any) -> float | None:
    # Servers that have no clock write 0; beyond lies the year 2255, or a clock of milliseconds.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 9e9:
        return float(value)
    return None


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    try:
        return Usage.from_openai(usage)
    except (TypeError, ValueError, AttributeError):  # a server's own idea of usage
        return None
