"""Which processes have memory of the GPUs of this machine: the engine's, the desktop's, and whose else."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from ollama_batch.memory.nvml import NvmlProbe
from ollama_batch.memory.sample import Reading

DESKTOP: Final = frozenset(
    {
        "X", "Xorg", "Xorg.bin", "Xvnc", "Xwayland", "budgie-wm", "cinnamon", "compiz", "cosmic-comp",
        "csrss.exe", "dwm.exe", "enlightenment", "explorer.exe", "gamescope", "gdm", "hyprland", "Hyprland",
        "i3", "lightdm", "marco", "metacity", "mutter", "niri", "picom", "river", "sddm", "sway", "wayfire",
        "weston", "WindowServer", "winlogon.exe", "xfwm4",
    }
)  # fmt: skip
"""Programs that a screen needs: without them a session, and all that is open in it, is gone."""

DESKTOP_FAMILIES: Final = ("gnome-", "kwin", "plasma", "systemd", "xdg-", "nvidia-", "sddm-", "gdm-")
"""How the names of others of the desktop's and the system's programs begin."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that has memory of a GPU.

    `device` is the GPU's id ("gpu0"), `name` the program (None: it is not seen from here, as from inside a
    container), `used` its bytes there. `engine`: it belongs to the engine. `owner` is the user's name (None:
    not told), `own` that it is this user's, who is not root. `draws`: the driver has it among those that
    draw, or its name is known for one of the desktop or the system.
    """

    device: str
    pid: int
    name: str | None
    used: Reading
    engine: bool
    owner: str | None = None
    own: bool = False
    draws: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "device": self.device,
            "pid": self.pid,
            "name": self.name,
            "used": self.used.to_dict(),
            "engine": self.engine,
            "owner": self.owner,
            "own": self.own,
            "draws": self.draws,
        }


def program_name(pid: int) -> str | None:
    """What a process is called; None if it has ended or is not seen from here."""
    import psutil

    try:
        return psutil.Process(pid).name()
    except (OSError, psutil.Error):
        return None


def process_owner(pid: int) -> tuple[str | None, bool]:
    """Whose a process is (None: not told), and whether it is this user's, who is not root."""
    import psutil

    try:
        process, mine = psutil.Process(pid), psutil.Process()
        owner = process.username()
        if not hasattr(os, "getuid"):
            return owner, owner == mine.username()
        user = os.getuid()
        # One that has changed its user has root's rights, or had them.
        return owner, user != 0 and set(process.uids()) == {user}
    except (OSError, KeyError, psutil.Error):
        return None, False


def is_desktop(name: str | None) -> bool:
    """Whether a program of this name belongs to the desktop or the system."""
    return name is not None and (name in DESKTOP or name.startswith(DESKTOP_FAMILIES))


def gpu_processes(
    nvml: NvmlProbe,
    engine_pids: Collection[int],
    *,
    named: Callable[[int], str | None] = program_name,
    owned: Callable[[int], tuple[str | None, bool]] = process_owner,
) -> tuple[GpuProcess, ...]:
    """The processes that NVIDIA's driver tells of, those with most memory first.

    Raises MemoryUnknownError if it does not tell.
    """
    found = []
    for device, pid, used, draws in nvml.processes():
        name = named(pid)
        draws = draws or is_desktop(name)
        found.append(GpuProcess(device, pid, name, used, pid in engine_pids, *owned(pid), draws))
    return tuple(sorted(found, key=lambda each: (-(each.used.value or 0), each.pid)))
