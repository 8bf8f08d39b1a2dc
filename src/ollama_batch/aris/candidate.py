"""A candidate of an Aris export, typed; whatever else the export says of one is kept as it is."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


def _no_empty_text(value: Any) -> Any:
    return None if value == "" else value


Optional: TypeAlias = Annotated[T | None, BeforeValidator(_no_empty_text)]
"""A list, object or flag that may also be null, absent, or the empty string."""


class _Part(BaseModel):
    """Numbers become text where text is wanted; unknown fields are kept (`model_extra`)."""

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True, populate_by_name=True)


class Job(_Part):
    """One position, its dates as the export has them: "1970-01-01" stands for an unknown one."""

    title: str | None = None
    company: str | None = None
    work_start_date: str | None = None
    work_end_date: str | None = None
    is_current: Optional[bool] = None


class School(_Part):
    """One entry of the education: not every one is a college, or a degree."""

    degree: str | None = None
    school: str | None = None
    field_of_study: str | None = None


class GemProfile(_Part):
    """The LinkedIn profile, as Gem has it."""

    first_name: str | None = None
    last_name: str | None = None
    title: str | None = None
    company: str | None = None
    location: str | None = None
    skills: Optional[list[str | None]] = None
    work_info: Optional[list[Optional[Job]]] = None
    education_info: Optional[list[Optional[School]]] = None

    @property
    def jobs(self) -> list[Job]:
        """The entries of `work_info` that there are."""
        return [job for job in self.work_info or () if job is not None]

    @property
    def schools(self) -> list[School]:
        """The entries of `education_info` that there are."""
        return [school for school in self.education_info or () if school is not None]


class Candidate(_Part):
    """One candidate: the id, the profile, and what else the export has of the person.

    `swarm` (enrichment), `cv` (parsed resume) and `praxis` (an earlier analysis) have no fixed shape. In
    JSON they are `aristotleId`, `gemData`, `swarmData`, `cvData`, `praxisData`; Python takes either name.
    Numbers with a fraction in fields of no fixed shape are Decimal, so that nothing is rounded.
    """

    aristotle_id: str = Field(alias="aristotleId", strict=True, repr=True)
    gem: Optional[GemProfile] = Field(None, alias="gemData", repr=False)
    swarm: Any = Field(None, alias="swarmData", repr=False)
    cv: Any = Field(None, alias="cvData", repr=False)
    praxis: Any = Field(None, alias="praxisData", repr=False)

    @property
    def evaluated(self) -> bool:
        """Whether there is an earlier analysis."""
        return bool(self.praxis)

    def __repr__(self) -> str:
        # What is said of a person belongs in no log.
        return f"Candidate({self.aristotle_id!r})"

    __str__ = __repr__
