"""RAM, control groups and resident memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from memory_support import GIB, MIB
from ollama_batch.errors import MemoryUnknownError
from ollama_batch.memory.cgroup import GroupLimit, group_limit
from ollama_batch.memory.host import HostProbe

V1_NONE = 9_223_372_036_854_771_712


def files(folder: Path, contents: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in contents.items():
        (folder / name).write_text(f"{value}\n")


def version_2(folder: Path, limit: object, used: int, droppable: int = 0) -> None:
    files(
        folder,
        {
            "memory.max": limit,
            "memory.current": used,
            "memory.stat": f"anon 5\ninactive_file {droppable}\nactive_file 9",
        },
    )


def version_1(folder: Path, limit: int, used: int, droppable: int = 0) -> None:
    files(
        folder,
        {
            "memory.limit_in_bytes": limit,
            "memory.usage_in_bytes": used,
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {droppable}",
        },
    )


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "own"
    file.write_text(text)
    return file


def test_a_version_2_limit_counts_without_pages_that_can_be_dropped(tmp_path: Path) -> None:
    version_2(tmp_path / "a/b", 8 * GIB, 5 * GIB, 2 * GIB)
    found = group_limit(tmp_path, own(tmp_path, "0::/a/b\n"))
    assert found == GroupLimit(8 * GIB, 5 * GIB, "cgroup v2")


def test_the_group_around_it_counts_if_it_leaves_less(tmp_path: Path) -> None:
    version_2(tmp_path / "a/b", 8 * GIB, GIB)
    version_2(tmp_path / "a", 10 * GIB, 9 * GIB)
    found = group_limit(tmp_path, own(tmp_path, "0::/a/b\n"))
    assert found == GroupLimit(10 * GIB, GIB, "cgroup v2")


def test_a_group_without_a_limit_has_none(tmp_path: Path) -> None:
    version_2(tmp_path / "a", "max", 5 * GIB)
    assert group_limit(tmp_path, own(tmp_path, "0::/a\n")) is None
    version_1(tmp_path / "memory", V1_NONE, 5 * GIB)
    assert group_limit(tmp_path, own(tmp_path, "4:memory:/\n0::/\n")) is None


def test_a_version_1_limit_is_read(tmp_path: Path) -> None:
    version_1(tmp_path / "memory/x", 4 * GIB, 3 * GIB, GIB)
    version_1(tmp_path / "memory", V1_NONE, 20 * GIB)
    found = group_limit(tmp_path, own(tmp_path, "5:cpu,cpuacct:/\n4:memory:/x\n0::/\n"))
    assert found == GroupLimit(4 * GIB, 2 * GIB, "cgroup v1")


def test_inside_a_container_the_limit_stands_at_the_root(tmp_path: Path) -> None:
    version_2(tmp_path, 2 * GIB, GIB)
    found = group_limit(tmp_path, own(tmp_path, "0::/system.slice/docker-1234.scope\n"))
    assert found == GroupLimit(2 * GIB, GIB, "cgroup v2")


def test_a_group_over_its_limit_leaves_nothing_not_less(tmp_path: Path) -> None:
    version_2(tmp_path, 2 * GIB, 3 * GIB)
    found = group_limit(tmp_path, own(tmp_path, "0::/\n"))
    assert found is not None
    assert found.available == 0


@pytest.mark.parametrize("broken", ["memory.max", "memory.current", "memory.stat"])
def test_files_of_a_group_that_cannot_be_read_are_unknown(tmp_path: Path, broken: str) -> None:
    version_2(tmp_path, 2 * GIB, GIB, 5)
    (tmp_path / broken).write_text("inactive_file what\n")
    with pytest.raises(MemoryUnknownError, match="cgroup v2"):
        group_limit(tmp_path, own(tmp_path, "0::/\n"))
    with pytest.raises(MemoryUnknownError, match="cgroup"):
        group_limit(tmp_path, tmp_path / "absent")


def test_a_limit_below_the_machines_memory_is_what_there_is() -> None:
    found = HostProbe([], group=lambda: GroupLimit(300 * MIB, 100 * MIB, "cgroup v2")).read()
    assert (found.total.get(), found.total.source) == (300 * MIB, "cgroup v2")
    assert (found.available.get(), found.available.source) == (100 * MIB, "cgroup v2")
    assert found.room.used.get() == 200 * MIB


def test_without_a_limit_the_machine_is_what_there_is() -> None:
    kernel = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("Mem")
    }
    found = HostProbe([], group=lambda: None).read()
    assert found.total.get() == kernel["MemTotal"]
    assert found.available.get() == pytest.approx(kernel["MemAvailable"], rel=0.2)
    assert found.group_limit.reason == "no limit"


def test_an_unreadable_group_leaves_the_machines_numbers_and_says_so() -> None:
    def fails() -> None:
        raise MemoryUnknownError("cgroup: Permission denied")

    found = HostProbe([], group=fails).read()
    assert found.total.known
    assert found.group_limit.reason == "cgroup: Permission denied"


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_resident_memory_of_this_process_and_the_engines_is_the_kernels() -> None:
    code = "data = b'x' * 50_000_000; print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = HostProbe([child.pid], group=lambda: None).read()
        kernel = resident(child.pid)
        child.communicate("\n")
    assert found.engine.get() == kernel > 50_000_000
    assert found.own.get() == pytest.approx(resident(os.getpid()), rel=0.1)


def test_an_engine_that_is_not_there_is_unknown() -> None:
    assert HostProbe([], group=lambda: None).read().engine.reason == "no process of an engine on this machine"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert HostProbe([gone.pid], group=lambda: None).read().engine.reason == "its processes cannot be read"


def test_processes_are_searched_every_half_minute_not_at_every_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil

    searches = []

    def search(_: object) -> list[object]:
        searches.append(1)
        return []

    monkeypatch.setattr(psutil, "process_iter", search)
    now = [0.0]
    watched = HostProbe(group=lambda: None, now=lambda: now[0])
    for _ in range(5):
        watched.engine_pids()
    assert len(searches) == 1
    now[0] = 30.0
    watched.engine_pids()
    assert len(searches) == 2
