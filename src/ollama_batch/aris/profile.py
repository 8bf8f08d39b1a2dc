"""What a profile says, as text for a prompt: each part on lines of its own, unknown things said to be so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ollama_batch.aris.candidate import Candidate, GemProfile, Job, School
from ollama_batch.aris.clean import clean
from ollama_batch.aris.dates import known_month
from ollama_batch.aris.quality import identity

FIELD_CHARS: Final = 300
MOST_JOBS: Final = 40
MOST_SCHOOLS: Final = 20
MOST_SKILLS: Final = 60

NOT_GIVEN: Final = "not given"

_ABBREVIATED = re.compile(r"(.*\w.*?) [-\u2013\u2014] ([A-Z][\w.&]{0,9})")
_NO_COLLEGE = re.compile(r"\b(high ?school|secondary school|ged)\b", re.IGNORECASE)
_COLLEGE = re.compile(r"\b(bachelor|master|doctor|associate|ph\.?d|mba|licen[cs])", re.IGNORECASE)

Parts = dict[str, Callable[[GemProfile], str]]


def is_college(school: School) -> bool:
    """Whether an entry names a college degree: "High School" and entries without a degree do not."""
    degree = clean(school.degree, FIELD_CHARS)
    if not degree:
        return False
    if _COLLEGE.search(degree):
        return True
    return not _NO_COLLEGE.search(degree) and not _NO_COLLEGE.search(school.school or "")


def says_nothing(candidate: Candidate) -> bool:
    """Whether the profile has nothing that one could be judged by: no work, education, title or skill."""
    gem = candidate.gem
    if gem is None:
        return True
    texts = (gem.title, gem.company, *(gem.skills or ()))
    if any(clean(text, FIELD_CHARS) for text in texts):
        return False
    return work(gem) == NOT_GIVEN and education(gem) == NOT_GIVEN


def name(gem: GemProfile) -> str:
    """First and last name."""
    both = (clean(gem.first_name, FIELD_CHARS), clean(gem.last_name, FIELD_CHARS))
    return " ".join(filter(None, both)) or NOT_GIVEN


def role(gem: GemProfile) -> str:
    """Title and company of today; what the profile leaves open is taken from the current job."""
    title, company = clean(gem.title, FIELD_CHARS), clean(gem.company, FIELD_CHARS)
    if not (title or company):
        job = next((job for job in gem.jobs if job.is_current), None)
        if job is not None:
            title, company = clean(job.title, FIELD_CHARS), clean(job.company, FIELD_CHARS)
    if not (title or company):
        return NOT_GIVEN
    return f"{title or 'title not given'} at {company}" if company else title


def location(gem: GemProfile) -> str:
    """Where the person lives."""
    return clean(gem.location, FIELD_CHARS) or NOT_GIVEN


def skills(gem: GemProfile) -> str:
    """The skills, each once."""
    found = dict.fromkeys(filter(None, (clean(skill, FIELD_CHARS) for skill in gem.skills or ())))
    if not found:
        return NOT_GIVEN
    more = len(found) - MOST_SKILLS
    return ", ".join(list(found)[:MOST_SKILLS]) + (f" and {more} more" if more > 0 else "")


def work(gem: GemProfile) -> str:
    """The jobs, each once, a line for each, newest first.

    Current jobs stand first, then by the last month that is known of them, those without any at the end;
    jobs that are equal in this stay in the order of the export.
    """
    once: dict[object, Job] = {}
    for job in gem.jobs:
        once.setdefault(identity(job), job)
    lines = [line for job in sorted(once.values(), key=_newest, reverse=True) if (line := _job(job))]
    return _listed(lines, MOST_JOBS, "jobs")


def _newest(job: Job) -> tuple[bool, str, str]:
    start, end = known_month(job.work_start_date) or "", known_month(job.work_end_date) or ""
    return bool(job.is_current), end or start, start


def _job(job: Job) -> str:
    title, company = clean(job.title, FIELD_CHARS), clean(job.company, FIELD_CHARS)
    start, end = known_month(job.work_start_date), known_month(job.work_end_date)
    if not (title or company):
        if not (start or end):
            return ""
        what = "title and company not given"
    else:
        what = f"{title or 'title not given'} at {company}" if company else f"{title}, company not given"
    return f"- {what} ({_time(start, end, bool(job.is_current))})"


def _time(start: str | None, end: str | None, current: bool) -> str:
    if current:
        until = f"today, though an end is given: {end}" if end else "today"
        return f"{start} to {until}" if start else f"start unknown, to {until}"
    if start and end:
        return f"{start} to {end}"
    if start:
        return f"from {start}, end unknown"
    return f"start unknown, to {end}" if end else "dates unknown"


def education(gem: GemProfile) -> str:
    """The college degrees, then what else there was, told apart."""
    degrees: dict[str, None] = {}
    others: dict[str, None] = {}
    for school in gem.schools:
        line = _school(school)
        if line:
            (degrees if is_college(school) else others)[line] = None
    if not others:
        return _listed(list(degrees), MOST_SCHOOLS, "entries")
    first = _listed(list(degrees), MOST_SCHOOLS, "entries") if degrees else "no college degree is named"
    return f"{first}\nOther schooling, no college degree:\n{_listed(list(others), MOST_SCHOOLS, 'entries')}"


def _school(school: School) -> str:
    degree = clean(school.degree, FIELD_CHARS)
    place, field = clean(school.school, FIELD_CHARS), clean(school.field_of_study, FIELD_CHARS)
    if not (degree or place or field):
        return ""
    found = _ABBREVIATED.fullmatch(degree)
    if found:
        degree = f"{found[1]} ({found[2]})"
    return "- " + ", ".join(filter(None, (degree, field, place or "school not given")))


def _listed(lines: list[str], most: int, what: str) -> str:
    if not lines:
        return NOT_GIVEN
    more = len(lines) - most
    return "\n".join([*lines[:most], *([f"- and {more} more {what}"] if more > 0 else [])])


PARTS: Final[Parts] = {
    "name": name,
    "role": role,
    "location": location,
    "work": work,
    "education": education,
    "skills": skills,
}
"""What a template can name of a profile."""
