"""Starts runs the moment it is told to: `python race_child.py URL`.

Each line of standard input is a list of [input, output]; all are started at once. Two lines of JSON answer
it: [output, error] of each run that was refused, then [output, rows ok] of each that ended well.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from ollama_batch import BatchRunner
from ollama_batch.errors import JournalLockedError
from ollama_batch.events import Event, RowSent, RunFinished


def tell(word: Any) -> None:
    print(json.dumps(word), flush=True)


class Began:
    """A hook that knows when it is settled whether the run has its journal."""

    def __init__(self) -> None:
        self.settled = threading.Event()
        self.refused = False

    def on_event(self, event: Event) -> None:
        self.refused = isinstance(event, RunFinished)
        if isinstance(event, RowSent | RunFinished):
            self.settled.set()


def main(url: str) -> None:
    tell("ready")
    for line in sys.stdin:
        races = [(Path(source), Path(output), Began()) for source, output in json.loads(line)]
        runs = [
            # Room at the engine for the rows of all races: its limit is shared.
            BatchRunner(model="toy:1b", base_url=url, concurrency=40, progress="none", hooks=(began,)).start(
                source, output=output
            )
            for source, output, began in races
        ]
        refused, going = [], {}
        for (_, output, began), run in zip(races, runs, strict=True):
            assert began.settled.wait(60)
            if not began.refused:
                going[str(output)] = run
                continue
            try:
                run.wait(60)
            except JournalLockedError as error:
                refused.append((str(output), f"{type(error).__name__}: {error}"))
        tell(refused)
        tell([(output, run.wait(60).counts.ok) for output, run in going.items()])


if __name__ == "__main__":
    main(*sys.argv[1:])
