"""Which processes are the engine's, so that its card is guarded and no other's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from memory_support import GIB, Card, FakeNvml
from ollama_batch import OllamaEngine, OpenAIEngine, VramGuard
from ollama_batch.engines.base import OLLAMA_PROCESSES
from ollama_batch.memory import LocalProbe
from ollama_batch.memory.amd import AmdProbe
from ollama_batch.memory.engine_processes import SEARCH_S, EngineProcesses
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.nvml import NvmlProbe

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


class Owning:
    """An engine with a process of its own."""

    address = "embedded:toy#1"

    def __init__(self, pid: int | None) -> None:
        self.pid = pid


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process and the one that it has started."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.communicate("\n", timeout=30)


def test_an_engines_own_process_and_all_it_has_started_are_the_engine(family: tuple[int, int]) -> None:
    found = EngineProcesses.of(Owning(family[0]))
    assert set(found.find()) == set(family)
    assert HostProbe(found, group=lambda: None).read().engine.get() > 0


def test_a_process_that_was_started_anew_is_found_at_once(family: tuple[int, int]) -> None:
    engine = Owning(None)
    found = EngineProcesses(pid=lambda: engine.pid, unknown="not started", now=lambda: 0.0)
    assert found.find() == frozenset()
    assert HostProbe(found, group=lambda: None).read().engine.reason == "not started"
    engine.pid = family[1]
    assert found.find() == {family[1]}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    engine.pid = gone.pid
    assert found.find() == frozenset()


def test_children_are_looked_for_again_after_half_a_minute(
    family: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, searches = [0.0], []
    children = psutil.Process.children

    def counted(self: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
        searches.append(self.pid)
        return children(self, recursive=recursive)

    monkeypatch.setattr(psutil.Process, "children", counted)
    found = EngineProcesses(pid=lambda: family[0], now=lambda: now[0])
    for at in (0.0, SEARCH_S - 1, SEARCH_S):
        now[0] = at
        found.find()
    assert searches == [family[0]] * 2


class Running:
    """What runs on this machine, by name."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid = pid
        self.info = {"name": name}


@pytest.fixture
def idle_ollama(monkeypatch: pytest.MonkeyPatch) -> int:
    """The id of an Ollama that happens to run beside the engine."""
    others = [Running(42, "ollama"), Running(43, "python")]
    monkeypatch.setattr(psutil, "process_iter", lambda _: others)
    return 42


async def test_an_ollama_on_this_machine_is_found_by_name_and_any_other_engine_is_not(
    idle_ollama: int,
) -> None:
    here, away = OllamaEngine("http://127.0.0.1:11434"), OllamaEngine("http://gpu-box:11434")
    other = OpenAIEngine("http://127.0.0.1:8000/v1")
    assert set(EngineProcesses.of(here).find()) == {idle_ollama}
    reasons = {}
    for engine in (away, other):
        found = EngineProcesses.of(engine)
        assert found.find() == frozenset()
        reasons[engine.address] = HostProbe(found, group=lambda: None).read().engine.reason
    assert reasons == {
        away.address: "the engine is on another machine",
        other.address: "which processes are the engine's is not told",
    }
    for engine in (here, away, other):
        await engine.aclose()
    assert here.process_names == OLLAMA_PROCESSES


@pytest.mark.parametrize("kind", ["owned", "unknown"])
def test_the_guarded_card_is_the_engines_not_that_of_an_idle_ollama(
    kind: str, idle_ollama: int, family: tuple[int, int]
) -> None:
    """The engine's card is the fuller one; the Ollama's is nearly empty."""
    engine = Owning(family[0]) if kind == "owned" else OpenAIEngine("http://127.0.0.1:8000/v1")
    cards = [Card(free=GIB, pids=(family[1],)), Card(free=15 * GIB, pids=(idle_ollama,))]
    host = HostProbe(EngineProcesses.of(engine), group=lambda: None)
    probe = LocalProbe(nvml=NvmlProbe(FakeNvml(cards)), amd=AmdProbe(Path("nowhere")), host=host)
    found = probe.read()
    # Where it is not known which card it is, none is left out.
    assert [each.holds_model for each in found.devices] == [True if kind == "owned" else None, None]
    decision = VramGuard().decide(found)
    assert decision.used_bytes == 15 * GIB
    assert decision.level.name == "HIGH"


def test_the_probe_of_a_run_knows_the_runs_engine(family: tuple[int, int]) -> None:
    probe = LocalProbe.of(Owning(family[0]))
    assert probe.read().host.engine.get() == pytest.approx(
        sum(psutil.Process(pid).memory_info().rss for pid in family), rel=0.2
    )
    probe.close()
