"""Tool calls of a prepared answer, in the one form that the fake keeps them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def checked_calls(calls: object) -> tuple[Mapping[str, Any], ...]:
    """`calls` as `{"name": ..., "arguments": {...}}`, with the `id` where one is given.

    Takes that form, and those of OpenAI and Ollama, in which both stand in `function` and the arguments may
    be text that holds a JSON object. Raises ValueError that names what is wrong, and where.
    """
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Sequence):
        raise _wrong("", calls, "must be a list or tuple of calls")
    return tuple(_checked(f"[{index}]", call) for index, call in enumerate(calls))


def _checked(where: str, call: object) -> Mapping[str, Any]:
    if not isinstance(call, Mapping):
        raise _wrong(where, call, "must be an object")
    if call.get("type", "function") != "function":
        raise _wrong(f"{where}['type']", call["type"], 'must be "function", or left out')
    if "id" in call and not (isinstance(call["id"], str) and call["id"]):
        raise _wrong(f"{where}['id']", call["id"], "must be text, or left out")
    function = call
    if "function" in call:
        function, where = call["function"], f"{where}['function']"
        if not isinstance(function, Mapping):
            raise _wrong(where, function, "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{where}['name']", name, "must be the name of a function")
    checked = {"name": name, "arguments": _arguments(f"{where}['arguments']", function.get("arguments"))}
    return {**checked, "id": call["id"]} if "id" in call else checked


def _arguments(where: str, given: object) -> Mapping[str, Any]:
    found: object = {} if given is None or given == "" else given
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, Mapping):
        raise _wrong(where, given, "must be an object, or text that holds a JSON object")
    return found


def _wrong(where: str, value: object, rule: str) -> ValueError:
    return ValueError(
        f"FakeReply.tool_calls{where} is {value!r}: it {rule}. A call is "
        '{"name": "add", "arguments": {"a": 1}}, or as OpenAI has it: {"function": {"name": "add", '
        '"arguments": "{\\"a\\": 1}"}}; for calls that no engine should make, give the whole body='
    )
