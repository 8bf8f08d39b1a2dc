"""What memory was found to be at one moment: every number with its source, or unknown with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_batch.errors import MemoryUnknownError


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that was measured, or the reason why it is unknown; never both, never 0 for unknown.

    Bytes, unless its name says percent. `source` says what measured it, such as "nvml" or "cgroup v2".
    """

    source: str
    value: int | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"a reading has a value or a reason, not {self.value!r} and {self.reason!r}")
        if self.value is not None and self.value < 0:
            raise ValueError(f"a reading of {self.value} from {self.source}")

    @classmethod
    def unknown(cls, reason: str, source: str) -> Reading:
        """A reading that failed."""
        return cls(source, None, reason)

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def get(self) -> int:
        """The value. Raises MemoryUnknownError with the reason if there is none."""
        if self.value is None:
            raise MemoryUnknownError(f"{self.source}: {self.reason}")
        return self.value

    def less(self, other: Reading) -> Reading:
        """This minus `other`, at least 0; unknown if either is."""
        for each in (self, other):
            if not each.known:
                return each
        return Reading(self.source, max(0, self.get() - other.get()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON data: `value` and `source`, or `unknown` and `source`."""
        if self.value is None:
            return {"unknown": self.reason, "source": self.source}
        return {"value": self.value, "source": self.source}


def smaller(first: Reading, second: Reading) -> Reading:
    """The smaller of two readings; the known one if the other is unknown."""
    known = [each for each in (first, second) if each.value is not None]
    return min(known, key=Reading.get) if known else first


@dataclass(frozen=True, slots=True)
class Room:
    """A memory that a guard can watch: how much of it is in use, and of how much."""

    id: str
    name: str
    used: Reading
    total: Reading

    @property
    def free(self) -> Reading:
        """What is not in use."""
        return self.total.less(self.used)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one GPU, or of one MIG instance of it.

    `busy_percent` is the share of the last moments in which it computed. `unified`: it has no memory of its
    own, these are figures of the host's. `holds_model`: a process of the engine uses it (None: not known).
    """

    id: str
    name: str
    total: Reading
    free: Reading
    busy_percent: Reading
    unified: bool = False
    holds_model: bool | None = None

    @property
    def room(self) -> Room:
        """What a guard looks at. In use is what is not free: drivers reserve some that nobody owns."""
        return Room(self.id, self.name, self.total.less(self.free), self.total)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "id": self.id,
            "name": self.name,
            "total": self.total.to_dict(),
            "free": self.free.to_dict(),
            "busy_percent": self.busy_percent.to_dict(),
            "unified": self.unified,
            "holds_model": self.holds_model,
        }


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The memory of this machine, as far as this process may use it.

    `total` and `available` are those of the machine or of the control group, whichever leaves less;
    `group_limit` is the group's (unknown where it has none). `own` and `engine` are the resident bytes of
    this process and of the engine's processes on this machine, the model's mapped file included.
    """

    total: Reading
    available: Reading
    group_limit: Reading
    own: Reading
    engine: Reading

    @property
    def room(self) -> Room:
        """What a guard looks at."""
        return Room("ram", "system memory", self.total.less(self.available), self.total)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        names = ("total", "available", "group_limit", "own", "engine")
        return {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What the engine itself says that a model takes.

    `size` is all of it, `vram` the part on the GPU. `remote`: the engine is another machine's, so the GPUs
    of this one say nothing about it.
    """

    model: str
    size: Reading
    vram: Reading
    remote: bool = False
    context_length: int | None = None
    digest: str | None = None

    @property
    def spilled(self) -> Reading:
        """The part that did not fit on the GPU and is computed by the host: slow."""
        return self.size.less(self.vram)

    def room(self, total: int | None) -> Room:
        """What a guard looks at, where the card has `total` bytes (None: unknown). Of other programs on
        the card the engine knows nothing.
        """
        source = self.vram.source
        missing = Reading.unknown("the engine does not say how much memory its card has: give total=", source)
        return Room(
            "engine", "the engine's card", self.vram, missing if total is None else Reading(source, total)
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "model": self.model,
            "size": self.size.to_dict(),
            "vram": self.vram.to_dict(),
            "spilled": self.spilled.to_dict(),
            "remote": self.remote,
            "context_length": self.context_length,
            "digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class MemorySample:
    """All memory at one moment, `at` seconds of the monotonic clock.

    `devices_unknown` says why there are no devices, or why some are missing; `engine` is None where no
    engine was asked.
    """

    at: float
    host: HostMemory
    devices: tuple[DeviceMemory, ...] = ()
    devices_unknown: str | None = None
    engine: EngineMemory | None = None
    cost_s: float = field(default=0.0, compare=False)

    def device(self, id: str | None = None) -> DeviceMemory:  # noqa: A002 - what it is called
        """The GPU of that id, by default the only one. Raises MemoryUnknownError if it was not seen."""
        found = [each for each in self.devices if id is None or each.id == id]
        if len(found) == 1:
            return found[0]
        names = ", ".join(each.id for each in self.devices)
        if not self.devices:
            raise MemoryUnknownError(self.devices_unknown or "no GPU was found")
        raise MemoryUnknownError(f"which GPU? there are {names}" if id is None else f"no {id}, but {names}")

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON data."""
        return {
            "at": self.at,
            "host": self.host.to_dict(),
            "devices": [each.to_dict() for each in self.devices],
            "devices_unknown": self.devices_unknown,
            "engine": None if self.engine is None else self.engine.to_dict(),
            "cost_s": self.cost_s,
        }
