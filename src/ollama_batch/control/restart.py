"""A restart of the engine that was tried, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a restart ended. Only probes tell whether the engine is well again."""

    OK = "ok"
    FAILED = "failed"
    """It was tried and did not work."""
    REFUSED = "refused"
    """Whoever was asked would not: no such unit, no such program, not allowed."""
    PASSWORD = "password"  # noqa: S105 - the name of an outcome
    """It would need somebody to type a password."""
    SLOW = "slow"
    """It had not ended in time; it may still come to a good end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """One restart: why, how it ended after `duration_s` seconds, and what was said ("" if it is ok)."""

    reason: str
    outcome: Outcome
    message: str
    duration_s: float

    def __str__(self) -> str:
        said = f": {self.message}" if self.message else ""
        match self.outcome:
            case Outcome.OK:
                return f"restarted the engine in {self.duration_s:.1f} s"
            case Outcome.SLOW:
                return f"the restart of the engine takes long{said}"
            case Outcome.FAILED:
                return f"the restart of the engine failed after {self.duration_s:.1f} s{said}"
        return f"could not restart the engine{said}"

    def to_note(self) -> dict[str, Any]:
        """The restart as the journal keeps it."""
        note: dict[str, Any] = {"reason": self.reason, "outcome": self.outcome.value}
        if self.message:
            note["message"] = self.message
        return {**note, "duration_s": round(self.duration_s, 3)}
