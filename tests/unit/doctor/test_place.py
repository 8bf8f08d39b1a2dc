"""The commands that mend: for the place where the server is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_batch.doctor.place import DROP_IN, Place

HERE = "http://127.0.0.1:11434"
PLACES = {
    "unit": Place(HERE, None, "linux", unit=True),
    "bare": Place(HERE, None, "linux"),
    "mac": Place(HERE, None, "darwin"),
    "windows": Place(HERE, None, "win32"),
    "remote": Place("http://gpu-box:11434", "gpu-box", "linux", unit=True),
}


def test_ollamas_client_is_told_of_a_server_that_is_not_at_the_usual_address() -> None:
    assert PLACES["bare"].client("pull", "gemma3:12b") == "ollama pull gemma3:12b"
    assert PLACES["remote"].client("stop", "m") == "OLLAMA_HOST=http://gpu-box:11434 ollama stop m"


def test_variables_are_set_where_the_server_takes_them_from() -> None:
    variables = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_FLASH_ATTENTION": "1"}
    lines = {name: place.serve_with(variables) for name, place in PLACES.items()}
    assert lines["bare"][-1] == "OLLAMA_NUM_PARALLEL=4 OLLAMA_FLASH_ATTENTION=1 ollama serve"
    elsewhere = Place("http://127.0.0.1:11500", None, "linux")
    assert elsewhere.serve_with({"A": "1"})[-1] == "OLLAMA_HOST=127.0.0.1:11500 A=1 ollama serve"
    assert elsewhere.start() == ("OLLAMA_HOST=127.0.0.1:11500 ollama serve",)
    assert lines["unit"] == lines["remote"]
    assert DROP_IN in lines["unit"][1]
    assert "launchctl setenv OLLAMA_NUM_PARALLEL 4" in lines["mac"]
    assert "setx OLLAMA_NUM_PARALLEL 4" in lines["windows"]


def test_a_machine_without_the_program_is_told_to_install_it_first() -> None:
    (linux,) = PLACES["bare"].install()  # the installer starts it
    assert "install.sh" in linux
    elsewhere = Place("http://127.0.0.1:11500", None, "linux").install()
    assert elsewhere == (linux, "OLLAMA_HOST=127.0.0.1:11500 ollama serve")
    assert PLACES["mac"].install() == ("brew install ollama", "ollama serve")


def test_whether_the_program_is_there_is_looked_up_on_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ollama_batch.doctor.place.UNITS", ())
    monkeypatch.setattr("ollama_batch.doctor.place.APP", tmp_path / "Ollama.app")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Place.of(HERE).installed
    assert Place.of("http://gpu-box:11434").installed
    program = tmp_path / ("ollama.exe" if sys.platform == "win32" else "ollama")
    program.touch(mode=0o755)
    assert Place.of(HERE).installed


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_drop_in_for_systemd_has_a_section_and_quoted_variables() -> None:
    line = PLACES["unit"].serve_with({"A": "1", "B": "x"})[1].partition(" | ")[0]
    written = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert written == '[Service]\nEnvironment="A=1" "B=x"\n'


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
@pytest.mark.parametrize("name", ["unit", "bare", "remote"])
def test_a_shell_understands_every_line(name: str) -> None:
    place = PLACES[name]
    lines = [
        *place.start(), *place.restart(), *place.upgrade(), *place.serve_with({"A": "1"}),
        place.client("pull", "a b"),
    ]  # fmt: skip
    for line in lines:
        subprocess.run(["sh", "-n", "-c", line], check=True, timeout=10)


def test_a_place_is_told_from_its_address() -> None:
    assert Place.of("http://gpu-box:11434").remote == "gpu-box"
    assert Place.of(HERE).remote is None
