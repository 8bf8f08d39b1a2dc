"""The commands of one diagnosis, and of several, followed one after another: none undoes another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ollama_batch.doctor import Diagnosis, Finding
from ollama_batch.doctor.finding import set_together
from ollama_batch.doctor.page import page
from ollama_batch.doctor.place import DROP_IN, Place, settings_now

HERE = "http://127.0.0.1:11434"
BARE = Place(HERE, None, "linux")
UNIT = Place(HERE, None, "linux", unit=True)
REMOTE = Place("http://gpu-box:11434", "gpu-box", "linux", unit=True)

CONTEXT = {"OLLAMA_CONTEXT_LENGTH": "32768"}
SLOTS = {"OLLAMA_NUM_PARALLEL": "4"}
BOTH = {**CONTEXT, **SLOTS}

needs_sh = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def finding(check: str, place: Place, sets: Mapping[str, str] | None, *mend: str) -> Finding:
    commands = mend or (place.restart() if not sets else place.serve_with(sets))
    return Finding(check=check, level="warning", seen="seen", mend=commands, on=place.remote, sets=sets)


def diagnosis(place: Place, *settings: Mapping[str, str] | None) -> Diagnosis:
    checks = ("context", "slots", "ram")
    findings = [finding(check, place, sets) for check, sets in zip(checks, settings, strict=False)]
    return Diagnosis(place.address, "m:1b", set_together(findings, place.serve_with))


def started_with(lines: tuple[str, ...]) -> dict[str, str]:
    """The variables of a line that starts `ollama serve`."""
    return dict(re.findall(r"(\S+)=(\S+)", lines[-1]))


class Unit:
    """The drop-in of a systemd unit, written by the commands of a shell and read as systemd does."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "unit.d" / "ollama-batch.conf"

    def follow(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            here = line.replace(DROP_IN.rpartition("/")[0], str(self._file.parent)).replace("sudo ", "")
            here = here.replace("systemctl", ": systemctl")
            subprocess.run(["sh", "-c", here], check=True, timeout=10, stdout=subprocess.DEVNULL)

    def variables(self) -> dict[str, str]:
        found: dict[str, str] = {}
        section = None
        for line in self._file.read_text().splitlines():
            section = line if line.startswith("[") else section
            if line.startswith("Environment="):
                assert section == "[Service]"
                found |= dict(re.findall(r'"(\w+)=([^"]*)"', line))
        return found


def test_whichever_command_is_followed_starts_the_server_with_the_settings_of_all() -> None:
    found = diagnosis(BARE, CONTEXT, SLOTS, {})
    for each in found.findings:  # the last one only wanted it started again
        assert started_with(each.mend) == BOTH
    assert found.settings == BOTH
    assert found.to_dict()["settings"] == BOTH
    assert [each["sets"] for each in found.to_dict()["findings"]] == [CONTEXT, SLOTS, {}]


@needs_sh
@pytest.mark.parametrize("followed", [(0,), (1,), (0, 1), (1, 0)])
def test_a_unit_has_the_settings_of_all_whichever_are_followed(
    followed: tuple[int, ...], tmp_path: Path
) -> None:
    unit, found = Unit(tmp_path), diagnosis(UNIT, CONTEXT, SLOTS)
    for number in followed:
        unit.follow(found.findings[number].mend)
    assert unit.variables() == BOTH


@needs_sh
def test_what_a_later_diagnosis_sets_leaves_a_unit_what_an_earlier_one_set(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    unit.follow(diagnosis(UNIT, BOTH).findings[0].mend)
    unit.follow(diagnosis(UNIT, {"OLLAMA_NUM_PARALLEL": "8"}).findings[0].mend)
    assert unit.variables() == {**CONTEXT, "OLLAMA_NUM_PARALLEL": "8"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the environment of a Linux process")
def test_a_server_started_by_hand_keeps_what_it_was_started_with(tmp_path: Path) -> None:
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs a program that waits, to be called ollama")
    program = tmp_path / "ollama"
    shutil.copy(shell, program)
    secret = {"OLLAMA_API_KEY": "s3cret"}
    with subprocess.Popen(
        [program, "-c", "echo up; read line", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**CONTEXT, **secret, "OLLAMA_MODELS": "/my models"},
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"  # before that its environment may not be there yet
        kept = settings_now()
        server.communicate(b"\n", timeout=10)
    assert kept == {**CONTEXT, "OLLAMA_MODELS": "/my models"}
    again = Place(HERE, None, "linux", kept=kept)
    line = "OLLAMA_MODELS='/my models' OLLAMA_CONTEXT_LENGTH=32768 OLLAMA_NUM_PARALLEL=4 ollama serve"
    assert again.serve_with(SLOTS)[-1] == line
    assert again.restart()[-1] == line.replace(" OLLAMA_NUM_PARALLEL=4", "")


def test_what_sets_nothing_keeps_its_own_command() -> None:
    pull = finding("model", BARE, None, "ollama pull m:1b")
    found = set_together([pull, finding("slots", BARE, SLOTS)], BARE.serve_with)
    assert found[0].mend == ("ollama pull m:1b",)
    restart = finding("stuck", BARE, {})
    assert set_together([restart], BARE.serve_with) == (restart,)


def test_a_page_shows_commands_that_findings_share_once_behind_all_of_them() -> None:
    text = page(diagnosis(REMOTE, CONTEXT, SLOTS, {}))
    findings, _, commands = text.partition(
        "\n\nstart the server again with all of these settings (on gpu-box):\n"
    )
    assert "mend: OLLAMA_CONTEXT_LENGTH=32768 (the commands are below)" in " ".join(findings.split())
    assert "mend: OLLAMA_NUM_PARALLEL=4 (the commands are below)" in " ".join(findings.split())
    assert "mend: start it again (the commands are below)" in " ".join(findings.split())
    shown = tuple(line.removeprefix("  ") for line in commands.splitlines() if line.startswith("  "))
    assert shown == REMOTE.serve_with(BOTH)
    assert text.count("daemon-reload") == 1


def test_the_size_that_is_predicted_with_all_settings_stands_beside_their_commands() -> None:
    """What a later finding says was reckoned with what earlier ones set."""
    found = diagnosis(REMOTE, CONTEXT, SLOTS, {}, None)
    sizes: list[dict[str, float] | None] = [{"needs_bytes": 11 * 2**30}, {"needs_bytes": 13.4 * 2**30}, None]
    told = [replace(each, numbers=size) for each, size in zip(found.findings, sizes, strict=False)]
    text = page(replace(found, findings=tuple(told)))
    assert "with all of these settings (on gpu-box), which take about 13.4 GiB:\n" in text
    assert replace(found, findings=tuple(told)).to_dict()["needs_bytes"] == 13.4 * 2**30
    assert found.needs_bytes is None


def test_a_page_shows_the_commands_of_a_single_finding_with_it() -> None:
    text = page(diagnosis(BARE, SLOTS))
    assert "below" not in text
    assert f"{' ' * 18}mend:\n{' ' * 20}pkill -x ollama\n" in text
