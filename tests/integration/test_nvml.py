"""The real pynvml against a stand-in for NVIDIA's library: what is read, and what the guard decides on it.

The library is compiled from `nvml_stub.c` and tells what a script says; the expected decisions are worked out
from the documented thresholds (a card of 16 GiB: warn below 1.92 GiB free, high below 1.28, critical below
0.64, halved again after 0.32 more).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ollama_batch.testing import FakeOllama

GIB = 2**30
TESTS = Path(__file__).parents[1]
GPU_IS_LOST, NOT_SUPPORTED, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, NO_PERMISSION = 15, 3, 9, 13, 4

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("gcc") is None,
    reason="the stand-in is a Linux library and needs gcc",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in."""
    folder = tmp_path_factory.mktemp("nvml")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", TESTS / "nvml_stub.c"],
        check=True,
        timeout=60,
    )
    return folder


def environment(library: Path, script: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STUB_SCRIPT": str(script)}


def card(free: float, number: int = 0, total: float = 16, **other: int) -> dict[str, int]:
    told = {"total": round(total * GIB), "free": round(free * GIB), "busy": 40, **other}
    return {f"gpu{number}.{name.replace('__', '.')}": value for name, value in told.items()}


def guarded(library: Path, folder: Path, *steps: tuple[float, dict[str, int]], **settings: Any) -> list[Any]:
    """What the guard decided at each step: (seconds, what the driver tells)."""
    script = folder / "script"
    told = {
        "script": str(script),
        "steps": [{"at": at, "tell": {"count": 1, **tell}} for at, tell in steps],
        **settings,
    }
    child = subprocess.run(
        [sys.executable, str(TESTS / "nvml_child.py"), json.dumps(told)],
        env=environment(library, script),
        capture_output=True,
        check=True,
        timeout=60,
    )
    decisions: list[Any] = json.loads(child.stdout)
    return decisions


FILLING: list[tuple[float, float, str, list[str]]] = [
    # seconds, GiB free, level, actions
    (0, 8.0, "ok", []),
    (1, 1.93, "ok", []),
    (2, 1.9, "warn", ["stop_growth"]),
    (3, 1.9, "warn", []),
    (4, 1.2, "high", ["halve"]),
    (5, 1.0, "high", []),  # not 2 points (0.32 GiB) more
    (6, 0.8, "high", ["halve"]),
    (7, 0.45, "critical", ["halve", "pause"]),
    (20, 0.45, "critical", []),
    (37, 0.45, "critical", ["reload_smaller"]),  # 30 s after the pause
    (40, 9.0, "critical", []),
    (49, 9.0, "critical", []),  # held for 10 s first
    (50, 9.0, "ok", ["resume", "allow_growth"]),
]


def test_a_card_that_fills_up_is_acted_on_as_the_table_of_levels_says(library: Path, tmp_path: Path) -> None:
    steps = [(at, card(free)) for at, free, _, _ in FILLING]
    decisions = guarded(library, tmp_path, *steps)
    assert [(each["level"], each["actions"]) for each in decisions] == [
        (level, actions) for _, _, level, actions in FILLING
    ]
    assert decisions[2]["used_bytes"] == 16 * GIB - round(1.9 * GIB)
    assert decisions[2]["where"] == "Stub card 1"
    measured = decisions[FILLING.index((49, 9.0, "critical", []))]["effects"]
    assert [each["action"] for each in measured] == ["reload_smaller"]
    assert measured[0]["freed_bytes"] == round(9.0 * GIB) - round(0.45 * GIB)


def test_of_several_cards_the_tightest_decides_unless_the_engine_uses_another(
    library: Path, tmp_path: Path
) -> None:
    tell = {"count": 2, **card(8, pid0=4711, pid0__used=5 * GIB), **card(0.5, 1)}
    (unknown_engine,) = guarded(library, tmp_path, (0, tell), pids=[1])
    assert (unknown_engine["level"], unknown_engine["where"]) == ("critical", "Stub card 2")
    (known_engine,) = guarded(library, tmp_path, (0, tell), pids=[4711])
    assert (known_engine["level"], known_engine["where"]) == ("ok", "Stub card 1")
    (named,) = guarded(library, tmp_path, (0, tell), pids=[4711], guard={"device": 1})
    assert (named["level"], named["where"]) == ("critical", "Stub card 2")


def test_a_lost_card_keeps_its_level_asks_for_nothing_and_is_unknown_with_the_reason(
    library: Path, tmp_path: Path
) -> None:
    tight, lost = card(1.2), {"gpu0.handle.error": GPU_IS_LOST}
    decisions = guarded(library, tmp_path, (0, tight), (1, lost), (2, card(9)), (12, card(9)))
    assert [each["level"] for each in decisions] == ["high", "high", "high", "ok"]
    assert decisions[1]["actions"] == []
    assert "GPU is lost" in decisions[1]["unknown"]
    assert decisions[1]["used_bytes"] is None
    assert decisions[3]["actions"] == ["allow_growth"]


def test_a_driver_that_goes_away_in_mid_run_is_greeted_again_after_a_minute(
    library: Path, tmp_path: Path
) -> None:
    gone = {"count.error": GPU_IS_LOST, "init.error": DRIVER_NOT_LOADED}
    decisions = guarded(
        library, tmp_path, (0, card(1.9)), (1, gone), (2, gone), (30, card(9)), (63, card(9)), (73, card(9))
    )
    assert [each["level"] for each in decisions] == ["warn"] * 5 + ["ok"]
    assert [each["unknown"] is None for each in decisions] == [True, False, False, False, True, True]
    assert "Driver Not Loaded" in decisions[2]["unknown"]
    assert all(each["actions"] == [] for each in decisions[1:5])


def test_no_driver_from_the_start_is_unknown_and_never_0(library: Path, tmp_path: Path) -> None:
    (decision,) = guarded(library, tmp_path, (0, {"init.error": DRIVER_NOT_LOADED}))
    assert decision["level"] == "ok"
    assert decision["used_bytes"] is None
    assert "Driver Not Loaded" in decision["unknown"]
    assert decision["devices"] == []


def test_a_card_that_may_not_be_read_is_unknown_and_one_without_memory_of_its_own_has_the_hosts(
    library: Path, tmp_path: Path
) -> None:
    (forbidden,) = guarded(library, tmp_path, (0, card(8, memory__error=NO_PERMISSION)))
    assert "Insufficient Permissions" in forbidden["unknown"]
    (unified,) = guarded(library, tmp_path, (0, card(8, memory__error=NOT_SUPPORTED)))
    assert unified["unknown"] is None
    assert unified["devices"][0]["unified"]
    assert unified["total_bytes"] == unified["ram"] > 0


def test_an_older_driver_and_use_that_is_not_supported(library: Path, tmp_path: Path) -> None:
    tell = card(1.2, memory_v2__error=FUNCTION_NOT_FOUND)
    del tell["gpu0.busy"]
    (decision,) = guarded(library, tmp_path, (0, tell))
    assert decision["level"] == "high"
    assert decision["devices"][0]["busy_percent"] == {"unknown": "Not Supported", "source": "nvml"}


def test_the_instances_of_a_divided_card_are_guarded_one_by_one(library: Path, tmp_path: Path) -> None:
    parts = {
        f"gpu0/mig{part}.{name}": round(value * GIB)
        for part, free in enumerate((4.0, 0.9))
        for name, value in (("total", 10), ("free", free))
    }
    (decision,) = guarded(library, tmp_path, (0, {**card(0.1), "gpu0.parts": 2, **parts}))
    assert [each["id"] for each in decision["devices"]] == ["gpu0/mig0", "gpu0/mig1"]
    # 10 GiB: warn below 1.2 GiB free, high below 0.8.
    assert (decision["level"], decision["used_bytes"]) == ("warn", 10 * GIB - round(0.9 * GIB))


def test_who_has_memory_of_the_card_is_told_by_the_driver(library: Path, tmp_path: Path) -> None:
    both = card(8, pid0=4711, pid0__used=5 * GIB, pid1=42, drawing0=4711, drawing0__used=GIB)
    mute = card(8, pid__error=NOT_SUPPORTED)
    decisions = guarded(library, tmp_path, (0, both), (1, card(8)), (2, mute))
    # One that computes and draws is told once; None: the driver does not say how much.
    assert decisions[0]["users"] == [["gpu0", 4711, 5 * GIB, True], ["gpu0", 42, None, False]]
    assert decisions[1]["users"] == []
    assert decisions[2]["users"] == "NVML: gpu0: Not Supported"


def test_the_command_prints_what_the_machine_has(library: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    tell = {"count": 1, **card(6, pid0=os.getpid(), pid0__used=GIB)}
    script.write_text("".join(f"{name} {value}\n" for name, value in tell.items()))

    def output(*words: str) -> str:
        command = [sys.executable, "-W", "error", "-m", "ollama_batch.memory", *words]
        env = environment(library, script)
        return subprocess.run(command, env=env, capture_output=True, check=True, timeout=60, text=True).stdout

    lines = output().splitlines()
    assert lines[:5] == [
        "GPU",
        "  gpu0: Stub card 1",
        "    total                16.0 GiB  (nvml)",
        "    free                 6.0 GiB   (nvml)",
        "    busy                 40%       (nvml)",
    ]
    assert f" {os.getpid()} " in lines[5]
    assert "1.0 GiB" in lines[5]
    data = json.loads(output("--json"))
    assert data["devices"][0]["free"] == {"value": 6 * GIB, "source": "nvml"}
    assert data["processes"][0]["pid"] == os.getpid()
    assert data["host"]["own"]["value"] > 0
    script.write_text(f"init.error {DRIVER_NOT_LOADED}\n")
    assert "unknown: NVML: Driver Not Loaded" in output().splitlines()[1]
    assert json.loads(output("--json"))["processes_unknown"] == "NVML: Driver Not Loaded"


def test_the_doctor_names_who_has_memory_of_the_card_and_how_busy_it_is(
    library: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    tell = {"count": 1, **card(9, pid0=os.getpid(), pid0__used=3 * GIB), "gpu0.busy": 77}
    script.write_text("".join(f"{name} {value}\n" for name, value in tell.items()))
    with FakeOllama() as fake:
        command = ["-m", "ollama_batch.cli", "doctor", "--base-url", fake.url, "--no-load", "--json"]
        child = subprocess.run(
            [sys.executable, *command],
            env=environment(library, script),
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
        )
    assert child.returncode == 0, child.stderr
    found = [(each["check"], each["level"], each["seen"]) for each in json.loads(child.stdout)["findings"]]
    cards = [(level, seen) for check, level, seen in found if check == "card"]
    assert cards[0] == ("ok", "Stub card 1: 9.0 GiB of 16.0 GiB free")
    assert cards[1][0] == "warning"
    assert f"({os.getpid()}) has 3.0 GiB of gpu0" in cards[1][1]
    # 7 GiB are in use, and 3 of them this process has.
    assert cards[2] == ("note", "4.0 GiB of the GPU are in use by nobody who is seen from here")
    assert ("idle", "warning", "the GPU was 77 % busy before anything was sent") in found
