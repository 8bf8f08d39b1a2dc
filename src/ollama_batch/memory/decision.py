"""What a guard decides, as data: whoever runs the requests carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from ollama_batch.errors import ConfigError
from ollama_batch.memory.amounts import show
from ollama_batch.memory.levels import Level
from ollama_batch.memory.sample import MemorySample

Action = Literal["stop_growth", "allow_growth", "halve", "trim", "pause", "reload_smaller", "resume"]
"""stop_growth, allow_growth: of the concurrency. halve: it. trim: conversations, as far as it goes.
pause: send nothing, let finish what is out. reload_smaller: unload the model and load it with a smaller plan
(num_ctx, num_batch; fewer slots are the server's to set). resume: end the pause.
"""

ACTIONS: Final[tuple[Action, ...]] = get_args(Action)


@dataclass(frozen=True, slots=True)
class Effect:
    """What an action that was decided earlier has freed, as far as measuring tells.

    `freed_bytes` is the memory in use then less that in use now; below 0 if more is in use.
    """

    action: Action
    freed_bytes: int
    after_s: float

    def __str__(self) -> str:
        freed = "0" if self.freed_bytes == 0 else show(self.freed_bytes)
        return f"{self.action}: freed: {freed} measured"

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {"action": self.action, "freed_bytes": self.freed_bytes, "after_s": self.after_s}


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """What to do now, and why.

    `level` is how tight memory is; `actions` what to do because of this sample, usually nothing. `where`
    names the memory that is tightest, `used_bytes` and `total_bytes` are its figures (None: unknown).
    `unknown` says why this sample could not be judged: then the level is the one before, and nothing is to
    be done. `effects` say what earlier actions have freed; `notes` what else a person should know. Raises
    ConfigError for an action that there is not.
    """

    guard: str
    level: Level = Level.OK
    actions: tuple[Action, ...] = ()
    reason: str = ""
    where: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    unknown: str | None = None
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        actions: object = self.actions
        many = isinstance(actions, Sequence) and not isinstance(actions, str)
        wrong = [each for each in self.actions if each not in ACTIONS] if many else [self.actions]
        if wrong:
            raise ConfigError(
                f"the guard {self.guard!r} decided on {wrong[0]!r} (actions={self.actions!r}): give a tuple "
                f"of {', '.join(ACTIONS)}"
            )

    def __str__(self) -> str:
        parts = [f"{self.guard}: {self.level}"]
        if self.unknown is not None:
            # "ok" would be read as a judgement: nothing was judged.
            before = "" if self.level is Level.OK else f"; {self.level} before"
            parts = [f"{self.guard}: unknown ({self.unknown}){before}"]
        parts += [", ".join(self.actions)] if self.actions else []
        parts += [self.reason] if self.reason else []
        return "; ".join([*parts, *map(str, self.effects), *self.notes])

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON data, the level by name."""
        return {
            "guard": self.guard,
            "level": str(self.level),
            "actions": list(self.actions),
            "reason": self.reason,
            "where": self.where,
            "used_bytes": self.used_bytes,
            "total_bytes": self.total_bytes,
            "unknown": self.unknown,
            "effects": [effect.to_dict() for effect in self.effects],
            "notes": list(self.notes),
        }


class Guard(Protocol):
    """Judges samples of memory, one after another."""

    def decide(self, sample: MemorySample) -> GuardDecision:
        """What to do, now that memory is as `sample` says. Samples come in the order of time.

        Must not block and must not act by itself; the same samples give the same decisions.
        """
        ...
