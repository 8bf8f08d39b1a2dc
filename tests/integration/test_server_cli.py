"""`ollama-batch serve` and `submit`, each a process as a user starts it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ollama_batch.cli import main
from ollama_batch.testing import CostModel, FakeOllama
from server_support import CHAT, KEYS, MODEL, Serving, jsonl, line, rows, serving, until


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
    said = capsys.readouterr().err
    assert "is completed and was made of another input: in.jsonl has changed since" in said
    assert "give another output" in said
    assert submit(server, "-o", "other.jsonl") == 2
    assert "line 2: This line is not parseable as valid JSON." in capsys.readouterr().out


def batches(server: Serving) -> list[Any]:
    """Every batch there is, the oldest first."""
    return list(server.sdk().batches.list())[::-1]


def test_submit_makes_a_failed_batch_anew_once_the_input_is_mended_or_when_asked(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given.write_bytes(jsonl(line("a", model="none:1b")))
    for _ in range(2):  # told as often as it is asked, and not made again
        assert submit(server) == 2
        said = capsys.readouterr().out
        assert "'none:1b' is not supported by the Batch API. There is: 'toy:1b'. (model_not_found)" in said
        assert "nothing was run: mend in.jsonl and give the same line again" in said
    assert submit(server, "--anew") == 2
    assert "failed; in.jsonl is submitted anew" in capsys.readouterr().out
    assert [batch.status for batch in batches(server)] == ["failed", "failed"]
    given.write_bytes(jsonl(line("a")))
    assert submit(server) == 0
    assert "failed; in.jsonl has changed since, so it is submitted anew" in capsys.readouterr().out
    assert [each["custom_id"] for each in told("out.jsonl")] == ["a"]
    assert submit(server, "--anew") == 2
    assert "is completed, not failed, expired or cancelled" in capsys.readouterr().err
    assert len(batches(server)) == 3


def test_submit_makes_a_cancelled_batch_anew_and_keeps_what_was_fetched_of_it(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fake.hold()
    assert submit(server, wait=False) == 0
    server.sdk().batches.cancel(batches(server)[0].id)
    server.fake.release()
    assert submit(server) == 1
    assert "the batch was cancelled: what was done is in out.jsonl" in capsys.readouterr().out
    assert submit(server, "--anew") == 2
    assert "exists: give another name, or move it away" in capsys.readouterr().err
    for name in ("out.jsonl", "out.errors.jsonl"):
        Path(name).rename(f"former.{name}")
    assert submit(server, "--anew") == 0
    assert [batch.status for batch in batches(server)] == ["cancelled", "completed"]
    assert len(told("out.jsonl")) == 12


def test_submit_goes_on_without_the_batch_that_a_server_has_forgotten(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = {"server": server.url, "input_sha256": hashlib.sha256(given.read_bytes()).hexdigest()}
    Path("out.jsonl.batch.json").write_text(json.dumps({**note, "batch": "batch_none"}))
    assert submit(server) == 2
    assert "No batch found with id 'batch_none'. (404); out.jsonl.batch.json names it: add --anew" in (
        capsys.readouterr().err
    )
    assert submit(server, "--anew") == 0
    assert len(told("out.jsonl")) == 12


def test_submit_overwrites_nothing_that_is_not_of_its_batch(
    server: Serving, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server) == 0
    for name in ("mine.jsonl", "new.errors.jsonl"):
        Path(name).write_text("mine")
    batch_id = batches(server)[0].id
    assert submit(server, "-o", "mine.jsonl", "--batch", batch_id) == 2
    assert submit(server, "-o", "new.jsonl", "--batch", batch_id) == 2
    assert submit(server, "-o", "new.jsonl") == 2
    assert "new.errors.jsonl exists" in capsys.readouterr().err
    assert Path("mine.jsonl").read_text() == Path("new.errors.jsonl").read_text() == "mine"
    assert submit(server, "-o", "none/out.jsonl") == 2
    assert "the folder none does not exist" in capsys.readouterr().err
    assert submit(server, "-o", "other.jsonl", "--batch", batch_id, "--anew") == 2
    assert len(batches(server)) == 1


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


def test_the_log_of_serve_tells_what_becomes_of_batches_over_a_kill(
    given: Path, fake_ollama_factory: Callable[..., FakeOllama]
) -> None:
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.02))
    given.write_bytes(rows(150))
    options = ["--data", "server", "--base-url", fake.url, "--model", MODEL]
    with served(*options) as (child, port):
        until(lambda: answers(port, child))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        with client:
            file_id = client.files.create(file=given, purpose="batch").id
            made = client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
            until(lambda: client.batches.retrieve(made.id).request_counts.completed >= 8)
            fake.hold()
        child.kill()
        first = child.communicate()[1]
    done = fake.ledger.count()
    fake.release()
    with served(*options) as (child, port):
        until(lambda: answers(port, child))
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            until(lambda: client.batches.retrieve(made.id).status == "completed")
            failing = client.files.create(file=b"{", purpose="batch").id
            failed = client.batches.create(input_file_id=failing, endpoint=CHAT, completion_window="24h")
            until(lambda: client.batches.retrieve(failed.id).status == "failed")
        child.send_signal(signal.SIGTERM)
        second = child.communicate(timeout=30)[1]
    assert 8 <= done < 150
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ollama_batch\.server: "
    for log, told in (
        (first, (f"{made.id} was made", f"{made.id} begins: 0 of 150 lines done, 0 failed")),
        (
            second,
            (
                rf"{made.id} is taken up again: in_progress, \d+ of 150 lines done, 0 failed",
                rf"{made.id} goes on: \d+ of 150 lines done, 0 failed",
                f"{made.id} completed: 150 of 150 lines done, 0 failed",
                f"{failed.id} was made",
                f"{failed.id} failed: 1 fault in its input, nothing was run",
                "stopped; batches to go on with at the next start: 0",
            ),
        ),
    ):
        lines = log.splitlines()
        assert len(lines) == len(told), log
        for line_, wanted in zip(lines, told, strict=True):
            assert re.fullmatch(stamp + wanted, line_), line_


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
