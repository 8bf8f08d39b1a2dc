"""Writes the tables of docs/reference.md that the code can tell: python docs/make_reference.py.

Between `<!-- NAME -->` and `<!-- end -->` stands what `BLOCKS` makes of NAME; the rest is written by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from ollama_batch import analysis, events, report, types
from ollama_batch.aris import (
    DataQuality,
    FailedEvaluation,
    PraxisTemplate,
    RankedCandidate,
    Ranking,
    ReadProgress,
    UnevaluatedCandidate,
    WrittenEvaluations,
)
from ollama_batch.concurrency import Concurrency
from ollama_batch.control import Supervisor, SystemdUnit
from ollama_batch.conversation import ConversationPolicy
from ollama_batch.doctor import Diagnosis, Finding, diagnose
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.hooks import CommandHook, Notice, OpenTelemetryHook, PrometheusHook, WebhookHook
from ollama_batch.memory import GuardDecision, MemoryPlan, MemorySample, RamGuard, VramGuard
from ollama_batch.metrics import BatchMetrics
from ollama_batch.retry import RetryPolicy
from ollama_batch.runner import BatchRunner
from ollama_batch.savings import HeadUsage
from ollama_batch.server import ServerSettings, create_app
from ollama_batch.testing import FAULT_KINDS, CostModel, FakeModel, FakeReply
from ollama_batch.trim import TrimResult

REFERENCE = Path(__file__).with_name("reference.md")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a pipe in a cell is escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(
        f"| {' | '.join(line)} |".replace("| --- ", "|---").replace("--- |", "---|") for line in lines
    )


def prose(thing: Any) -> str:
    """The docstring of `thing`, its paragraphs each on one line."""
    paragraphs = inspect.cleandoc(thing.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def entries(thing: Any) -> dict[str, str]:
    """What a docstring says of each name that it introduces as `name`: text."""
    said = prose(thing).partition("\n\n")[2]
    parts = re.split(r"(?<!\S)`(\w+)`: ", said.split("\n\n")[0])
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def default(value: Any) -> str:
    """A default as it would be typed."""
    return f"`{value!r}`"


def runner_arguments() -> str:
    """Every argument of BatchRunner."""
    said = entries(BatchRunner)
    rows = []
    for name, parameter in inspect.signature(BatchRunner).parameters.items():
        preset = "required" if parameter.default is parameter.empty else default(parameter.default)
        rows.append((f"`{name}`", preset, said[name]))
    return table(("argument", "default", "meaning"), rows)


def makers(thing: Any) -> list[str]:
    """The class methods that make a `thing`, as one paragraph; none if there are none."""
    found = []
    for name, value in vars(thing).items():
        if isinstance(value, classmethod) and not name.startswith("_"):
            taken = str(inspect.signature(value.__func__)).partition(" -> ")[0]
            taken = re.sub(r"^\(cls(, )?", "(", taken).replace("'", "")
            found.append(f"`{thing.__name__}.{name}{taken}`: {prose(value.__func__)}".replace("\n\n", " "))
    return [f"Made by: {' '.join(found)}"] if found else []


def fields(thing: Any, *, level: int = 3) -> str:
    """A dataclass: what it is, then its fields."""
    rows = []
    for field in dataclasses.fields(thing):
        if field.name.startswith("_"):
            continue
        if isinstance(field.default, str) and "\n" in field.default:
            preset = "our own words"
        elif field.default is not dataclasses.MISSING:
            preset = default(field.default)
        else:
            preset = "required" if field.default_factory is dataclasses.MISSING else "empty"
            if field.name == "unmeasured" and preset == "empty":
                preset = "each: `'not measured'`"
        rows.append((f"`{field.name}`", f"`{field.type}`", preset))
    parts = [f"{'#' * level} {thing.__name__}", prose(thing)]
    properties = [
        f"`{name}`: {prose(value.fget)}"
        for name, value in vars(thing).items()
        if isinstance(value, property) and not name.startswith("_")
    ]
    if rows:
        parts.append(table(("field", "type", "default"), rows))
    if properties:
        parts.append("Computed: " + " ".join(properties))
    parts += makers(thing)
    return "\n\n".join(parts)


def classes(*things: Any, level: int = 3) -> Callable[[], str]:
    """`fields` of each."""
    return lambda: "\n\n".join(fields(thing, level=level) for thing in things)


def memory() -> str:
    """The guards with their arguments, and the data."""
    guards = []
    for guard in (VramGuard, RamGuard):
        rows = [
            (f"`{name}`", default(parameter.default))
            for name, parameter in inspect.signature(guard).parameters.items()
        ]
        parts = [f"### {guard.__name__}", prose(guard), table(("argument", "default"), rows), *makers(guard)]
        guards.append("\n\n".join(parts))
    return "\n\n".join([*guards, classes(MemorySample, GuardDecision, MemoryPlan)()])


def restarts() -> str:
    """What restarts, and an engine that is restarted, with their arguments."""
    parts = []
    for name, thing in (
        ("Supervisor", Supervisor),
        ("SystemdUnit", SystemdUnit),
        ("OllamaEngine.managed", OllamaEngine.managed),
    ):
        rows = [
            (f"`{each}`", default(parameter.default))
            for each, parameter in inspect.signature(thing).parameters.items()
            if each != "clock"
        ]
        parts.append(f"### {name}\n\n{prose(thing)}\n\n{table(('argument', 'default'), rows)}")
    return "\n\n".join(parts)


def doctor() -> str:
    """`diagnose` with its arguments, and the data."""
    rows = [
        (f"`{name}`", default(parameter.default))
        for name, parameter in inspect.signature(diagnose).parameters.items()
        if name not in ("transport", "machine", "place", "told")
    ]
    data = classes(Diagnosis, Finding)()
    return f"### diagnose\n\n{prose(diagnose)}\n\n{table(('argument', 'default'), rows)}\n\n{data}"


def analyses() -> str:
    """`analyze`, `compare` and `read_csv` with their arguments, and the data."""
    parts = []
    for thing in (analysis.analyze, analysis.compare, analysis.read_csv):
        rows = [
            (f"`{name}`", "required" if each.default is each.empty else default(each.default))
            for name, each in inspect.signature(thing).parameters.items()
        ]
        parts.append(f"### {thing.__name__}\n\n{prose(thing)}\n\n{table(('argument', 'default'), rows)}")
    data = [each for name in analysis.__all__ if dataclasses.is_dataclass(each := getattr(analysis, name))]
    return "\n\n".join([*parts, classes(*data)()])


def server() -> str:
    """`create_app` with its arguments, and its settings."""
    rows = [
        (f"`{name}`", "required" if parameter.default is parameter.empty else default(parameter.default))
        for name, parameter in inspect.signature(create_app).parameters.items()
        if name != "clock"
    ]
    settings = classes(ServerSettings)()
    return f"### create_app\n\n{prose(create_app)}\n\n{table(('argument', 'default'), rows)}\n\n{settings}"


def told() -> str:
    """Every event."""
    rows = []
    for event in get_args(events.Event):
        names = [f"`{field.name}: {field.type}`" for field in dataclasses.fields(event)]
        rows.append((f"`{event.__name__}`", prose(event).replace("\n\n", " "), ", ".join(names)))
    return table(("event", "what happened", "fields"), rows)


def hooks() -> str:
    """The ready-made hooks with their arguments, and what they tell."""
    parts = []
    for hook in (PrometheusHook, OpenTelemetryHook, CommandHook, WebhookHook):
        rows = []
        for name, parameter in inspect.signature(hook).parameters.items():
            preset = "required" if parameter.default is parameter.empty else default(parameter.default)
            rows.append((f"`{name}`", "the Notice as JSON" if name == "body" else preset))
        parts.append(f"### {hook.__name__}\n\n{prose(hook)}\n\n{table(('argument', 'default'), rows)}")
    return "\n\n".join([*parts, classes(Notice)()])


def faults() -> str:
    """Every kind of fault of the fake servers."""
    rows = [
        (f"`{name}`", kind.summary, str(kind.status) if kind.action == "reply" else "")
        for name, kind in FAULT_KINDS.items()
    ]
    return table(("kind", "what happens", "status"), rows)


def columns() -> str:
    """The columns of to_pandas."""
    return ", ".join(f"`{name}`" for name in report._COLUMNS) + "."


BLOCKS: dict[str, Callable[[], str]] = {
    "runner": runner_arguments,
    "retry": classes(RetryPolicy, Concurrency, ConversationPolicy),
    "data": classes(
        types.BatchRequest,
        types.BatchResult,
        types.Usage,
        types.RowError,
        report.BatchReport,
        report.RowCounts,
        report.SourceFiles,
        report.ErrorExample,
        BatchMetrics,
        HeadUsage,
    ),
    "engine data": classes(
        types.EngineInfo, types.ChatRequest, types.Completion, types.Timings, types.LoadedModel
    ),
    "events": told,
    "hooks": hooks,
    "trim": classes(TrimResult),
    "restarts": restarts,
    "memory": memory,
    "fakes": classes(FakeModel, CostModel, FakeReply, level=4),
    "doctor": doctor,
    "aris": classes(PraxisTemplate, DataQuality, ReadProgress),
    "analysis": analyses,
    "server": server,
    "faults": faults,
    "columns": columns,
    "evaluations": classes(
        Ranking, RankedCandidate, FailedEvaluation, UnevaluatedCandidate, WrittenEvaluations
    ),
}


def rendered(text: str) -> str:
    """`text` with every block as the code has it now."""
    for name, make in BLOCKS.items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- end -->)",
            "\\1\n" + make().replace("\\", "\\\\") + "\n\\2",
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(f"{REFERENCE} has {found} blocks called {name}")
    return text


if __name__ == "__main__":
    REFERENCE.write_text(rendered(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
