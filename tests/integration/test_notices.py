"""The hooks that tell a command or a URL of a run's end: what is told, and that no run waits for it."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import _watch
from ollama_batch.cli import main
from ollama_batch.errors import ConfigError, EngineError, RunCancelledError
from ollama_batch.events import EngineRestarted, RunFinished, RunPaused, RunResumed, RunStalled
from ollama_batch.hooks import CommandHook, Notice, WebhookHook
from ollama_batch.hooks._outbox import MOST, Outbox
from ollama_batch.testing import FakeOllama, FakeReply
from trouble_support import Recorder, quick_runner, rows

Factory = Callable[..., FakeOllama]
ENDED = RunFinished(outcome="completed", error=None, duration_s=1.0)

TELLER = """
import json, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps([sys.argv[2:], json.load(sys.stdin)]) + "\\n")
"""


class Told:
    """A command that writes down what it is told."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "told"
        (folder / "tell.py").write_text(TELLER)
        self.command = [sys.executable, str(folder / "tell.py"), str(self.file)]

    def read(self) -> list[tuple[list[str], dict[str, Any]]]:
        return [(*json.loads(line),) for line in self.file.read_text().splitlines()]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


# Commands


def test_a_command_is_told_of_the_end(fake_ollama_factory: Factory, told: Told) -> None:
    fake = fake_ollama_factory(reply=lambda body: FakeReply("the-answer"))
    hook = CommandHook([*told.command, "--", "{message}", "{failed}", "{reason}", "as {it} is"])
    report = quick_runner(fake, hooks=[hook]).run(rows(6))
    assert hook.wait(30)
    ((words, notice),) = told.read()
    assert words == ["--", notice["message"], "0", "", "as {it} is"]
    assert notice["event"] == "finished"
    assert notice["outcome"] == "completed"
    assert notice["run_id"] == report.run_id
    assert (notice["total"], notice["completed"], notice["ok"], notice["failed"]) == (6, 6, 6, 0)
    run = f"run {report.run_id[:8]} of toy:1b"
    assert notice["message"].startswith(f"{run} completed: 6 of 6 rows done, 0 failed,")
    assert "the-answer" not in told.file.read_text()


def test_a_command_is_told_of_a_stall_and_then_of_the_end(
    fake_ollama: FakeOllama, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "STALL_S", 0.05)
    hook, recorder = CommandHook(told.command), Recorder()
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[hook, recorder]).start(rows(8))
    recorder.wait_for(RunStalled)
    fake_ollama.release()
    assert run.wait(30).ok
    assert hook.wait(30)
    stalled, finished = (notice for _, notice in told.read())
    assert (stalled["event"], finished["event"]) == ("stalled", "finished")
    assert stalled["message"].endswith("s, 4 requests are out")


def test_the_end_of_a_run_that_never_began_is_told_with_the_reason(told: Told) -> None:
    hook = CommandHook(told.command)
    with pytest.raises(EngineError):
        quick_runner(base_url="http://127.0.0.1:9", hooks=[hook], recover_timeout=0.1).run(rows(1))
    assert hook.wait(30)
    ((_, notice),) = told.read()
    assert notice["outcome"] == "stopped"
    assert "127.0.0.1:9" in notice["reason"]
    assert notice["message"] == f"run stopped: before it sent anything; {' '.join(notice['reason'].split())}"
    assert notice["run_id"] is None


def test_a_run_does_not_wait_for_its_command(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    """The command ends once the run has returned, which it would never see if the run waited."""
    release, done = tmp_path / "release", tmp_path / "done"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(release)!r}).exists(): time.sleep(0.01)\n"
    hook = CommandHook([sys.executable, "-c", f"{wait}pathlib.Path({str(done)!r}).touch()"])
    assert quick_runner(fake_ollama, hooks=[hook]).run(rows(2)).ok
    assert not done.exists()
    release.touch()
    assert hook.wait(30)
    assert done.exists()


def test_a_command_that_takes_too_long_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    hook = CommandHook([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    with caplog.at_level(logging.WARNING, "ollama_batch.hooks"):
        hook.on_event(ENDED)
        assert hook.wait(10)
    assert "took more than 0.2 s and was ended" in caplog.text


def test_a_command_that_fails_is_named_and_the_run_is_not_touched(
    fake_ollama: FakeOllama, caplog: pytest.LogCaptureFixture
) -> None:
    hook = CommandHook([sys.executable, "-c", "raise SystemExit(3)"])
    with caplog.at_level(logging.WARNING, "ollama_batch.hooks"):
        report = quick_runner(fake_ollama, hooks=[hook]).run(rows(2))
        assert hook.wait(30)
    assert report.ok
    assert not report.notes
    assert "ended with 3" in caplog.text


def test_a_program_that_has_gone_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    hook = CommandHook([str(program)])
    program.unlink()
    with caplog.at_level(logging.WARNING, "ollama_batch.hooks"):
        hook.on_event(ENDED)
        assert hook.wait(10)
    assert "CommandHook failed: FileNotFoundError" in caplog.text


SCRIPT = """
import sys
from ollama_batch.events import RunFinished
from ollama_batch.hooks import CommandHook
hook = CommandHook(sys.argv[2:], timeout_s=float(sys.argv[1]))
hook.on_event(RunFinished(outcome="completed", error=None, duration_s=1.0))
"""


def test_a_process_that_ends_with_its_run_waits_for_the_notice(told: Told) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, "30", *told.command], check=True, timeout=60)
    assert len(told.read()) == 1


def test_a_process_does_not_wait_longer_than_the_command_may_take() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", SCRIPT, "0.3", *command], check=True, timeout=30)
    assert time.monotonic() - began < 15


# What is told when


@pytest.mark.parametrize(
    ("on", "event", "says"),
    [
        ("paused", RunPaused(reason="engine", message="nobody listens"), "paused: 0 rows done, 0 failed"),
        ("paused", RunPaused(reason="engine", message="nobody listens"), "; nobody listens"),
        ("resumed", RunResumed(reason="engine", paused_s=61.0), "goes on after 1m01s"),
        (
            "restarted",
            EngineRestarted(reason="it ended", outcome="ok", message="", duration_s=2.0),
            "had its engine restarted (ok)",
        ),
        (
            "stalled",
            RunStalled(silent_s=120.0, in_flight=1),
            "finished for 2m00s, 1 request is out",
        ),
    ],
)
def test_an_occasion_is_told_if_it_was_asked_for(told: Told, on: Any, event: Any, says: str) -> None:
    asked, other = CommandHook(told.command, on=[on]), CommandHook(told.command, on=["finished"])
    other.on_event(event)
    asked.on_event(event)
    assert other.wait(10)
    assert asked.wait(10)
    ((_, notice),) = told.read()
    assert notice["event"] == on
    assert says in notice["message"]


def test_a_stall_in_a_pause_says_why_and_the_latest_reason_of_a_pause_is_no_second_notice(told: Told) -> None:
    hook = CommandHook(told.command, on=["stalled", "paused"])
    hook.on_event(RunPaused(reason="refused", message="server busy"))
    hook.on_event(RunPaused(reason="refused", message="queue full", again=True))
    hook.on_event(RunStalled(silent_s=120.0, in_flight=0))
    assert hook.wait(10)
    (_, paused), (_, stalled) = told.read()
    assert (paused["event"], paused["reason"]) == ("paused", "server busy")
    assert stalled["reason"] == "no row has finished for 2m00s, no request is out; queue full"


def test_a_run_that_was_stopped_says_so(fake_ollama: FakeOllama, told: Told) -> None:
    hook = CommandHook(told.command)
    fake_ollama.hold()
    run = quick_runner(fake_ollama, hooks=[hook]).start(rows(8))
    fake_ollama.wait_until(lambda ledger: ledger.count() == 4)
    run.cancel(now=True)
    with pytest.raises(RunCancelledError):
        run.wait(30)
    fake_ollama.release()
    assert hook.wait(30)
    ((_, notice),) = told.read()
    assert (notice["outcome"], notice["completed"], notice["total"]) == ("stopped", 0, 8)
    assert "cancelled" in notice["reason"]


# Webhooks


class Receiver:
    """A server that keeps what is posted, and answers with `status`, once `answers` is set."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.status = 204
        self.answers = threading.Event()
        self.answers.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.got.append((self.path, dict(self.headers), body))
                receiver.answers.wait(30)
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/secret"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.answers.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_a_url_is_told_of_the_end(fake_ollama: FakeOllama, receiver: Receiver) -> None:
    hook = WebhookHook(receiver.url, headers={"Authorization": "Bearer k"})
    report = quick_runner(fake_ollama, hooks=[hook]).run(rows(6))
    assert hook.wait(30)
    ((path, headers, notice),) = receiver.got
    assert path == "/hook/secret"
    assert headers["Authorization"] == "Bearer k"
    assert headers["Content-Type"] == "application/json"
    assert (notice["event"], notice["outcome"], notice["ok"]) == ("finished", "completed", 6)
    assert notice["run_id"] == report.run_id


def test_a_service_gets_the_form_it_wants(receiver: Receiver) -> None:
    def text(notice: Notice) -> dict[str, str]:
        return {"text": notice.message}

    hook = WebhookHook(receiver.url, body=text)
    hook.on_event(ENDED)
    assert hook.wait(30)
    assert receiver.got[0][2] == {"text": "run completed: 0 rows done, 0 failed, 0.0s"}


@pytest.mark.parametrize("status", [404, 500, 302])
def test_a_url_that_does_not_take_it_is_named_without_its_secret(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    receiver.status = status
    hook = WebhookHook(receiver.url)
    with caplog.at_level(logging.WARNING):
        hook.on_event(ENDED)
        assert hook.wait(30)
    assert f"the webhook at 127.0.0.1 answered {status}" in caplog.text
    assert "secret" not in caplog.text
    assert len(receiver.got) == 1


def test_a_run_does_not_wait_for_a_url_that_does_not_answer(
    fake_ollama: FakeOllama, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers.clear()
    hook = WebhookHook(receiver.url, timeout_s=1.0)
    with caplog.at_level(logging.WARNING, "ollama_batch.hooks"):
        report = quick_runner(fake_ollama, hooks=[hook]).run(rows(2))
        assert not hook.wait(0)  # the run has returned before
        assert hook.wait(10)
    assert report.ok
    assert "127.0.0.1 did not answer within 1 s" in caplog.text


def test_a_url_where_nobody_listens_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    hook = WebhookHook("http://127.0.0.1:9/secret")
    with caplog.at_level(logging.WARNING):
        hook.on_event(ENDED)
        assert hook.wait(30)
    assert "the webhook at 127.0.0.1 could not be told: ConnectError" in caplog.text
    assert "secret" not in caplog.text


# Settings, and bounds


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: CommandHook("notify-send done"), "a list of words"),  # type: ignore[arg-type]  # that is the point
        (lambda: CommandHook([]), "a list of words"),
        (lambda: CommandHook([sys.executable, 3]), "a list of words"),  # type: ignore[list-item]  # as above
        (lambda: CommandHook(["no-such-program-anywhere"]), "no program 'no-such-program-anywhere'"),
        (lambda: CommandHook([sys.executable, "{mesage}"]), r"\{mesage\} is no field of a notice"),
        (lambda: CommandHook([sys.executable], on=["end"]), "some of finished, stalled"),  # type: ignore[list-item]  # as above
        (lambda: CommandHook([sys.executable], on="finished"), "some of finished"),
        (lambda: CommandHook([sys.executable], on=[]), "some of finished"),
        (lambda: CommandHook([sys.executable], timeout_s=0), "seconds above 0"),
        (lambda: WebhookHook("example.org/hook"), "an address such as"),
        (lambda: WebhookHook("ftp://example.org"), "an address such as"),
        (lambda: WebhookHook("http://["), "an address such as"),
        (lambda: WebhookHook("http://example.org", body=3), "a function of a Notice"),  # type: ignore[arg-type]  # as above
    ],
)
def test_a_wrong_setting_is_refused_at_once(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


def test_notices_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    outbox, go, done = Outbox("Test", exit_s=1.0), threading.Event(), list[int]()
    begun = threading.Event()

    def first() -> None:
        begun.set()
        go.wait(30)

    outbox.put(first)
    assert begun.wait(30)
    with caplog.at_level(logging.WARNING, "ollama_batch.hooks"):
        for number in range(MOST + 2):
            outbox.put(lambda number=number: done.append(number))  # type: ignore[misc]  # the number of now
    assert caplog.text.count("this one is dropped") == 2
    go.set()
    assert outbox.wait(30)
    assert done == list(range(MOST))


# From the command line


def words_of_a_run(fake: FakeOllama, folder: Path) -> list[str]:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(each.to_openai()) + "\n" for each in rows(6)))
    run = ["run", str(source), "-o", str(folder / "out.jsonl"), "--model", "toy:1b"]
    return [*run, "--base-url", fake.url, "--progress", "none"]


def test_the_command_line_tells_every_command_and_url_before_its_process_ends(
    fake_ollama: FakeOllama, told: Told, receiver: Receiver, tmp_path: Path
) -> None:
    command = shlex.join([*told.command, "with spaces", "{message}"])
    words = [*words_of_a_run(fake_ollama, tmp_path), "--notify", command, "--notify", receiver.url]
    subprocess.run([sys.executable, "-m", "ollama_batch.cli", *words], check=True, timeout=60)
    ((said, notice),) = told.read()
    assert said == ["with spaces", notice["message"]]
    assert (notice["event"], notice["outcome"], notice["ok"]) == ("finished", "completed", 6)
    ((path, _, sent),) = receiver.got
    assert (path, sent["run_id"]) == ("/hook/secret", notice["run_id"])


def test_a_notice_of_the_command_line_names_its_options(told: Told, tmp_path: Path) -> None:
    with FakeOllama() as fake:
        words = words_of_a_run(fake, tmp_path)
    words += ["--recover-timeout", "0.1", "--notify", shlex.join(told.command)]
    assert subprocess.run([sys.executable, "-m", "ollama_batch.cli", *words], check=False).returncode == 3
    ((_, notice),) = told.read()
    assert "or give its address (--base-url, or the variable OLLAMA_HOST)" in notice["message"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", "--notify is empty: give a URL, or a command"),
        ("no-such-program now", "there is no program 'no-such-program'"),
        ("sh '' > log", "no shell reads > here"),
        ("sh {mesage}", "{mesage} is no field of a notice"),
        ("http://", "must be an address such as"),
    ],
)
def test_the_command_line_refuses_who_could_not_be_told(
    fake_ollama: FakeOllama, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    assert main([*words_of_a_run(fake_ollama, tmp_path), "--notify", how]) == 2
    assert said in capsys.readouterr().err
    assert fake_ollama.ledger.count() == 0
