"""Signals: drain first, stop second, always resumable; told apart by the exit code of the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ollama_batch import BatchRunner, RunJournal, _portal, _signals, _stop
from ollama_batch._portal import result_of
from ollama_batch.errors import ConfigError, RunCancelledError, RunInterrupted
from ollama_batch.events import RowFinished, RowSent, RunStarted
from ollama_batch.testing import FakeOllama, Fault
from trouble_support import Recorder, name, quick_runner, rows

ROWS, WIDTH = 40, 4


# From a shell


class Shell:
    """`ollama-batch run` in a process of its own, over 40 rows."""

    def __init__(self, folder: Path, fake: FakeOllama) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.fake = fake
        with self.input.open("w") as file:
            for n in range(ROWS):
                body = {"messages": [{"role": "user", "content": name(n)}]}
                line = {"custom_id": name(n), "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps(line) + "\n")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "ollama_batch.cli", "run", str(self.input), "-o", str(self.output)]
        options = ["--model", "toy:1b", "--base-url", self.fake.url, "--concurrency", str(WIDTH)]
        child = subprocess.Popen(
            [*command, *options, "--progress", "none"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with child:
            try:
                yield child
            finally:
                child.kill()

    def kept(self) -> set[str]:
        with RunJournal.open_readonly(self.output.with_name("out.jsonl.run.db")) as journal:
            return {row.custom_id or "" for row, _ in journal.results(ok=True)}

    def finish(self) -> None:
        """The same command again ends well, and sends nothing again that is kept."""
        kept, before = self.kept(), self.fake.ledger.counts()
        with self.running() as child:
            _, errors = child.communicate(timeout=30)
        assert child.returncode == 0, errors
        after = self.fake.ledger.counts()
        assert not {row for row in kept if after[row] != before[row]}
        assert [json.loads(line)["custom_id"] for line in self.output.read_text().splitlines()] == [
            name(n) for n in range(ROWS)
        ]


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "interrupted; run again"),
        (signal.SIGTERM, 3, "stopped by SIGTERM; run again"),
        (signal.SIGHUP, 3, "stopped by SIGHUP; run again"),
    ],
)
def test_the_first_signal_lets_requests_finish(
    fake_ollama: FakeOllama, tmp_path: Path, number: int, code: int, says: str
) -> None:
    shell = Shell(tmp_path, fake_ollama)
    fake_ollama.hold()
    with shell.running() as child:
        fake_ollama.wait_until(lambda ledger: ledger.count() == WIDTH, 30)
        child.send_signal(number)
        time.sleep(0.2)  # nothing outside the child shows that it has taken note
        fake_ollama.release()
        out, errors = child.communicate(timeout=30)
    assert child.returncode == code, errors
    assert says in errors
    assert "Traceback" not in errors
    assert len(shell.kept()) == fake_ollama.ledger.count() == fake_ollama.ledger.answered() >= WIDTH
    assert len(shell.kept()) < ROWS
    assert f"{len(shell.kept())}" in out
    shell.finish()


def test_without_progress_ctrl_c_is_answered_once_while_requests_are_out(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, fake_ollama)
    fake_ollama.hold()
    with shell.running() as child:
        assert child.stderr is not None
        fake_ollama.wait_until(lambda ledger: ledger.count() == WIDTH, 30)
        child.send_signal(signal.SIGINT)
        said = child.stderr.readline()
        fake_ollama.release()
        _, errors = child.communicate(timeout=30)
    waiting = "waiting for the requests that are out; interrupt once more to give them up"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d WARNING ollama_batch.run: {waiting}\n", said)
    assert "interrupt once more" not in errors
    assert child.returncode == 130


def test_the_second_signal_stops_at_once(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    shell = Shell(tmp_path, fake_ollama)
    fake_ollama.hold()
    with shell.running() as child:
        fake_ollama.wait_until(lambda ledger: ledger.count() == WIDTH, 30)
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two signals of one number at once are one
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130, errors
    assert shell.kept() == set()
    fake_ollama.wait_until(lambda ledger: all(r.outcome == "aborted" for r in ledger.completions()))
    fake_ollama.release()
    shell.finish()


# In this process


@contextmanager
def delivered(recorder: Recorder, *numbers: int, gap_s: float = 0.0) -> Iterator[None]:
    """Send this process signals once the run has begun to send."""

    def deliver() -> None:
        recorder.wait_for(RowSent)  # with nothing out, the first signal would be the end
        while signal.getsignal(numbers[0]) in (signal.SIG_DFL, signal.default_int_handler):
            time.sleep(0.001)  # the run may begin before its caller waits for it
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(gap_s)

    thread = threading.Thread(target=deliver)
    thread.start()
    yield
    thread.join(30)


def test_sigterm_ends_the_run_in_time_even_if_the_whole_engine_hangs(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _signals.TERM_GRACE_S + _stop.SOON_S < 9
    monkeypatch.setattr(_signals, "TERM_GRACE_S", 0.3)
    monkeypatch.setattr(_stop, "SOON_S", 0.1)

    def silence(event: object) -> None:
        if isinstance(event, RunStarted):
            threading.Thread(target=fake_ollama.inject, args=(Fault("hang", route="*"),)).start()

    recorder = Recorder(silence)
    began = time.monotonic()
    fake_ollama.hold()
    with delivered(recorder, signal.SIGTERM), pytest.raises(RunCancelledError, match="SIGTERM"):
        quick_runner(fake_ollama, hooks=[recorder]).run(rows(20))
    assert time.monotonic() - began < 20  # its own limits are 0.3 and 0.1 s, a hanging engine's 30 s


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_two_different_signals_stop_at_once_and_the_first_is_the_reason(
    fake_ollama: FakeOllama, numbers: tuple[int, int]
) -> None:
    fake_ollama.hold()
    recorder = Recorder()
    wanted: Any = RunInterrupted if numbers[0] == signal.SIGINT else RunCancelledError
    with delivered(recorder, *numbers, gap_s=0.02), pytest.raises(wanted) as stopped:
        quick_runner(fake_ollama, hooks=[recorder]).run(rows(20))
    assert stopped.value.report.counts.ok == 0


def test_hanging_up_twice_is_still_a_drain(fake_ollama: FakeOllama) -> None:
    fake_ollama.hold()
    recorder = Recorder()

    def release() -> None:
        fake_ollama.wait_until(lambda ledger: ledger.count() == WIDTH)
        while signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            time.sleep(0.001)  # as in delivered()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)  # two signals of one number at once are one
        fake_ollama.release()

    thread = threading.Thread(target=release)
    thread.start()
    with pytest.raises(RunCancelledError, match="SIGHUP") as stopped:
        quick_runner(fake_ollama, hooks=[recorder]).run(rows(20))
    thread.join()
    assert stopped.value.report.counts.ok == WIDTH


def test_signals_are_treated_alike_while_results_are_iterated(fake_ollama: FakeOllama) -> None:
    got: list[str] = []

    def read() -> None:
        for result in quick_runner(fake_ollama).iter_results(rows(2000)):
            got.append(result.custom_id)
            if len(got) == 5:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted):
        read()
    assert 5 <= len(got) == fake_ollama.ledger.answered() < 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_handlers_of_the_application_are_left_alone(fake_ollama: FakeOllama, number: int) -> None:
    seen: list[int] = []
    during: list[Any] = []
    before = signal.signal(number, lambda got, _: seen.append(got))
    try:
        mine = signal.getsignal(number)
        recorder = Recorder(lambda event: during.append(signal.getsignal(number)))
        with delivered(recorder, number):
            assert quick_runner(fake_ollama, hooks=[recorder]).run(rows(50)).ok
        assert set(during) == {mine}
        assert seen == [number]
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_pythons_own_handlers_are_put_back(fake_ollama: FakeOllama) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    during: list[Any] = []
    recorder = Recorder(lambda event: during.append([signal.getsignal(number) for number in numbers]))
    assert quick_runner(fake_ollama, hooks=[recorder]).run(rows(10)).ok
    assert all(handler not in before for handler in during[len(during) // 2])
    assert [signal.getsignal(number) for number in numbers] == before


def test_in_another_thread_a_run_sets_no_handlers(fake_ollama: FakeOllama) -> None:
    before = signal.getsignal(signal.SIGINT)
    during: list[Any] = []
    oks: list[bool] = []
    recorder = Recorder(lambda event: during.append(signal.getsignal(signal.SIGINT)))
    runner = quick_runner(fake_ollama, hooks=[recorder])
    thread = threading.Thread(target=lambda: oks.append(runner.run(rows(10)).ok))
    thread.start()
    thread.join(30)
    assert oks == [True]
    assert set(during) == {before}


def test_an_exception_out_of_the_applications_handler_stops_the_run_first(fake_ollama: FakeOllama) -> None:
    class Enough(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Enough

    fake_ollama.hold()
    recorder = Recorder()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with delivered(recorder, signal.SIGTERM), pytest.raises(Enough):
            quick_runner(fake_ollama, hooks=[recorder]).run(rows(20))
    finally:
        signal.signal(signal.SIGTERM, before)
    fake_ollama.wait_until(lambda ledger: all(r.outcome == "aborted" for r in ledger.completions()))
    assert recorder.all(RowFinished) == []


def test_a_signal_that_comes_before_the_run_has_begun_is_kept_for_it(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = BatchRunner._begin

    def interrupted(self: BatchRunner, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, *args, **options)

    monkeypatch.setattr(BatchRunner, "_begin", interrupted)
    fake_ollama.hold()
    with pytest.raises(RunCancelledError, match="SIGTERM"):
        quick_runner(fake_ollama, timeout=0.5).run(rows(20))


def test_a_signal_without_a_run_keeps_its_usual_meaning(
    fake_ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        raise ConfigError("wrong")

    monkeypatch.setattr(BatchRunner, "_begin", refused)
    with pytest.raises(KeyboardInterrupt) as stopped:
        quick_runner(fake_ollama).run(rows(20))
    assert not isinstance(stopped.value, RunInterrupted)


def test_a_signal_that_comes_as_the_wait_begins_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wake-up now and then about one in 200 of these is handled only at the end of the wait."""
    assert _portal.WAKE_S < 1
    monkeypatch.setattr(_portal, "WAKE_S", 0.02)
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))

    def send(future: Future[None], go: threading.Event, spin: int) -> None:
        go.wait()
        for _ in range(spin):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 30
        while not seen and time.monotonic() < until:
            time.sleep(0.0002)
        future.set_result(None)

    try:
        for n in range(1000):
            seen.clear()
            future: Future[None] = Future()
            go = threading.Event()
            thread = threading.Thread(target=send, args=(future, go, n % 60))
            thread.start()
            began = time.monotonic()
            go.set()
            result_of(future)
            thread.join()
            assert time.monotonic() - began < 20
    finally:
        signal.signal(signal.SIGTERM, before)
