"""Where the server is, and the commands that change something there."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ollama_batch.engines._address import USUAL_URLS, serve_line
from ollama_batch.memory.engine import is_local

UNITS: Final = tuple(
    Path(folder, "ollama.service")
    for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
)
APP: Final = Path("/Applications/Ollama.app")
STOP: Final = "pkill -x ollama"
DROP_IN: Final = "/etc/systemd/system/ollama.service.d/ollama-batch.conf"
PARALLEL: Final = "OLLAMA_NUM_PARALLEL"
KEPT: Final = (
    "OLLAMA_MODELS",
    PARALLEL,
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_FLASH_ATTENTION",
    "LLAMA_ARG_CACHE_RAM",
)
"""What a server that is started by hand must not lose: where its models are, and what the doctor advises."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an Ollama server runs.

    `remote` is the other machine's name (None: this machine). `platform` is that of `sys.platform`; `unit`
    says whether systemd runs the server. Of another machine nothing is known: it is taken for one on which
    Ollama's installer for Linux has set up the unit. `kept` are variables that a server started by hand has
    now, and is to have again. `inputs` and `asked` are the files and options of this call of the doctor,
    which another one is to have as well. `installed`: whether this machine has the program (of another one
    it is not known).
    """

    address: str
    remote: str | None = None
    platform: str = "linux"
    unit: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    installed: bool = True

    @classmethod
    def of(cls, address: str) -> Place:
        """The place of the server at `address`, as far as it can be told from here."""
        if not is_local(address):
            return cls(address, urlsplit(address).hostname, "linux", unit=True)
        unit = sys.platform.startswith("linux") and any(each.exists() for each in UNITS)
        kept = {} if unit else settings_now()
        installed = unit or APP.exists() or shutil.which("ollama") is not None
        return cls(address, None, sys.platform, unit, kept, installed=installed)

    @property
    def slots(self) -> int | None:
        """The slots that a server started by hand was told to have; None: not known."""
        told = self.kept.get(PARALLEL, "")
        return int(told) or None if told.isdecimal() else None

    def asking(self, inputs: Sequence[str], asked: Mapping[str, object]) -> Place:
        """This place, where the doctor is asked that (None: not said)."""
        given = {name: str(value) for name, value in asked.items() if value is not None}
        return replace(self, inputs=tuple(inputs), asked=given)

    def client(self, *words: str) -> str:
        """A call of Ollama's own client, which reaches the server from here."""
        line = shlex.join(("ollama", *words))
        return line if self.address in USUAL_URLS else f"OLLAMA_HOST={shlex.quote(self.address)} {line}"

    def doctor(self, *options: str) -> str:
        """Another call of the doctor, with what this one was asked where `options` (pairs) do not say."""
        where = () if self.address in USUAL_URLS else ("--base-url", self.address)
        kept = [word for name, value in self.asked.items() if name not in options for word in (name, value)]
        return shlex.join(("ollama-batch", "doctor", *self.inputs, *where, *options, *kept))

    def doctor_there(self) -> str:
        """A call of the doctor on the server's own machine, which has no files of this one."""
        kept = [word for name, value in self.asked.items() if name != "-o" for word in (name, value)]
        return shlex.join(("ollama-batch", "doctor", *kept))

    def start(self) -> tuple[str, ...]:
        """How the server is started."""
        if self.remote is not None:
            # An Ollama listens to its own machine alone unless told otherwise.
            return self.serve_with({"OLLAMA_HOST": "0.0.0.0"})  # noqa: S104 - told, not bound to
        if self.unit:
            return ("sudo systemctl start ollama",)
        return ("open -a Ollama",) if self.platform == "darwin" else (self._serve({}),)

    def install(self) -> tuple[str, ...]:
        """How this machine gets the program, and the server is started then."""
        if self.platform == "darwin":
            return ("brew install ollama", self._serve({}))
        if self.platform == "win32":
            return ("winget install Ollama.Ollama", self._serve({}))
        # On Linux the installer starts one at the usual address.
        return self.upgrade() if self.address in USUAL_URLS else (*self.upgrade(), self._serve({}))

    def restart(self) -> tuple[str, ...]:
        """How the server is ended and started again."""
        if self.unit:
            return ("sudo systemctl restart ollama",)
        if self.platform == "darwin":
            return ("osascript -e 'quit app \"Ollama\"'", "open -a Ollama")
        if self.platform == "win32":
            return ("taskkill /IM ollama.exe /F", "ollama serve")
        return (STOP, self._serve({}))

    def upgrade(self) -> tuple[str, ...]:
        """How a newer server is got."""
        if self.platform == "darwin":
            return ("brew upgrade ollama",)
        if self.platform == "win32":
            return ("winget upgrade Ollama.Ollama",)
        return ("curl -fsSL https://ollama.com/install.sh | sh",)

    def serve_with(self, variables: Mapping[str, str]) -> tuple[str, ...]:
        """How the server is started again with these environment variables. Where systemd, macOS or Windows
        keep them, those of before stay as they are.
        """
        if self.unit:
            settings = " ".join(f'"{name}={value}"' for name, value in variables.items())
            # Added to what is there: of a variable that is set twice the last value counts (systemd.exec(5)).
            return (
                f"sudo mkdir -p {DROP_IN.rpartition('/')[0]}",
                f"printf '[Service]\\nEnvironment={settings}\\n' | sudo tee -a {DROP_IN}",
                "sudo systemctl daemon-reload && sudo systemctl restart ollama",
            )
        if self.platform == "darwin":
            return (
                *(f"launchctl setenv {name} {value}" for name, value in variables.items()),
                *self.restart(),
            )
        if self.platform == "win32":
            return (*(f"setx {name} {value}" for name, value in variables.items()), *self.restart())
        return (STOP, self._serve(variables))

    def _serve(self, variables: Mapping[str, str]) -> str:
        return serve_line(self.address, {**self.kept, **variables})


def settings_now() -> dict[str, str]:
    """Those variables of KEPT that the `ollama serve` on this machine has.

    None if there are several, or if it is another user's.
    """
    import psutil

    found: list[dict[str, str]] = []
    for each in psutil.process_iter(["name"]):
        try:
            if each.info["name"] == "ollama" and "serve" in each.cmdline():
                found.append(each.environ())
        except (OSError, psutil.Error):
            continue
    return {name: found[0][name] for name in KEPT if name in found[0]} if len(found) == 1 else {}
