"""Who has memory of a card: whose it is, and whether it draws a screen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from memory_support import GIB, FakeNvml, known
from ollama_batch.memory import GpuProcess, Reading, gpu_processes
from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.processes import is_desktop, process_owner

NOBODY = 65534


class Driver(NvmlProbe):
    """Tells of two processes, of which the second draws."""

    def __init__(self) -> None:
        super().__init__(FakeNvml([]))

    def processes(self) -> tuple[tuple[str, int, Reading, bool], ...]:
        return (
            ("gpu0", 7, known(GIB), False),
            ("gpu0", 8, known(2 * GIB), True),
            ("gpu0", 9, known(5), False),
        )


def test_a_process_draws_if_the_driver_says_so_or_its_name_does() -> None:
    names = {7: "Xorg", 8: "python", 9: "python"}
    found = gpu_processes(Driver(), [9], named=names.get, owned=lambda pid: ("me", pid != 7))
    assert found == (
        GpuProcess("gpu0", 8, "python", known(2 * GIB), engine=False, owner="me", own=True, draws=True),
        GpuProcess("gpu0", 7, "Xorg", known(GIB), engine=False, owner="me", own=False, draws=True),
        GpuProcess("gpu0", 9, "python", known(5), engine=True, owner="me", own=True, draws=False),
    )


DESKTOP = (
    "Xorg Xwayland gnome-shell kwin_wayland plasmashell sway Hyprland weston dwm.exe WindowServer "
    "systemd-logind nvidia-persistenced xdg-desktop-portal-gnome sddm-greeter"
)


@pytest.mark.parametrize("name", DESKTOP.split())
def test_programs_of_the_desktop_and_the_system_are_known_by_name(name: str) -> None:
    assert is_desktop(name)


@pytest.mark.parametrize("name", ["python", "python3.11", "ollama", "vllm", "trainer", "xgboost", None])
def test_programs_that_compute_are_none_of_the_desktops(name: str | None) -> None:
    assert not is_desktop(name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets the user of a child")
@pytest.mark.skipif(sys.platform.startswith("linux") and os.getuid() != 0, reason="only root may")
def test_what_another_user_or_root_runs_is_not_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = ["/bin/sh", "-c", "read line"]
    with (
        subprocess.Popen(waits, stdin=subprocess.PIPE, user=NOBODY) as nobodys,
        subprocess.Popen(waits, stdin=subprocess.PIPE) as roots,
    ):
        assert process_owner(nobodys.pid) == ("nobody", False)
        assert process_owner(roots.pid) == ("root", False)
        monkeypatch.setattr(os, "getuid", lambda: NOBODY)  # as that user would see it
        assert process_owner(nobodys.pid) == ("nobody", True)
        assert process_owner(roots.pid) == ("root", False)
        for child in (nobodys, roots):
            child.communicate(b"\n", timeout=30)
    assert process_owner(nobodys.pid) == (None, False)
