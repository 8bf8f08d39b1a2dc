"""What makes two runs the same run: the settings that change answers, compared in full."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ollama_batch.errors import JournalMismatchError

_MISSING = object()

CLASS = "class"
"""The key by which an object that was written down as JSON says what it is."""

DIGEST = "digest of "
"""How keys of the weights that stand behind a model's name begin; that name follows."""


def normal(value: Any) -> Any:
    """`value` as it comes back from JSON, so that tuples and lists, 1 and 1 compare alike."""
    return json.loads(json.dumps(value))


def compare(recorded: Mapping[str, Any], present: Mapping[str, Any], path: Path | None) -> None:
    """Raises JournalMismatchError, with every difference by its key path, unless the two are equal."""
    differences: dict[str, tuple[Any, Any]] = {}
    told = []
    for key, old, new in _different(recorded, normal(present)):
        differences[key] = (None if old is _MISSING else old, None if new is _MISSING else new)
        told.append(f"{key} was {_shown(old)}, is {_shown(new)}")
    if differences and all(map(_exchanged, differences, differences.values())):
        raise JournalMismatchError(
            f"the model was exchanged since this run began, and answers of two models would not go together: "
            f"{'; '.join(told)}. Put the one it began with back under its name (ollama cp, or ollama pull of "
            "the tag that has its digest) and run the same call again, give another output, or "
            "overwrite=True, which keeps the old journal under another name (.old1)",
            None if path is None else str(path),
            differences,
        )
    if differences:
        raise JournalMismatchError(
            f"this run began with other settings, and its answers would not go together: {'; '.join(told)}. "
            "Use the settings it began with, give another output, or overwrite=True, which "
            "keeps the old journal under another name (.old1)",
            None if path is None else str(path),
            differences,
        )


def _exchanged(key: str, change: tuple[Any, Any]) -> bool:
    """Whether it is that other weights stand behind a name."""
    return key.startswith(DIGEST) and all(isinstance(each, str) for each in change)


def _different(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs, by its key path; objects of two classes, or one and none, differ as a whole."""
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    if both and old.get(CLASS) == new.get(CLASS):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            yield from _different(old.get(key, _MISSING), new.get(key, _MISSING), inner)
    elif old != new or type(old) is not type(new):
        yield path, old, new


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not set"
    if isinstance(value, Mapping) and CLASS in value:
        return str(value[CLASS])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
