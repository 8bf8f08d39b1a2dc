"""What the control group of this process leaves it of the machine's memory (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from ollama_batch.errors import MemoryUnknownError

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")

UNLIMITED: Final = 2**60
"""Version 1 writes a number near 2**63 where there is no limit."""


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """The limit that leaves least: `limit` and `available` in bytes, `source` "cgroup v1" or "cgroup v2"."""

    limit: int
    available: int
    source: str


def group_limit(root: Path = ROOT, own: Path = OWN) -> GroupLimit | None:
    """The limit of this process's group, or of a group around it, whichever leaves less; None: no limit.

    Used is what the group holds without the file pages that the kernel can drop at once, as Kubernetes
    reckons. Raises MemoryUnknownError if there are no control groups or their files cannot be read.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError as exc:
        raise MemoryUnknownError(f"cgroup: {exc.strerror or exc}: {own}") from exc
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found += list(_limits(root / "memory", path, _VERSION_1))
        elif not controllers:
            found += list(_limits(root, path, _VERSION_2))
    return min(found, key=lambda each: each.available) if found else None


@dataclass(frozen=True, slots=True)
class _Files:
    source: str
    limit: str
    usage: str
    droppable: str


_VERSION_1: Final = _Files(
    "cgroup v1", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
_VERSION_2: Final = _Files("cgroup v2", "memory.max", "memory.current", "inactive_file")


def _limits(base: Path, path: str, files: _Files) -> Iterator[GroupLimit]:
    inner = PurePosixPath(path.lstrip("/"))
    # Seen from inside a container the path may be one of the machine's that is not there: the root is ours.
    for part in (inner, *inner.parents):
        folder = base / part
        try:
            text = (folder / files.limit).read_text().strip()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise MemoryUnknownError(f"{files.source}: {exc.strerror or exc}: {files.limit}") from exc
        try:
            limit = UNLIMITED if text == "max" else int(text)
            if limit < UNLIMITED:
                held = int((folder / files.usage).read_text()) - _droppable(folder, files)
                yield GroupLimit(limit, max(0, limit - max(0, held)), files.source)
        except (OSError, ValueError) as exc:
            raise MemoryUnknownError(f"{files.source}: {folder}: {exc}") from exc


def _droppable(folder: Path, files: _Files) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == files.droppable:
            return int(value)
    return 0
