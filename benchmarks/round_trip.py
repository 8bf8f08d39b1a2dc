"""Candidates from their export to evaluations and back: how many are parsed, and that nothing else changes.

A synthetic export, through the requests, a run on real llama.cpp with a toy model whose answers are held to
the schema, the ranking, the analysis and its page, into an export with `praxisData`. What is in that is
compared with the first one by `json`, with numbers as they are written.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome

from ollama_batch import BatchRunner
from ollama_batch.analysis import analyze
from ollama_batch.aris import (
    PraxisEvaluation,
    PraxisTemplate,
    rank,
    read_candidates,
    to_requests,
    write_evaluations,
)
from ollama_batch.aris.synthetic import write_export
from ollama_batch.engines import EmbeddedEngine

NUM_CTX = 8192


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--candidates", type=int, default=500)
    found = args.parse_args()
    count = 24 if found.quick else found.candidates
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export = write_export(folder / "export.json", count)
        requests = to_requests(read_candidates(export), PraxisTemplate())
        engine = EmbeddedEngine.toy(num_ctx=NUM_CTX)
        runner = BatchRunner(
            model="toy", engine=engine, num_ctx=NUM_CTX, response_model=PraxisEvaluation, state_dir=None
        )
        started = time.monotonic()
        report = runner.run(requests, output=folder / "out.jsonl")
        run_s = time.monotonic() - started
        asyncio.run(engine.aclose())
        journal = folder / "out.jsonl.run.db"
        parsed = sum(isinstance(each.parsed, PraxisEvaluation) for each in report.results())
        unexplained = sum(not (each.error and each.error.message) for each in report.results() if not each.ok)
        ranking = rank(journal)
        page = analyze(journal, fields=["recommendation"]).to_html(folder / "report.html")
        done = write_evaluations(export, journal, folder / "evaluated.json")
        before, after = read(export), read(folder / "evaluated.json")
        filled = 0
        for old, new in zip(before["candidates"], after["candidates"], strict=True):
            was, now = old.pop("praxisData", None), new.pop("praxisData", None)
            filled += was != now
        changed = sum(
            old != new for old, new in zip(before["candidates"], after["candidates"], strict=True)
        ) + (before["metadata"] != after["metadata"])
        page_kb = page.stat().st_size / 1000
    made = requests.counts.made
    metrics = report.metrics
    columns = ["candidates", "requests", "ok", "parsed", "repaired", "asked again", "ranked", "filled", "s"]
    row = [
        *(count, made, report.counts.ok, parsed, metrics.repaired, metrics.asked_again),
        *(len(ranking.candidates), filled, run_s),
    ]
    goals = [
        Goal("requests whose answer was parsed", 100 * parsed / made, 99.0, " %", True),
        Goal("failed rows without an explanation", unexplained, 0),
        Goal("candidates and metadata in which anything but praxisData changed", changed, 0),
        Goal("evaluations that did not get into the export", parsed - done.written, 0),
    ]
    notes = [
        f"{requests.counts.empty} candidates have nothing to judge by and get no request",
        f"the page of the run has {page_kb:.0f} kB",
    ]
    taken = [dict(zip(columns, row, strict=True))]
    Outcome("round_trip", harness.command_line(), columns, [row], goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
