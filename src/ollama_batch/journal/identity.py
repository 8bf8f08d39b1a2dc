"""What makes two runs the same run: the settings that change answers, compared in full."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollama_batch.errors import JournalMismatchError

_MISSING = object()


def normal(value: Any) -> Any:
    """`value` as it comes back from JSON, so that tuples and lists, 1 and 1 compare alike."""
    return json.loads(json.dumps(value))


def compare(recorded: Mapping[str, Any], present: Mapping[str, Any], path: Path | None) -> None:
    """Raises JournalMismatchError, with every difference by its key path, unless the two are equal."""
    before, now = dict(_flatten(recorded)), dict(_flatten(normal(present)))
    differences: dict[str, tuple[Any, Any]] = {}
    told = []
    for key in sorted({*before, *now}):
        old, new = before.get(key, _MISSING), now.get(key, _MISSING)
        if old is not new and (old != new or type(old) is not type(new)):
            differences[key] = (None if old is _MISSING else old, None if new is _MISSING else new)
            told.append(f"{key} was {_shown(old)}, is {_shown(new)}")
    if differences:
        raise JournalMismatchError(
            f"this run began with other settings, and its answers would not go together: {'; '.join(told)}. "
            "Use the settings it began with, give another output, or overwrite=True (--overwrite), which "
            "keeps the old journal under another name (.old1)",
            None if path is None else str(path),
            differences,
        )


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not set"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
