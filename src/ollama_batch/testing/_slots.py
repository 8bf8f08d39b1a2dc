"""The slots of a loaded model and what each of them has in its prefix cache."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import count

Tokens = Sequence[str]
"""A prompt as a sequence of tokens: a list of words, or text whose characters are quarter tokens."""

MIN_SHARED = 0.1
"""A slot is chosen for its cache if more than this part of the new prompt is in it (llama-server)."""


def common_prefix(left: Tokens, right: Tokens) -> int:
    """The number of leading elements that two sequences share."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # left[:low] is shared, left[:high] is not
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Slot:
    """One place where a completion runs, with the prompt whose state it still holds."""

    def __init__(self) -> None:
        self.cache: Tokens = ""
        self.busy = False
        self.used = 0
        self.shared = 0


class SlotPool:
    """A fixed number of slots, handed out in order of asking.

    Among idle slots the one with the longest common prefix is chosen if that is more than 10 % of the
    new prompt, else the least recently used one, as llama-server does.
    """

    def __init__(self, size: int, *, prefix_cache: bool = True) -> None:
        self._slots = [Slot() for _ in range(size)]
        self._waiting: deque[tuple[Tokens, asyncio.Future[Slot]]] = deque()
        self._prefix_cache = prefix_cache
        self._clock = count(1)

    async def acquire(self, prompt: Tokens) -> Slot:
        """A slot for `prompt`; its `shared` says how many leading elements were in its cache."""
        if not self._waiting and (slot := self._choose(prompt)) is not None:
            return slot
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, slot: Slot) -> None:
        """Give a slot back; whoever waits longest gets one."""
        slot.busy = False
        while self._waiting:
            prompt, future = self._waiting.popleft()
            if not future.done():
                chosen = self._choose(prompt)
                if chosen is None:
                    self._waiting.appendleft((prompt, future))
                else:
                    future.set_result(chosen)
                return

    def _choose(self, prompt: Tokens) -> Slot | None:
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        chosen, shared = min(idle, key=lambda slot: slot.used), 0
        if self._prefix_cache:
            best = max(idle, key=lambda slot: common_prefix(slot.cache, prompt))
            best_shared = common_prefix(best.cache, prompt)
            if best_shared > MIN_SHARED * len(prompt):
                chosen, shared = best, best_shared
            else:
                shared = common_prefix(chosen.cache, prompt)
        chosen.busy, chosen.used = True, next(self._clock)
        chosen.cache, chosen.shared = prompt, shared
        return chosen
