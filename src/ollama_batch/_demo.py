"""The demonstration behind `ollama-batch demo`: 200 profiles of invented people through a real engine.

The engine is llama.cpp with a toy model of random weights, so everything but the meaning of the answers
is real. Everything is made here from a seed; nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson

from ollama_batch.types import BatchRequest

TOY = "toy"
MAX_TOKENS = 512
NUM_CTX = 2048

CRITERIA = """\
You review candidates for engineering roles. Read one profile at a time and judge it only by the criteria
below. Do not compare it with other profiles, and do not guess what the profile does not say.

1. Education. A degree in computer science, engineering, mathematics or physics is strong evidence. Give
more weight to a demanding school and to a finished degree than to a course or a certificate. A person
without a degree who has ten years of solid work is not weaker for it.

2. Companies. Work at a company that is known for its engineering, or at a small company that grew while
the person was there, is strong evidence. Several short stays in a row, each under one year, need a reason.

3. Trajectory. Look at the years and the titles together. A senior title within eight years and a staff or
principal title within twelve years show steady growth. A title that stays the same for many years is
neutral if the scope of the work has grown, and weak if it has not.

4. Engineering. The person must design, write and run software today. People who only manage, sell, test by
hand or recruit are not engineers for this purpose, even if they were once.

Ratings are Great, Good, Average, Weak or None. The recommendation is one of Strong Yes, Yes, Maybe, No or
Strong No. Strong Yes needs at least two ratings of Great and no rating below Good. No is right when the
person is not an engineer today, whatever the other ratings are. Say Maybe when the profile is too short to
judge, and name what is missing.

Answer in at most four sentences: first the recommendation, then the one fact that speaks most for the
person, then the one fact that speaks most against, and last what to ask in a first call.
"""

_GIVEN = (
    "Amara Anton Beatriz Chen Dana Elif Farid Greta Hana Ivo Jamal Kira Lucia Mateo Nadia Omar Priya Ravi"
)
_FAMILY = "Abara Bauer Costa Demir Eriksen Fontaine Garcia Hansen Ito Jansen Kowalski Lindholm Moreau Novak"
_CITIES = ("Lisbon", "Toronto", "Berlin", "Austin", "Nairobi", "Osaka", "Warsaw", "Bogota", "Seattle")
_SCHOOLS = (
    "Northfield University",
    "Institute of Technology Halden",
    "Coastal State College",
    "Alder University",
)
_FIELDS = ("Computer Science", "Electrical Engineering", "Mathematics", "Physics", "Business Administration")
_DEGREES = ("Bachelor of Science", "Master of Science", "Doctor of Philosophy")
_COMPANIES = (
    "Brightwater Cloud",
    "Fernhill Software",
    "Meridian Payments",
    "Oakline Systems",
    "Polar Search",
)
_TRACKS = (
    ("Software Engineer", "Senior Software Engineer", "Staff Engineer", "Principal Engineer"),
    ("Data Engineer", "Senior Data Engineer", "Lead Data Engineer", "Engineering Manager"),
    ("Test Engineer", "Senior Test Engineer", "Quality Lead", "Delivery Manager"),
    ("Developer", "Web Developer", "Senior Developer", "Technical Lead"),
)
_WORK = (
    "built and ran the service that stores customer data",
    "moved the search platform to a new cluster without an outage",
    "cut the latency of the payment system by half",
    "led a team of six and wrote the design for the new pipeline",
    "kept the mobile backend running and answered its alerts",
    "planned releases and wrote the test plan for each product",
)
_SKILLS = ("Python", "Go", "Java", "SQL", "Kubernetes", "Linux", "TypeScript", "Rust", "Kafka", "AWS")


def demo_requests(rows: int = 200, *, seed: int = 0) -> Iterator[BatchRequest]:
    """`rows` requests, each the same criteria and the profile of another invented person."""
    rng = random.Random(seed)  # noqa: S311  # invented people, not secrets
    for index in range(rows):
        yield BatchRequest.chat(
            _profile(rng),
            system=CRITERIA,
            custom_id=f"candidate-{index + 1:03d}",
            temperature=0.7,
            seed=index,
            max_tokens=MAX_TOKENS,
        )


def _profile(rng: random.Random) -> str:
    name = f"{rng.choice(_GIVEN.split())} {rng.choice(_FAMILY.split())}"
    track, start = rng.choice(_TRACKS), rng.randrange(2004, 2018)
    titles = track[: rng.randrange(1, len(track) + 1)]
    jobs = []
    for held, title in enumerate(titles, start=1):
        end = start + rng.randrange(1, 5)
        until = "today" if held == len(titles) else str(end)
        jobs.append(f"- {title} at {rng.choice(_COMPANIES)}, {start} to {until}: {rng.choice(_WORK)}.")
        start = end
    jobs.reverse()
    degree = f"{rng.choice(_DEGREES)} in {rng.choice(_FIELDS)}, {rng.choice(_SCHOOLS)}"
    return "\n".join(
        [
            f"Name: {name}",
            f"Location: {rng.choice(_CITIES)}",
            "Work, newest first:",
            *jobs,
            f"Education: {degree}",
            f"Skills: {', '.join(rng.sample(_SKILLS, 5))}",
            "",
            "Judge this candidate by the criteria.",
        ]
    )


def run_demo(folder: Path, *, rows: int = 200) -> int:
    """Run the demonstration, leaving its files in `folder`; 0 if every row got an answer, 1 if not.

    Needs the extra `embedded`: raises MissingExtraError without it. A run that was
    stopped half way raises as any other run does.
    """
    from ollama_batch.engines.embedded import EmbeddedEngine
    from ollama_batch.runner import BatchRunner

    folder.mkdir(parents=True, exist_ok=True)
    source, output = folder / "requests.jsonl", folder / "results.jsonl"
    _forget_finished(output)
    with source.open("wb") as file:
        for request in demo_requests(rows):
            file.write(orjson.dumps(request.to_openai()) + b"\n")
    _say(f"{rows} requests about invented people: {source}")
    _say(_TOY)
    engine = EmbeddedEngine.toy(num_ctx=NUM_CTX)
    try:
        runner = BatchRunner(model=TOY, engine=engine, num_ctx=NUM_CTX, max_tokens=MAX_TOKENS)
        report = runner.run(source, output=output, overwrite=True)
        _say(f"\n{report}\n")
        _say("Three of the results (meaningless, as said):")
        for result in islice(report.results(), 3):
            said = result.output if result.ok else f"failed: {result.error}"
            _say(f"  {result.custom_id}: {_shortened(said or '')}")
    finally:
        asyncio.run(engine.aclose())
    _say(f"\nFiles in {folder}:")
    for path in sorted(folder.iterdir()):
        _say(f"  {path.name:<24} {path.stat().st_size:>9,} bytes")
    _say(_NEXT.format(source=source, output=folder / "mine.jsonl"))
    return 0 if report.ok else 1


def _forget_finished(output: Path) -> None:
    """Remove what a finished demonstration left, so that the next shows more than that it is finished."""
    from ollama_batch.journal import RunJournal

    journal = output.with_name(f"{output.name}.run.db")
    if not journal.exists():
        return
    with RunJournal.open_readonly(journal) as earlier:
        if earlier.state != "finished" or earlier.identity.get("model") != TOY:
            return
    journal.unlink()
    output.unlink(missing_ok=True)


_TOY = """
  *** TOY MODEL: random weights, the answers mean nothing. ***
  The engine is a real llama.cpp; the run, its report and its files are real.
  Ctrl-C stops it, and the same command goes on where it stopped.
"""

_NEXT = """
With your own Ollama, the same requests and real answers:

  ollama pull gemma3:12b
  ollama-batch run {source} -o {output} --model gemma3:12b

or in Python:

  from ollama_batch import BatchRunner
  report = BatchRunner(model="gemma3:12b").run("{source}", output="{output}")
  print(report)"""


def _shortened(text: str, limit: int = 90) -> str:
    """One printable line of at most `limit` characters."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
