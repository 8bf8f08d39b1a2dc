"""How many requests one run wants out: a number, or one that follows what its address is found to bear."""

from __future__ import annotations

from collections.abc import Callable

from ollama_batch.control import LimitChange


def _never_spread() -> bool:
    return False


class RunWidth:
    """How many requests a run wants out; `now` changes while it runs.

    A fixed one is `wish`, or less while the address is capped. A steered one begins there and follows the
    target of its address, never beyond `highest`; the target goes below `lowest` only for memory, a crash or
    a cap. `slots`: what the engine tells of them. `spread` says whether rows at present want a slot each to
    themselves. `changed(before, after, change)` is told of every change, `moved` as well, after it.
    """

    def __init__(
        self,
        wish: int,
        *,
        steered: bool = False,
        lowest: int = 1,
        highest: int | None = None,
        slots: int | None = None,
        spread: Callable[[], bool] = _never_spread,
        changed: Callable[[int, int, LimitChange | None], None] | None = None,
    ) -> None:
        self.wish = self.now = wish
        self.steered = steered
        self.lowest = lowest
        self.highest = wish if highest is None else highest
        self.slots = slots
        self.spread = spread
        self.changed = changed
        self.moved: Callable[[], None] | None = None

    def follow(self, limit: int, change: LimitChange | None = None) -> None:
        """The address bears `limit` requests now, for the reason in `change`."""
        before, self.now = self.now, min(limit, self.highest)
        if self.now != before:
            if self.changed is not None:
                self.changed(before, self.now, change)
            if self.moved is not None:
                self.moved()
