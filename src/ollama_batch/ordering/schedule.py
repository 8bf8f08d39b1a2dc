"""Which head each worker serves: as many heads side by side as the engine has slots, one head to a slot.

The slots of llama.cpp, and so of Ollama, share no cache: a head is processed once for every slot that meets
it. So a head stays with one slot as long as other heads wait, and is spread over several only at the end.
"""

from __future__ import annotations

from collections.abc import Mapping


class HeadSchedule:
    """Hands out heads to workers.

    `rows` maps each head to the number of its rows; `slots` is how many heads may be in work at once
    (None: as many as there are workers). With `shared_cache` (vLLM) slots share what they cached, and one
    head after another is served by all workers. Guarantees: while a head waits that nobody serves, no
    head is served by two workers (without `shared_cache`), and never more than `slots` heads are in work.
    """

    def __init__(
        self, rows: Mapping[bytes, int], *, slots: int | None = None, shared_cache: bool = False
    ) -> None:
        # Largest first: a large head begun last would keep one slot busy when the others have run dry.
        self._waiting = sorted(rows, key=lambda head: (rows[head], head))
        self._slots = 1 if shared_cache else slots
        self._shared = shared_cache
        self._left = dict(rows)
        self._serving: dict[int, bytes] = {}

    def next(self, worker: int) -> bytes | None:
        """The head that `worker` is to serve now; None if there is nothing for it at present.

        A worker keeps its head until `exhausted` says that it has no rows left.
        """
        head = self._serving.get(worker)
        if head is not None:
            return head
        in_work = set(self._serving.values())
        if self._waiting and (self._slots is None or len(in_work) < self._slots):
            head = self._waiting.pop()
        elif in_work and (self._shared or not self._waiting):
            head = max(in_work, key=lambda one: (self._left[one] / self._servers(one), one))
        else:
            return None
        self._serving[worker] = head
        return head

    def took(self, head: bytes) -> None:
        """One row of `head` was handed out."""
        self._left[head] -= 1

    def exhausted(self, head: bytes) -> None:
        """`head` has no rows left: whoever served it is free for another."""
        self._left[head] = 0
        for worker in [worker for worker, served in self._serving.items() if served == head]:
            del self._serving[worker]

    @property
    def done(self) -> bool:
        """Whether no head waits and none is in work."""
        return not self._waiting and not self._serving

    def _servers(self, head: bytes) -> int:
        return sum(served == head for served in self._serving.values())
