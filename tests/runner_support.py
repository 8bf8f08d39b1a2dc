"""What the tests of BatchRunner share: input files, a runner on a fake server, what its files hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ollama_batch import BatchResult, BatchRunner
from ollama_batch.events import Event
from ollama_batch.testing import FakeOllama

MODEL = "toy:1b"


def line(name: str, text: str | None = None, **body: Any) -> dict[str, Any]:
    """One request; the ledger of a fake server knows it by `name`."""
    content = name if text is None else f"{name}\n{text}"
    return {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": content}], **body},
    }


def names(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


def write_lines(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    return path


def rows_file(path: Path, count: int, prefix: str = "r", **body: Any) -> Path:
    return write_lines(path, [line(name, **body) for name in names(count, prefix)])


def runner_on(fake: FakeOllama, **options: Any) -> BatchRunner:
    return BatchRunner(
        **{
            "model": MODEL,
            "base_url": None if "engine" in options else fake.url,
            "progress": "none",
            **options,
        }
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def ids(path: Path) -> list[str | None]:
    return [each["custom_id"] for each in read_lines(path)]


def told(results: Iterable[BatchResult[Any]]) -> list[tuple[str, bool, str | None, str | None]]:
    """What results say, but not how long it took."""
    return [
        (each.custom_id, each.ok, each.output, None if each.error is None else each.error.code)
        for each in results
    ]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Events:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.seen.append(event)

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kinds)]

    def kinds(self) -> Sequence[str]:
        return [type(event).__name__ for event in self.seen]
