from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
import threading
import types
from typing import Any

import pytest
from rich.console import Console

from memory_support import GIB, sample
from ollama_batch import progress
from ollama_batch._text import plain
from ollama_batch._views import notebook_view, plain_line, terminal_view
from ollama_batch.errors import ConfigError
from ollama_batch.events import Decision, Event, MemoryMeasured, RowsFound, RunFinished, RunPaused, RunStalled
from ollama_batch.metrics import BatchMetrics, MetricsHook
from ollama_batch.progress import (
    NotebookProgress,
    PlainProgress,
    Progress,
    TerminalProgress,
    in_notebook,
    make_progress,
)
from visible_support import HOSTILE, FakeClock, finished, hook, sent, started


def fields(line: str) -> dict[str, str]:
    name, *pairs = shlex.split(line)
    assert name == "ollama-batch"
    return dict(pair.split("=", 1) for pair in pairs)


def screen(m: BatchMetrics, width: int = 100) -> str:
    console = Console(record=True, force_terminal=True, width=width, file=io.StringIO())
    console.print(terminal_view(m))
    return console.export_text()


class Terminal:
    """A pseudo-terminal: `stream` to write to, `text()` what arrived."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._seen += data
        except OSError:
            pass  # Linux reports the closed other end this way

    def text(self) -> str:
        if not self.stream.closed:
            self.stream.close()
            self._reader.join(10)
            os.close(self._master)
        return self._seen.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    yield terminal
    terminal.text()


def feed(display: Progress, metrics: MetricsHook, *events: Event) -> None:
    for event in events:
        metrics.on_event(event)
        display.on_event(event)


def test_a_plain_line_comes_first_then_every_five_seconds_then_last() -> None:
    clock, out = FakeClock(), io.StringIO()
    metrics = MetricsHook(clock=clock)
    display = PlainProgress(metrics, stream=out, clock=clock)
    feed(display, metrics, started(total=10))
    assert [fields(line)["done"] for line in out.getvalue().splitlines()] == ["0"]
    feed(display, metrics, finished())
    for _ in range(49):
        clock.tick(0.1)
        display.tick()
    assert len(out.getvalue().splitlines()) == 1
    clock.tick(0.2)
    display.tick()
    display.tick()
    assert [fields(line)["done"] for line in out.getvalue().splitlines()] == ["0", "1"]


def test_a_plain_line_comes_every_thousand_rows() -> None:
    clock, out = FakeClock(), io.StringIO()
    metrics = MetricsHook(clock=clock)
    display = PlainProgress(metrics, stream=out, clock=clock)
    feed(display, metrics, started(total=None))
    for _ in range(2500):
        feed(display, metrics, finished())
        display.tick()
    assert [fields(line)["done"] for line in out.getvalue().splitlines()] == ["0", "1000", "2000"]


def test_the_printing_thread_is_woken_by_rows_and_ends_with_stop() -> None:
    written = threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            if "done=1000 " in text:
                written.set()
            return super().write(text)

    out = Out()
    clock = FakeClock()
    metrics = MetricsHook(clock=clock)
    display = PlainProgress(metrics, stream=out, clock=clock)
    display.start()
    display.start()
    feed(display, metrics, started(total=1000), *[finished()] * 1000)
    assert written.wait(10)
    feed(display, metrics, RunFinished(outcome="completed", error=None, duration_s=1.0))
    display.stop()
    display.stop()
    lines = [fields(line) for line in out.getvalue().splitlines()]
    assert [line["state"] for line in lines] == ["running", "running", "completed"]
    assert not [t for t in threading.enumerate() if t.name == "ollama-batch-progress"]


def test_a_plain_line_tells_unknown_from_zero() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=None)
    empty = fields(plain_line(metrics.snapshot()))
    assert (empty["total"], empty["eta"], empty["cached"], empty["requests_per_s"]) == (
        "unknown",
        "unknown",
        "unknown",
        "unknown",
    )
    clock.tick(2)
    metrics.on_event(finished(cached=None))
    assert fields(plain_line(metrics.snapshot()))["cached"] == "not-reported"
    metrics.on_event(started())
    metrics.on_event(finished(cached=0))
    assert fields(plain_line(metrics.snapshot()))["cached"] == "0.0%"


def test_a_guess_of_what_was_cached_is_marked_in_every_view() -> None:
    metrics = hook(FakeClock())
    for number in range(40):
        metrics.on_event(finished(prompt=1000, prompt_s=1.0 if number < 10 else 0.2))
    m = metrics.snapshot()
    assert fields(plain_line(m))["cached"] == "~60%-estimated"
    assert "cached ~60% estimated" in screen(m)
    assert "cached <b>~60% estimated</b>" in notebook_view(m)
    metrics.on_event(finished(prompt=1000, cached=250))
    m = metrics.snapshot()
    assert fields(plain_line(m))["cached"] == "25.0%"
    assert "estimated" not in screen(m) + notebook_view(m)


def test_a_plain_line_reads_as_written_in_the_docs() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=3000)
    for number in range(1200):
        metrics.on_event(sent(attempt=1 + (number == 5), in_flight=4))
        metrics.on_event(finished(ok=number != 7, prompt=100, completion=10, cached=50, in_flight=3))
    clock.tick(40)
    metrics.on_event(RunPaused(reason="engine_unreachable", message='said "no"'))
    clock.tick(10)
    assert plain_line(metrics.snapshot()) == (
        "ollama-batch state=paused done=1200 total=3000 ok=1199 failed=1 retried=1 in_flight=3 "
        "requests_per_s=24.0 out_tokens_per_s=240 cached=50.0% eta=unknown elapsed=50s "
        'reason="engine_unreachable: said \\"no\\" (10s)"'
    )
    assert fields(plain_line(metrics.snapshot()))["reason"] == 'engine_unreachable: said "no" (10s)'


def test_a_concurrency_that_the_run_has_changed_is_shown() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(sent(in_flight=4))
    assert "concurrency" not in fields(plain_line(metrics.snapshot()))
    data = {"before": 4, "after": 8}
    metrics.on_event(Decision(kind="concurrency", message="", data=data))
    m = metrics.snapshot()
    assert fields(plain_line(m))["concurrency"] == "8"
    assert "in flight 4 of 8" in screen(m)
    assert "in flight <b>4 of 8</b>" in notebook_view(m)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_outside_reaches_a_screen_unescaped(text: str) -> None:
    metrics = hook(FakeClock(), model=text)
    answer = "ANSWER-OF-THE-MODEL"
    metrics.on_event(finished(ok=False, custom_id=text, code=text, output=answer))
    metrics.on_event(RunPaused(reason="engine_error", message=text))
    metrics.on_event(MemoryMeasured(sample=sample(0.0, devices_unknown=text)))
    m = metrics.snapshot()
    shown = [plain_line(m), screen(m), notebook_view(m)]
    for view in shown:
        assert answer not in view
        assert all(char.isprintable() for char in view.replace("\n", ""))
        view.encode("utf-8")
    assert "<script" not in shown[2]
    assert "<img" not in shown[2]
    if "markup" in text:
        assert "[red]markup[/red]" in shown[1]


def test_plain_text_is_bounded_and_keeps_what_is_harmless() -> None:
    assert plain("Grüße, 世界, 👍") == "Grüße, 世界, 👍"
    assert plain("a\x1bb") == "a\\x1bb"
    assert len(plain("x" * 10_000_000, 50)) == 50
    assert plain(" " * 1000, 50) == "..."


def test_the_terminal_shows_bar_rates_times_and_counts() -> None:
    clock = FakeClock()
    metrics = hook(clock, total=200)
    for number in range(100):
        clock.tick(0.5)
        metrics.on_event(finished(ok=number != 7, completion=20, cached=25, in_flight=4))
    text = screen(metrics.snapshot())
    first, second, third = text.rstrip("\n").split("\n")
    for part in ("gemma3:12b", "━", "100/200", "50.0%", "eta 50s", "elapsed 50s"):
        assert part in first
    for part in ("ok 99", "failed 1", "in flight 4 of 4", "requests/s 2.00"):
        assert part in second
    for part in ("tokens/s out 40.0", "cached 25.0%", "engine idle 0.0%"):
        assert part in third


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_the_terminal_view_fits_any_width(width: int) -> None:
    for m in (hook(FakeClock(), total=170_000, resumed=169_999).snapshot(), late()):
        assert all(len(line) <= width for line in screen(m, width).splitlines())


def late(**changed: Any) -> BatchMetrics:
    """A long run near its end, with everything to show, on a card of 16 GiB."""
    values: dict[str, Any] = {
        "model": "gemma3:12b",
        "state": "running",
        "total": 170_000,
        "completed": 169_999,
        "ok": 168_000,
        "failed": 1_999,
        "retried": 1_234,
        "in_flight": 16,
        "concurrency": 16,
        "requests_per_s_1m": 12.34,
        "completion_tokens_per_s_1m": 12_345.0,
        "answers": 169_999,
        "prompt_tokens": 4,
        "cached_tokens": 1,
        "cached_share": 0.25,
        "queue_mean_s": 65.0,
        "engine_idle_share": 0.012,
        "recoveries": 2,
        "restarts": 1,
        "lost_s": 65.0,
        "elapsed_s": 45_000.0,
        "eta_s": 45_000.0,
        "vram_used_bytes": 13 * GIB,
        "vram_total_bytes": 16 * GIB,
        "ram_used_bytes": 9 * GIB,
        "gpu_share": 1.0,
        "vram_peak_bytes": 14 * GIB,
        "ram_peak_bytes": 10 * GIB,
        "gpu_share_mean": 0.952,
        "gpu_share_p5": 0.88,
        "unmeasured": {},
    }
    return BatchMetrics(**{**values, **changed})


def unmeasured(reason: str, *fields: str) -> dict[str, str]:
    return dict.fromkeys(fields, reason)


def test_the_terminal_shows_memory_gpu_queue_and_trouble_on_80_columns() -> None:
    assert screen(late(), 80) == (
        "gemma3:12b ━━━━━━━━━━━━━━━━━━╸ 169,999/170,000 99.9% eta 12h30m  elapsed 12h30m\n"
        "ok 168,000  failed 1,999  retried 1,234  in flight 16 of 16  requests/s 12.3\n"
        "tokens/s out 12,345  cached 25.0%  queue wait 1m05s  engine idle 1.2%\n"
        "VRAM 13.0 of 16.0 GiB  RAM 9.0 GiB  GPU 100.0% (mean 95.2%, p5 88.0%)\n"
        "recoveries 2  restarts 1  lost 1m05s\n"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_lines_stay_where_they_are_while_a_run_goes_on(width: int) -> None:
    bars = set()
    for done, elapsed_s, eta_s in ((0, 0.0, None), (99, 9.0, 60.0), (1_000, 3_599.0, 86_000.0)):
        m = late(completed=done, ok=done, failed=0, elapsed_s=elapsed_s, eta_s=eta_s)
        lines = screen(m, width).splitlines()
        assert [line.split()[0] for line in lines[1:]] == ["ok", "tokens/s", "VRAM", "recoveries"]
        bars.add(lines[0].index(f"{done:,}/170,000"))
    assert len(bars) == 1


def test_the_largest_figures_and_names_need_no_further_line_on_80_columns() -> None:
    name = "hf.co/somebody/a-model-with-a-long-name:Q4_K_M"
    m = late(model=name, vram_used_bytes=140 * GIB, vram_total_bytes=141 * GIB, ram_used_bytes=1000 * GIB)
    lines = screen(m, 80).splitlines()
    assert lines[0].startswith("hf.co/somebody/a-mod…")
    assert [line.split()[0] for line in lines[1:]] == ["ok", "tokens/s", "VRAM", "recoveries"]


def test_what_was_never_known_of_memory_is_said_once_with_its_reason() -> None:
    far = unmeasured("the engine is on another machine", "vram_total_bytes", "gpu_share")
    no_gpu = {"gpu_share": None, "gpu_share_mean": None, "gpu_share_p5": None}
    m = late(vram_total_bytes=None, **no_gpu, unmeasured=far)
    line = "VRAM 13.0 GiB  RAM 9.0 GiB  GPU unknown: the engine is on another machine\n"
    assert line in screen(m, 80)
    m = late(
        vram_used_bytes=None,
        vram_peak_bytes=None,
        vram_total_bytes=None,
        **no_gpu,
        unmeasured=unmeasured("no GPU was found", "vram_used_bytes", "vram_total_bytes", "gpu_share"),
    )
    assert "\nRAM 9.0 GiB  VRAM, GPU unknown: no GPU was found\n" in screen(m, 80)
    assert "RAM <b>9.0 GiB</b> &middot; VRAM, GPU <b>unknown: no GPU was found</b>" in notebook_view(m)


def test_a_figure_that_was_known_stays_in_its_place() -> None:
    lost = late(vram_used_bytes=None, gpu_share=None, unmeasured=unmeasured("gone", "vram_used_bytes"))
    assert "\nVRAM -  RAM 9.0 GiB  GPU - (mean 95.2%, p5 88.0%)\n" in screen(lost, 80)


def test_of_memory_nothing_is_shown_that_nobody_measured_and_of_trouble_nothing_without_any() -> None:
    metrics = hook(FakeClock())
    metrics.on_event(finished())
    shown = screen(metrics.snapshot()) + notebook_view(metrics.snapshot())
    assert not [word for word in ("VRAM", "RAM", "GPU", "recoveries", "lost", "queue") if word in shown]


def test_the_notebook_shows_memory_gpu_queue_and_trouble() -> None:
    shown = notebook_view(late())
    assert "VRAM <b>13.0 of 16.0 GiB</b> &middot; RAM <b>9.0 GiB</b> &middot; GPU <b>100.0% (mean" in shown
    assert "queue wait <b>1m05s</b> &middot; engine idle <b>1.2%</b>" in shown
    assert "recoveries <b>2</b> &middot; restarts <b>1</b> &middot; lost <b>1m05s</b>" in shown


def test_a_plain_line_tells_of_trouble_only_after_some() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    quiet = fields(plain_line(metrics.snapshot()))
    assert not {"recoveries", "restarts", "lost"} & set(quiet)
    metrics.on_event(Decision(kind="recovery", message="", data={"do": "pause", "quarantined": ["a"]}))
    metrics.on_event(RunPaused(reason="engine", message="died"))
    clock.tick(65)
    told = fields(plain_line(metrics.snapshot()))
    assert {key: told[key] for key in told.keys() - quiet.keys()} == {
        "recoveries": "1",
        "restarts": "0",
        "quarantined": "1",
        "lost": "1m05s",
        "reason": "engine: died (1m05s)",
    }
    assert "\nrecoveries 1  restarts 0  quarantined 1  lost 1m05s\n" in screen(metrics.snapshot(), 80)


def test_the_terminal_says_that_and_why_a_run_pauses_or_stalls() -> None:
    clock = FakeClock()
    metrics = hook(clock)
    metrics.on_event(RunStalled(silent_s=60.0, in_flight=4))
    assert "stalled: no_progress: no row has finished although 4 are in flight (1m00s)" in screen(
        metrics.snapshot()
    )
    metrics.on_event(RunPaused(reason="engine_unreachable", message="connection refused"))
    clock.tick(12)
    text = screen(metrics.snapshot())
    assert "paused: engine_unreachable: connection refused (12s)" in text
    assert "eta" not in text


def test_a_run_of_unknown_length_says_so() -> None:
    metrics = hook(FakeClock(), total=None)
    metrics.on_event(finished())
    metrics.on_event(RowsFound(total=50, complete=False))
    assert "1 done, length unknown" in screen(metrics.snapshot())
    assert "<progress></progress>" in notebook_view(metrics.snapshot())


def test_an_empty_run_is_shown_as_complete() -> None:
    metrics = hook(FakeClock(), total=0)
    assert "0/0 100.0%" in screen(metrics.snapshot())


def test_a_terminal_gets_a_live_bar(terminal: Terminal) -> None:
    metrics = MetricsHook(clock=FakeClock())
    display = make_progress("auto", stream=terminal.stream, metrics=metrics)
    assert isinstance(display, TerminalProgress)
    display.start()
    feed(display, metrics, started(total=2), finished(), finished())
    feed(display, metrics, RunFinished(outcome="completed", error=None, duration_s=1.0))
    display.stop()
    display.stop()
    text = terminal.text()
    assert "2/2" in text
    assert "\x1b[3" in text  # colours
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")  # the cursor is back


def test_no_color_is_respected(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    metrics = hook(FakeClock())
    display = make_progress("auto", stream=terminal.stream, metrics=metrics)
    display.start()
    display.stop()
    text = terminal.text()
    assert "0/100" in text
    assert "\x1b[3" not in text


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_progress("auto", stream=terminal.stream, metrics=MetricsHook()), PlainProgress)


def test_a_run_that_never_began_leaves_no_last_line() -> None:
    stream = io.StringIO()
    metrics = MetricsHook(clock=FakeClock())
    display = PlainProgress(metrics, stream=stream)
    display.start()
    feed(display, metrics, RunFinished(outcome="stopped", error="nothing answers", duration_s=0.1))
    display.stop()
    assert stream.getvalue() == ""


def test_two_bars_at_once_share_a_terminal(terminal: Terminal) -> None:
    first_metrics, second_metrics = hook(FakeClock(), total=11), hook(FakeClock(), total=22)
    first = make_progress("auto", stream=terminal.stream, metrics=first_metrics)
    second = make_progress("auto", stream=terminal.stream, metrics=second_metrics)
    first.start()
    second.start()
    first.stop()
    second.stop()
    third = make_progress("auto", stream=terminal.stream, metrics=hook(FakeClock(), total=33))
    third.start()
    third.stop()
    text = terminal.text()
    assert "0/11" in text
    assert "ollama-batch state=running done=0 total=22" in text
    assert "0/33" in text


def test_standard_output_that_goes_to_a_file_is_left_alone(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(sys, "stdout", file)
    display = make_progress("auto", metrics=hook(FakeClock()))
    display.start()
    print("a result")
    display.stop()
    assert file.getvalue() == "a result\n"
    assert sys.stderr is terminal.stream
    assert "a result" not in terminal.text()


def test_a_stream_that_breaks_ends_the_display_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    metrics = MetricsHook(clock=FakeClock())
    display = PlainProgress(metrics, stream=Broken())
    display.start()
    feed(display, metrics, started(), *[finished()] * 3000)
    display.stop()
    assert [record.message.split(":")[0] for record in caplog.records] == ["the progress display ended"]


def test_a_line_fits_an_ascii_stream() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    metrics = hook(FakeClock())
    metrics.on_event(RunPaused(reason="engine_down", message="Grüße"))
    display = PlainProgress(metrics, stream=out)
    display.start()
    display.stop()
    assert b"Gr\\xfc\\xdfe" in raw.getvalue()


def test_none_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = MetricsHook()
    display = make_progress("none", metrics=metrics)
    display.start()
    feed(display, metrics, started(), finished())
    display.stop()
    assert capsys.readouterr() == ("", "")


def test_auto_is_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_progress("auto", metrics=hook(FakeClock()))
    assert isinstance(display, PlainProgress)
    display.start()
    display.stop()
    assert capsys.readouterr().err.startswith("ollama-batch state=running")


def test_a_hook_of_ones_own_is_told_everything() -> None:
    class Mine:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def on_event(self, event: Event) -> None:
            self.told.append(event)

        def start(self) -> None:
            self.told.append("start")

        def stop(self) -> None:
            self.told.append("stop")

    mine = Mine()
    display = make_progress(mine, metrics=MetricsHook())
    event = started()
    display.start()
    display.on_event(event)
    display.stop()
    assert mine.told == ["start", event, "stop"]
    assert isinstance(display, Progress)


@pytest.mark.parametrize("mode", ["rich", "", None, 3])
def test_an_unknown_mode_is_refused_by_name(mode: Any) -> None:
    with pytest.raises(ConfigError, match="progress must be"):
        make_progress(mode, metrics=MetricsHook())


class Handle:
    shown: list[tuple[str, dict[str, str]]]

    def __init__(self) -> None:
        type(self).shown = []

    def display(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(("display", data))

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(("update", data))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A process that an IPython kernel runs, as far as `sys.modules` can tell."""
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]  # a stand-in
    display = types.ModuleType("IPython.display")
    display.DisplayHandle = Handle  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return display


def test_a_kernel_is_noticed_and_an_ipython_shell_is_none(
    kernel: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_notebook()
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: types.SimpleNamespace()  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
    assert "IPython" not in sys.modules


def test_a_notebook_cell_is_updated_in_place(kernel: types.ModuleType) -> None:
    metrics = hook(FakeClock(), total=4)
    display = make_progress("auto", metrics=metrics)
    assert isinstance(display, NotebookProgress)
    display.start()
    feed(display, metrics, finished())
    display.stop()
    assert [kind for kind, _ in Handle.shown].count("display") == 1
    kind, last = Handle.shown[-1]
    assert kind == "update"
    assert '<progress value="1" max="4">' in last["text/html"]
    assert fields(last["text/plain"])["done"] == "1"


def test_a_notebook_without_displays_gets_plain_lines(
    kernel: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    del kernel.DisplayHandle  # type: ignore[attr-defined]  # a stand-in
    display = make_progress("auto", metrics=hook(FakeClock()))
    display.start()
    display.stop()
    assert capsys.readouterr().err.startswith("ollama-batch state=running")


def test_what_is_only_sometimes_shown_is_only_then_imported() -> None:
    code = (
        "import sys; from ollama_batch import progress, report;"
        "progress.make_progress('plain', metrics=progress.MetricsHook());"
        "print({'rich', 'IPython', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_terminal_is_free_after_these_tests() -> None:
    assert not progress._terminal.locked()
