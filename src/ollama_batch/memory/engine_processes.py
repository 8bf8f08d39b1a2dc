"""Which processes of this machine are the engine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, Protocol, Self

from ollama_batch.engines.base import OLLAMA_PROCESSES, NamesProcesses, OwnsProcess
from ollama_batch.memory.engine import is_local

SEARCH_S: Final = 30.0
"""How often processes are searched: that takes as long as all the rest of a sample many times over."""

NONE_SEEN: Final = "no process of an engine on this machine"


class Addressed(Protocol):
    """What is needed of an engine here."""

    @property
    def address(self) -> str:
        """Where it is."""
        ...


class EngineProcesses:
    """The processes of an engine on this machine, searched every half minute.

    `pid` tells the id of its own process (None: there is none yet): that and all that it has started. Else
    those that have one of `names`. `unknown` says why there are none, where none are found.
    """

    def __init__(
        self,
        *,
        names: Collection[str] = OLLAMA_PROCESSES,
        pid: Callable[[], int | None] | None = None,
        unknown: str = NONE_SEEN,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._pid = pid
        self.unknown = unknown
        self._now = now
        self._found: frozenset[int] = frozenset()
        self._searched: tuple[float, int | None] | None = None  # when, and below which process

    @classmethod
    def of(cls, engine: Addressed) -> Self:
        """Those of `engine`: its own process where it has one, else those with an Ollama's names where one
        runs on this machine. Of any other engine they are not known, whatever else runs here.
        """
        if isinstance(engine, OwnsProcess):
            owner = engine
            return cls(pid=lambda: owner.pid, unknown="the engine's process does not run")
        if not is_local(engine.address):
            return cls(names=(), unknown="the engine is on another machine")
        if isinstance(engine, NamesProcesses):
            return cls(names=engine.process_names)
        return cls(names=(), unknown="which processes are the engine's is not told")

    def find(self) -> Collection[int]:
        """Their ids, as last seen; none if they are not known."""
        now, pid = self._now(), None if self._pid is None else self._pid()
        last = self._searched
        # One that was started anew is looked for at once.
        if last is None or now - last[0] >= SEARCH_S or pid != last[1]:
            self._searched = now, pid
            self._found = _named(self._names) if self._pid is None else _family(pid)
        return self._found


def _named(names: Collection[str]) -> frozenset[int]:
    import psutil

    if not names:
        return frozenset()
    return frozenset(each.pid for each in psutil.process_iter(["name"]) if each.info["name"] in names)


def _family(pid: int | None) -> frozenset[int]:
    import psutil

    if pid is None:
        return frozenset()
    try:
        parent = psutil.Process(pid)
        return frozenset({pid, *(each.pid for each in parent.children(recursive=True))})
    except (OSError, psutil.Error):
        return frozenset()  # it has ended
