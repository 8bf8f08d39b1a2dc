"""Runs in the cells of a real Jupyter kernel, whose event loop is running all the while."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from ollama_batch import RunJournal
from ollama_batch.testing import FakeOllama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

CELL_S = 30.0
SETUP = """
import json
from ollama_batch import BatchRunner
runner = BatchRunner(model="toy:1b", base_url={url!r}, concurrency=2)
"""


@dataclass
class Cell:
    """What became of a cell: its text, what was displayed in it, the error that ended it."""

    text: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    trace: str = ""

    def displays(self, kind: str) -> list[str]:
        return [data[kind] for data in self.shown if kind in data]


class Notebook:
    """A kernel in a process of its own, cell by cell."""

    def __init__(self, folder: Path) -> None:
        self._manager = KernelManager()
        home = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder)}
        self._manager.start_kernel(cwd=str(folder), env={**os.environ, **home})
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=CELL_S)

    def begin(self, code: str) -> str:
        """Start a cell; `end` waits for it."""
        return str(self._client.execute(code))

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def end(self, cell_id: str) -> Cell:
        cell = Cell()
        until = time.monotonic() + CELL_S
        while True:
            message = self._client.get_iopub_msg(timeout=max(0.1, until - time.monotonic()))
            if message["parent_header"].get("msg_id") != cell_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                cell.text += content["text"]
            elif kind in ("display_data", "update_display_data", "execute_result"):
                cell.shown.append(content["data"])
            elif kind == "error":
                cell.error, cell.trace = content["ename"], "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return cell

    def cell(self, code: str) -> Cell:
        return self.end(self.begin(code))

    def value(self, expression: str) -> Any:
        cell = self.cell(f"print(json.dumps({expression}))")
        assert cell.error is None, cell.trace
        return json.loads(cell.text)

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("kernel"))
    yield notebook
    notebook.close()


@pytest.fixture
def notebook(kernel: Notebook, fake_ollama: FakeOllama, tmp_path: Path) -> Notebook:
    """The kernel, with a runner for this test's server and six requests in this test's folder."""
    with (tmp_path / "in.jsonl").open("w") as file:
        for n in range(6):
            body = {"messages": [{"role": "user", "content": f"r{n}"}]}
            line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    ready = kernel.cell(SETUP.format(url=fake_ollama.url) + f"import os; os.chdir({str(tmp_path)!r})")
    assert ready.error is None, ready.trace
    return kernel


RUN = 'report = runner.run("in.jsonl", output="out.jsonl"); report'


def test_a_cell_runs_to_its_report_beside_the_running_loop(
    notebook: Notebook, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    cell = notebook.cell("import asyncio; assert asyncio.get_running_loop().is_running()\n" + RUN)
    assert cell.error is None, cell.trace
    assert cell.text == "", "in a notebook progress is a display, not text"
    pages = cell.displays("text/html")
    assert "ollama-batch-report" in pages[-1]
    assert any("6/6" in page for page in pages[:-1]), "the last progress shows the end"
    assert "6 of 6 rows ok" in cell.displays("text/plain")[-1] or "6 of 6" in pages[-1]
    assert [json.loads(line)["custom_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        f"r{n}" for n in range(6)
    ]
    assert fake_ollama.ledger.counts() == {f"r{n}": 1 for n in range(6)}


def test_an_analysis_is_one_output_whether_it_is_printed_or_shown(notebook: Notebook) -> None:
    assert notebook.cell(RUN).error is None
    made = notebook.cell(
        "from ollama_batch.analysis import analyze, compare\n"
        'found, changes = analyze("out.jsonl"), compare("out.jsonl", "out.jsonl")'
    )
    assert made.error is None, made.trace
    for name, said in (("found", "6 finished: 6 ok"), ("changes", "out.jsonl against out.jsonl")):
        printed = notebook.cell(f"print({name})")
        assert said in printed.text
        assert printed.shown == []
        shown = notebook.cell(name)
        assert shown.text == ""
        (output,) = shown.shown
        assert "<iframe" in output["text/html"]


def test_start_gives_the_cell_back_and_the_handle_tells_how_it_goes(
    notebook: Notebook, fake_ollama: FakeOllama
) -> None:
    fake_ollama.hold()
    cell = notebook.cell('run = runner.start("in.jsonl", output="out.jsonl"); run')
    assert cell.error is None, cell.trace
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    assert notebook.value("[run.done, run.metrics.in_flight, run.metrics.completed]") == [False, 2, 0]
    assert "<Run running: 0 of 6 rows, 0 failed>" in notebook.cell("run").displays("text/plain")[-1]
    fake_ollama.release()
    assert notebook.value("run.wait(30).counts.ok") == 6
    assert notebook.value("[run.done, run.metrics.state]") == [True, "completed"]
    assert fake_ollama.ledger.count() == 6


def test_a_cell_awaits_a_run_and_streams_results(notebook: Notebook, fake_ollama: FakeOllama) -> None:
    cell = notebook.cell(
        'report = await runner.arun("in.jsonl", output="out.jsonl")\n'
        'streamed = [result.custom_id async for result in runner.stream(["a", "b", "c"])]\n'
        'pulled = [result.custom_id for result in runner.iter_results(["a", "b"])]'
    )
    assert cell.error is None, cell.trace
    assert notebook.value("[report.counts.ok, sorted(streamed), sorted(pulled)]") == [
        6,
        ["0", "1", "2"],
        ["0", "1"],
    ]


def test_an_interrupted_cell_leaves_a_run_that_the_same_cell_finishes(
    notebook: Notebook, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    fake_ollama.hold()
    cell_id = notebook.begin(RUN)
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    notebook.interrupt()
    time.sleep(0.3)  # a signal cannot be seen to have arrived; released too early, more rows would be sent
    fake_ollama.release()
    cell = notebook.end(cell_id)
    assert cell.error == "RunInterrupted", cell.trace
    assert "run again to go on" in cell.trace
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert (journal.state, journal.counts().ok, journal.counts().pending) == ("stopped", 2, 4)
    again = notebook.cell(RUN)
    assert again.error is None, again.trace
    assert fake_ollama.ledger.counts() == {f"r{n}": 1 for n in range(6)}, "what was done is not sent again"
    assert notebook.value("[report.counts.sent, report.counts.resumed, report.ok]") == [4, 2, True]


def test_a_cell_interrupted_twice_ends_at_once(notebook: Notebook, fake_ollama: FakeOllama) -> None:
    fake_ollama.hold()
    cell_id = notebook.begin(RUN)
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    notebook.interrupt()
    time.sleep(0.3)  # two signals at once are one
    notebook.interrupt()
    cell = notebook.end(cell_id)
    assert cell.error == "RunInterrupted", cell.trace
    fake_ollama.release()
    assert notebook.cell(RUN).error is None
    assert fake_ollama.ledger.counts() == {"r0": 2, "r1": 2, "r2": 1, "r3": 1, "r4": 1, "r5": 1}


def test_a_task_that_is_cancelled_from_another_cell_leaves_a_resumable_run(
    notebook: Notebook, fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    # Interrupting a cell that awaits is the kernel's affair; some kernels do not get through to it.
    fake_ollama.hold()
    begun = notebook.cell(
        'import asyncio\ntask = asyncio.create_task(runner.arun("in.jsonl", output="out.jsonl"))'
    )
    assert begun.error is None, begun.trace
    fake_ollama.wait_until(lambda ledger: ledger.count() == 2)
    notebook.cell("task.cancel(); _ = await asyncio.wait([task])")
    assert notebook.value("task.cancelled()") is True
    fake_ollama.release()
    with RunJournal.open_readonly(tmp_path / "out.jsonl.run.db") as journal:
        assert (journal.state, journal.counts().pending) == ("stopped", 6)
    again = notebook.cell(RUN)
    assert again.error is None, again.trace
    assert fake_ollama.ledger.counts()["r5"] == 1


def test_a_notebook_runs_from_top_to_bottom(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    cells = [
        SETUP.format(url=fake_ollama.url),
        'report = runner.run(["Hello", "Good day"], output="greetings.jsonl")\nreport',
        'run = runner.start(["Good night"]); print(run.wait().counts.ok)',
        'report = runner.run(["Hello", "Good day"], output="greetings.jsonl"); print(report)',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "0 sent, 2 from the journal" in notebook.cells[3].outputs[-1]["text"]
    assert fake_ollama.ledger.counts() == {"Hello": 1, "Good day": 1, "Good night": 1}
