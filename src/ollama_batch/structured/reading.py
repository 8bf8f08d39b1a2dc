"""From the text of an answer to what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic

from ollama_batch._thinking import without_thinking
from ollama_batch.structured.form import AnswerForm, JsonSchema, Unfit, form_of
from ollama_batch.structured.repair import repaired
from ollama_batch.types import ParsedT

KINDS: Final = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Answer(Generic[ParsedT]):
    """What the text of an answer says: `parsed`, or else the `fault` it has.

    `json` is the JSON that was found in the text or made of it, None where the text is JSON as it stands.
    A fault reads on from "the answer" and names fields and rules, never what the answer says.
    """

    parsed: ParsedT | None = None
    json: str | None = None
    fault: str | None = None

    @property
    def repaired(self) -> bool:
        """Whether it counts, but not as it stands."""
        return self.fault is None and self.json is not None


def read_answer(text: str, response_model: type[ParsedT] | JsonSchema) -> Answer[ParsedT]:
    """What `text` says as a `response_model`, by the rules of a run (docs/structured.md).

    Raises ConfigError for what is no response model, MissingExtraError without the extra `structured`.
    """
    return read(text, form_of(response_model))


def read(text: str, form: AnswerForm[ParsedT]) -> Answer[ParsedT]:
    """`read_answer` for a form.

    Text that is one JSON object counts as it stands. Else the one object in it does, whatever is around, or
    a repair of that (see `repair.repaired`), and is marked. Two objects that differ, a list, a key that is
    there twice, an object without an end: none of them is clear, and none counts.
    """
    said = without_thinking(text)
    try:
        value = _decode(said)
    except RecursionError:
        return Answer(fault="is nested too deep")
    except _Twice as error:
        return Answer(fault=str(error))
    except ValueError as error:
        return _found(said, form, _where(error))
    if not isinstance(value, dict):
        return Answer(fault=f"is {KINDS.get(type(value), 'null')}, no JSON object")
    return _checked(said, form)


def _found(said: str, form: AnswerForm[ParsedT], where: str) -> Answer[ParsedT]:
    """What an answer says that is no JSON as it stands; `where` it ceases to be."""
    start, end = said.find("{"), said.rfind("}") + 1
    if start < 0:
        return Answer(fault="has no JSON object")
    if end <= start or "{" in said[end:]:
        return Answer(fault="has a JSON object without an end")
    if said[:start].rstrip().endswith("[") or said[end:].lstrip().startswith("]"):
        return Answer(fault="has a list, no JSON object by itself")
    span = said[start:end]
    try:
        objects = _objects(span)
    except _Twice as error:
        return Answer(fault=str(error))
    except (ValueError, RecursionError):
        value = repaired(span)
        if value is None:
            return Answer(fault=f"is no valid JSON ({where})")
    else:
        value = objects[0]
        if len({json.dumps(each, sort_keys=True) for each in objects}) > 1:
            return Answer(fault=f"has {len(objects)} JSON objects, which differ")
    return _checked(json.dumps(value, ensure_ascii=False), form, made=True)


def _checked(text: str, form: AnswerForm[ParsedT], *, made: bool = False) -> Answer[ParsedT]:
    found = text if made else None
    try:
        return Answer(form.check(text), found)
    except Unfit as error:
        return Answer(None, found, f"does not fit {form.name}: {error.reason}")


def _objects(span: str) -> list[dict[str, Any]]:
    """Every JSON object in `span`, which begins with one; ValueError if a brace begins none."""
    found, at = [], 0
    while at >= 0:
        value, end = _decoder.raw_decode(span, at)
        found.append(value)
        at = span.find("{", end)
    return found


class _Twice(ValueError):
    """A key is there twice in one object: two readers could understand it differently."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice("has a key twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_decoder: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_decode: Final = _decoder.decode


def _where(error: ValueError) -> str:
    return f"from character {error.pos}" if isinstance(error, json.JSONDecodeError) else "a number is none"
