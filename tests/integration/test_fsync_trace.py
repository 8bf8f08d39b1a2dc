"""What the kernel is asked for: the log is synced before a row counts, file and folder around a rename.

The oracle is `strace`: the order of system calls, with marks that the traced program writes to its
standard error once it was told that something is durable.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import journal_support

CALLS = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The system calls of one run with one row, in order, each as "call <file>"."""
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("CI"):
            pytest.fail("strace is required in CI")
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("trace")
    log = folder / "strace.txt"
    place = folder / "run"
    place.mkdir()
    command = [strace, "-f", "-y", "-qq", "-s", "60", "-e", CALLS, "-o", str(log)]
    child = subprocess.run(
        [*command, sys.executable, journal_support.__file__, "trace", str(place)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "PTRACE" in child.stderr or "ptrace" in child.stderr:
        if os.environ.get("CI"):
            pytest.fail(f"strace is required in CI: {child.stderr}")
        pytest.skip(f"strace may not trace here: {child.stderr.strip()}")
    assert child.returncode == 0, child.stderr
    calls = []
    for line in log.read_text().splitlines():
        mark = re.search(r'write\(2.*"(MARK \w+)', line)
        call = re.search(r"(\w+)\(\d+<([^>]+)>", line)
        rename = re.search(r'(rename\w*)\(.*"([^"]+)".*"([^"]+)"', line)
        if mark:
            calls.append(mark[1])
        elif rename:
            calls.append(f"rename {Path(rename[2]).name} {Path(rename[3]).name}")
        elif call and call[2].startswith(str(place)):
            name = "." if call[2] == str(place) else Path(call[2]).name
            kind = "write" if "write" in call[1] else "sync"
            calls.append(f"{kind} {name}")
    return calls


def between(calls: list[str], start: str, end: str) -> list[str]:
    return calls[calls.index(start) + 1 : calls.index(end)]


def test_the_log_is_synced_between_the_insert_and_the_acknowledgement(trace: list[str]) -> None:
    row = between(trace, "MARK insert", "MARK kept")
    writes = [n for n, call in enumerate(row) if call == "write run.db-wal"]
    syncs = [n for n, call in enumerate(row) if call == "sync run.db-wal"]
    assert writes
    assert syncs
    assert writes[-1] < syncs[-1]
    assert "write run.db" not in row


def test_an_export_syncs_the_file_before_and_the_folder_after_the_rename(trace: list[str]) -> None:
    export = between(trace, "MARK kept", "MARK exported")
    rename = next(
        n for n, call in enumerate(export) if call.startswith("rename") and call.endswith(" out.jsonl")
    )
    temporary = export[rename].split()[1]
    before, after = export[:rename], export[rename + 1 :]
    assert f"sync {temporary}" in before
    assert f"write {temporary}" not in before[before.index(f"sync {temporary}") :]
    assert "sync ." in after
    # What the file will be is known to the journal before it has its name.
    assert "sync run.db-wal" in before[before.index(f"sync {temporary}") :]


def test_a_new_journal_is_synced_before_it_has_its_name(trace: list[str]) -> None:
    rename = trace.index("rename run.db.new run.db")
    assert "sync run.db.new" in trace[:rename]
    assert not any(call == "write run.db" for call in trace[:rename])
    assert "sync ." in trace[rename : trace.index("MARK insert")]
