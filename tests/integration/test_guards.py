"""Runs under guards: memory as a script has it, read by the probe of the run."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from memory_support import GIB, device, host, sample
from ollama_batch import BatchReport, RamGuard, RunJournal, VramGuard
from ollama_batch.errors import ConfigError, DiskFullError, MemoryShortError
from ollama_batch.events import Decision, Event, MemoryMeasured, RowFinished, RunPaused, RunResumed
from ollama_batch.memory import MemorySample, sampler
from ollama_batch.memory.cgroup import GroupLimit, group_limit
from ollama_batch.memory.host import HostProbe
from ollama_batch.memory.probe import LocalProbe
from ollama_batch.testing import CostModel, FakeModel, FakeOllama
from runner_support import Events, rows_file, runner_on


class Script:
    """A probe that tells, one after another, the samples it was made of; the last for ever."""

    def __init__(self, *samples: MemorySample) -> None:
        self._samples = samples
        self.read_so_far = 0

    def read(self) -> MemorySample:
        found = self._samples[min(self.read_so_far, len(self._samples) - 1)]
        self.read_so_far += 1
        return found


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Has runs read this probe, and twenty times a second."""

    def read(probe: Any) -> None:
        made = sampler.MemorySampler.__init__

        def quick(self: Any, _: object = None, **options: Any) -> None:
            made(self, probe, **{**options, "interval_s": 0.05})

        monkeypatch.setattr(sampler.MemorySampler, "__init__", quick)

    return read


def vram(at: float, free_gib: float) -> MemorySample:
    return sample(at, device(free_gib * GIB, 16 * GIB))


def ram(at: float, free_gib: float) -> MemorySample:
    return sample(at, host=host(free_gib * GIB, 16 * GIB))


@pytest.mark.parametrize("kind", [vram, ram])
def test_a_run_pauses_at_the_limit_goes_on_after_it_and_loses_no_row(
    fake_ollama_factory: Any, memory: Any, tmp_path: Path, kind: Callable[[float, float], MemorySample]
) -> None:
    # The samples' own times: a level is left after ten seconds of theirs.
    memory(Script(kind(0, 8), kind(1, 0.2), *(kind(2 + n, 8) for n in range(12))))
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.01))
    events = Events()
    runner = runner_on(fake, hooks=[events], guards=[VramGuard(), RamGuard()], concurrency=2)
    run = runner.start(rows_file(tmp_path / "in.jsonl", 300), output=tmp_path / "out.jsonl")
    report = run.wait()
    assert (report.counts.ok, report.counts.failed) == (300, 0)
    assert fake.ledger.count() == 300
    paused, resumed = events.of(RunPaused), events.of(RunResumed)
    assert [event.reason for event in (*paused, *resumed)] == ["memory", "memory"]
    first, last = (events.seen.index(event) for event in (paused[0], resumed[0]))
    quiet = [type(event).__name__ for event in events.seen[first:last]]
    assert "RowSent" not in quiet
    decided = [event for event in events.of(Decision) if event.kind == "memory_guard"]
    assert any("pause" in event.data["actions"] for event in decided)
    now = run.metrics
    if kind is vram:
        assert now.vram_total_bytes == 16 * GIB
        assert now.vram_peak_bytes == round(15.8 * GIB)
        assert (now.gpu_share, now.gpu_share_mean, now.gpu_share_p5) == (0.5, 0.5, 0.5)
    else:
        assert now.ram_peak_bytes == round(15.8 * GIB)
        assert now.vram_total_bytes is None
        assert now.unmeasured["vram_total_bytes"] == "no driver"


def resident() -> int:
    """The resident bytes of this process, as the kernel tells them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class SmallMachine:
    """A gibibyte of which others have so much that 82 % are in use with what this process has now.

    psutil tells it of a machine, or the files of a control group do, on a machine with 16 GiB; they hold half
    a gibibyte of file pages as well, which count for nothing. The run's own probe reads it.
    """

    TOTAL = GIB
    CACHE = GIB // 2

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *, grouped: bool) -> None:
        gc.collect()
        self._others = round(0.82 * self.TOTAL) - resident()
        self._folder = folder
        self._grouped = grouped
        self._own_group = folder / "own"
        self._own_group.write_text("0::/run\n")
        (folder / "run").mkdir()
        patch.setattr(psutil, "virtual_memory", self._virtual_memory)
        seconds = itertools.count()  # a level is left after ten seconds, which are ten samples here
        host = HostProbe([], group=self._group)
        self.probe = LocalProbe(host=host, now=lambda: float(next(seconds)))

    def used(self) -> int:
        return self._others + resident()

    def _virtual_memory(self) -> Any:
        if self._grouped:
            return SimpleNamespace(total=16 * GIB, available=12 * GIB)
        return SimpleNamespace(total=self.TOTAL, available=self.TOTAL - self.used())

    def _group(self) -> GroupLimit | None:
        limit = self.TOTAL if self._grouped else "max"
        current = self.used() + self.CACHE
        (self._folder / "run/memory.max").write_text(f"{limit}\n")
        (self._folder / "run/memory.current").write_text(f"{current}\n")
        (self._folder / "run/memory.stat").write_text(f"anon {self.used()}\ninactive_file {self.CACHE}\n")
        return group_limit(self._folder, self._own_group)


@pytest.mark.parametrize("grouped", [False, True], ids=["psutil", "cgroup"])
def test_what_this_process_takes_counts_until_it_is_given_back_and_no_row_is_lost(
    fake_ollama_factory: Any, memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grouped: bool
) -> None:
    machine = SmallMachine(monkeypatch, tmp_path, grouped=grouped)
    memory(machine.probe)
    taken: list[bytes] = []
    sizes: list[int] = []

    class Greedy(Events):
        """Takes what is left up to 97 % when 50 rows have ended, and gives it back in the pause."""

        def on_event(self, event: Event) -> None:
            super().on_event(event)
            if not sizes and len(self.of(RowFinished)) == 50:
                sizes.append(round(0.97 * machine.TOTAL) - machine.used())
                taken.append(b"x" * sizes[0])
            if isinstance(event, RunPaused):
                taken.clear()

    fake = fake_ollama_factory(speed=CostModel(latency_s=0.01))
    events = Greedy()
    guard = RamGuard(reserve="16MiB")  # the usual one is half of this machine
    runner = runner_on(fake, hooks=[events], guards=[guard], concurrency=2)
    run = runner.start(rows_file(tmp_path / "in.jsonl", 300), output=tmp_path / "out.jsonl")
    report = run.wait(60)
    assert (report.counts.ok, report.counts.failed) == (300, 0)
    assert fake.ledger.count() == 300
    kinds = [type(event).__name__ for event in events.of(RunPaused, RunResumed)]
    assert kinds == ["RunPaused", "RunResumed"]
    paused, resumed = (events.seen.index(event) for event in events.of(RunPaused, RunResumed))
    assert "RowSent" not in events.kinds()[paused:resumed]

    # The samples before and at the pause: what was taken is in the one that paused, as this process's own.
    hosts = [event.sample.host for event in events.seen[: paused + 1] if isinstance(event, MemoryMeasured)]
    assert {each.total.get() for each in hosts} == {machine.TOTAL}
    assert {each.available.source for each in hosts} == {"cgroup v2" if grouped else "psutil"}
    before, at_pause = hosts[0], hosts[-1]
    assert before.room.used.get() <= 0.88 * machine.TOTAL
    assert at_pause.room.used.get() >= 0.96 * machine.TOTAL
    assert at_pause.own.get() - before.own.get() == pytest.approx(sizes[0], rel=0.25)
    assert run.metrics.ram_peak_bytes == max(
        event.sample.host.room.used.get() for event in events.of(MemoryMeasured)
    )


def test_a_run_that_memory_keeps_from_sending_stops_and_goes_on_later(
    fake_ollama: FakeOllama, memory: Any, tmp_path: Path
) -> None:
    memory(Script(*(vram(n, 0.2) for n in range(100))))
    options: dict[str, Any] = {"concurrency": 2, "recover_timeout": 1.0}
    source, output = rows_file(tmp_path / "in.jsonl", 2000), tmp_path / "out.jsonl"
    with pytest.raises(MemoryShortError, match=r"vram: 15\.8 GiB of 16\.0 GiB in use") as caught:
        runner_on(fake_ollama, guards=[VramGuard()], **options).run(source, output=output)
    report: BatchReport[Any] = caught.value.report
    assert report.counts.ok < 2000
    assert report.counts.failed == 0
    assert runner_on(fake_ollama, guards=(), **options).run(source, output=output).counts.ok == 2000
    assert fake_ollama.ledger.count() == 2000


def test_a_run_whose_memory_cannot_be_read_in_a_pause_stops_and_does_not_wait_for_ever(
    fake_ollama: FakeOllama, memory: Any, tmp_path: Path
) -> None:
    class Breaks(Script):
        def read(self) -> MemorySample:
            if self.read_so_far:
                raise OSError("the driver is gone")
            return super().read()

    memory(Breaks(vram(0, 0.2)))
    runner = runner_on(fake_ollama, guards=[VramGuard()], concurrency=2, recover_timeout=0.5)
    run = runner.start(rows_file(tmp_path / "in.jsonl", 2000), output=tmp_path / "out.jsonl")
    with pytest.raises(MemoryShortError, match=r"memory was short for .* s \(vram"):
        run.wait(60)


def test_a_full_disk_does_not_keep_a_pause_from_its_end(
    fake_ollama: FakeOllama, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has no room for notes on memory; rows are kept."""
    note = RunJournal.note
    refused = []

    async def full(self: RunJournal, kind: str, data: Mapping[str, Any]) -> None:
        if kind.startswith("memory"):
            refused.append(kind)
            raise DiskFullError("no space left on the device")
        await note(self, kind, data)

    monkeypatch.setattr(RunJournal, "note", full)
    memory(Script(vram(0, 0.2), *(vram(1 + n, 8) for n in range(12))))
    events = Events()
    runner = runner_on(fake_ollama, hooks=[events], guards=[VramGuard()], concurrency=2)
    run = runner.start(rows_file(tmp_path / "in.jsonl", 300), output=tmp_path / "out.jsonl")
    assert run.wait(60).counts.ok == 300
    assert {"memory", "memory_guard"} <= set(refused)
    assert [event.reason for event in events.of(RunPaused)] == ["memory"]
    told = [event for event in events.of(Decision) if event.kind == "memory_guard"]
    assert {action for event in told for action in event.data["actions"]} >= {"pause", "resume"}


def test_a_model_that_is_half_in_host_memory_is_told_once_in_events_and_journal(
    fake_ollama_factory: Any, memory: Any, tmp_path: Path
) -> None:
    memory(Script(*(vram(n, 8) for n in range(1000))))
    model = FakeModel("m:1b", size=6 * GIB, layers=4, kv_heads=2, head_dim=64, gpu_share=0.5)
    fake = fake_ollama_factory(models=(model,), speed=CostModel(latency_s=0.05))
    events, output = Events(), tmp_path / "out.jsonl"
    runner = runner_on(fake, model="m:1b", hooks=[events], concurrency=2)
    assert runner.run(rows_file(tmp_path / "in.jsonl", 40), output=output).ok
    told = [event for event in events.of(Decision) if event.kind == "memory_guard"]
    assert len(events.of(MemoryMeasured)) > 3
    (spilled,) = (event for event in told if "in host memory" in event.message)
    assert spilled.data["actions"] == []
    with RunJournal.open_readonly(f"{output}.run.db") as journal:
        kept = [note.data["message"] for note in journal.notes("memory_guard")]
    assert kept.count(spilled.message) == 1


def test_memory_of_this_machine_is_in_the_metrics_of_every_run_unless_it_has_no_guards(
    fake_ollama_factory: Any, tmp_path: Path
) -> None:
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.2))
    source = rows_file(tmp_path / "in.jsonl", 4)
    run = runner_on(fake).start(source)
    run.wait()
    assert run.metrics.ram_used_bytes is not None
    assert 0 < run.metrics.ram_used_bytes < psutil.virtual_memory().total
    events = Events()
    run = runner_on(fake, guards=(), hooks=[events]).start(source)
    run.wait()
    assert events.of(MemoryMeasured) == []
    assert run.metrics.unmeasured["ram_used_bytes"] == "not measured"


@pytest.mark.parametrize("wrong", [[object()], [VramGuard], "ram", 5])
def test_what_is_no_guard_is_refused_by_name(fake_ollama: FakeOllama, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="guards"):
        runner_on(fake_ollama, guards=wrong)


def test_a_card_that_stays_full_has_the_model_loaded_anew_with_smaller_buffers(
    fake_ollama_factory: Any, memory: Any, tmp_path: Path
) -> None:
    memory(Script(vram(0, 8), vram(1, 0.2), *[vram(40, 0.2)] * 20, *(vram(41 + n, 8) for n in range(12))))
    fake = fake_ollama_factory(speed=CostModel(latency_s=0.01))
    events = Events()
    runner = runner_on(fake, hooks=[events], guards=[VramGuard()], concurrency=2)
    report = runner.run(rows_file(tmp_path / "in.jsonl", 300), output=tmp_path / "out.jsonl")
    assert (report.counts.ok, report.counts.failed) == (300, 0)
    told = [action for each in events.of(Decision) for action in each.data.get("actions", ())]
    assert told.count("reload_smaller") == 1
    assert [each.get("num_batch") for each in fake.ledger.load_settings()] == [None, 256]
    assert fake.ledger.count() == 300
