"""What was in use of each memory before a run: no reason for its usual guards to slow it down."""

from __future__ import annotations

from typing import Final

from ollama_batch.memory.sample import MemorySample, Room

GROWN_SHARE: Final = 0.01
"""Use within this share of all memory of what the run began with is no use of the run's."""


class InitialUse:
    """The least that was in use of each memory since it was first seen, while the model was loaded.

    Between two samples in which less was in use, an answer must have come for that to count: a model that is
    unloaded and loaded anew leaves its card empty for a while, and has grown by nothing.
    """

    def __init__(self) -> None:
        self._least: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}  # what was in use, and the answers until then

    def see(self, sample: MemorySample, *, answers: int) -> None:
        """Take in a sample; the model has given so many answers so far. Samples come in the order of time."""
        for room in _rooms(sample):
            used = room.used.value
            if used is None:
                continue
            least = self._least.get(room.id, used)
            before, answered = self._last.get(room.id, (used, answers))
            if answers > answered:
                least = min(least, max(before, used))
            self._least[room.id] = least
            self._last[room.id] = (used, answers)

    def spared(self, room: Room) -> int:
        """Up to so many bytes in use of a memory are no use of the run's; -1 if it was never seen."""
        least = self._least.get(room.id)
        if least is None:
            return -1
        return least + round(GROWN_SHARE * (room.total.value or least))


def _rooms(sample: MemorySample) -> list[Room]:
    reported = [] if sample.engine is None else [sample.engine.room(None)]
    return [sample.host.room, *(device.room for device in sample.devices), *reported]
