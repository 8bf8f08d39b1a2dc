"""What the answers of a run must be: a response model or a JSON schema, and what checks a text against it."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from ollama_batch.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from pydantic import ValidationError

FormT = TypeVar("FormT", covariant=True)

FAULTS_NAMED: Final = 5
FAULT_CHARS: Final = 200

log = logging.getLogger("ollama_batch.run")


class Unfit(Exception):
    """Raised when JSON does not fit; `reason` names fields and rules, never what the answer says."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AnswerForm(Protocol[FormT]):
    """What every answer must be."""

    @property
    def name(self) -> str:
        """What it is called: letters, digits, _ and -, 64 at most."""
        ...

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema that engines are given; of an object."""
        ...

    def check(self, text: str) -> FormT:
        """What `text`, a JSON object, says. Raises Unfit."""
        ...

    def identity(self) -> dict[str, Any]:
        """What is compared when a run is resumed."""
        ...


def form_of(response_model: object) -> AnswerForm[Any]:
    """The form that `response_model` stands for. Raises ConfigError, or MissingExtraError."""
    if importlib.util.find_spec("json_repair") is None:
        raise MissingExtraError(
            "response_model= needs json-repair, which is not installed: install the extra, "
            'pip install ".[structured]" in the project\'s folder (or: pip install json-repair)'
        )
    return response_model if isinstance(response_model, JsonSchema) else ModelForm(response_model)


def response_format(form: AnswerForm[Any]) -> dict[str, Any]:
    """The body field that asks an engine for such answers."""
    return {"type": "json_schema", "json_schema": {"name": form.name, "schema": dict(form.schema)}}


class ModelForm:
    """A class that pydantic can validate: a BaseModel, a dataclass, a TypedDict.

    References in its schema stay references, except at the root, where some servers look for a type.
    Raises ConfigError for what has no JSON schema, or one that is not of an object.
    """

    def __init__(self, model: object) -> None:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        if not isinstance(model, type):
            raise ConfigError(
                f"response_model={model!r}: must be a class that pydantic can validate, as in "
                "class Verdict(BaseModel), or a JsonSchema"
            )
        try:
            self._adapter: Any = TypeAdapter(model)
            schema = self._adapter.json_schema()
        except (PydanticUserError, NameError) as error:
            what = str(error).partition("\n")[0]
            raise ConfigError(f"response_model={model.__name__}: has no JSON schema: {what}") from error
        if "$ref" in schema:
            schema = {**schema["$defs"][schema["$ref"].rpartition("/")[2]], "$defs": schema["$defs"]}
        if schema.get("type") != "object":
            raise ConfigError(
                f"response_model={model.__name__}: an answer is a JSON object, and this is none: make it a "
                "field of a model"
            )
        self.name = _safe(model.__name__)
        self.schema: Mapping[str, Any] = schema

    def check(self, text: str) -> Any:
        """The object that `text` makes. Raises Unfit."""
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            raise Unfit(_listed(_pydantic_faults(error))) from error
        except Exception as error:  # a validator that was not made for this answer: no reason to end a run
            log.warning("a validator of %s raised %s", self.name, type(error).__name__)
            raise Unfit(f"a validator raised {type(error).__name__}") from error

    def identity(self) -> dict[str, Any]:
        """The class by its name, and its schema; validators cannot be compared."""
        return {"class": self.name, "schema": self.schema, "digest": _digest(self.schema)}


class JsonSchema:
    """A JSON schema as a response model: `parsed` is then the answer as JSON data (a dict).

    `name` is what engines are told that it is called. References must stay inside the schema. Raises
    ConfigError for what is no schema of an object, and MissingExtraError without jsonschema.
    """

    def __init__(self, schema: Mapping[str, Any], *, name: str = "answer") -> None:
        try:
            from jsonschema.exceptions import SchemaError
            from jsonschema.validators import Draft202012Validator, validator_for
            from referencing import Registry
        except ImportError as error:
            raise MissingExtraError(
                "JsonSchema needs jsonschema, which is not installed: install the extra, "
                'pip install ".[structured]" in the project\'s folder (or: pip install jsonschema)'
            ) from error

        if not isinstance(schema, Mapping):
            raise ConfigError(f"JsonSchema: a JSON schema is an object, not a {type(schema).__name__}")
        try:
            copy: dict[str, Any] = json.loads(json.dumps(dict(schema), allow_nan=False))
            kind = validator_for(copy, default=Draft202012Validator)
            kind.check_schema(copy)
        except SchemaError as error:
            where = ".".join(map(str, error.absolute_path))
            raise ConfigError(f"JsonSchema: {where or 'it'} is not right: {error.message}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"JsonSchema: cannot be written as JSON ({error})") from error
        if "object" not in _types(copy):
            raise ConfigError(
                f"JsonSchema: an answer is a JSON object, not {copy['type']!r}: make it a property of one"
            )
        for reference in _references(copy):
            if not reference.startswith("#"):
                raise ConfigError(f"JsonSchema: $ref {reference!r} leads elsewhere; nothing is fetched")
        self.name = _safe(name)
        self.schema: Mapping[str, Any] = copy
        # A registry of its own: without one, references are looked up on the network.
        self._validator = kind(copy, registry=Registry())

    def check(self, text: str) -> Any:
        """The JSON data of `text`. Raises Unfit."""
        data = json.loads(text)
        try:
            faults = sorted(self._validator.iter_errors(data), key=lambda each: list(map(str, each.path)))
        except Exception as error:  # a reference to nothing, a pattern that is none
            raise Unfit(f"the schema cannot be applied ({type(error).__name__})") from error
        if faults:
            raise Unfit(_listed([_schema_fault(each) for each in faults]))
        return data

    def identity(self) -> dict[str, Any]:
        """The schema, and its name, which engines are told."""
        digest = _digest(self.schema)
        return {"class": type(self).__name__, "name": self.name, "schema": self.schema, "digest": digest}


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "answer"


def _digest(schema: Mapping[str, Any]) -> str:
    """Of the schema as it is sent: the order of properties is that of the answer's, and counts."""
    return blake2b(json.dumps(schema).encode(), digest_size=8).hexdigest()


def _types(schema: Mapping[str, Any]) -> Sequence[str]:
    given = schema.get("type", "object")
    return [given] if isinstance(given, str) else given


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _pydantic_faults(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [_fault(each["loc"], each["msg"]) for each in found]


def _schema_fault(error: Any) -> str:
    """Our words: those of the library show what the answer says."""
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return _fault(error.absolute_path, f"{', '.join(missing)} missing")
    return _fault(error.absolute_path, f"breaks {error.validator} {json.dumps(error.validator_value)}")


def _fault(path: Sequence[Any], what: str) -> str:
    where = ".".join(str(part) for part in path)
    return f"{where[:FAULT_CHARS]}: {what[:FAULT_CHARS]}" if where else what[:FAULT_CHARS]


def _listed(faults: Sequence[str]) -> str:
    more = len(faults) - FAULTS_NAMED
    return "; ".join(faults[:FAULTS_NAMED]) + (f"; and {more} more" if more > 0 else "")
