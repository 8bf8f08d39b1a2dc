"""One group after another, warmed up on one request: for engines whose slots share what they have cached."""

from __future__ import annotations

from collections.abc import Iterable

from ollama_batch.ordering.keys import head_key
from ollama_batch.ordering.waiting import WaitingGroups

REMEMBERED = 4096
"""So many beginnings are remembered as warm, the latest; an engine that sees as many has forgotten others."""


class Warmth:
    """Which beginnings the engine has in its cache, and which are being put there.

    A beginning has a name; who warms it up, an `owner`, is a number.
    """

    def __init__(self) -> None:
        self._warm: dict[bytes, None] = {}
        self._warming: set[bytes] = set()
        self._owners: dict[int, list[bytes]] = {}

    def free(self, names: Iterable[bytes]) -> bool:
        """Whether a request with these beginnings may go: nobody is warming one of them up."""
        return self._warming.isdisjoint(names)

    def begin(self, owner: int, names: Iterable[bytes]) -> bool:
        """`owner` sends a request with these beginnings; whether that is a warm-up of any."""
        cold = [name for name in names if name not in self._warm]
        if cold:
            self._owners[owner] = cold
            self._warming.update(cold)
        return bool(cold)

    def owns(self, owner: int) -> bool:
        """Whether `owner` is warming up."""
        return owner in self._owners

    def end(self, owner: int, *, warm: bool = True) -> None:
        """The warm-up of `owner`, if it has one, is over; without `warm` its request was never sent."""
        for name in self._owners.pop(owner, ()):
            self._warming.discard(name)
            if warm:
                self._warm[name] = None
                if len(self._warm) > REMEMBERED:
                    del self._warm[next(iter(self._warm))]


class WarmSchedule:
    """One group after another, served by all workers.

    The first row of a head, and then of each group of that head, goes alone: its other rows wait until
    `finished` is told of it. Meanwhile workers take rows of groups that are warm, or, if there are none,
    warm up the next. Groups are begun head by head, in the order in which heads were added. Rows under the
    empty name have nothing in common and wait for nobody.
    """

    def __init__(self) -> None:
        self._waiting = WaitingGroups()
        self._begun: dict[bytes, None] = {}
        self._warmth = Warmth()

    def add(self, group: bytes, rows: int = 1) -> None:
        """So many more rows of `group` wait."""
        if group not in self._begun:
            self._waiting.add(group)

    def next(self, worker: int) -> bytes | None:
        """The group that `worker` is to take a row of now; None if there is nothing for it at present."""
        self._warmth.end(worker, warm=False)  # of a group that had no row left
        for begun in self._begun:
            if self._warmth.free(_names(begun)):
                self._warmth.begin(worker, _names(begun))
                return begun
        # At most as many heads are not free as there are workers.
        head = next((head for head in self._waiting.heads() if self._warmth.free((head,))), None)
        group = None if head is None else self._waiting.take(head)
        if group is not None:
            self._begun[group] = None
            self._warmth.begin(worker, _names(group))
        return group

    def took(self, group: bytes) -> None:
        """One row of `group` was handed out."""

    def exhausted(self, group: bytes) -> None:
        """`group` has no rows left."""
        self._begun.pop(group, None)
        self._waiting.discard(group)

    def warms_up(self, worker: int) -> bool:
        """Whether the row that `worker` has is a warm-up, which others wait for."""
        return self._warmth.owns(worker)

    def finished(self, worker: int) -> None:
        """The row that `worker` had is no longer in flight: what it warmed up is warm."""
        self._warmth.end(worker)

    def leave(self, worker: int) -> None:
        """`worker` takes no row for now: groups belong to nobody here."""

    @property
    def spread(self) -> bool:
        """Never: what one slot has cached serves all of them."""
        return False

    @property
    def done(self) -> bool:
        """Whether no group waits and none is in work."""
        return not self._waiting and not self._begun


def _names(group: bytes) -> tuple[bytes, ...]:
    """The beginnings that all rows of `group` have: its head and, if that is not all of it, its own."""
    if not group:
        return ()
    head = head_key(group)
    return (head,) if head == group else (head, group)
