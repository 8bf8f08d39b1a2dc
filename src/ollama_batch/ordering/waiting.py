"""Groups that nobody has begun, head by head."""

from __future__ import annotations

from collections.abc import Iterator

from ollama_batch.ordering.keys import head_key


class WaitingGroups:
    """Groups in the order in which their heads were added, then in that in which they were themselves."""

    def __init__(self) -> None:
        self._of_head: dict[bytes, dict[bytes, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._of_head)

    def add(self, group: bytes) -> None:
        """Let `group` wait; it may wait already."""
        self._of_head.setdefault(head_key(group), {})[group] = None

    def discard(self, group: bytes) -> None:
        """Let `group` wait no longer, if it does."""
        head = head_key(group)
        groups = self._of_head.get(head)
        if groups is not None:
            groups.pop(group, None)
            if not groups:
                del self._of_head[head]

    def heads(self) -> Iterator[bytes]:
        """The heads that groups wait of."""
        return iter(self._of_head)

    def take(self, head: bytes) -> bytes | None:
        """The first group of `head`, which waits no longer; None if it has none."""
        groups = self._of_head.get(head)
        if groups is None:
            return None
        group = next(iter(groups))
        self.discard(group)
        return group
