"""From levels to actions: which are due, and what earlier ones have freed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ollama_batch.memory.decision import Action, Effect
from ollama_batch.memory.levels import Level

EFFECT_S: Final = 10.0
"""When an action's effect is measured: an unloaded model's memory comes back within about 5 s."""

MOST_RELOADS: Final = 3
"""So many reloads without a moment of level OK between: then something else holds the memory."""

_FREEING: Final[frozenset[Action]] = frozenset({"halve", "trim", "reload_smaller"})


@dataclass(frozen=True, slots=True)
class Pending:
    """An action whose effect is still to be measured, and what was in use when it was decided."""

    action: Action
    used: Mapping[str, int]
    at: float


@dataclass(frozen=True, slots=True)
class ActionState:
    """What was done so far, as far as it matters for what is next.

    `acted_at` is what was in use when concurrency was last halved or conversations were last trimmed:
    without it getting worse, that is not repeated.
    """

    level: Level = Level.OK
    acted_at: int | None = None
    reload_due: float | None = None
    reloads: int = 0
    pending: tuple[Pending, ...] = ()

    def step(
        self,
        level: Level,
        used: Mapping[str, int],
        at: float,
        *,
        margin: int,
        trim_from: Level | None,
        reload_after_s: float,
    ) -> tuple[ActionState, tuple[Action, ...]]:
        """The state after `level` was found with `used` bytes in each memory, and the actions now due."""
        actions: list[Action] = []
        now_used = sum(used.values())
        worse = self.acted_at is not None and now_used >= self.acted_at + margin
        if level > self.level is Level.OK:
            actions.append("stop_growth")
        if level >= Level.HIGH and (self.level < Level.HIGH or worse):
            actions.append("halve")
        if trim_from is not None and level >= trim_from and (self.level < trim_from or worse):
            actions.append("trim")
        state = replace(self, level=level)
        if level is Level.CRITICAL:
            if self.level is not Level.CRITICAL:
                actions.append("pause")
                state = replace(state, reload_due=at + reload_after_s * 2**self.reloads)
            elif self.reload_due is not None and at >= self.reload_due and self.reloads < MOST_RELOADS:
                actions.append("reload_smaller")
                reloads = self.reloads + 1
                state = replace(state, reloads=reloads, reload_due=at + reload_after_s * 2**reloads)
        elif self.level is Level.CRITICAL:
            actions.append("resume")
            state = replace(state, reload_due=None)
        if level is Level.OK and self.level is not Level.OK:
            actions.append("allow_growth")
            state = replace(state, reloads=0)
        if "halve" in actions or "trim" in actions:
            state = replace(state, acted_at=now_used)
        waiting = tuple(Pending(action, dict(used), at) for action in actions if action in _FREEING)
        return replace(state, pending=self.pending + waiting), tuple(actions)

    def measured(self, used: Mapping[str, int], at: float) -> tuple[ActionState, tuple[Effect, ...]]:
        """The state, and what those actions have freed that were decided long enough ago.

        An effect waits until every memory that was looked at then can be read again.
        """
        effects, waiting = [], []
        for each in self.pending:
            if at - each.at >= EFFECT_S and each.used.keys() <= used.keys():
                freed = sum(before - used[id_] for id_, before in each.used.items())
                effects.append(Effect(each.action, freed, at - each.at))
            else:
                waiting.append(each)
        return replace(self, pending=tuple(waiting)), tuple(effects)
