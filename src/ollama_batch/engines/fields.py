"""Which fields of an OpenAI chat body an engine honours: one table per engine, checked and documented."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Complaint: TypeAlias = str | tuple[str, str] | None
"""What is wrong with a value: nothing, a reason, or (path below the field, reason)."""

Check: TypeAlias = Callable[[Any], Complaint]

BodyCheck: TypeAlias = Callable[[Mapping[str, Any]], tuple[str, str] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of the body: what becomes of it, and which values it may have.

    `becomes` and `refused` are Markdown for the documentation; with `refused` set, no value but null is
    accepted and the text is the reason given. A null always counts as absent.
    """

    name: str
    becomes: str = ""
    check: Check | None = None
    refused: str | None = None


class FieldTable:
    """Every field an engine knows. What is not in the table is refused by its name."""

    def __init__(
        self, engine: str, fields: Sequence[Field], *, unknown: str, together: BodyCheck | None = None
    ) -> None:
        self.engine = engine
        self.fields = tuple(fields)
        self._by_name = {field.name: field for field in fields}
        if len(self._by_name) != len(self.fields):
            raise ValueError(f"a field stands twice in the table of {engine}")
        self._unknown = unknown
        self._together = together

    def check(self, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """None if all of `body` can be honoured, or (field path, reason) for the first field that cannot."""
        by_name = self._by_name
        for name, value in body.items():
            field = by_name.get(name)
            if field is None:
                return str(name), f"{self._unknown}"
            if value is None:
                continue
            if field.refused is not None:
                return name, field.refused
            if field.check is not None:
                complaint = field.check(value)
                if complaint is not None:
                    if isinstance(complaint, str):
                        return name, complaint
                    return name + complaint[0], complaint[1]
        return None if self._together is None else self._together(body)

    def to_markdown(self) -> str:
        """The table as Markdown, in the order it was given."""
        rows = [
            f"| `{f.name}` | {f.becomes if f.refused is None else 'refused: ' + f.refused} |"
            for f in self.fields
        ]
        return "\n".join([f"## {self.engine}", "", "| field | what becomes of it |", "|---|---|", *rows, ""])


HANDLED_BY_RUN: Final = "handled by the run"


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Accepts finite numbers from `low` to `high`."""
    rule = f"must be a number{_span(low, high)}"

    def check(value: Any) -> Complaint:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            return rule
        return None

    return check


def integer(low: float = -(2**63), high: float = 2**63 - 1) -> Check:
    """Accepts integers from `low` to `high`, by default of 64 bits."""
    rule = f"must be an integer{_span(low, high)}"

    def check(value: Any) -> Complaint:
        return None if type(value) is int and low <= value <= high else rule

    return check


def boolean(value: Any) -> Complaint:
    """Accepts true and false."""
    return None if isinstance(value, bool) else "must be true or false"


def text(value: Any) -> Complaint:
    """Accepts text that is not empty."""
    return None if isinstance(value, str) and value else "must be text"


def mapping(value: Any) -> Complaint:
    """Accepts JSON objects."""
    return None if isinstance(value, Mapping) else "must be an object"


def anything(value: Any) -> Complaint:
    """Accepts every value."""
    return None


def one_of(*allowed: str) -> Check:
    """Accepts the words given."""
    rule = f"must be one of {', '.join(allowed)}"

    def check(value: Any) -> Complaint:
        return None if isinstance(value, str) and value in allowed else rule

    return check


def only(allowed: Any, reason: str) -> Check:
    """Accepts one value only."""

    def check(value: Any) -> Complaint:
        return None if type(value) is type(allowed) and value == allowed else reason

    return check


def stop(value: Any) -> Complaint:
    """Accepts a stop text or a list of them."""
    if isinstance(value, str):
        return None if value else "must not be empty text"
    if not is_list(value):
        return "must be text or a list of texts"
    for index, item in enumerate(value):
        if not isinstance(item, str) or not item:
            return f"[{index}]", "must be text that is not empty"
    return None


def response_format(value: Any) -> Complaint:
    """Accepts text, json_object, and json_schema with its schema."""
    if not isinstance(value, Mapping):
        return "must be an object"
    kind = value.get("type")
    if kind in ("text", "json_object"):
        return None
    if kind != "json_schema":
        return ".type", "must be one of text, json_object, json_schema"
    inner = value.get("json_schema")
    if not isinstance(inner, Mapping):
        return ".json_schema", "must be an object with the schema"
    if not isinstance(inner.get("schema"), Mapping):
        return ".json_schema.schema", "must be a JSON Schema object"
    return None


def tools(value: Any) -> Complaint:
    """Accepts a list of function tools."""
    if not is_list(value):
        return "must be a list of tools"
    for index, tool in enumerate(value):
        if not isinstance(tool, Mapping):
            return f"[{index}]", "must be an object"
        if tool.get("type") != "function":
            return f"[{index}].type", "must be function: other tools are not known"
        function = tool.get("function")
        if not isinstance(function, Mapping):
            return f"[{index}].function", "must be an object"
        if not isinstance(function.get("name"), str) or not function["name"]:
            return f"[{index}].function.name", "must be text"
        if function.get("parameters") is not None and not isinstance(function["parameters"], Mapping):
            return f"[{index}].function.parameters", "must be a JSON Schema object"
    return None


def token_limits(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Refuses two different token limits in one body."""
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        return "max_completion_tokens", f"differs from max_tokens ({new} and {old}): give one of them"
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        return "top_logprobs", "needs logprobs to be true"
    if body.get("tool_choice") is not None and not body.get("tools") and body["tool_choice"] != "none":
        return "tool_choice", "needs tools to choose from"
    return None


def is_list(value: Any) -> bool:
    """Whether `value` is a sequence, as JSON arrays become, and no text."""
    return isinstance(value, list | tuple) or (
        isinstance(value, Sequence) and not isinstance(value, str | bytes)
    )


def _span(low: float, high: float) -> str:
    if low == -(2**63) and high == 2**63 - 1:
        return " of 64 bits"
    if low == -math.inf and high == math.inf:
        return ""
    if high in (math.inf, 2**63 - 1):
        return f" of at least {low:g}"
    return f" from {low:g} to {high:g}"


def render_docs() -> str:
    """The text of docs/body-fields.md: the tables of all engines."""
    from ollama_batch.engines.ollama_fields import OLLAMA_FIELDS, OLLAMA_MESSAGES
    from ollama_batch.engines.openai_fields import OPENAI_FIELDS

    head = (
        "# Body fields\n\n"
        "<!-- Generated: python -m ollama_batch.engines.fields > docs/body-fields.md -->\n\n"
        "What each engine does with the fields of an OpenAI chat body. A field that is refused, or that is\n"
        "not listed, stops the row by name before anything is sent; none is dropped in silence. A field\n"
        "whose value is null counts as absent. The embedded engine speaks the form of OpenAIEngine.\n"
    )
    return "\n".join([head, OLLAMA_FIELDS.to_markdown(), OLLAMA_MESSAGES, OPENAI_FIELDS.to_markdown()])


if __name__ == "__main__":
    import sys

    sys.stdout.write(render_docs())
