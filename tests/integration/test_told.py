"""What a person is told of a run in trouble: by log, report and `status`, and as its process ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from httpx_aiohttp.transport import map_aiohttp_exceptions

from ollama_batch import _storm
from ollama_batch.cli import main
from ollama_batch.control import Supervisor, SystemdUnit
from ollama_batch.engines._http import translate
from ollama_batch.errors import (
    EngineConnectionError,
    EngineDownError,
    JournalMismatchError,
    ModelChangedError,
    RestartError,
)
from ollama_batch.events import Decision, Event, RowFinished
from ollama_batch.memory import GuardDecision, MemorySample
from ollama_batch.memory.levels import Level
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import CostModel, FakeModel, FakeOllama, Fault, MemoryModel
from runner_support import MODEL, Events, line, names, rows_file, runner_on, write_lines
from supervisor_support import calls, stand_in_systemctl
from trouble_support import quick_ladder, quick_runner, rows

GIB = 2**30
SPILLED = "4.8 GiB (60.0%) of the 8.0 GiB of toy:1b did not fit on the GPU"


def status_of(journal: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["status", str(journal)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("guards", [None, ()], ids=["guards", "no guards"])
def test_a_model_that_is_partly_on_the_cpu_is_told_once_in_log_report_and_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], guards: Any
) -> None:
    with FakeOllama(models=[FakeModel(MODEL, gpu_share=0.4, size=8 * GIB)]) as fake:
        report = runner_on(fake, guards=guards, num_ctx=2048, state_dir=tmp_path).run(
            rows_file(tmp_path / "in.jsonl", 8), output=tmp_path / "out.jsonl"
        )
    (said,) = (each for each in caplog.records if "GPU" in each.message)
    assert (said.levelname, said.message.startswith(SPILLED)) == ("WARNING", True)
    assert "smaller num_ctx= than 2,048" in said.message
    text = " ".join(str(report).split())
    assert said.message in text
    assert "4.8 GiB of the model (60.0%) on the CPU: slow" in text
    assert SPILLED in status_of(tmp_path / "out.jsonl.run.db", capsys)


def test_a_model_that_is_all_on_the_gpu_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fake_ollama: FakeOllama
) -> None:
    report = runner_on(fake_ollama).run(rows_file(tmp_path / "in.jsonl", 8), output=tmp_path / "out.jsonl")
    assert "GPU:" not in caplog.text
    assert "on the CPU" not in str(report)


def test_what_the_report_says_after_a_model_was_exchanged_is_what_goes_on(tmp_path: Path) -> None:
    fault = Fault("model_swapped", when=30)
    source, output = rows_file(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    with FakeOllama(faults=[fault]) as fake:
        runner = runner_on(fake, concurrency=2)
        with pytest.raises(ModelChangedError) as stopped:
            runner.run(source, output=output)
        first, second = stopped.value.report.next_steps
        assert first.startswith("put the model that the run began with back")
        assert "overwrite=True" in second
        with pytest.raises(JournalMismatchError):
            runner.run(source, output=output)
        fake.clear_faults()
        assert runner.run(source, output=output, overwrite=True).counts.sent == 60


def test_overwrite_of_rows_that_are_read_only_once_is_said_to_need_another_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with FakeOllama(faults=[Fault("model_swapped", when=30)]) as fake:
        runner = runner_on(fake, concurrency=2)
        with pytest.raises(ModelChangedError) as stopped:
            runner.run(rows(60), output=output)
        assert "(another output=)" in stopped.value.report.next_steps[1]
        with pytest.raises(JournalMismatchError, match="read only once: give another output"):
            runner.run(rows(60), output=output, overwrite=True)
        assert runner.run(rows(60), output=tmp_path / "other.jsonl").ok


def test_a_limit_that_can_never_act_is_told_once_at_the_start_in_the_report_and_by_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", [line(each) for each in names(4)])
    with FakeOllama(speed=CostModel(latency_s=0.3)) as fake:  # memory is read meanwhile
        words = ["--model", "toy:1b", "--base-url", fake.url, "--progress", "none", "--ram-limit", "99999GiB"]
        assert main(["run", "in.jsonl", "-o", "out.jsonl", *words]) == 0
    out = capsys.readouterr().out
    (said,) = (each for each in caplog.records if "lies beyond" in each.message)
    assert said.levelname == "WARNING"
    assert "the limit of 99999.0 GiB for RAM lies beyond" in out
    assert "give a lower one, as in --ram-limit 90%" in status_of(tmp_path / "out.jsonl.run.db", capsys)


def test_a_report_says_that_memory_ran_out_at_how_many_requests_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick_ladder(monkeypatch)
    speed, memory = CostModel(latency_s=0.01), MemoryModel(max_in_flight=4)
    with FakeOllama(slots=8, speed=speed, memory=memory) as fake:
        report = quick_runner(fake, concurrency=8).run(rows(30))
    assert report.counts.ok == 30
    (note,) = (each for each in report.notes if "memory" in each)
    ran_out, _, advice = note.partition("; at the end ")
    assert ran_out.startswith("the engine ran out of memory")
    at = int(re.search(r"with (\d+) requests at a time", ran_out)[1])  # type: ignore[index]
    assert 4 < at <= 8
    settled = re.fullmatch(
        r"(\d+) were let out. What spares a next run that: fewer slots of the server, or concurrency=(\d+)",
        advice,
    )
    assert settled is not None
    assert int(settled[1]) == report.concurrency
    assert 1 <= int(settled[2]) < at
    assert note in re.sub(r"\n +", " ", str(report))


def stopped_by_a_death(supervisor: Supervisor) -> EngineDownError:
    """What a run stops with whose engine dies for good, whatever `supervisor` tries."""
    with FakeOllama(speed=CostModel(latency_s=0.01)) as fake:
        run = quick_runner(fake, num_ctx=2048, supervisor=supervisor, recover_timeout=1.0).start(rows(400))
        fake.wait_until(lambda ledger: ledger.answered() >= 5)
        fake.stop()
        with pytest.raises(EngineDownError) as stopped:
            run.wait(30)
    return stopped.value


def test_a_run_that_stops_says_that_restarts_were_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)
    stopped = stopped_by_a_death(Supervisor(lambda: None, after_s=0.0, wait_s=0.01, most=3))
    assert str(stopped).endswith(
        "\nThe engine could not be restarted: that was tried 3 times within 600 s, and no more is allowed"
    )
    stopped = stopped_by_a_death(Supervisor(lambda: None, after_s=60.0))  # half of the run's patience
    assert str(stopped).endswith("\nThe engine was restarted once, and answered nothing after that")


def test_a_run_that_stops_names_what_its_restart_failed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_ladder(monkeypatch)

    def restart() -> None:
        raise RestartError("sh ended with 4: cannot")

    supervisor = Supervisor(restart, after_s=0.0, wait_s=0.01, most=2)
    stopped = stopped_by_a_death(supervisor)
    why = str(stopped).partition("\nThe engine could not be restarted: ")[2]
    assert why.endswith("the last time: sh ended with 4: cannot")
    (note,) = (each for each in stopped.report.notes if "restart" in each)
    assert note == (
        "a restart of the engine was tried 2 times in vain (2 failed); the last: sh ended with 4: cannot"
    )


def test_the_log_names_a_row_that_is_quarantined_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_ladder(monkeypatch)
    source = write_lines(
        tmp_path / "in.jsonl", [line(each) for each in [*names(6), "killer", *names(3, "s")]]
    )
    with FakeOllama(faults=[Fault("runner_dies", match="killer")]) as fake:
        report = quick_runner(fake, num_ctx=2048).run(source, output=tmp_path / "out.jsonl")
    assert report.counts.failed == 1
    (said,) = (each.message for each in caplog.records if "quarantined" in each.message)
    assert said.startswith(f"row killer ({source}:7) is quarantined: the engine has died 3 times with it")


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for systemctl is a script with a #! line")
@pytest.mark.parametrize(
    ("word", "why"),
    [("missing", "Unit ollama.service not found"), ("password", "Interactive authentication required")],
)
def test_a_run_that_stops_names_what_its_restart_was_refused_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, word: str, why: str
) -> None:
    quick_ladder(monkeypatch)
    stand_in_systemctl(tmp_path, word)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    supervisor = Supervisor(SystemdUnit("ollama"), after_s=0.0, wait_s=0.01)
    said = str(stopped_by_a_death(supervisor))
    assert "did not come back within 1 s" in said
    assert why in said.partition("\nThe engine could not be restarted: ")[2]
    assert len(calls(tmp_path)) == 1, "it is not asked again"
    (told,) = (each.message for each in caplog.records if "could not restart" in each.message)
    assert told.startswith("could not restart the engine: ")
    assert why in told


def test_fewer_requests_after_memory_ran_out_are_said_to_be_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_ladder(monkeypatch)
    events = Events()
    speed, memory = CostModel(latency_s=0.01), MemoryModel(max_in_flight=5)
    with FakeOllama(slots=8, speed=speed, memory=memory) as fake:
        assert quick_runner(fake, concurrency=8, hooks=[events]).run(rows(40)).ok
    whys = [event.data["why"] for event in events.of(Decision) if event.kind == "concurrency"]
    assert "the engine ran out of memory" in whys
    assert "the engine crashed" not in whys


def test_a_storm_of_refusals_is_counted_in_the_report_and_told_by_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOllama(faults=[Fault("busy", when=range(9, 15))]) as fake:
        report = quick_runner(fake).run(rows(20), output=tmp_path / "out.jsonl")
    assert report.ok
    assert report.metrics.refused == 6
    assert "  trouble    6 requests refused, as the engine was busy" in str(report)
    assert "6 requests refused" in status_of(tmp_path / "out.jsonl.run.db", capsys)


def line_of_the_pause(run: Any, journal: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `status` says of the pause that the run comes to; the run is then cancelled."""
    told, before = "", time.time()
    while "paused: since" not in told and time.time() < before + 20:
        if run.metrics.state == "paused":
            told = status_of(journal, capsys)
        time.sleep(0.02)
    run.cancel(now=True)
    with pytest.raises(Exception, match="cancelled"):
        run.wait()
    (paused,) = (each for each in told.splitlines() if "paused: since" in each)
    return paused


def test_status_says_that_the_engine_refuses_requests_while_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_storm, "TOLD_S", 0.1)
    journal = tmp_path / "out.jsonl.run.db"
    with FakeOllama(faults=[Fault("busy", when=range(9, 10_000))]) as fake:
        retry = RetryPolicy(wait_s=0.05, wait_max_s=0.1)
        run = quick_runner(fake, retry=retry, recover_timeout=3600.0).start(
            rows(40), output=tmp_path / "out.jsonl"
        )
        paused = line_of_the_pause(run, journal, capsys)
    assert ": the engine refuses requests (" in paused
    assert "; one at a time is tried; it goes on when that is over, or stops at " in paused


class Tight:
    """A guard that pauses at its second sample and never resumes."""

    def __init__(self) -> None:
        self.samples = 0

    def decide(self, sample: MemorySample) -> GuardDecision:
        self.samples += 1
        actions: Any = ("pause",) if self.samples == 2 else ()
        return GuardDecision("tight", Level.CRITICAL, actions, "15.5 GiB of 16.0 GiB in use")


def test_status_of_a_paused_run_says_since_when_and_when_it_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "out.jsonl.run.db"
    with FakeOllama(speed=CostModel(latency_s=0.05)) as fake:
        runner = runner_on(fake, concurrency=1, guards=[Tight()], recover_timeout=3600.0)
        run = runner.start(rows(400), output=tmp_path / "out.jsonl")
        paused = line_of_the_pause(run, journal, capsys)
    begun, ends = paused.split("since ")[1][:8], paused.split("stops at ")[1].split(" and can")[0][-8:]
    assert "tight: 15.5 GiB of 16.0 GiB in use" in paused
    assert (_seconds(ends) - _seconds(begun)) % 86400 in (3599, 3600, 3601)
    assert "paused" not in status_of(journal, capsys).splitlines()[1], "it does not run any more"


def _seconds(clock: str) -> int:
    hours, minutes, seconds = map(int, clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def test_more_is_never_in_work_than_was_allowed_however_long_a_pause_was() -> None:
    """Four rows of 0.4 s are out as the run is paused: their work counts, and so does their time."""

    class Pauser:
        def on_event(self, event: Event) -> None:
            if isinstance(event, RowFinished) and event.result.index == 3:
                run.pause()

    with FakeOllama(speed=CostModel(decode_tps=60)) as fake:
        run = runner_on(fake, concurrency=4, guards=(), hooks=[Pauser()], max_tokens=24).start(rows(8))
        before = time.time()
        while (run.metrics.in_flight or not run.metrics.paused) and time.time() < before + 20:
            time.sleep(0.01)
        run.resume()
        report = run.wait()
    assert report.metrics.served_mean is not None
    assert 1.0 < report.metrics.served_mean <= 4.0


LEFT_OPEN = """
import sys
from ollama_batch import BatchRequest, BatchRunner, OllamaEngine
engine = OllamaEngine(sys.argv[1])
runner = BatchRunner(model="absent", engine=engine, progress="none", state_dir=None)
try:
    runner.run([BatchRequest.chat("a")])
except Exception as error:
    print(type(error).__name__)
    kept = error
"""


def test_a_process_that_ends_with_an_engine_left_open_complains_of_nothing(fake_ollama: FakeOllama) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, fake_ollama.url], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ModelNotFoundError\n", "")


def breaks_while_it_sends() -> None:
    """As aiohttp tells of a server that has closed a connection which was kept for the next request."""
    try:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    except OSError as closed:
        raise aiohttp.ClientOSError(closed.errno, "Can not write request body for http://h/x") from closed


def test_a_connection_that_breaks_while_the_request_is_sent_is_told_in_plain_words() -> None:
    with pytest.raises(httpx.TransportError) as broke, map_aiohttp_exceptions():
        breaks_while_it_sends()
    told = translate(broke.value, "http://h/x")
    assert type(told) is EngineConnectionError
    assert str(told) == "http://h/x: the connection to the engine broke while the request was being sent"
