"""Whether the input of a batch is one: every line checked before the first is sent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_batch._items import ScannedRow
from ollama_batch._sizes import PromptSizes, needed_tokens
from ollama_batch.errors import InputError
from ollama_batch.jsonl import Limits
from ollama_batch.server.settings import ServerSettings
from ollama_batch.sources import FileSource
from ollama_batch.types import InvalidRow

LISTED = 100
"""So many lines at fault are named, the rest is counted."""

_LOOK_EVERY = 500

# What OpenAI's service says, where it is known; else what the library says.
_MESSAGES = {
    "invalid_url": "The URL provided for this request does not match the batch endpoint.",
    "streaming_unsupported": "Chat Completions: Streaming is not supported in the Batch API.",
}
_NO_MODEL = (
    "Model parameter is required. Name one in the body of every line (`ollama-batch aris --model M` writes "
    "it), or have the server started with --model M, which then answers lines without a model."
)
_TOP_LEVEL = ("custom_id", "method", "url", "body")


@dataclass(slots=True)
class Validated:
    """What was found: `errors` (then nothing is run), or `total` lines, their models and how long they are.

    `first_lines` has the line that named each model first; `default` is the model of lines that name none.
    """

    total: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    wrong: int = 0
    first_lines: dict[str, int] = field(default_factory=dict)
    default: str | None = None
    sizes: PromptSizes = field(default_factory=PromptSizes)

    def add(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        """A fault; only the first ones are kept."""
        self.wrong += 1
        if len(self.errors) < LISTED:
            self.errors.append({"code": code, "line": line, "message": message, "param": param})

    def error_list(self) -> dict[str, Any]:
        """The faults as a batch shows them."""
        errors = list(self.errors)
        if self.wrong > len(errors):
            more = self.wrong - len(errors)
            message = f"{more:,} more {'line has an error' if more == 1 else 'lines have errors'}."
            errors.append({"code": "more_errors", "line": None, "message": message, "param": None})
        return {"object": "list", "data": errors}


def validate(
    path: Path, settings: ServerSettings, *, max_tokens: int, stopped: Callable[[], bool]
) -> Validated | None:
    """Check the file at `path`, line by line; None if `stopped` said so meanwhile.

    Memory grows by some 150 bytes a line, for the ids. Raises OSError, InputError if the file is gone.
    """
    found = Validated()
    limits = Limits(max_line_bytes=settings.max_line_bytes, max_depth=settings.max_depth)
    seen: dict[bytes, int] = {}
    if path.stat().st_size == 0:
        return _empty(found)
    try:
        rows = FileSource(path, limits=limits).scan()
        for number, row in enumerate(rows, 1):
            if number % _LOOK_EVERY == 0 and stopped():
                return None
            if number > settings.max_lines:
                found.errors, found.wrong = [], 0
                found.add(
                    "too_many_tasks",
                    f"The input file has more than {settings.max_lines:,} lines.",
                )
                return found
            found.total = number
            if isinstance(row, InvalidRow):
                _add_invalid(found, row)
                continue
            _check_row(found, row, seen, settings)
            found.sizes.add(row.custom_id, needed_tokens(row.request, max_tokens))
    except InputError:
        if found.total:
            raise
        return _empty(found)
    return found


def _empty(found: Validated) -> Validated:
    found.add(
        "empty_file", "The input file is empty. Please ensure that the batch contains at least one request."
    )
    return found


def _check_row(found: Validated, row: ScannedRow, seen: dict[bytes, int], settings: ServerSettings) -> None:
    """What the library leaves to the run: a model, ids that are there once, one model for all."""
    digest = hashlib.blake2b(row.custom_id.encode(), digest_size=16).digest()
    first = seen.setdefault(digest, row.line)
    if first != row.line:
        message = f"Line {first} has this custom_id already; each must be there once."
        found.add("duplicate_custom_id", message, line=row.line, param="custom_id")
        return
    model = row.request.params.get("model")
    if model is None and settings.default_model is not None:
        model = found.default = settings.default_model
    if not isinstance(model, str):
        found.add("invalid_request", _NO_MODEL, line=row.line, param="body.model")
        return
    if model not in found.first_lines:
        if found.first_lines and not settings.mixed_models:
            used = next(iter(found.first_lines))
            message = f"All lines of a batch must name the same model: this is not {used[:100]!r}."
            found.add("mismatched_model", message, line=row.line, param="body.model")
            return
        found.first_lines[model] = row.line


def _add_invalid(found: Validated, row: InvalidRow) -> None:
    code, param, message = row.code, row.field, row.message
    if code == "invalid_json_line":
        reason = message.removeprefix("not JSON: ")
        param, message = None, f"This line is not parseable as valid JSON. {reason[:1].upper()}{reason[1:]}."
    elif code == "line_too_long":
        param = None
    message = _MESSAGES.get(code, message)
    found.add(code, message, line=row.line, param=param)


def plain_param(param: str | None) -> str | None:
    """The field of a body by its own name, as an endpoint would give it: `n` for `body.n`."""
    if param is None or param in _TOP_LEVEL:
        return param
    return re.sub(r"^body\.", "", param)


def models_of(found: Validated) -> Sequence[str]:
    """The models that are needed: that of lines without one first, then in the order of the lines."""
    return tuple(sorted(found.first_lines, key=lambda name: name != found.default))
