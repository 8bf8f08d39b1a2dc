"""What the command line offers for long nights: an engine of its own, restarts, limits of memory."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_batch import OllamaEngine, RamGuard, Supervisor, SystemdUnit, VramGuard, cli, control
from ollama_batch._arguments import make_parser
from ollama_batch._guard_options import guards_asked
from ollama_batch._guard_plan import GuardPlan
from ollama_batch._restart_option import RestartCommand, supervisor_asked
from ollama_batch._serve_command import _runner_options
from ollama_batch._settings import TEST_QUESTION
from ollama_batch.cli import main
from ollama_batch.concurrency import Concurrency
from ollama_batch.engines import managed
from ollama_batch.errors import ConfigError, RestartError
from ollama_batch.events import RowFinished
from ollama_batch.testing import CostModel, FakeOllama
from ollama_batch.testing.ledger import FileLedger
from runner_support import write_lines
from server_support import until
from supervisor_support import (
    alive,
    calls,
    end_all,
    none_left,
    pids,
    stand_in_ollama,
    stand_in_systemctl,
)
from trouble_support import quick_ladder, rows

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and groups of processes")

Factory = Callable[..., FakeOllama]
GIB = 2**30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where stand-ins for `ollama` and `systemctl` are, first on the PATH; what they leave is ended."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in_ollama(folder)
    stand_in_systemctl(folder, "ok")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    end_all(folder)


def parsed(*words: str, command: str = "run") -> Namespace:
    """The arguments of a command, as they are read."""
    needed = ["in.jsonl", "-o", "out.jsonl"] if command == "run" else []
    return make_parser({command: lambda _: 0}).parse_args([command, *needed, *words])


def ask(count: int, *words: object) -> list[str]:
    """The line that runs so many rows; their file is written."""
    write_lines(Path("in.jsonl"), [row.to_openai() for row in rows(count)])
    own = ("--model", "toy:1b", "--num-ctx", "2048", "--progress", "none")
    return ["run", "in.jsonl", "-o", "out.jsonl", *own, *map(str, words)]


def answered(path: str = "out.jsonl") -> list[str]:
    return [json.loads(line)["custom_id"] for line in Path(path).read_text().splitlines()]


def expected(count: int) -> list[str | None]:
    return [row.custom_id for row in rows(count)]


# An engine of its own


def test_a_managed_ollama_is_started_as_asked_answers_every_row_and_leaves_nothing(folder: Path) -> None:
    line = ask(30, "--managed", "--slots", 3, "--kv-cache-type", "q8_0")
    done = subprocess.run(
        [sys.executable, "-m", "ollama_batch.cli", *line],
        capture_output=True,
        text=True,
        timeout=60,
        # An address of another server, which is not asked.
        env={**os.environ, "OLLAMA_HOST": "http://127.0.0.1:9"},
    )
    assert done.returncode == 0, done.stderr
    assert "30 of 30 rows ok" in done.stdout
    assert answered() == expected(30)
    told = json.loads((folder / "env.json").read_text())
    told.pop("OLLAMA_HOST")
    assert told == {
        "OLLAMA_NUM_PARALLEL": "3",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_FLASH_ATTENTION": "1",
    }
    assert len(pids(folder)) == 1
    assert alive(folder) == []


@pytest.mark.usefixtures("killed")
def test_a_managed_ollama_that_is_killed_is_restarted(folder: Path) -> None:
    assert main(ask(60, "--managed", "--concurrency", 4)) == 0
    assert answered() == expected(60)
    assert len(pids(folder)) == 2
    assert alive(folder) == []


def test_slots_are_those_of_an_embedded_engine_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ask(4, "--toy", "--slots", 2)) == 0
    assert "4 of 4 rows ok" in capsys.readouterr().out
    from ollama_batch._engine_options import make_engine

    engine: Any = make_engine(parsed("--toy", "--slots", "2"), "toy:1b")
    assert engine._settings["slots"] == 2
    usual: Any = make_engine(parsed("--managed"), None)
    assert usual._num_parallel == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--managed", "--base-url", "http://x"], ("--base-url", "--managed")),
        (["--managed", "--api", "openai"], ("--api", "--managed")),
        (["--managed", "--api-key-env", "HOME"], ("--api-key-env", "--managed")),
        (["--managed", "--embedded"], ("--managed", "--embedded")),
        (["--managed", "--gguf", "x.gguf"], ("--managed", "--gguf")),
        (["--managed", "--toy"], ("--managed", "--toy")),
        (["--managed", "--restart", "unit:ollama"], ("--restart", "--managed")),
        (["--toy", "--restart", "true"], ("--restart", "--toy")),
        (["--toy", "--api-key-env", "HOME"], ("--api-key-env", "--toy")),
        (["--slots", "4"], ("--slots", "--managed", "OLLAMA_NUM_PARALLEL")),
        (["--kv-cache-type", "q8_0"], ("--kv-cache-type", "--managed")),
        (["--toy", "--kv-cache-type", "q8_0"], ("--kv-cache-type", "--managed")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_engines_that_exclude_each_other_are_refused_with_both_names(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: tuple[str, ...]
) -> None:
    assert main(ask(1, *words)) == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert all(word in complaint for word in said), complaint
    assert not Path("out.jsonl.run.db").exists()
    assert pids(folder) == []


def test_a_machine_without_ollama_is_told_so_in_words_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(ask(1, "--managed")) == 2
    said = capsys.readouterr().err
    assert "there is no program 'ollama' to run" in said
    assert "or put it on the PATH" in said
    assert "binary=" not in said


# Restarts


class Killer:
    """A hook that kills the server of the stand-ins when 20 rows have ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = 0

    def on_event(self, event: object) -> None:
        self._ended += isinstance(event, RowFinished)
        if isinstance(event, RowFinished) and self._ended == 20:
            os.kill(pids(self._folder)[-1][0], signal.SIGKILL)

    def close(self) -> None:
        pass


@pytest.fixture
def killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies in the middle of the run; an engine gets a moment to come back, not half a minute."""
    monkeypatch.setattr(cli, "metrics_hooks", lambda _: [Killer(folder)])
    quick_ladder(monkeypatch)
    monkeypatch.setattr(control, "Supervisor", partial(Supervisor, after_s=0.2, wait_s=0.01))


@contextmanager
def served(folder: Path, *plan: str) -> Iterator[str]:
    """The address of a server that the stand-in `systemctl` has started; called again, it does the `plan`."""
    reserved = managed._reserve_port()
    port = reserved.getsockname()[1]
    program = stand_in_systemctl(folder, "ok", *plan, port=port)
    subprocess.run([str(program), "start"], check=True)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_up(f"{url}/api/version"))
        yield url
    finally:
        reserved.close()


def is_up(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("how", ["unit:ollama", "{systemctl} restart it"])
@pytest.mark.usefixtures("killed")
def test_a_server_that_died_is_restarted_as_asked_and_every_row_is_ok(
    folder: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    asked = how.format(systemctl=shlex.quote(str(folder / "systemctl")))
    with served(folder, "ok") as url:
        assert main(ask(60, "--base-url", url, "--concurrency", 4, "--restart", asked)) == 0
    assert answered() == expected(60)
    words = ["--no-ask-password", "restart", "ollama"] if how == "unit:ollama" else ["restart", "it"]
    assert calls(folder)[1][1:] == words
    assert "restarted the engine in " in caplog.text
    counts = FileLedger(folder / "ledger.jsonl", readonly=True).counts()
    assert counts.keys() - {TEST_QUESTION} == set(expected(60))


@pytest.mark.usefixtures("killed")
def test_what_a_restart_that_failed_printed_is_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = f"{shlex.quote(str(folder / 'systemctl'))} restart it"
    with served(folder, "failed", "ok") as url:
        assert main(ask(60, "--base-url", url, "--concurrency", 4, "--restart", asked)) == 0
    told = [each for each in caplog.messages if each.startswith("the restart of the engine failed")]
    assert "ended with 1: Job for ollama.service failed because the control process" in told[0]
    assert answered() == expected(60)


@pytest.mark.usefixtures("killed")
def test_without_the_option_a_server_is_restarted_by_nobody(folder: Path) -> None:
    with served(folder, "ok") as url:
        line = ask(60, "--base-url", url, "--concurrency", 4, "--recover-timeout", 1)
        assert main(line) == 3
    assert len(calls(folder)) == 1
    assert not Path("out.jsonl").exists()


def test_the_option_is_a_supervisor_with_its_usual_limits(folder: Path) -> None:
    made = supervisor_asked(parsed("--restart", "unit:my-ollama"), address="http://127.0.0.1:11434")
    assert made is not None
    assert made._restart == SystemdUnit("my-ollama")
    assert vars(made).keys() == vars(Supervisor()).keys()
    assert {name: vars(made)[name] for name in ("_most", "_within_s", "_after_s", "_timeout_s")} == {
        name: vars(Supervisor())[name] for name in ("_most", "_within_s", "_after_s", "_timeout_s")
    }
    command = supervisor_asked(parsed("--restart", "sh -c 'a; b' \"c d\""), address="http://gpu:8000")
    assert command is not None
    assert isinstance(command._restart, RestartCommand)
    assert command._restart.words == ("sh", "-c", "a; b", "c d")
    assert supervisor_asked(parsed(), address="http://gpu:8000") is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", "--restart is empty"),
        ("''", "--restart is empty"),
        ("unit:", "'' is no name of a unit, as in unit:ollama"),
        ("unit:two words", "'two words' is no name of a unit"),
        ("unit:nosuchunit", "the unit nosuchunit does not exist on this machine: give the one that runs"),
        ("unit:masked", "the unit masked is masked: give the one that runs"),
        ("unit:elsewhere", "was not booted with systemd, which has no units here; a command may do it"),
        ("no-such-program now", "there is no program 'no-such-program'"),
        ("ollama.service", "give unit:NAME for a unit of systemd"),
        ("ollama", "a unit is given as unit:ollama"),
        ("ollama serve", "that is a server, and does not end. Put it into the background, as in"),
        ("sh -c 'unclosed", "cannot be read as a command: No closing quotation"),
        ("true; true", "no shell reads ; here; put it into a script, or give sh -c"),
        ("true && true", "no shell reads && here"),
        ("sh '' > log", "no shell reads > here"),
    ],
)
def test_a_way_to_restart_that_cannot_work_is_refused_before_the_night(
    folder: Path, capsys: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    assert main(ask(1, "--base-url", "http://127.0.0.1:9", "--restart", how)) == 2
    assert said in capsys.readouterr().err


def test_a_unit_of_this_machine_is_no_way_to_restart_an_engine_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = parsed("--restart", "unit:ollama")
    with pytest.raises(ConfigError, match=r"engine is at http://gpu:11434.*ssh HOST sudo -n systemctl"):
        supervisor_asked(here, address="http://gpu:11434")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="this machine has no systemctl"):
        supervisor_asked(here, address="http://127.0.0.1:11434")


async def restarted(script: str) -> None:
    await RestartCommand(["sh", "-c", script])()


async def test_a_command_has_worked_if_it_ends_with_0_and_what_it_said_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="ollama_batch.restart"):
        await restarted("echo one; echo two >&2")
        await restarted("true")
    assert caplog.messages == ["sh said: one two"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no such container >&2; exit 7", "sh ended with 7: no such container"),
        ("exit 1", "sh ended with 1"),
        ("kill -9 $$", "sh ended with -9"),
        (r"printf 'a\033[2Jb'; exit 3", r"sh ended with 3: a\x1b[2Jb"),
    ],
)
async def test_a_command_that_ends_otherwise_has_failed_with_what_it_said(script: str, said: str) -> None:
    with pytest.raises(RestartError) as raised:
        await restarted(script)
    assert str(raised.value).startswith(said)
    assert raised.value.outcome == "failed"


async def test_a_command_has_nothing_to_read_and_no_terminal_to_ask_at() -> None:
    script = (
        "import os\n"
        "assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev\n"
        "assert os.getsid(0) == os.getpid()"
    )
    read, write = os.pipe()
    own = os.dup(0)
    os.dup2(read, 0)  # what a terminal would be
    try:
        await RestartCommand([sys.executable, "-c", script])()
    finally:
        os.dup2(own, 0)
        for each in (read, write, own):
            os.close(each)


async def test_of_a_command_that_says_much_the_end_is_told() -> None:
    with pytest.raises(RestartError) as raised:
        await restarted("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 1")
    assert str(raised.value).endswith("line 4998 line 4999")
    assert len(str(raised.value)) < 500


async def test_a_program_that_is_gone_by_then_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RestartError, match="cannot be run") as raised:
        await RestartCommand([str(tmp_path / "gone")])()
    assert raised.value.outcome == "refused"


async def test_a_server_that_the_command_leaves_behind_is_not_waited_for_and_goes_on_writing(
    tmp_path: Path,
) -> None:
    (tmp_path / "said").touch()
    said, pid = (shlex.quote(str(tmp_path / name)) for name in ("said", "pids"))
    try:
        async with asyncio.timeout(20):
            await restarted(f"(while echo a; do echo b >> {said}; sleep 0.01; done) & echo $! > {pid}")
        before = len((tmp_path / "said").read_text())
        until(lambda: len((tmp_path / "said").read_text()) > before + 6)
        assert len(alive(tmp_path)) == 1
    finally:
        end_all(tmp_path)


async def test_a_command_that_takes_too_long_is_killed_with_what_it_has_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = f"echo begun; sleep 600 & echo $$ $! > {shlex.quote(str(tmp_path / 'pids'))}; wait"
    supervisor = Supervisor(RestartCommand(["sh", "-c", script]), timeout_s=0.5)
    restart = await supervisor.attempt(None, exited=True, unwell_s=0, reason="a test")
    assert restart is not None
    assert restart.outcome == "slow"
    assert "sh said: begun" in caplog.messages
    assert any("was killed, with all that it had started. A server that" in each for each in caplog.messages)
    assert len(pids(tmp_path)[0]) == 2
    try:
        assert none_left(tmp_path)
    finally:
        end_all(tmp_path)


# Memory


@pytest.mark.parametrize(
    ("words", "plans"),
    [
        ([], None),
        (["--vram-limit", "off", "--ram-limit", "off"], ()),
        (["--vram-limit", "off"], (GuardPlan(RamGuard),)),
        (["--ram-limit", "off"], (GuardPlan(VramGuard),)),
        (
            ["--vram-limit", "12GiB"],
            (GuardPlan(VramGuard, {"limit": 12 * GIB}), GuardPlan(RamGuard)),
        ),
        (
            ["--vram-warn", "14 GiB", "--vram-limit", "15GiB", "--ram-limit", "off"],
            (GuardPlan(VramGuard, {"warn": 14 * GIB, "limit": 15 * GIB}),),
        ),
        (
            ["--vram-warn", "80%"],
            (GuardPlan(VramGuard, {"warn": 0.8, "limit": 0.96}), GuardPlan(RamGuard)),
        ),
        (
            ["--ram-warn", "0.5", "--ram-limit", "0.75"],
            (GuardPlan(VramGuard), GuardPlan(RamGuard, {"warn": 0.5, "limit": 0.75})),
        ),
        (
            ["--ram-warn", "50%", "--ram-limit", "30GB", "--vram-limit", "off"],
            (GuardPlan(RamGuard, {"warn": 0.5, "limit": 30_000_000_000}),),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["run", "serve"])
def test_limits_of_memory_are_guards(words: list[str], plans: Any, command: str) -> None:
    assert guards_asked(parsed(*words, command=command)) == plans


def test_a_limit_alone_warns_as_far_below_it_as_the_usual_one() -> None:
    (plan,) = guards_asked(parsed("--vram-limit", "96%", "--ram-limit", "off")) or ()
    usual, made = VramGuard()._thresholds, VramGuard(**plan.options)._thresholds
    assert made.bounds(16 * GIB) == usual.bounds(16 * GIB)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--vram-limit", "x"],
            "argument --vram-limit: 'x' is neither a size, as in 15GiB or 15GB, nor a share",
        ),
        (["--vram-limit", "15GX"], "'15GX' is neither a size"),
        (["--vram-limit", "101%"], "'101%' is neither a size"),
        (["--vram-limit", "0%"], "'0%' is neither a size"),
        (["--vram-limit", "1.5"], "'1.5' is neither a size"),
        (["--ram-limit", "15"], "'15' is less than 1 MiB: give a size with its unit, as in 15GiB"),
        (["--ram-warn", "off"], "argument --ram-warn: 'off' is neither a size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_amount_of_memory_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(*words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vram-warn", "97%"], "--vram-warn 97% is above --vram-limit 96% (the usual one)"),
        (
            ["--ram-warn", "16GiB", "--ram-limit", "15GiB"],
            "--ram-warn 16.0 GiB is above --ram-limit 15.0 GiB: give a smaller one",
        ),
        (["--ram-warn", "16GiB", "--ram-limit", "off"], "--ram-limit off has no --ram-warn"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_warning_above_its_limit_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        guards_asked(parsed(*words))
    assert said in str(refused.value)


def test_a_run_with_too_little_memory_stops_resumably_and_without_the_limit_goes_on(
    folder: Path, fake_ollama_factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory of this machine, of which more than 2 MiB are in use."""
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.05))
    line = ask(40, "--base-url", fake.url, "--concurrency", 1)
    assert main([*line, "--ram-limit", "2MiB", "--recover-timeout", "0.5"]) == 3
    said = capsys.readouterr().err
    assert "memory was short for" in said
    assert "ram: " in said
    assert fake.ledger.answered() < 40
    assert main([*line, "--ram-limit", "off"]) == 0
    assert answered() == expected(40)


# Loading


def test_a_model_that_is_not_loaded_in_time_ends_the_run(
    folder: Path, fake_ollama_factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fake_ollama_factory(speed=CostModel(load_s=30.0))
    began = time.monotonic()
    assert main(ask(2, "--base-url", fake.url, "--load-timeout", "0.3")) == 3
    assert time.monotonic() - began < 15
    said = capsys.readouterr().err
    assert "toy:1b is not loaded yet, and the run waits no longer (--load-timeout)" in said


# The batch server


def test_the_batch_server_takes_the_same_options(folder: Path) -> None:
    words = ["--concurrency", "2-3", "--load-timeout", "70", "--recover-timeout", "80", "--timeout", "9"]
    words += ["--vram-limit", "12GiB", "--ram-limit", "off", "--restart", "unit:ollama"]
    engine = OllamaEngine("http://127.0.0.1:9")
    try:
        options = _runner_options(parsed(*words, command="serve"), engine)
        usual = _runner_options(parsed(command="serve"), engine)
    finally:
        asyncio.run(engine.aclose())
    assert isinstance(options.pop("supervisor"), Supervisor)
    assert options == {
        "max_tokens": 1024,
        "concurrency": Concurrency(min=2, max=3),
        "timeout": 9.0,
        "load_timeout": 70.0,
        "recover_timeout": 80.0,
        "guards": (GuardPlan(VramGuard, {"limit": 12 * GIB}),),
    }
    assert (usual["guards"], usual["supervisor"], usual["concurrency"]) == (None, None, "auto")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--managed", "--base-url", "http://x"], "--base-url is for servers that are there, and --managed"),
        (["--toy", "--engine-key-env", "HOME"], "--engine-key-env is for servers that are there, and --toy"),
        (["--engine-key-env", "NOT_SET_ANYWHERE"], "--engine-key-env NOT_SET_ANYWHERE: the environment"),
        (["--managed", "--restart", "true"], "--restart is for an engine that somebody else runs"),
        (["--timeout", "-1"], "--timeout -1.0: must be"),
        (["--concurrency", "0"], "--concurrency 0: must be"),
        (["--vram-warn", "97%"], "--vram-warn 97% is above"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_batch_server_refuses_at_its_start_what_batches_would_meet(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["serve", "--port", "0", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("ollama-batch-server").exists()


def test_the_batch_server_starts_an_ollama_of_its_own_and_leaves_nothing(folder: Path) -> None:
    write_lines(Path("in.jsonl"), [row.to_openai() for row in rows(6)])
    command = [sys.executable, "-m", "ollama_batch.cli", "serve", "--port", "0", "--model", "toy:1b"]
    server = subprocess.Popen(
        [*command, "--managed", "--slots", "2", "--concurrency", "1-2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        until(lambda: is_up(f"{url.removesuffix('/v1')}/health"))
        submit = ["submit", "in.jsonl", "-o", "out.jsonl", "--server", url, "--wait", "--poll", "0.05"]
        assert main(submit) == 0
        assert len(alive(folder)) == 2
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
        assert server.returncode == 0, err
    finally:
        server.kill()
        server.communicate()
    assert answered() == expected(6)
    assert json.loads((folder / "env.json").read_text())["OLLAMA_NUM_PARALLEL"] == "2"
    assert none_left(folder)
