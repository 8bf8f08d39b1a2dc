"""`ollama-batch serve` and `submit`, each a process as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_batch.cli import main
from ollama_batch.testing import FakeOllama
from server_support import KEYS, MODEL, Serving, jsonl, line, rows, serving, until


@pytest.fixture
def server(tmp_path: Path, fake_ollama_factory: Callable[..., FakeOllama]) -> Iterator[Serving]:
    with serving(tmp_path / "data", fake_ollama_factory()) as served:
        yield served


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in.jsonl"
    path.write_bytes(rows(12))
    return path


def submit(server: Serving, *options: str, wait: bool = True) -> int:
    waiting = ["--wait", "--poll", "0.02"] if wait else []
    return main(["submit", "in.jsonl", "-o", "out.jsonl", "--server", server.url, *waiting, *options])


def told(name: str) -> list[dict[str, Any]]:
    return [json.loads(each) for each in Path(name).read_text().splitlines()]


def test_submit_fetches_and_verifies_and_does_so_once(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server) == 0
    said = capsys.readouterr().out
    assert "completed: 12 of 12 done, 0 failed" in said
    assert "every row has exactly one" in said
    assert [each["custom_id"] for each in told("out.jsonl")] == [f"row-{n}" for n in range(12)]
    assert not Path("out.errors.jsonl").exists()
    assert submit(server) == 0, "the same line again"
    assert server.fake.ledger.count() == 12
    assert Path("out.jsonl").stat().st_mode & 0o777 == 0o600


def test_submit_tells_of_failed_lines_and_of_files_at_fault(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given.write_bytes(jsonl(line("good"), line("bad", n=2)))
    assert submit(server) == 1
    assert [each["custom_id"] for each in told("out.errors.jsonl")] == ["bad"]
    given.write_bytes(jsonl(line("good"), "{"))
    assert submit(server) == 2, "the output is of another input"
    assert "is of another input" in capsys.readouterr().err
    assert submit(server, "-o", "other.jsonl") == 2
    assert "line 2: This line is not parseable as valid JSON." in capsys.readouterr().out


def test_submit_goes_on_with_what_it_began(server: Serving, given: Path) -> None:
    server.fake.hold()
    assert submit(server, wait=False) == 0
    assert submit(server, wait=False) == 3, "not over"
    server.fake.release()
    assert submit(server) == 0
    assert len(list(server.sdk().batches.list())) == 1
    batch = next(iter(server.sdk().batches.list()))
    assert submit(server, "-o", "again.jsonl", "--batch", batch.id) == 0
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


def test_submit_says_what_it_cannot_do(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out.jsonl").write_text("mine")
    assert submit(server) == 2
    assert Path("out.jsonl").read_text() == "mine"
    assert main(["submit", "in.jsonl", "-o", "new.jsonl", "--server", "here"]) == 2
    assert main(["submit", "none.jsonl", "-o", "new.jsonl", "--server", server.url]) == 2
    assert main(["submit", "in.jsonl", "-o", "new.jsonl", "--server", "http://127.0.0.1:9"]) == 3
    assert main(["submit", "in.jsonl", "-o", "new.jsonl", "--server", server.fake.url]) == 2
    assert "does not answer" in capsys.readouterr().err


@contextmanager
def served(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "ollama_batch.cli", "serve", "--port", str(port), *options]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        yield child, port
    finally:
        child.kill()
        child.communicate()


def answers(port: int, child: subprocess.Popen[str]) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    assert child.poll() is None, child.communicate()
    return False


def test_serve_serves_until_it_is_asked_to_stop(
    given: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    fake = fake_ollama_factory(api_key="of-the-engine")
    options = [
        "--data",
        "server",
        "--base-url",
        fake.url,
        "--api-key-env",
        "KEYS",
        "--engine-key-env",
        "ENGINE",
    ]
    with served(*options, KEYS=",".join(KEYS), ENGINE="of-the-engine") as (child, port):
        until(lambda: answers(port, child))
        url = f"http://127.0.0.1:{port}/v1"
        assert httpx.get(f"{url}/models").status_code == 401
        models = httpx.get(f"{url}/models", headers={"authorization": f"Bearer {KEYS[0]}"}).json()
        assert [model["id"] for model in models["data"]] == [MODEL]
        os.environ["KEY_OF_THE_TEST"] = KEYS[0]
        try:
            command = ["submit", "in.jsonl", "-o", "out.jsonl", "--server", url, "--wait", "--poll", "0.05"]
            assert main([*command, "--api-key-env", "KEY_OF_THE_TEST"]) == 0
        finally:
            del os.environ["KEY_OF_THE_TEST"]
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=30)
        assert child.returncode == 0, err
        assert out.startswith(f"serving {url}")
        assert not any(key in out + err for key in KEYS)
    assert fake.ledger.count() == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-env"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "holds no key"),
        (["--num-ctx", "many"], "--num-ctx many"),
        (["--host", "192.0.2.1", "--api-key-env", "GIVEN"], "cannot be listened on"),
        (["--max-lines", "0"], "max_lines=0"),
    ],
)
def test_serve_refuses_what_cannot_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("GIVEN", KEYS[0])
    assert main(["serve", "--data", str(tmp_path / "data"), "--port", "0", *options]) == 2
    assert said in capsys.readouterr().err


def test_serve_refuses_a_folder_that_is_in_use(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--data", str(server.service.folder), "--port", "0"]) == 2
    assert "in use by another server" in capsys.readouterr().err
