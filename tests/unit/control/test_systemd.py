"""`systemctl restart`, with a stand-in for the program: what it is given, and how its ends are told apart."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ollama_batch.control import Outcome, Supervisor, SystemdUnit
from ollama_batch.errors import ConfigError, RestartError
from supervisor_support import calls, runs, stand_in_systemctl, until

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="the stand-in for systemctl is a script with a #! line"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


async def test_the_unit_is_restarted_without_a_shell_and_without_questions(folder: Path) -> None:
    stand_in_systemctl(folder, "ok")
    await SystemdUnit("ollama@a-b.service")()
    await SystemdUnit("ollama", user=True)()
    assert [call[1:] for call in calls(folder)] == [
        ["--no-ask-password", "restart", "ollama@a-b.service"],
        ["--user", "--no-ask-password", "restart", "ollama"],
    ]
    assert SystemdUnit(sudo=True).command[:2] == ("sudo", "-n")


@pytest.mark.parametrize(
    ("word", "outcome", "message"),
    [
        ("password", "password", "(?s)needs a password.*Interactive authentication required.*sudo systemctl"),
        ("missing", "refused", "was refused: .*not found"),
        ("failed", "failed", "failed: Job for ollama.service failed"),
    ],
)
async def test_the_ways_it_can_fail_are_told_apart(
    folder: Path, word: str, outcome: str, message: str
) -> None:
    stand_in_systemctl(folder, word)
    with pytest.raises(RestartError, match=message) as told:
        await SystemdUnit()()
    assert told.value.outcome == outcome


async def test_a_machine_without_systemctl_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RestartError, match="systemctl cannot be run") as told:
        await SystemdUnit()()
    assert told.value.outcome == "refused"


async def test_a_systemctl_that_does_not_end_is_slow_and_is_ended(folder: Path) -> None:
    stand_in_systemctl(folder, "slow")
    supervisor = Supervisor(SystemdUnit(), after_s=0.0, timeout_s=3.0)
    restarting = asyncio.create_task(supervisor.attempt(None, exited=False, unwell_s=0.0, reason="no answer"))
    await until(lambda: calls(folder))
    (pid, *_), *_ = calls(folder)
    told = await restarting
    assert told is not None
    assert told.outcome is Outcome.SLOW
    await until(lambda: not runs(pid))


@pytest.mark.parametrize("name", ["", "-rf", "a b", "ollama; reboot", "$(x)", "a/b", None])
def test_what_is_no_name_of_a_unit_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="name of a systemd unit"):
        SystemdUnit(name)


def test_a_unit_of_ones_own_needs_no_sudo() -> None:
    with pytest.raises(ConfigError, match="needs no sudo"):
        SystemdUnit(user=True, sudo=True)
