"""A run that can be told where to die: `python run_child.py '{"input": ..., "output": ..., ...}'`."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ollama_batch import BatchRunner, _points
from ollama_batch.events import Event, RowFinished

for lazy in ("runner", "conversation", "engines.ollama", "memory", "_activity", "_feeds", "_opening"):
    importlib.import_module(f"ollama_batch.{lazy}")  # else each of those forked from this would do it


def die_at(point: str, nth: int) -> None:
    """Send this process SIGKILL when `point` is reached for the `nth` time."""
    left = nth

    def listener(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    _points.listen(listener)


class Early:
    """Notes the most memory held until `rows` rows have finished."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.peak_rss_bytes = 0

    def on_event(self, event: Event) -> None:
        if isinstance(event, RowFinished):
            self.rows -= 1
            if self.rows == 0:
                self.peak_rss_bytes = peak_rss_bytes()


def main(settings: dict[str, Any]) -> None:
    if settings.get("point"):
        die_at(settings["point"], settings["nth"])
    early = Early(settings.get("early_rows", 0))
    runner = BatchRunner(
        model="toy:1b",
        base_url=settings["url"],
        progress="none",
        hooks=[early] if early.rows else [],
        **settings.get("options", {}),
    )
    report = runner.run(settings["input"], output=settings["output"], retry_failed=True)
    told = {"ok": report.counts.ok, "failed": report.counts.failed, "peak_rss_bytes": peak_rss_bytes()}
    told["early_peak_rss_bytes"] = early.peak_rss_bytes
    print(json.dumps(told))


def peak_rss_bytes() -> int:
    """The most memory this process ever held; not what it inherited, as ru_maxrss is."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
