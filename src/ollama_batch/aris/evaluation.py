"""What a model says of a candidate, as Praxis asks for it: one object, checked field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictStr,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def _spelled(words: tuple[str, ...]) -> Callable[[Any], Any]:
    """A validator that gives a word of the list in the list's own spelling and leaves all else alone."""
    known = {word.casefold(): word for word in words}

    def spell(value: Any) -> Any:
        return known.get(" ".join(value.split()).casefold(), value) if isinstance(value, str) else value

    return spell


_Recommendation: TypeAlias = Literal["Strong Yes", "Yes", "Maybe", "No", "Strong No"]
_Rating: TypeAlias = Literal["Great", "Good", "Average", "Weak", "None"]

RECOMMENDATIONS: Final[tuple[str, ...]] = get_args(_Recommendation)
"""Every recommendation, the best first."""

RATINGS: Final[tuple[str, ...]] = get_args(_Rating)
"""Every rating, the best first. The last one is the word "None": there is nothing of the kind."""

Recommendation = Annotated[_Recommendation, BeforeValidator(_spelled(RECOMMENDATIONS))]
Rating = Annotated[_Rating, BeforeValidator(_spelled(RATINGS))]
Reasoning = Annotated[StrictStr, Field(min_length=1)]


class _Answer(BaseModel):
    """An object of an answer: what is there beside its fields is asked not to be, and ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"additionalProperties": False})

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Parts in place rather than as references, no titles: some servers follow only the plainest form.
        schema = handler.resolve_ref_schema(handler(core))
        parts = schema["properties"] = {
            name: _in_place(part, handler) for name, part in schema["properties"].items()
        }
        for part in (schema, *parts.values()):
            part.pop("title", None)
            part.pop("description", None)
        return schema


def _in_place(part: JsonSchemaValue, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    try:
        return dict(handler.resolve_ref_schema(part))
    except LookupError:  # part of a larger schema, whose definitions are not made yet
        return part


class RatedAspect(_Answer):
    """A rating, and the reason for it."""

    rating: Rating
    reasoning: Reasoning


class EngineerVerdict(_Answer):
    """Whether somebody is a software engineer, and what says so."""

    value: StrictBool
    reasoning: Reasoning


class PraxisAnalysis(_Answer):
    """The four things that Praxis looks at."""

    educational_pedigree: RatedAspect
    company_pedigree: RatedAspect
    trajectory: RatedAspect
    is_software_engineer: EngineerVerdict


class PraxisEvaluation(_Answer):
    """The evaluation of one candidate; give it to a run as what answers must be.

    Every field must be there and none may be null: the rating "None" is the word, for a candidate who has
    nothing of the kind. The words of `recommendation` and `rating` are taken in any letter case and with any
    white space, and kept in the spelling of RECOMMENDATIONS and RATINGS; any other word, a synonym too, is
    refused. Reasons have a character at least, `value` is true or false and no word for it. Keys that were
    not asked for are left out.

    The JSON schema says all of that but what is forgiven, without references, so that an engine which follows
    schemas can write nothing that is refused here. Raises pydantic's ValidationError.
    """

    recommendation: Recommendation
    reasoning: Reasoning
    analysis: PraxisAnalysis
