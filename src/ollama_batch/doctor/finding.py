"""What an examination found: each finding with what was seen, what it costs, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    `seen`: bytes, seconds, counts.
    """

    check: str
    level: FindingLevel
    seen: str
    costs: str | None = None
    mend: tuple[str, ...] = ()
    on: str | None = None
    assumed: tuple[str, ...] = ()
    numbers: Mapping[str, Any] | None = None

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
        }


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

    def of(self, level: FindingLevel) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(each for each in self.findings if each.level == level)

    def on(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check."""
        return tuple(each for each in self.findings if each.check == check)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, with the number of findings of each level."""
        return {
            "address": self.address,
            "model": self.model,
            "ok": self.ok,
            "counts": {level: len(self.of(level)) for level in LEVELS},
            "findings": [each.to_dict() for each in self.findings],
        }
