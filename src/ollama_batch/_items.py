"""Rows as they are found in the input, and how lines and objects in memory become rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import orjson

from ollama_batch._chat_line import Limits, LineError, check_line, usable_id
from ollama_batch._strict_json import MAX_INT, MIN_INT, printable
from ollama_batch.jsonl import RawLine, fingerprint, parse_line, too_long
from ollama_batch.ordering import order_key
from ollama_batch.types import CHAT_URL, BatchRequest, InvalidRow, RowRecord

T = TypeVar("T")
Fault: TypeAlias = tuple[str, str] | tuple[str, str, str]
"""The path of a field, what is wrong with it and, unless that is "unsupported_parameter", the code."""

Check: TypeAlias = Callable[[Mapping[str, Any]], Fault | None]
"""Says which field of a chat body cannot be honoured, and why; None if all can."""

_HOLDS = "an item must be a BatchRequest, a dict or a str"


class ScannedRow(NamedTuple):
    """One valid request as it was found: where it lies, and what is in it.

    `line` is the line or item number from 1; `offset` and `length` are bytes in the file, 0 for what
    does not come from a regular file. `fingerprint` is the digest of the bytes read.
    """

    line: int
    offset: int
    length: int
    custom_id: str
    fingerprint: bytes
    request: BatchRequest

    def to_record(self, index: int, source: int) -> RowRecord:
        """This row for the journal: the `index`-th of all, from the `source`-th source."""
        order = order_key(self.request.messages, self.request.params)
        return RowRecord(
            index, source, self.line, self.custom_id, self.fingerprint, self.offset, self.length, order
        )


def checked(
    file: str, line: int, check: Check | None, make: Callable[[T], ScannedRow], item: T
) -> ScannedRow | InvalidRow:
    """The row that `make` finds in `item`, or the InvalidRow that says why there is none."""
    try:
        row = make(item)
    except LineError as exc:
        return exc.at(file, line)
    if check is None:
        return row
    fault = check({**row.request.params, "messages": row.request.messages})
    if fault is None:
        return row
    field, reason, *named = fault
    path = field if field.startswith("body.") else f"body.{field}"
    code = named[0] if named else "unsupported_parameter"
    return InvalidRow(file, line, code, reason, row.custom_id, path)


def duplicate_row(file: str, row: RowRecord, first_line: int) -> InvalidRow:
    """The InvalidRow for a `row` of `file` whose custom_id an earlier line has."""
    message = f"line {first_line} has this custom_id already; each must be there once"
    return InvalidRow(file, row.line, "duplicate_custom_id", message, row.custom_id, "custom_id")


def row_of_line(line: RawLine, limits: Limits, *, offset: int, length: int) -> ScannedRow:
    """The row in a `line` of a file. Raises LineError if it is no valid request."""
    if line.too_long:
        raise too_long(limits)
    request = parse_line(line.raw, limits=limits)
    return ScannedRow(line.line, offset, length, str(request.custom_id), fingerprint(line.raw), request)


def row_of_item(item: object, number: int, limits: Limits) -> ScannedRow:
    """The row that `item`, the `number`-th from 1, stands for.

    The row holds a copy, so that what happens to `item` later changes nothing. Without an id its
    position from 0 becomes one. Raises LineError if it is no valid request.
    """
    line = _line_of(item, limits)
    request = check_line(line, limits, id_required=False)
    if request.custom_id is None:
        request = replace(request, custom_id=str(number - 1))
        line["custom_id"] = request.custom_id
    custom_id = str(request.custom_id)
    raw = orjson.dumps(line, option=orjson.OPT_SORT_KEYS)
    if len(raw) > limits.max_line_bytes:
        error = too_long(limits)
        error.custom_id = custom_id
        raise error
    return ScannedRow(number, 0, 0, custom_id, fingerprint(raw), request)


def _line_of(item: object, limits: Limits) -> dict[str, Any]:
    """`item` as a plain copy of an OpenAI batch line."""
    line: dict[str, Any]
    if isinstance(item, str):
        if not item:
            raise LineError("invalid_value", "a prompt must not be empty")
        line = {"body": {"messages": [{"role": "user", "content": item}]}}
    elif isinstance(item, BatchRequest):
        return _request_line(item, limits)
    elif isinstance(item, Mapping):
        line = dict(item)
        if "body" not in line and "messages" in line and not line.keys() & {"method", "url", "custom_id"}:
            line = {"body": line}
        else:
            return _copied(line, limits, "", line.get("custom_id"))
    else:
        raise LineError("invalid_type", f"{_HOLDS}, not a {type(item).__name__}")
    line = {"method": "POST", "url": CHAT_URL, **line}
    return {**line, "body": _copied(line["body"], limits, "body", None)}


def _request_line(request: BatchRequest, limits: Limits) -> dict[str, Any]:
    custom_id = request.custom_id
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in {"params", "metadata"} and not isinstance(value, Mapping):
            name = type(value).__name__
            raise LineError("invalid_type", f"{field.name} must be a mapping, not a {name}", field.name)
    for key in ("messages", "metadata"):
        if key in request.params:
            message = f"{key!r} is a field of BatchRequest of its own, not one of its params"
            raise LineError("invalid_value", message, f"params.{key}", usable_id(custom_id, limits))
    messages: object = request.messages
    if not isinstance(messages, Iterable) or isinstance(messages, str | bytes | Mapping):
        name = type(messages).__name__
        message = f"messages must be a list of messages, not a {name}: BatchRequest.chat(text) makes one"
        raise LineError("invalid_type", message, "body.messages", usable_id(custom_id, limits))
    return _copied(request.to_openai(), limits, "", custom_id)


def _copied(value: Any, limits: Limits, path: str, custom_id: object) -> dict[str, Any]:
    try:
        copy: dict[str, Any] = _plain(value, path, limits.max_depth)
    except LineError as exc:
        exc.custom_id = usable_id(custom_id, limits)
        raise
    return copy


def _plain(value: Any, path: str, depth: int) -> Any:
    """A copy of `value` made of JSON's own types. Raises LineError naming what JSON has no form for."""
    kind = type(value)
    if kind is str:
        if "\x00" in value:
            raise LineError("invalid_value", "a NUL character is refused: engines cut text at it", path)
        if not value.isascii() and printable(value) != value:
            raise LineError("invalid_value", "an unpaired surrogate is no character", path)
        return value
    if value is None or kind is bool:
        return value
    if kind is int:
        if not MIN_INT <= value <= MAX_INT:
            raise LineError("invalid_value", "an integer beyond 64 bits is refused", path)
        return value
    if kind is float:
        if not math.isfinite(value):
            raise LineError("invalid_value", f"{value} is not JSON", path)
        return value
    if depth == 0:
        raise LineError("invalid_value", "nested too deep, or containing itself", path[:200])
    if isinstance(value, Mapping):
        copy = {}
        for key, inner in value.items():
            if type(key) is not str:
                raise LineError("invalid_type", f"keys must be strings, not {type(key).__name__}", path)
            if not key.isascii() or "\x00" in key:
                _plain(key, path, 0)
            copy[key] = _plain(inner, f"{path}.{key[:64]}" if path else key[:64], depth - 1)
        return copy
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{path}[{number}]", depth - 1) for number, inner in enumerate(value)]
    if isinstance(value, str):  # an enum of strings, numpy's str: its text is meant
        return _plain(str.__str__(value), path, depth)
    raise LineError("invalid_type", f"a {kind.__module__}.{kind.__qualname__} is not JSON: convert it", path)
