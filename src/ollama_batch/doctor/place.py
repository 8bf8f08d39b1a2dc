"""Where the server is, and the commands that change something there."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ollama_batch.memory.engine import is_local

DEFAULT: Final = ("http://127.0.0.1:11434", "http://localhost:11434")
UNITS: Final = tuple(
    Path(folder, "ollama.service")
    for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
)
STOP: Final = "pkill -x ollama"
DROP_IN: Final = "/etc/systemd/system/ollama.service.d/ollama-batch.conf"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an Ollama server runs.

    `remote` is the other machine's name (None: this machine). `platform` is that of `sys.platform`; `unit`
    says whether systemd runs the server. Of another machine nothing is known: it is taken for one on which
    Ollama's installer for Linux has set up the unit.
    """

    address: str
    remote: str | None = None
    platform: str = "linux"
    unit: bool = False

    @classmethod
    def of(cls, address: str) -> Place:
        """The place of the server at `address`, as far as it can be told from here."""
        if not is_local(address):
            return cls(address, urlsplit(address).hostname, "linux", unit=True)
        unit = sys.platform.startswith("linux") and any(each.exists() for each in UNITS)
        return cls(address, None, sys.platform, unit)

    def client(self, *words: str) -> str:
        """A call of Ollama's own client, which reaches the server from here."""
        line = shlex.join(("ollama", *words))
        return line if self.address in DEFAULT else f"OLLAMA_HOST={shlex.quote(self.address)} {line}"

    def doctor(self, *options: str) -> str:
        """Another call of the doctor."""
        where = () if self.address in DEFAULT else ("--base-url", self.address)
        return shlex.join(("ollama-batch", "doctor", *where, *options))

    def start(self) -> tuple[str, ...]:
        """How the server is started."""
        if self.remote is not None:
            # An Ollama listens to its own machine alone unless told otherwise.
            return self.serve_with({"OLLAMA_HOST": "0.0.0.0"})  # noqa: S104 - told, not bound to
        if self.unit:
            return ("sudo systemctl start ollama",)
        return ("open -a Ollama",) if self.platform == "darwin" else (self._serve({}),)

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
        """How the server is started again with these environment variables."""
        if self.unit:
            settings = " ".join(f'"{name}={value}"' for name, value in variables.items())
            return (
                f"sudo mkdir -p {DROP_IN.rpartition('/')[0]}",
                f"printf '[Service]\\nEnvironment={settings}\\n' | sudo tee {DROP_IN}",
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
        where = {} if self.address in DEFAULT else {"OLLAMA_HOST": urlsplit(self.address).netloc}
        settings = [f"{name}={value}" for name, value in {**where, **variables}.items()]
        return " ".join([*settings, "ollama serve"])
