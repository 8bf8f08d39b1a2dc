"""An analysis of 170,000 rows: peak memory and wall time, of a journal and of result files.

Every way runs in a fresh process over the same rows, answers of about 1 KB of JSON: figures with two fields
and a score, the report, the tables, and a comparison of two runs. Memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
from harness import HERE, MIB, Goal, Outcome

GOAL_MIB = 300.0
LABELS = ("Strong Yes", "Yes", "Maybe", "No", "Strong No")
WORDS = (
    "built",
    "led",
    "shipped",
    "designed",
    "grew",
    "reviewed",
    "mentored",
    "measured",
    "planned",
    "moved",
)

WAYS: dict[str, str] = {
    "import": "",
    "journal, figures": "found = analyze(journal, fields=FIELDS, score='score')",
    "journal, report": "found = analyze(journal, fields=FIELDS, score='score'); found.to_html(out)",
    "files, figures": "found = analyze(files, fields=FIELDS, score='score')",
    "files, CSV": "found = analyze(files, fields=FIELDS, score='score'); found.to_csv(out)",
    "files, Parquet": "found = analyze(files, fields=FIELDS, score='score'); found.to_parquet(out)",
    "two runs compared": "found = compare(files, other, fields=FIELDS, score='score')",
}
PROGRAM = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import harness
from ollama_batch.analysis import analyze, compare
journal, files, other, out = map(Path, sys.argv[1:])
FIELDS = ["recommendation", "analysis.trajectory.rating"]
found, started = None, time.monotonic()
{way}
rows = None if found is None else getattr(found, "rows", None) or found.both
told = {{"work_s": time.monotonic() - started, "peak_rss_bytes": harness.own_peak_rss_bytes()}}
print(json.dumps({{**told, "rows": rows}}))
"""


def results(count: int, seed: int) -> Iterator[Any]:
    """Results of a run: one in a hundred failed, one in a hundred is prose."""
    from ollama_batch import BatchResult
    from ollama_batch.types import RowError, Usage

    rng = random.Random(seed)
    for n in range(count):
        name, latency = f"row-{n:07d}", rng.lognormvariate(1, 0.4)
        common: dict[str, Any] = {"custom_id": name, "index": n, "attempts": 1, "latency_s": latency}
        if rng.random() < 0.01:
            error = RowError("engine_error", f"the runner ended with signal {n % 9}", 500)
            yield BatchResult(ok=False, error=error, **common)
            continue
        said: dict[str, Any] = {
            "recommendation": rng.choice(LABELS),
            "reasoning": " ".join(rng.choices(WORDS, k=100)),
            "analysis": {"trajectory": {"rating": rng.choice(("Great", "Good", "Weak")), "reasoning": "so"}},
            "score": round(rng.uniform(0, 10), 2),
        }
        text = json.dumps(said) if rng.random() > 0.01 else said["reasoning"]
        usage = Usage(prompt_tokens=rng.randrange(800, 1300), completion_tokens=rng.randrange(200, 400))
        body = {
            "id": f"chatcmpl-{n}",
            "created": 1_790_000_000 + n // 4,
            "model": "gemma3:12b",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            ],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }
        yield BatchResult(ok=True, output=text, usage=usage, finish_reason="stop", body=body, **common)


def write_files(path: Path, count: int, seed: int) -> None:
    from ollama_batch.records import encode_result

    beside = path.with_name(f"{path.stem}.errors.jsonl")
    with path.open("wb") as output, beside.open("wb") as errors:
        for result in results(count, seed):
            (output if result.ok else errors).write(encode_result(result).line + b"\n")


def write_journal(path: Path, count: int, seed: int) -> None:
    """As a run writes it, but for the times of its results, which are spread over hours."""
    from ollama_batch.journal import RunJournal
    from ollama_batch.records import encode_result
    from ollama_batch.types import RowRecord

    async def fill() -> None:
        with RunJournal.open(path, identity={"model": "gemma3:12b", "mode": "independent"}) as journal:
            made = results(count, seed)
            for start in range(0, count, 2000):
                numbers = range(start, min(start + 2000, count))
                rows = [RowRecord(n, 0, n + 1, f"row-{n:07d}", n.to_bytes(16, "big")) for n in numbers]
                await journal.add_rows(rows)
                await asyncio.gather(*(journal.commit(encode_result(next(made))) for _ in numbers))
            journal.put("intake", {})

    asyncio.run(fill())
    con = sqlite3.connect(path)
    trigger = con.execute("SELECT sql FROM sqlite_master WHERE name = 'results_ok_stays'").fetchone()[0]
    con.execute("DROP TRIGGER results_ok_stays")
    con.execute("UPDATE results SET at = 1790000000 + idx * 0.25")
    con.execute(trigger)
    con.commit()
    con.close()


def main() -> None:
    args: argparse.ArgumentParser = harness.parser(__doc__)
    args.add_argument("--rows", type=int, default=170_000)
    found = args.parse_args()
    rows = 3000 if found.quick else found.rows
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal, files, other = (folder / each for each in ("run.db", "files.jsonl", "other.jsonl"))
        write_journal(journal, rows, 0)
        write_files(files, rows, 0)
        write_files(other, rows, 1)
        for number, (way, code) in enumerate(WAYS.items()):
            program = PROGRAM.format(here=str(HERE), way=code)
            line = [
                sys.executable,
                "-c",
                program,
                *map(str, (journal, files, other, folder / f"out-{number}")),
            ]
            cost = harness.measure(line)
            if code and cost.stdout.get("rows") != rows:
                raise RuntimeError(f"{way}: {cost.stdout.get('rows')} rows instead of {rows}")
            taken.append(
                {
                    "way": way,
                    "peak_rss_bytes": cost.peak_rss_bytes,
                    "work_s": cost.work_s,
                    "cpu_s": cost.cpu_s,
                }
            )
            print(f"{way}: {cost.peak_rss_bytes / MIB:.0f} MiB, {cost.work_s:.1f} s", flush=True)
    base = taken[0]["peak_rss_bytes"]
    peaks = {each["way"]: each["peak_rss_bytes"] / MIB for each in taken}
    table = [
        [each["way"], peaks[each["way"]], each["work_s"], each["work_s"] / rows * 1e6] for each in taken[1:]
    ]
    worst = max(peaks, key=lambda way: peaks[way])
    goals = [Goal(f"peak memory, {rows:,} rows, worst way ({worst})", peaks[worst], GOAL_MIB, " MiB")]
    notes = [f"{rows:,} rows of about 1 KB; importing the room takes {base / MIB:.0f} MiB; peak: VmHWM"]
    columns = ["way", "peak MiB", "wall s", "microseconds/row"]
    Outcome("analysis", harness.command_line(), columns, table, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
