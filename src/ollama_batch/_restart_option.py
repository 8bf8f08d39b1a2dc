"""The option `--restart`: what may restart an engine that somebody else runs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from ollama_batch._command_words import command_words
from ollama_batch._engine_options import own_engine
from ollama_batch._text import plain
from ollama_batch.errors import ConfigError, RestartError

if TYPE_CHECKING:
    from ollama_batch.control import Supervisor

UNIT: Final = "unit:"

_KILL_S: Final = 1.0
_ASK_S: Final = 5.0
_SAID_BYTES: Final = 2000
_SAID_CHARS: Final = 400

_log = logging.getLogger("ollama_batch.restart")


def add_restart_option(group: argparse._ArgumentGroup) -> None:
    """`--restart`."""
    group.add_argument(
        "--restart",
        metavar="HOW",
        help="restart an engine that has been down or hung for 30 s (half of --recover-timeout at the most), "
        "5 times in 10 minutes at the most, by unit:NAME, a unit of systemd, or a command that ends, as in "
        "'docker restart ollama' (default: only one of its own)",
    )


def supervisor_asked(arguments: argparse.Namespace, *, address: str) -> Supervisor | None:
    """What `--restart` asks for, of the engine at `address`. Raises ConfigError for what could not work."""
    how: str | None = arguments.restart
    if how is None:
        return None
    own = own_engine(arguments)
    if own is not None:
        raise ConfigError(
            f"--restart is for an engine that somebody else runs, and {own} starts one that is restarted "
            "anyway: leave one of them out"
        )
    from ollama_batch.control import Supervisor, SystemdUnit

    if not how.startswith(UNIT):
        words = command_words("--restart", how, kinds="unit:NAME for a unit of systemd, or a command")
        if words == ("ollama",):
            raise ConfigError(
                "--restart ollama: that program restarts nothing; a unit is given as unit:ollama"
            )
        if Path(words[0]).name == "ollama" and words[1:2] == ("serve",):
            raise ConfigError(
                f"--restart {how}: that is a server, and does not end. Put it into the background, as in "
                "--restart \"sh -c 'ollama serve > ollama.log 2>&1 &'\", or give --managed, which starts one"
            )
        return Supervisor(RestartCommand(words))
    from ollama_batch.memory.engine import is_local

    name = how.removeprefix(UNIT)
    try:
        unit = SystemdUnit(name)
    except ConfigError as error:
        raise ConfigError(f"--restart {how}: {name!r} is no name of a unit, as in unit:ollama") from error
    if shutil.which("systemctl") is None:
        raise ConfigError(f"--restart {how}: this machine has no systemctl; a command may do it")
    if not is_local(address):
        raise ConfigError(
            f"--restart {how} restarts a unit of this machine, and the engine is at {address}: give a "
            f"command, as in 'ssh HOST sudo -n systemctl restart {name}'"
        )
    why = _no_unit(name)
    if why is not None:
        raise ConfigError(f"--restart {how}: {why}")
    return Supervisor(unit)


def _no_unit(name: str) -> str | None:
    """Why systemd has no such unit to restart; None: it has, or does not tell."""
    line = ("systemctl", "--no-ask-password", "show", "--property=LoadState", name)
    try:
        done = subprocess.run(  # noqa: S603 - a name of a unit, and no shell
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout.strip()
    if "not been booted with systemd" in done.stderr:
        return "this machine was not booted with systemd, which has no units here; a command may do it"
    if said in ("LoadState=not-found", "LoadState=masked"):
        what = "is masked" if said.endswith("masked") else "does not exist on this machine"
        return (
            f"the unit {name} {what}: give the one that runs the engine (systemctl list-units "
            "--type=service), or a command"
        )
    return None


class RestartCommand:
    """The way to restart an engine by a command, as a callable for Supervisor.

    It has no shell, no terminal and nothing to read. It has worked if it ends with 0; what it leaves running
    is left alone then. Cancelled, it is killed, and whatever it has started. The end of what it prints is
    logged, or is in the error.

    Called, it raises RestartError: "refused" if it cannot be run, "failed" if it ends with another code.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    async def __call__(self) -> None:
        """Run it; see the class for what is raised."""
        # A file, not a pipe: a server that it leaves in the background keeps writing, and must not die of it.
        with tempfile.TemporaryFile("a+b") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.words,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise RestartError(f"{self.words[0]} cannot be run: {error}", "refused") from error
            try:
                code = await process.wait()
            finally:
                said = _end_of(output)
                if process.returncode is None:
                    await _kill(process)
                    self._tell(said)
                    _log.warning(
                        "%s had not ended and was killed, with all that it had started. A server that it "
                        "starts goes into the background, as in sh -c 'SERVER > server.log 2>&1 &'",
                        self.words[0],
                    )
        if code:
            raise RestartError(f"{self.words[0]} ended with {code}" + (f": {said}" if said else ""))
        self._tell(said)

    def _tell(self, said: str) -> None:
        if said:
            _log.warning("%s said: %s", self.words[0], said)


def _end_of(output: IO[bytes]) -> str:
    """The last of what was printed, on one line."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _SAID_BYTES))
    text = " ".join(output.read(_SAID_BYTES).decode(errors="replace").split())
    return plain(text if len(text) <= _SAID_CHARS else f"...{text[-_SAID_CHARS:]}", 2 * _SAID_CHARS)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(OSError, TimeoutError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session, and a group, of its own
        else:
            process.kill()
        await asyncio.wait_for(process.wait(), _KILL_S)
