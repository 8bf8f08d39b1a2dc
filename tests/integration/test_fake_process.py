"""The fake server in a process of its own, and the pytest plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ollama_batch.testing import CostModel, FakeModel, FakeOllama, FakeReply, Fault, FileLedger


def chat(url: str, content: str = "row-1", **more: Any) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    body = {"model": "toy:1b", "messages": messages, "stream": False, **more}
    return httpx.post(url + "/api/chat", json=body, trust_env=False, timeout=10)


def test_a_spawned_server_has_the_same_ledger_faults_and_restarts() -> None:
    with FakeOllama.spawn(
        models=[FakeModel("toy:1b", context_length=512)],
        speed=CostModel(latency_s=0.001),
        reply=FakeReply("seven"),
        faults=[Fault("busy", when=1)],
    ) as fake:
        assert chat(fake.url).status_code == 503
        assert chat(fake.url).json()["message"]["content"] == "seven"
        fake.inject(Fault("crash", match="poison"))
        assert chat(fake.url, "poison").status_code == 500
        fake.clear_faults()
        assert chat(fake.url, "poison").status_code == 200
        assert (fake.ledger.count("row-1"), fake.ledger.answered("row-1")) == (2, 1)
        fake.stop()
        with pytest.raises(httpx.ConnectError):
            chat(fake.url)
        fake.restart()
        assert chat(fake.url).status_code == 200
        assert fake.ledger.loads == 2
    assert fake.ledger.count() == 5  # still there when the server and its file are gone


def test_a_killed_server_comes_back_on_its_port_with_its_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with FakeOllama.spawn(ledger=path, faults=[Fault("hang", match="slow")]) as fake:
        port = fake.port
        assert chat(fake.url).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                fake.url + "/api/chat",
                json={"model": "toy:1b", "messages": [{"role": "user", "content": "slow"}]},
                trust_env=False,
                timeout=0.2,
            )
        fake.kill()
        with pytest.raises(RuntimeError, match="not running"):
            fake.inject(Fault("busy"))
        fake.start()
        assert fake.port == port
        assert chat(fake.url, "row-2").status_code == 200
    ledger = FileLedger(path, readonly=True)
    assert ledger.counts() == {"row-1": 1, "slow": 1, "row-2": 1}
    assert sorted(record.seq for record in ledger.records()) == [1, 2, 3]


def test_a_spawned_server_ends_with_the_process_that_started_it() -> None:
    code = (
        "from ollama_batch.testing import FakeOllama; import os\n"
        "fake = FakeOllama.spawn(ledger=os.devnull); print(fake.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == -9
    try:
        psutil.Process(int(done.stdout)).wait(timeout=10)
    except psutil.NoSuchProcess:
        pass  # gone already


def test_what_the_other_process_refuses_is_said_here() -> None:
    with FakeOllama() as taken, pytest.raises(RuntimeError, match="OSError"):
        FakeOllama.spawn(port=taken.port)


def test_the_command_prints_its_address_and_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "ollama_batch.testing.fake_ollama", "--model", "a:1", "--model", "b:1"]
    with subprocess.Popen(
        [*command, "--fault", '{"kind": "busy", "match": "row"}'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = json.loads(process.stdout.readline())["url"]
        listed = httpx.get(url + "/v1/models", trust_env=False).json()["data"]
        assert [model["id"] for model in listed] == ["a:1", "b:1"]
        assert chat(url).status_code == 503
        process.stdin.close()
        assert process.wait(10) == 0


def test_the_command_takes_a_card_and_a_slow_start() -> None:
    command = [sys.executable, "-m", "ollama_batch.testing.fake_ollama", "--start", "60", "--memory"]
    with subprocess.Popen(
        [*command, '{"card_bytes": 1000}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = json.loads(process.stdout.readline())["url"]
        with pytest.raises(httpx.ConnectError):
            chat(url)
        process.stdin.close()
        assert process.wait(10) == 0
    refused = subprocess.run(
        [*command, '{"card_bytes": -1}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "MemoryModel.card_bytes is -1" in refused.stderr


PLUGIN_TEST = """
import httpx
from ollama_batch.testing import Fault

def chat(fake):
    body = {"model": "toy:1b", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    return httpx.post(fake.url + "/api/chat", json=body, trust_env=False).status_code

def test_one(fake_ollama):
    assert chat(fake_ollama) == 200
    assert fake_ollama.ledger.count() == 1

def test_two(fake_ollama, fake_ollama_factory):
    assert fake_ollama.ledger.count() == 0
    other = fake_ollama_factory(faults=[Fault("busy")])
    assert (chat(other), chat(fake_ollama)) == (503, 200)
"""


def test_the_plugin_gives_each_test_a_clean_server(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "ollama_batch.testing.plugin",
            "test_it.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "2 passed" in done.stdout, done.stdout
