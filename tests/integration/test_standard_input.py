"""Standard input: the first row names the model, and is answered like all others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollama_batch._asked import LOOKED_AT, StandardInput
from ollama_batch.jsonl import read_lines
from ollama_batch.testing import FakeModel, FakeOllama
from runner_support import ids, line, names

Given = Callable[[bytes], StandardInput]


def run(fake: FakeOllama, folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "ollama_batch.cli", "run", "-", "-o", folder / "out.jsonl"),
            *("--base-url", fake.url, "--progress", "none", *words),
        ],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines_of(*rows: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def test_the_first_row_names_the_model_and_no_row_is_lost(
    fake_ollama_factory: Callable[..., FakeOllama], tmp_path: Path
) -> None:
    fake = fake_ollama_factory(models=[FakeModel("other:3b")])
    text = lines_of(*(line(name, model="other:3b") for name in names(40)))
    done = run(fake, tmp_path, text)
    assert done.returncode == 0, done.stderr
    assert ids(tmp_path / "out.jsonl") == names(40)
    assert {record.model for record in fake.ledger.completions()} == {"other:3b"}
    again = run(fake, tmp_path, text)
    assert (again.returncode, "0 sent, 40 from the journal" in again.stdout) == (0, True)


def test_a_model_that_the_server_lacks_is_traced_to_the_line_that_names_it(
    fake_ollama: FakeOllama, tmp_path: Path
) -> None:
    done = run(fake_ollama, tmp_path, "\n" + lines_of(line("r0", model="absent:1b")))
    assert done.returncode == 2
    assert "'absent:1b' is what line 2 of <stdin> names" in done.stderr


def test_without_a_name_anywhere_the_option_is_asked_for(fake_ollama: FakeOllama, tmp_path: Path) -> None:
    for text in ("", lines_of(line("r0"), line("r1", model="toy:1b"))):
        done = run(fake_ollama, tmp_path, text)
        assert (done.returncode, fake_ollama.ledger.count()) == (2, 0)
        assert "say which model answers, as in --model" in done.stderr


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Given]:
    """Puts bytes where standard input is looked for."""
    opened: list[StandardInput] = []

    def given(content: bytes) -> StandardInput:
        path = tmp_path / "in"
        path.write_bytes(content)
        monkeypatch.setattr(os, "dup", lambda _: os.open(path, os.O_RDONLY))
        opened.append(StandardInput())
        return opened[-1]

    yield given
    for each in opened:
        each.close()


NAMED = lines_of(line("r0", model="m")).encode()


@pytest.mark.parametrize(
    ("content", "model"),
    [
        (NAMED * 3, "m"),
        (NAMED.rstrip(), "m"),
        (b"\xef\xbb\xbf" + NAMED + b"\r\n" + NAMED, "m"),
        (b"\n{not json\n" + NAMED + b"tail without end", "m"),
        (lines_of(line("r0")).encode() + NAMED, None),
        (b"{}\n" * LOOKED_AT + NAMED, None),
        (b"", None),
    ],
    ids=["all alike", "no line end", "mark and blank", "after a bad line", "unnamed", "too late", "empty"],
)
@pytest.mark.parametrize("size", [-1, 1, 7, 100_000])
def test_what_was_looked_at_is_read_again_to_the_byte(
    given: Given, content: bytes, model: str | None, size: int
) -> None:
    looked = given(content)
    assert looked.model_of_first_row()[0] == model
    parts = []
    while part := looked.readline(size):
        assert size < 0 or len(part) <= size
        assert b"\n" not in part[:-1]
        parts.append(part)
    assert b"".join(parts) == content
    assert list(read_lines(given(content))) == list(read_lines(_plain(content)))


def _plain(content: bytes) -> io.BytesIO:
    return io.BytesIO(content)
