"""Restarts a systemd unit, without a shell and without asking anybody for a password."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ollama_batch.errors import ConfigError, RestartError

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.\\@-]*")
_PASSWORD: Final = ("authentication required", "authentication is required", "password is required")
_TRIED: Final = ("job for ", "job failed", "timed out", "a dependency job")
_KILL_S: Final = 1.0
_MESSAGE_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class SystemdUnit:
    """The way to restart a unit: `systemctl restart NAME`, as a callable for Supervisor.

    `user`: a unit of your own, not of the system. `sudo`: through `sudo -n`, where a line in sudoers allows
    it without a password. Raises ConfigError for what is no name of a unit.

    `Supervisor(SystemdUnit("ollama"))` calls it when it is time to. To do so yourself, await it:
    `await SystemdUnit("ollama")()`, or `asyncio.run(SystemdUnit("ollama")())` in a script. It returns once
    systemd has restarted the unit. It raises RestartError: "password" where somebody
    would have to type one, "refused" where there is no such unit, no systemctl or no permission, "failed"
    where the unit did not come up. Cancelled, it ends systemctl; systemd goes on with what it has begun.
    """

    name: str = "ollama"
    user: bool = False
    sudo: bool = False

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f'name={self.name!r}: must be the name of a systemd unit, as in "ollama"')
        if self.user and self.sudo:
            raise ConfigError("a unit of your own needs no sudo: leave user= or sudo= out")

    @property
    def command(self) -> tuple[str, ...]:
        """What is run, word by word."""
        return (
            *(("sudo", "-n") if self.sudo else ()),
            "systemctl",
            *(("--user",) if self.user else ()),
            "--no-ask-password",
            "restart",
            self.name,
        )

    async def __call__(self) -> None:
        """Restart the unit; see the class for what is raised."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
                start_new_session=True,  # no terminal on which anybody could be asked
            )
        except OSError as error:
            raise RestartError(f"{self.command[0]} cannot be run: {error}", "refused") from error
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                with suppress(OSError, TimeoutError):  # sudo's child may not be ours to kill
                    process.kill()
                    await asyncio.wait_for(process.wait(), _KILL_S)
        if process.returncode:
            self._raise(process.returncode, output.decode(errors="replace").strip())

    def _raise(self, code: int, said: str) -> None:
        words = said[-_MESSAGE_CHARS:] or f"exit code {code}"
        line = " ".join(self.command)
        lowered = said.lower()
        if any(mark in lowered for mark in _PASSWORD):
            raise RestartError(
                f"{line} needs a password ({words}): allow it in a rule of polkit or sudoers, or type\n"
                f"sudo systemctl restart {self.name}",
                "password",
            )
        if any(mark in lowered for mark in _TRIED):
            raise RestartError(f"{line} failed: {words}", "failed")
        raise RestartError(
            f"{line} was refused: {words}. Restart it by hand, or let this user do it: docs/recovery.md, "
            '"A systemd unit"',
            "refused",
        )
