"""What an examination found: each finding with what was seen, what it costs, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

FindingLevel: TypeAlias = Literal["ok", "note", "unknown", "warning", "problem"]
"""ok: as it should be. note: worth knowing. unknown: could not be told, with the reason. warning: the run
will be slower, or may stop. problem: do not start yet.
"""

LEVELS: Final[tuple[FindingLevel, ...]] = ("ok", "note", "unknown", "warning", "problem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    `check` is its stable name: server, version, model, others, stuck, load, context, slots, idle, card, ram,
    disk, input, night. `seen` says what was found (of an unknown one: why it is unknown), `costs` what that
    costs, `assumed` what an estimate rests on. `mend` are the commands that mend it, in order, each a line
    for a shell; `on` the machine to give them on (None: any, or this one). `numbers` are the figures in
    `seen`: bytes, seconds, counts; `needs_bytes` is what the model is predicted to take with what is advised.

    `sets` are the environment variables that mend it ({}: the server is only started again; None: it is
    not). In a diagnosis `mend` then sets those of all its findings.
    """

    check: str
    level: FindingLevel
    seen: str
    costs: str | None = None
    mend: tuple[str, ...] = ()
    on: str | None = None
    assumed: tuple[str, ...] = ()
    numbers: Mapping[str, Any] | None = None
    sets: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "check": self.check,
            "level": self.level,
            "seen": self.seen,
            "costs": self.costs,
            "mend": list(self.mend),
            "on": self.on,
            "assumed": list(self.assumed),
            "numbers": dict(self.numbers or {}),
            "sets": dict(self.sets or {}),
        }


def settings_of(findings: Iterable[Finding]) -> dict[str, str]:
    """The variables of all of them. What a later one says of the same variable was found with more seen."""
    return {name: value for each in findings for name, value in (each.sets or {}).items()}


def needs_of(findings: Iterable[Finding]) -> int | None:
    """What the model is predicted to take of the GPU with the variables of all of them, in bytes; None: not
    known. The last one that tells reckons with what those before it set.
    """
    told = [(each.numbers or {}).get("needs_bytes") for each in findings if each.sets]
    return next((each for each in reversed(told) if each is not None), None)


def set_together(
    findings: Sequence[Finding], serve_with: Callable[[Mapping[str, str]], tuple[str, ...]]
) -> tuple[Finding, ...]:
    """`findings`, where each that starts the server again does it with the variables of all of them.

    Whichever is followed, and in whatever order, none undoes another.
    """
    settings = settings_of(findings)
    if not settings:
        return tuple(findings)
    mend = serve_with(settings)
    return tuple(each if each.sets is None else replace(each, mend=mend) for each in findings)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings on a server and the machine, in the order in which they were looked at."""

    address: str
    model: str | None
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What should be mended before a run is started."""
        return self.of("problem")

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables with which the server should be started: those of all findings."""
        return settings_of(self.findings)

    @property
    def needs_bytes(self) -> int | None:
        """What the model is predicted to take of the GPU with these settings; None: not known, or none."""
        return needs_of(self.findings)

    def of(self, level: FindingLevel) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(each for each in self.findings if each.level == level)

    def on(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(each for each in self.findings if each.check == check)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, with the number of findings of each level, the settings of all, what they take."""
        return {
            "address": self.address,
            "model": self.model,
            "ok": self.ok,
            "counts": {level: len(self.of(level)) for level in LEVELS},
            "settings": self.settings,
            "needs_bytes": self.needs_bytes,
            "findings": [each.to_dict() for each in self.findings],
        }
