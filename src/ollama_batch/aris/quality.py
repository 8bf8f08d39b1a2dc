"""What an export has and what it lacks, counted while it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ollama_batch.aris.candidate import Candidate, Job
from ollama_batch.aris.dates import known_month, stands_for_unknown

FIELDS = ("name", "title", "company", "location", "skills", "work_info", "education_info")
"""The fields of a profile of which it is counted who lacks them."""


_SEVERAL: Final = 10  # fewer profiles may well lack the same thing


@dataclass(frozen=True, slots=True, kw_only=True)
class DataQuality:
    """What the candidates read so far have. Nothing of a person is in it: figures only.

    `candidates` are those that were handed out, `invalid` the broken ones, `duplicate_ids` and
    `missing_ids` among these. `with_gem` ... `with_praxis` counts who has that part; `missing` the
    profiles in which a field is null, absent or empty. `unknown_dates` are dates of jobs that are missing
    or stand for "unknown" (the end of a current job is none), `unreadable_dates` those that are no date.
    `duplicate_jobs` are told once in a prompt.
    """

    candidates: int = 0
    invalid: int = 0
    duplicate_ids: int = 0
    missing_ids: int = 0
    with_gem: int = 0
    with_swarm: int = 0
    with_cv: int = 0
    with_praxis: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    jobs: int = 0
    duplicate_jobs: int = 0
    unknown_dates: int = 0
    unreadable_dates: int = 0

    @property
    def no_profiles(self) -> bool:
        """Whether there are candidates, and none of them has gemData."""
        return self.candidates > 0 and self.with_gem == 0

    @property
    def missing_everywhere(self) -> tuple[str, ...]:
        """The fields that no profile has, of several profiles: an export may call them otherwise."""
        return tuple(name for name, number in self.missing.items() if number == self.with_gem > 1)

    def warnings(self, *, made: int, nobody: bool, sections: Collection[str]) -> Iterator[str]:
        """What requests suffer from that were `made` of these candidates, with those `sections` on.

        `nobody`: no candidate says anything to judge by.
        """
        if self.no_profiles or nobody:
            yield self._nothing_to_judge_by(made)
        elif self.missing_everywhere and self.with_gem >= _SEVERAL:
            yield f"none of the {self.with_gem:,} profiles read has {self._otherwise}"
        for part in sections:
            if made and not getattr(self, f"with_{part}"):
                yield (
                    f"{part}_tokens= is set, but none of the {self.candidates:,} candidates read has "
                    f"{part}Data"
                )

    @property
    def _otherwise(self) -> str:
        return f"{', '.join(self.missing_everywhere)}: has the export another name for it?"

    def _nothing_to_judge_by(self, made: int) -> str:
        has = "has gemData" if self.no_profiles else "has a profile that says anything"
        told = f"none of the {self.candidates:,} candidates read {has}: "
        if made:
            return (
                f'{told}where the profile stands the prompts say "not given", and sections are all they tell'
            )
        parts = [part for part in ("cv", "swarm", "praxis") if getattr(self, f"with_{part}")]
        options = " or ".join(f"{part}_tokens=500" for part in parts)
        return (
            f"{told}there is nothing to judge anybody by, and no request was made. Is it an export with "
            "profiles?" + (f" To judge by the other parts that it has, say {options}" if parts else "")
        )

    def __str__(self) -> str:
        broken = ""
        if self.invalid:
            broken = f", {self.invalid:,} broken ({self.missing_ids:,} without an id, "
            broken += f"{self.duplicate_ids:,} with the id of another)"
        parts = (f"{part} {getattr(self, f'with_{part}'):,}" for part in ("gem", "swarm", "cv", "praxis"))
        lines = [f"{self.candidates:,} candidates{broken}", f"  with {', '.join(parts)}"]
        if self.no_profiles:
            lines.append(
                "  no candidate has gemData, the profile: a prompt can tell sections only (cv, swarm, praxis)"
            )
            return "\n".join(lines)
        lacking = ", ".join(f"{name} {number:,}" for name, number in self.missing.items() if number)
        lines.append(f"  profiles without: {lacking or 'nothing is missing'}")
        if self.missing_everywhere:
            lines.append(f"  no profile has {self._otherwise}")
        lines.append(
            f"  {self.jobs:,} jobs, {self.duplicate_jobs:,} told twice; "
            f"dates: {self.unknown_dates:,} unknown, {self.unreadable_dates:,} unreadable"
        )
        return "\n".join(lines)


class QualityTally:
    """Counts candidates as they are read."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()

    def refuse(self, code: str) -> None:
        """Count a broken candidate, by the code of what is wrong with it."""
        self._counts["invalid"] += 1
        if code == "duplicate_custom_id":
            self._counts["duplicate_ids"] += 1
        elif code == "missing_required_parameter":
            self._counts["missing_ids"] += 1

    def add(self, candidate: Candidate) -> None:
        """Count a candidate that is handed out."""
        counts, gem = self._counts, candidate.gem
        counts["candidates"] += 1
        counts["with_swarm"] += bool(candidate.swarm)
        counts["with_cv"] += bool(candidate.cv)
        counts["with_praxis"] += bool(candidate.praxis)
        if gem is None:
            return
        counts["with_gem"] += 1
        missing = self._missing
        if not (gem.first_name or gem.last_name):
            missing["name"] += 1
        for name in FIELDS[1:]:
            if not getattr(gem, name):
                missing[name] += 1
        seen = set()
        for job in gem.jobs:
            counts["jobs"] += 1
            self._dates(job)
            key = identity(job)
            counts["duplicate_jobs"] += key in seen
            seen.add(key)

    def _dates(self, job: Job) -> None:
        dates = [job.work_start_date, job.work_end_date]
        if job.is_current and (not dates[1] or stands_for_unknown(dates[1])):
            dates.pop()  # it goes on: there is no end to be known
        for text in dates:
            if not text or stands_for_unknown(text):
                self._counts["unknown_dates"] += 1
            elif known_month(text) is None:
                self._counts["unreadable_dates"] += 1

    def quality(self) -> DataQuality:
        """The figures so far."""
        missing = {name: self._missing[name] for name in FIELDS}
        return DataQuality(missing=missing, **self._counts)


def identity(job: Job) -> tuple[str | bool | None, ...]:
    """What is equal of two entries that tell of one job."""
    return (
        " ".join((job.title or "").casefold().split()),
        " ".join((job.company or "").casefold().split()),
        known_month(job.work_start_date),
        known_month(job.work_end_date),
        bool(job.is_current),
    )
