"""Which group of rows each worker serves: as many groups side by side as the engine has slots.

The slots of llama.cpp, and so of Ollama, share no cache: a head is processed once for every slot that meets
it. So a group stays with one slot as long as others wait, and is spread over several only when none does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Protocol

from ollama_batch.ordering.keys import head_key
from ollama_batch.ordering.waiting import WaitingGroups


class Schedule(Protocol):
    """Hands out groups of rows to workers; knows the groups by name only, not the rows."""

    def add(self, group: bytes, rows: int = 1) -> None:
        """So many more rows of `group` wait."""
        ...

    def next(self, worker: int) -> bytes | None:
        """The group that `worker` is to take a row of now; None if there is nothing for it at present."""
        ...

    def took(self, group: bytes) -> None:
        """One row of `group` was handed out."""
        ...

    def exhausted(self, group: bytes) -> None:
        """`group` has no rows left: whoever served it is free for another."""
        ...

    def warms_up(self, worker: int) -> bool:
        """Whether the row that `worker` has is a warm-up, which others wait for."""
        ...

    def finished(self, worker: int) -> None:
        """The row that `worker` had is no longer in flight."""
        ...

    def leave(self, worker: int) -> None:
        """`worker`, which has no row in flight, takes none for now: what it served is for the others."""
        ...

    @property
    def spread(self) -> bool:
        """Whether more than one group wants a slot of the engine to itself at present."""
        ...

    @property
    def done(self) -> bool:
        """Whether no group waits and none is in work."""
        ...


def largest_first(rows: Mapping[bytes, int]) -> list[bytes]:
    """The groups in the order to begin them in, if all are known beforehand.

    A large one begun last would keep one slot busy when the others have run dry.
    """
    return sorted(rows, key=lambda group: (-rows[group], group))


class HeadSchedule:
    """One group to a worker, for engines whose slots share no cache.

    `slots` is how many groups may be in work at once (None: as many as there are workers). Groups are begun
    in the order in which they were added, but a worker goes through all groups of a head before it begins
    another, and begins one that nobody serves if it can. Guarantees: while a group waits that nobody serves,
    no worker that asks is given one that another serves too; and never more than `slots` are in work.
    """

    def __init__(self, *, slots: int | None = None) -> None:
        self._slots = slots
        self._waiting = WaitingGroups()
        self._left: Counter[bytes] = Counter()
        self._serving: dict[int, bytes] = {}
        self._servers: Counter[bytes] = Counter()
        self._heads: dict[int, bytes] = {}

    def add(self, group: bytes, rows: int = 1) -> None:
        """So many more rows of `group` wait."""
        self._left[group] += rows
        if group not in self._servers:
            self._waiting.add(group)

    def next(self, worker: int) -> bytes | None:
        """The group that `worker` is to take a row of now; None if there is nothing for it at present.

        A worker keeps its group until `exhausted` says that it has no rows left, or until another waits and
        somebody else serves this one as well.
        """
        group = self._serving.get(worker)
        if group is not None:
            if self._servers[group] == 1 or not self._waiting:
                return group
            self._leave(worker)
        if self._waiting and (self._slots is None or len(self._servers) < self._slots):
            group = self._begin(worker)
        elif self._servers and not self._waiting:
            group = max(self._servers, key=lambda one: (self._left[one] / self._servers[one], one))
        else:
            return None
        self._serving[worker] = group
        self._heads[worker] = head_key(group)
        self._servers[group] += 1
        return group

    def took(self, group: bytes) -> None:
        """One row of `group` was handed out."""
        self._left[group] -= 1

    def exhausted(self, group: bytes) -> None:
        """`group` has no rows left: whoever served it is free for another."""
        self._left.pop(group, None)
        self._waiting.discard(group)
        for worker in [worker for worker, served in self._serving.items() if served == group]:
            self._leave(worker)

    def warms_up(self, worker: int) -> bool:
        """Never: another slot would gain nothing from it."""
        return False

    def finished(self, worker: int) -> None:
        """The row that `worker` had is no longer in flight: it asks for another by itself."""

    def leave(self, worker: int) -> None:
        """`worker` takes no row for now: a group that nobody else serves waits again."""
        group = self._serving.get(worker)
        if group is not None:
            self._leave(worker)
            if group not in self._servers:
                self._waiting.add(group)

    @property
    def spread(self) -> bool:
        """Whether groups wait, or several are in work."""
        return bool(self._waiting) or len(self._servers) > 1

    @property
    def done(self) -> bool:
        """Whether no group waits and none is in work."""
        return not self._waiting and not self._serving

    def _begin(self, worker: int) -> bytes:
        """A group that waits: of the head that `worker` had last, of one that nobody serves, or the first."""
        group = self._waiting.take(self._heads.get(worker, b""))
        if group is None:
            in_work = {head_key(one) for one in self._servers}
            heads = list(islice(self._waiting.heads(), len(in_work) + 1))
            group = self._waiting.take(next((head for head in heads if head not in in_work), heads[0]))
        assert group is not None  # noqa: S101 - its head came from those that wait
        return group

    def _leave(self, worker: int) -> None:
        group = self._serving.pop(worker)
        self._servers[group] -= 1
        if not self._servers[group]:
            del self._servers[group]
