"""The memory of this machine, and what this process and the engine's have of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Final

from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.cgroup import GroupLimit, group_limit
from ollama_batch.memory.engine_processes import NONE_SEEN, EngineProcesses
from ollama_batch.memory.sample import HostMemory, Reading, smaller

NO_LIMIT: Final = "no limit"
"""Why the control group's limit has no value where there is none."""

_SOURCE: Final = "psutil"


class HostProbe:
    """Reads RAM, the control group's limit and resident memory.

    `engine_pids` are the engine's processes where you know them, or what tells them; else processes named
    like an Ollama's or a llama.cpp's are searched for. `group` reads the control group's limit.
    """

    def __init__(
        self,
        engine_pids: Collection[int] | EngineProcesses | None = None,
        *,
        group: Callable[[], GroupLimit | None] = group_limit,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pids = EngineProcesses(now=now) if engine_pids is None else engine_pids
        self._group = group

    def engine_pids(self) -> Collection[int]:
        """The processes of the engine on this machine, as last seen."""
        return self._pids.find() if isinstance(self._pids, EngineProcesses) else self._pids

    def read(self) -> HostMemory:
        """The memory as it is now; what cannot be read is unknown."""
        import psutil

        try:
            memory = psutil.virtual_memory()
            total, available = Reading(_SOURCE, memory.total), Reading(_SOURCE, memory.available)
        except (OSError, ValueError, psutil.Error) as exc:
            total = available = Reading.unknown(str(exc), _SOURCE)
        try:
            group = self._group()
            limit = Reading.unknown(NO_LIMIT, "cgroup")
            if group is not None:
                limit = Reading(group.source, group.limit)
                total = smaller(limit, total)
                available = smaller(Reading(group.source, group.available), available)
        except MemoryUnknownError as exc:
            limit = Reading.unknown(exc.reason, "cgroup")
        return HostMemory(total, available, limit, self._own(psutil), self._engine(psutil))

    def _own(self, psutil: Any) -> Reading:
        try:
            return Reading(_SOURCE, psutil.Process().memory_info().rss)
        except (OSError, psutil.Error) as exc:
            return Reading.unknown(str(exc), _SOURCE)

    def _engine(self, psutil: Any) -> Reading:
        pids = self.engine_pids()
        sizes = []
        for pid in pids:
            try:
                sizes.append(psutil.Process(pid).memory_info().rss)
            except (OSError, psutil.Error):
                continue  # it has ended, or is another user's
        if not sizes:
            reason = self._pids.unknown if isinstance(self._pids, EngineProcesses) else NONE_SEEN
            reason = "its processes cannot be read" if pids else reason
            return Reading.unknown(reason, _SOURCE)
        return Reading(_SOURCE, sum(sizes))
