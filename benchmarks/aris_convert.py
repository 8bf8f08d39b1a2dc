"""An Aris export to a batch file: memory above the import, and time against `json.load` with the same work.

Synthetic exports of 5,000 (41 MB) and 170,000 candidates (1.4 GB) are converted in fresh processes. Peak
memory is VmHWM at the end less VmHWM once everything is imported. Of the 5,000, a process that loads the
whole document with `json.load` and then validates, formats and writes the same takes turns with ours.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from harness import HERE, MIB, Goal, Outcome

WAYS = ("streamed", "json.load")


def convert(way: str, source: Path, output: Path) -> None:
    """Convert in this process, and print what it took."""
    import ijson
    import orjson

    from ollama_batch.aris import Candidate, PraxisTemplate, read_candidates, to_requests, write_requests

    assert ijson.backend == "yajl2_c"
    template = PraxisTemplate()
    imported = harness.own_peak_rss_bytes()
    started = time.perf_counter()
    if way == "streamed":
        requests = to_requests(read_candidates(source), template)
        write_requests(requests, output)
        made = requests.counts.made
    else:
        made = 0
        with source.open(encoding="utf-8") as file:
            export = json.load(file)
        with output.open("wb") as file:
            for found in export["candidates"]:
                request = template.request(Candidate.model_validate(found))
                if request is not None:
                    file.write(orjson.dumps(request.to_openai()) + b"\n")
                    made += 1
    work_s = time.perf_counter() - started
    peak = harness.own_peak_rss_bytes()
    print(
        json.dumps({"work_s": work_s, "made": made, "peak_rss_bytes": peak, "imported_rss_bytes": imported})
    )


def measured(way: str, source: Path, output: Path) -> dict[str, Any]:
    """`convert` in a fresh process."""
    line = [sys.executable, str(HERE / "aris_convert.py"), "--convert", way, str(source), str(output)]
    cost = harness.measure(line, timeout_s=3600)
    above = None
    if cost.stdout.get("imported_rss_bytes") is not None:
        above = cost.peak_rss_bytes - cost.stdout["imported_rss_bytes"]
    return {"way": way, "work_s": cost.work_s, "made": cost.stdout["made"], "above_import_bytes": above}


def main() -> None:
    if sys.argv[1:2] == ["--convert"]:
        convert(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=9)
    args.add_argument(
        "--candidates", type=int, nargs="+", default=[5_000, 170_000], help="the first is timed"
    )
    found = args.parse_args()
    pairs = 2 if found.quick else found.pairs
    sizes = [200, 2_000] if found.quick else found.candidates
    from ollama_batch.aris.synthetic import write_export

    taken: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "export.json", Path(name) / "batch.jsonl"
        for size in sizes:
            write_export(source, size, overwrite=True)
            megabytes = source.stat().st_size / 1e6
            first = size == sizes[0]
            runs: list[dict[str, Any]] = []
            for pair, way in harness.alternate(WAYS if first else WAYS[:1], pairs if first else 1):
                output.unlink(missing_ok=True)
                runs.append({"candidates": size, "pair": pair, **measured(way, source, output)})
                if len(runs) % 2 == 0:
                    assert runs[-1]["made"] == runs[-2]["made"]
            taken += runs
            for way in WAYS:
                own = [run for run in runs if run["way"] == way]
                if own:
                    above = max(run["above_import_bytes"] or 0 for run in own) / MIB
                    work = harness.median([run["work_s"] for run in own])
                    rows.append([f"{size:,} candidates, {way}", megabytes, work, size / work, above])
                    if way == "streamed":
                        text = f"memory above import, {size:,} candidates"
                        goals.append(Goal(text, above, 80.0, " MiB"))
            if first:
                by = {(run["pair"], run["way"]): run["work_s"] for run in runs}
                ratio = harness.median(
                    [by[pair, "streamed"] / by[pair, "json.load"] for pair in range(pairs)]
                )
                goals.append(Goal(f"time against json.load, {size:,} candidates", ratio, 1.3, "x"))
    notes = [
        f"time: medians of {pairs} alternating pairs (one run of the largest); memory: the most of any run"
    ]
    columns = ["what", "MB", "s", "candidates/s", "MiB above import"]
    Outcome("aris_convert", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
