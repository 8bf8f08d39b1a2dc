"""What a page shows runs as it stands: its examples one after another, in a folder of their own."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ollama_batch import OllamaEngine
from ollama_batch._portal import portal
from ollama_batch.cli import main
from ollama_batch.testing import FakeModel, FakeOllama
from supervisor_support import stand_in_ollama, stand_in_systemctl

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
MODEL = "gemma3:12b"

EXCUSE = re.compile(r"<!-- not run: (.+) -->")
"""Stands on a line of its own before an example that cannot run, and says why."""


class Step(NamedTuple):
    """A block of Python, the lines of `requests.jsonl` ("json") or a command; `excuse`: why it is not run."""

    kind: str
    text: str
    line: int
    excuse: str | None


def steps(page: Path) -> Iterator[Step]:
    """The examples of a page in their order; an excuse is of the example that comes next."""
    excuse: str | None = None
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        excused = EXCUSE.fullmatch(line)
        if excused is not None:
            excuse = excused[1]
            continue
        if line.startswith("```"):
            block = [text for _, text in takewhile(lambda each: each[1] != "```", lines)]
            found = Step(line.removeprefix("```"), "\n".join([*block, ""]), number, excuse)
        elif line.startswith("    ollama-batch "):
            found = Step("command", line.strip(), number, excuse)
        else:
            continue
        excuse = None
        if found.kind in ("python", "json", "command"):
            yield found


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.fixture
def server(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    fake_ollama_factory: Callable[..., FakeOllama],
) -> FakeOllama:
    """A server at OLLAMA_HOST with the documents' model, `ollama` and `systemctl`, and a folder to be in."""
    fake, bin_ = fake_ollama_factory(models=(FakeModel(MODEL),)), tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    stand_in_ollama(bin_)
    stand_in_systemctl(bin_, "ok")
    (bin_ / "notify-send").write_text("#!/bin/sh\n")
    (bin_ / "notify-send").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(bin_))
    monkeypatch.setenv("STAND_IN_MODEL", MODEL)
    monkeypatch.chdir(tmp_path)
    quickstart = next(step for step in steps(REPOSITORY / "docs" / "quickstart.md") if step.kind == "json")
    Path("requests.jsonl").write_text(quickstart.text, encoding="utf-8")  # pages that show none take this
    return fake


def run_python(
    page: Path,
    step: Step,
    scope: dict[str, Any],
    factory: Callable[..., FakeOllama],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run a block and the tests it defines; what a comment behind a print says in figures is printed."""
    known = set(scope)
    capsys.readouterr()
    exec(compile("\n" * step.line + step.text, name_of(page), "exec", dont_inherit=True), scope)
    printed = capsys.readouterr().out
    for told in re.findall(r"^ *print\(.*\)  # (\d.*)$", step.text, re.MULTILINE):
        assert told in printed.splitlines(), f"{name_of(page)}:{step.line}"
    for name in scope.keys() - known:
        if name.startswith("test_") and inspect.isfunction(scope[name]):
            scope[name](factory)


def missing_extra(step: Step) -> str | None:
    """What a step needs of the extras and this environment lacks."""
    extras = (
        ("pandas", r"to_pandas|read_csv|import pandas"),
        ("jinja2", "html"),
        ("pyarrow", "parquet"),
        ("xllamacpp", r"EmbeddedEngine\.toy|--toy"),
        ("ijson", "aris"),
        ("json_repair", "response_model=|JsonSchema|read_answer"),
    )
    for name, sign in extras:
        if re.search(sign, step.text) and not find_spec(name):
            return name
    return None


def test_the_examples_are_found() -> None:
    kinds = Counter((name_of(page), step.kind) for page in PAGES for step in steps(page))
    for page in PAGES:
        assert kinds[name_of(page), "python"] == page.read_text(encoding="utf-8").count("```python\n")
    assert kinds["docs/quickstart.md", "command"] > 5
    assert kinds["README.md", "json"] == kinds["docs/quickstart.md", "json"] == 1


@pytest.mark.parametrize("page", [page for page in PAGES if any(steps(page))], ids=name_of)
def test_the_examples_of_a_page_run_in_order(
    page: Path,
    server: FakeOllama,
    fake_ollama_factory: Callable[..., FakeOllama],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scope: dict[str, Any] = {"__name__": "example"}
    for step in steps(page):
        if step.excuse is not None:
            continue
        missing = missing_extra(step)
        if missing is not None:
            pytest.skip(f"{name_of(page)}:{step.line} and what follows need {missing}")
        if step.kind == "python":
            run_python(page, step, scope, fake_ollama_factory, capsys)
        elif step.kind == "json":
            Path("requests.jsonl").write_text(step.text, encoding="utf-8")
        else:
            code = main(shlex.split(step.text, comments=True)[1:])
            assert code == 0, f"{name_of(page)}:{step.line}: {capsys.readouterr().err}"
    for engine in scope.values():
        if isinstance(engine, OllamaEngine):
            portal().call(engine.aclose())


def test_few_examples_are_not_run() -> None:
    excuses = [step.excuse for page in PAGES for step in steps(page) if step.excuse is not None]
    assert len(excuses) <= 2, excuses
