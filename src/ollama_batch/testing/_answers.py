"""Answers made up from the request: the same request, the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "ze")
WORDS = tuple(first + second for first in _SYLLABLES for second in _SYLLABLES)
"""256 words without meaning: one per value of a byte."""

REFUSAL = "I'm sorry, but I can't help with that."


def answer_bytes(seed: int, model: str, digest: str, sampling: Mapping[str, Any]) -> bytes:
    """64 bytes that depend on everything an answer depends on."""
    name = orjson.dumps([seed, model, digest, sampling], option=orjson.OPT_SORT_KEYS)
    return blake2b(name).digest()


def words(source: bytes) -> str:
    """An answer of 8 to 39 words."""
    length = 8 + source[0] % 32
    return " ".join([WORDS[byte] for byte in source[1 : 1 + length]])


def thoughts(source: bytes) -> str:
    """What a reasoning model thinks before it answers: 6 words."""
    return " ".join([WORDS[byte ^ 0x55] for byte in source[40:46]])


def json_text(schema: Any, source: bytes) -> str:
    """A JSON text that is valid for a JSON Schema of the usual kinds, or an object if there is no schema.

    Knows types, properties, items, enum, const, anyOf, oneOf, allOf with one entry, local $ref and
    bounds. Patterns and formats are not looked at.
    """
    if not isinstance(schema, Mapping):
        return orjson.dumps({"answer": words(source)}).decode()
    return orjson.dumps(_Instance(schema, source).of(schema)).decode()


class _Instance:
    def __init__(self, root: Mapping[str, Any], source: bytes) -> None:
        self._root = root
        self._source = source
        self._next = 0

    def _byte(self) -> int:
        self._next += 1
        return self._source[self._next % len(self._source)]

    def of(self, schema: Any, depth: int = 0) -> Any:
        if not isinstance(schema, Mapping) or depth > 16:
            return None
        if "$ref" in schema:
            return self.of(self._resolve(str(schema["$ref"])), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self._byte() % len(schema["enum"])]
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                return self.of(schema[name][0], depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        return self._typed(kind[0] if isinstance(kind, list) else kind, schema, depth)

    def _typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.of(value, depth + 1) for name, value in properties.items()}
        if kind == "array":
            size = max(int(schema.get("minItems", 1)), 0)
            return [self.of(schema.get("items", {}), depth + 1) for _ in range(size)]
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        if kind == "boolean":
            return self._byte() % 2 == 0
        if kind == "null":
            return None
        text = WORDS[self._byte()]
        while len(text) < int(schema.get("minLength", 0)):
            text += " " + WORDS[self._byte()]
        return text[: schema.get("maxLength")]

    def _number(self, kind: str, schema: Mapping[str, Any]) -> int | float:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = 0 if high is None else high - 100
        if high is None:
            high = low + 100
        if kind == "number":
            return float(low) + (float(high) - float(low)) * (1 + self._byte()) / 258
        first = int(low) + (1 if "minimum" not in schema and "exclusiveMinimum" in schema else 0)
        last = int(high) - (1 if "maximum" not in schema and "exclusiveMaximum" in schema else 0)
        return first + self._byte() % max(last - first + 1, 1)

    def _resolve(self, reference: str) -> Any:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        return found
