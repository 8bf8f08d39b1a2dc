"""Answers as objects, and what stands in them at a path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ollama_batch._thinking import without_thinking
from ollama_batch.analysis.rows import ResultRow

ABSENT: Final = object()
"""What `look_up` finds where there is nothing."""

_FENCE: Final = re.compile(r"\s*```[\w-]*[ \t]*\n(.*)\n\s*```\s*", re.DOTALL)
_NUMBER: Final = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)\s*")


def parse_answer(row: ResultRow) -> Mapping[str, Any] | None:
    """The answer of `row` as an object; None if it is none.

    What the run recorded as parsed counts first; else the text behind any thinking, which must be one JSON
    object, alone or as the only content of a fenced code block.
    """
    parsed = row.parsed
    if parsed is not None:
        dump = getattr(parsed, "model_dump", None)
        parsed = dump(mode="json") if callable(dump) else parsed
        return parsed if isinstance(parsed, Mapping) else None
    if row.output is None:
        return None
    text = without_thinking(row.output)
    fenced = _FENCE.fullmatch(text)
    try:
        value = orjson.loads(text if fenced is None else fenced[1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, Mapping) else None


def look_up(answer: Any, path: str) -> Any:
    """What stands in `answer` at `path`: names and list positions joined by dots; ABSENT if nothing does.

    A key that has dots in it itself is found too, before the parts of its name are.
    """
    if isinstance(answer, Mapping):
        if path in answer:
            return answer[path]
        for at, char in enumerate(path):
            if char == "." and path[:at] in answer:
                found = look_up(answer[path[:at]], path[at + 1 :])
                if found is not ABSENT:
                    return found
    elif isinstance(answer, list):
        head, _, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(answer):
            return look_up(answer[int(head)], rest) if rest else answer[int(head)]
    return ABSENT


def as_number(value: Any) -> float | None:
    """`value` as a finite number: an int, a float, or text that is nothing but one; None for all else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return float(value) if len(value) < 40 and _NUMBER.fullmatch(value) else None
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if number - number == 0 else None
    return None


def as_label(value: Any) -> str:
    """`value` as the name of a group: text as it is, anything else as JSON, at most 200 characters.

    Equal numbers have one name: 5.0 is 5.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    )
    return text if len(text) <= 200 else f"{text[:197]}..."
