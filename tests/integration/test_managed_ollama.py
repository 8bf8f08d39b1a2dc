"""An `ollama serve` of one's own, with a stand-in for the program as a real child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_batch import OllamaEngine, Supervisor, SystemdUnit
from ollama_batch._settings import TEST_QUESTION
from ollama_batch.engines import Restartable, managed
from ollama_batch.engines._managed_server import Log
from ollama_batch.errors import (
    ConfigError,
    EngineDownError,
    EngineExitedError,
    EngineStoppedError,
    ModelNotFoundError,
)
from ollama_batch.events import EngineRestarted, RowFinished
from ollama_batch.memory.engine_processes import EngineProcesses
from ollama_batch.testing.ledger import FileLedger
from supervisor_support import (
    alive,
    calls,
    end_all,
    none_left,
    pids,
    runs,
    stand_in_ollama,
    stand_in_systemctl,
    until,
)
from trouble_support import Recorder, quick_runner, rows

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and groups of processes")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children only on Linux")

MODEL = "toy:1b"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the stand-in `ollama` is, first on the PATH; what it leaves running is ended with the test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in_ollama(folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield folder
    end_all(folder)


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[managed.ManagedOllama]:
    engine = OllamaEngine.managed(num_parallel=4)
    yield engine
    await engine.aclose()


async def test_it_is_an_ollama_engine_with_the_slots_asked_for(engine: managed.ManagedOllama) -> None:
    assert isinstance(engine, OllamaEngine)
    assert isinstance(engine, Restartable)
    assert engine.pid is None
    info, again = await asyncio.gather(engine.describe(MODEL), engine.describe(MODEL))
    assert info == again
    assert (info.engine, info.slots, info.address) == ("ollama", 4, engine.address)
    assert info.details["kv_cache_type"] == "f16"
    assert await engine.healthy()


async def test_the_type_of_its_kv_cache_is_told(folder: Path) -> None:
    engine = OllamaEngine.managed(kv_cache_type="q8_0")
    try:
        assert (await engine.describe(MODEL)).details["kv_cache_type"] == "q8_0"
    finally:
        await engine.aclose()


async def test_its_server_is_the_engine_and_no_other_process_is(engine: managed.ManagedOllama) -> None:
    processes = EngineProcesses.of(engine)
    assert processes.find() == frozenset()
    await engine.describe(MODEL)
    assert engine.pid in processes.find()


async def test_first_uses_at_the_same_time_start_one_server(
    folder: Path, engine: managed.ManagedOllama
) -> None:
    await asyncio.gather(*(engine.describe(MODEL) for _ in range(8)))
    ((server, runner),) = pids(folder)
    assert engine.pid == server
    assert runs(runner)
    listening = [c for c in psutil.Process(server).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [f"http://{c.laddr.ip}:{c.laddr.port}" for c in listening] == [engine.address]


async def test_the_settings_reach_the_server_as_environment(folder: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    engine = OllamaEngine.managed(
        num_parallel=3,
        kv_cache_type="q8_0",
        context_length=8192,
        models=models,
        max_loaded_models=1,
        env={"OLLAMA_DEBUG": "1"},
    )
    try:
        await engine.describe(MODEL)
    finally:
        await engine.aclose()
    told = json.loads((folder / "env.json").read_text())
    assert told == {
        "OLLAMA_HOST": engine.address.removeprefix("http://"),
        "OLLAMA_NUM_PARALLEL": "3",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_MODELS": str(tmp_path / "models"),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_DEBUG": "1",
    }


async def test_closing_ends_the_server_and_what_it_has_started(folder: Path) -> None:
    engine = OllamaEngine.managed()
    await engine.describe(MODEL)
    await engine.aclose()
    await engine.aclose()
    assert len(pids(folder)) == 1
    assert alive(folder) == []
    with pytest.raises(EngineStoppedError, match="was closed"):
        await engine.describe(MODEL)


async def test_a_server_that_does_not_heed_sigterm_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "GRACE_S", 0.3)
    engine = OllamaEngine.managed(env={"STAND_IN_MODE": "stubborn"})
    await engine.describe(MODEL)
    assert len(alive(folder)) == 2
    await engine.aclose()
    assert alive(folder) == []


OWNER = """
import asyncio, os, sys
from ollama_batch import OllamaEngine

async def main():
    engine = OllamaEngine.managed()
    await engine.describe("toy:1b")
    print(engine.pid, flush=True)
    if sys.argv[1] != "finished":
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["killed", "finished"])
def test_nothing_is_left_when_the_owner_ends_without_closing(folder: Path, how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, how], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        assert pids(folder)[0][0] == server
        if how == "killed":
            assert len(alive(folder)) == 2
            owner.kill()
        owner.wait(20)
    assert none_left(folder)


@linux
def test_nothing_listens_when_the_owner_and_the_process_between_are_killed_together(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, "killed"], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        between = psutil.Process(server.pid).parent()
        assert between is not None
        assert between.ppid() == owner.pid
        between.suspend()  # it must not see the owner's end first
        owner.kill()
        between.kill()
        server.wait(20)


async def test_a_server_that_dies_at_its_start_is_reported_with_the_end_of_its_log(folder: Path) -> None:
    engine = OllamaEngine.managed(env={"STAND_IN_MODE": "dies"})
    for _ in range(2):
        with pytest.raises(EngineExitedError, match=r"(?s)exit code 3.*no room for anything"):
            await engine.describe(MODEL)
    with pytest.raises(EngineExitedError, match="no room for anything"):
        await engine.restart()
    await engine.aclose()


async def test_a_server_that_never_answers_is_given_up_and_ended(folder: Path) -> None:
    engine = OllamaEngine.managed(env={"STAND_IN_MODE": "silent"}, start_timeout=1.5)
    with pytest.raises(EngineExitedError, match=r"(?s)did not start within 1.5 s.*msg=starting"):
        await engine.describe(MODEL)
    assert len(pids(folder)) == 1
    assert alive(folder) == []
    await engine.aclose()


def test_a_machine_without_ollama_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no program 'ollama' to run.*ollama.com/download.*binary="):
        OllamaEngine.managed()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parallel": 0}, "num_parallel is 0"),
        ({"context_length": 0}, "context_length is 0"),
        ({"max_loaded_models": True}, "max_loaded_models is True"),
        ({"start_timeout": 0}, "start_timeout is 0"),
        ({"kv_cache_type": ""}, "kv_cache_type is ''"),
        ({"kv_cache_type": 8}, "kv_cache_type is 8"),
        ({"kv_cache_type": "q5"}, "kv_cache_type is 'q5'; there are f32, f16, .*, q8_0"),
        ({"models": "/nope"}, "models is '/nope', and there is no such folder"),
        ({"env": {"OLLAMA_HOST": "0.0.0.0"}}, r"env has OLLAMA_HOST='0.0.0.0'.*OllamaEngine\(base_url="),
        ({"env": {"OLLAMA_NUM_PARALLEL": "8"}}, "OLLAMA_NUM_PARALLEL='8': give num_parallel= instead"),
        ({"kv_cache_type": "q4_0", "flash_attention": False}, "needs flash attention"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OllamaEngine.managed(**options)


async def test_a_model_that_is_not_there_is_told_with_the_folder_that_was_looked_in(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    engine = OllamaEngine.managed(models=tmp_path / "models")
    try:
        with pytest.raises(
            ModelNotFoundError, match=r"(?s)ollama pull other:7b.*models in .*/models.*models="
        ):
            await engine.describe("other:7b")
    finally:
        await engine.aclose()


async def test_a_killed_server_is_reported_and_comes_back_at_its_address(
    folder: Path, engine: managed.ManagedOllama
) -> None:
    await engine.describe(MODEL)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineExitedError, match=r"(?s)SIGKILL.*msg=starting"):
        await engine.describe(MODEL)
    assert none_left(folder), "the dead server's runner is ended with it"
    address = engine.address
    await asyncio.gather(engine.restart(), engine.restart())
    assert engine.address == address
    assert await engine.healthy()
    assert len(pids(folder)) == 2


async def test_a_server_that_hangs_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "GRACE_S", 0.3)
    engine = OllamaEngine.managed()
    try:
        await engine.describe(MODEL)
        ((server, _),) = pids(folder)
        os.kill(server, signal.SIGSTOP)
        await engine.restart()
        assert await engine.healthy()
        assert not runs(server)
    finally:
        await engine.aclose()


def test_the_log_is_bounded_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ollama.log"
    log = Log(str(path), 1000)
    source = tmp_path / "lines"
    source.write_text("".join(f"line {n:04d}\n" for n in range(1000)))
    with source.open("rb") as lines:
        log.follow(lines)
    log.close()
    before = path.with_name("ollama.log.1")
    assert path.stat().st_size <= 1000
    assert before.stat().st_size <= 1000
    assert (before.read_text() + path.read_text()).splitlines() == source.read_text().splitlines()[-200:]
    assert log.tail[-1] == "line 0999"


async def test_the_log_goes_where_it_is_wanted(folder: Path, tmp_path: Path) -> None:
    engine = OllamaEngine.managed(log=tmp_path / "mine.log")
    await engine.describe(MODEL)
    await engine.aclose()
    assert engine.log == tmp_path / "mine.log"
    assert "msg=starting" in engine.log.read_text()


NO_PID = 2**22 + 1
"""Processes of Linux have smaller ids."""


def old_log(logs: Path, pid: int, *, age: int, suffix: str = "") -> Path:
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"ollama-{pid}-1.log{suffix}"
    path.write_text("old")
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_logs_of_earlier_servers_do_not_pile_up(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "state" / "ollama-batch" / "managed"
    old = [old_log(logs, NO_PID + n, age=n) for n in range(50)]
    OllamaEngine.managed()
    assert {path for path in old if path.exists()} == set(old[: 2 * managed.LOGS])


def test_the_log_of_a_quiet_server_that_still_runs_is_left(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "state" / "ollama-batch" / "managed"
    other = [old_log(logs, os.getppid(), age=99, suffix=suffix) for suffix in ("", ".1")]
    quiet = OllamaEngine.managed()
    quiet.log.write_text("quiet for long")
    os.utime(quiet.log, (1, 1))
    closed = logs / f"ollama-{os.getpid()}-0.log"  # of an engine that is no more
    closed.write_text("old")
    os.utime(closed, (1, 1))
    for n in range(50):
        old_log(logs, NO_PID + n, age=n)
    OllamaEngine.managed()
    assert [path.exists() for path in (*other, quiet.log, closed)] == [True, True, True, False]


def test_a_log_that_another_process_removes_meanwhile_is_no_trouble(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "state" / "ollama-batch" / "managed"
    for n in range(50):
        old_log(logs, NO_PID + n, age=n)
    glob = Path.glob

    def raced(self: Path, pattern: str) -> list[Path]:
        found = list(glob(self, pattern))
        for path in found[::2]:
            path.unlink()
        return found

    monkeypatch.setattr(Path, "glob", raced)
    OllamaEngine.managed()
    monkeypatch.undo()
    assert len(list(logs.iterdir())) <= 2 * managed.LOGS


def test_a_managed_server_killed_in_a_run_is_restarted_and_every_row_is_ok(
    folder: Path, tmp_path: Path
) -> None:
    def kill(event: object) -> None:
        if isinstance(event, RowFinished) and len(recorder.all(RowFinished)) in (20, 60, 100):
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)

    recorder = Recorder(kill)
    engine = OllamaEngine.managed()
    runner = quick_runner(engine=engine, hooks=[recorder])
    output = tmp_path / "out.jsonl"
    try:
        report = runner.run(rows(140), output=output)
    finally:
        asyncio.run(engine.aclose())
    assert [event.outcome for event in recorder.all(EngineRestarted)] == ["ok"] * 3
    assert (report.counts.ok, report.counts.failed) == (140, 0)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [row.custom_id for row in rows(140)]
    assert recorder.check_balance() == 0
    asked = FileLedger(folder / "ledger.jsonl", readonly=True).counts()
    assert asked.keys() - {TEST_QUESTION} == {row.custom_id for row in rows(140)}
    assert max(asked.values()) <= 4  # at most once more for each kill
    assert len(pids(folder)) == 4
    assert alive(folder) == []


# A server that is not ours, and a systemd unit


def served_by_systemd(folder: Path, *plan: str, **options: Any) -> tuple[Any, Recorder, Any]:
    """A run on a server that `systemctl` starts; it is killed after 20 rows. The port is free until then."""
    reserved = managed._reserve_port()
    port = reserved.getsockname()[1]
    stand_in_systemctl(folder, "ok", *plan, port=port)
    subprocess.run([str(folder / "systemctl"), "start"], check=True)  # the first word of the plan
    engine = OllamaEngine(f"http://127.0.0.1:{port}")

    def kill(event: object) -> None:
        if isinstance(event, RowFinished) and len(recorder.all(RowFinished)) == 20:
            os.kill(pids(folder)[-1][0], signal.SIGKILL)

    recorder = Recorder(kill)
    runner = quick_runner(engine=engine, hooks=[recorder], **options)

    def run(output: Path) -> Any:
        try:
            asyncio.run(until(_is_up(engine)))
            return runner.run(rows(60), output=output)
        finally:
            asyncio.run(engine.aclose())
            reserved.close()

    return run, recorder, port


def _is_up(engine: OllamaEngine) -> Any:
    import httpx

    def up() -> bool:
        try:
            return httpx.get(f"{engine.address}/api/version", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    return up


@pytest.mark.parametrize(
    ("plan", "outcomes"),
    [(["ok"], ["ok"]), (["slow", "failed", "ok"], ["slow", "failed", "ok"])],
    ids=["ok", "slow"],
)
def test_a_unit_that_died_is_restarted_by_systemctl_and_every_row_is_ok(
    folder: Path, tmp_path: Path, plan: list[str], outcomes: list[str]
) -> None:
    supervisor = Supervisor(SystemdUnit("ollama"), after_s=0.2, wait_s=0.01, timeout_s=5.0)
    run, recorder, _ = served_by_systemd(folder, *plan, supervisor=supervisor)
    report = run(tmp_path / "out.jsonl")
    # A server takes longer to come up than it is given here, so the last word may be said again.
    told = [event.outcome for event in recorder.all(EngineRestarted)]
    assert told[: len(outcomes)] == outcomes
    assert set(told[len(outcomes) :]) <= {"ok"}
    assert len(told) <= 5
    assert (report.counts.ok, report.counts.failed) == (60, 0)
    assert [call[1:] for call in calls(folder)[1:]] == [["--no-ask-password", "restart", "ollama"]] * len(
        told
    )
    assert not any(runs(call[0]) for call in calls(folder)), "no systemctl is left"
    asked = FileLedger(folder / "ledger.jsonl", readonly=True).counts()
    assert asked.keys() - {TEST_QUESTION} == {row.custom_id for row in rows(60)}


@pytest.mark.parametrize(("word", "outcome"), [("missing", "refused"), ("password", "password")])
def test_a_restart_that_is_refused_stops_the_run_in_time_and_fails_no_row(
    folder: Path, tmp_path: Path, word: str, outcome: str
) -> None:
    supervisor = Supervisor(SystemdUnit("ollama"), after_s=0.1, wait_s=0.01)
    run, recorder, _ = served_by_systemd(folder, word, supervisor=supervisor, recover_timeout=3.0)
    with pytest.raises(EngineDownError, match="did not come back") as stopped:
        run(tmp_path / "out.jsonl")
    assert [event.outcome for event in recorder.all(EngineRestarted)] == [outcome]
    assert len(calls(folder)) == 2
    counts = stopped.value.report.counts
    assert counts.ok >= 20
    assert counts.failed == 0
    (told,) = (note for note in stopped.value.report.notes if "restart" in note)
    assert told.startswith("a restart of the engine was tried once, and refused")
    assert recorder.all(EngineRestarted)[0].message.rstrip(".") in told


def test_an_engine_of_somebody_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    run, recorder, _ = served_by_systemd(folder, "ok", recover_timeout=1.0)
    with pytest.raises(EngineDownError, match="did not come back"):
        run(tmp_path / "out.jsonl")
    assert recorder.all(EngineRestarted) == []
    assert len(calls(folder)) == 1


def test_a_callable_restarts_a_server_from_a_thread(folder: Path, tmp_path: Path) -> None:
    threads: list[str] = []

    def restart() -> None:
        threads.append(threading.current_thread().name)
        subprocess.run([str(folder / "systemctl"), "restart"], check=True)

    supervisor = Supervisor(restart, after_s=0.2, wait_s=0.01)
    run, recorder, _ = served_by_systemd(folder, "ok", supervisor=supervisor)
    assert run(tmp_path / "out.jsonl").ok
    assert recorder.all(EngineRestarted)[0].outcome == "ok"
    assert set(threads) == {"ollama-batch restart"}
