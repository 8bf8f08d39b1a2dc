"""The rows of a stream that have come and wait, and which of them goes next."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from ollama_batch.ordering.keys import GROUP_BYTES
from ollama_batch.ordering.schedule import Schedule

T = TypeVar("T")


class _Waiting(NamedTuple, Generic[T]):
    row: T
    lead: bytes
    group: bytes
    size: int


class Window(Generic[T]):
    """Groups what waits by how it begins, and hands it out as `schedule` says, each group in input order.

    Rows that share their head and first 256 characters make a group while several of them wait; of the
    others, those that share their head. Groups grow while they are served. A row that `patience` rows have
    overtaken (rows that came later and went earlier, or as many places of the input) goes first, so no row
    is handed out more than `patience` places after its own. Each step costs O(1), and a change of
    group what it costs `schedule`.
    """

    def __init__(self, schedule: Schedule, *, patience: int) -> None:
        self._schedule = schedule
        self._patience = patience
        self._rows: OrderedDict[int, _Waiting[T]] = OrderedDict()
        self._groups: dict[bytes, OrderedDict[int, None]] = {}
        self._single: dict[bytes, int] = {}
        self._came = self._went = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: T, order: bytes, size: int = 0) -> None:
        """Let `row`, the next of the input, wait; `order` is its order key, `size` counts into `size`."""
        number, self._came = self._came, self._came + 1
        lead, head = (order[:length] for length in GROUP_BYTES)
        other = self._single.pop(lead, None)
        if other is not None:
            self._regroup(other, lead)
        group = lead if lead in self._groups else head
        if group == head:
            self._single[lead] = number
        self._rows[number] = _Waiting(row, lead, group, size)
        self._join(group, number)
        self.size += size

    def take(self, worker: int) -> T | None:
        """The row that `worker` is to have now; None if none waits, or none that it should have yet."""
        if self._rows:
            oldest = next(iter(self._rows))
            if self._went - oldest >= self._patience:
                group = self._rows[oldest].group
                row = self._pop(oldest)
                if not self._groups[group]:
                    self._drop(group)
                return row
        while (chosen := self._schedule.next(worker)) is not None:
            numbers = self._groups.get(chosen)
            if numbers:
                return self._pop(next(iter(numbers)))
            self._drop(chosen)
        return None

    def _join(self, group: bytes, number: int) -> None:
        self._groups.setdefault(group, OrderedDict())[number] = None
        self._schedule.add(group)

    def _regroup(self, number: int, lead: bytes) -> None:
        """The row with this number is no longer the only one that begins as it does."""
        waiting = self._rows[number]
        self._rows[number] = waiting._replace(group=lead)
        self._join(lead, number)  # before it leaves, so that its head keeps its turn
        self._leave(number, waiting.group)
        if not self._groups[waiting.group]:
            self._drop(waiting.group)

    def _pop(self, number: int) -> T:
        waiting = self._rows.pop(number)
        self._leave(number, waiting.group)
        if self._single.get(waiting.lead) == number:
            del self._single[waiting.lead]
        self._went += 1
        self.size -= waiting.size
        return waiting.row

    def _leave(self, number: int, group: bytes) -> None:
        del self._groups[group][number]
        self._schedule.took(group)

    def _drop(self, group: bytes) -> None:
        self._groups.pop(group, None)
        self._schedule.exhausted(group)
