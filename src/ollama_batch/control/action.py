"""What is to be done about trouble: decided here, carried out elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Do(StrEnum):
    """What to do. Of the rows that an action does not name, nothing changes."""

    WAIT = "wait"
    """Send the row again after `wait_s`; it costs the row nothing."""
    AGAIN = "again"
    """Send the row again after `wait_s`, with `timeout_factor` times its deadline: one of its repeats."""
    SHORTEN = "shorten"
    """Count the prompt anew and make it fit, if the run trims; else fail the row. Never send it unchanged."""
    FAIL = "fail"
    """The row has failed; the run goes on."""
    PROBE = "probe"
    """Ask the engine whether it is healthy, after `wait_s`, and decide again with what it says."""
    ASK = "ask"
    """Ask the engine a question of one token, and decide again with whether it answered."""
    PAUSE = "pause"
    """Send nothing. Rows in `returned` are pending again, an attempt spent; those in `quarantined` failed.
    Those in `alone` are sent while nothing else is out, and after others (`History.others_answered`). Take
    `rung`, if there is one. Then probe after `wait_s`: health, and a question of one token."""
    RESUME = "resume"
    """Send again, beginning with `limit` requests (None: as many as before)."""
    UNDO = "undo"
    """Take `rung` back."""
    STOP = "stop"
    """End the run so that it can be resumed: what is not finished stays pending."""


class Rung(StrEnum):
    """What is given up for memory, the least painful first."""

    CONCURRENCY = "concurrency"
    """Half as many requests, and a ceiling: `QueueTarget.on_oom`, which also takes it back."""
    NUM_BATCH = "num_batch"
    """Evaluate prompts in pieces of 256 tokens instead of 512 or more."""
    UNLOAD_OTHERS = "unload_others"
    """Have the engine unload the models that are not this run's."""
    RESTART = "restart"
    """The user's own command that restarts the engine."""


RUNG_WORDS: Final = {
    Rung.CONCURRENCY: "from now on fewer requests are out at a time",
    Rung.NUM_BATCH: "from now on prompts are evaluated in smaller pieces",
    Rung.UNLOAD_OTHERS: "the engine is asked to unload other models",
    Rung.RESTART: "the engine is restarted",
}
"""What taking a rung means, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One decision, and why.

    Waits are the longest; whoever waits draws from their upper half, so that rows come back spread out.
    """

    do: Do
    reason: str
    wait_s: float = 0.0
    rung: Rung | None = None
    limit: int | None = None
    timeout_factor: float = 1.0
    returned: frozenset[int] = frozenset()
    alone: frozenset[int] = frozenset()
    quarantined: frozenset[int] = frozenset()

    def to_note(self) -> dict[str, Any]:
        """The decision as the journal keeps it: what is not said is left out."""
        note: dict[str, Any] = {"do": self.do.value, "reason": self.reason}
        if self.wait_s:
            note["wait_s"] = self.wait_s
        if self.rung is not None:
            note["rung"] = self.rung.value
        if self.limit is not None:
            note["limit"] = self.limit
        if self.timeout_factor != 1.0:
            note["timeout_factor"] = self.timeout_factor
        for name in ("returned", "alone", "quarantined"):
            if rows := getattr(self, name):
                note[name] = sorted(rows)
        return note
