"""170,000 rows of 4.5 KB: memory that does not grow with the rows, and a resume that starts at once.

The client runs in fresh processes over 5,000, 20,000 and 170,000 rows against FakeOllama in a process
of its own. Then a 170,000-row run is killed by SIGKILL when 169,000 rows are done and started again; the
server's ledger tells when the first request of the second process arrived, and that none was sent twice
beyond the ones in flight.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import clients
import harness
from harness import HERE, MIB, MODEL, Goal, Outcome


def run_until_killed(
    source: Path, output: Path, url: str, concurrency: int, kill_after: int, told: Path
) -> None:
    """Run until `kill_after` rows are finished here, note the peak RSS, and SIGKILL this process."""
    from ollama_batch import BatchRunner
    from ollama_batch.engines import OllamaEngine
    from ollama_batch.events import Event, RowFinished

    class Killer:
        done = 0

        def on_event(self, event: Event) -> None:
            if isinstance(event, RowFinished):
                self.done += 1
                if self.done == kill_after:
                    told.write_text(
                        json.dumps({"peak_rss_bytes": harness.own_peak_rss_bytes()}), encoding="ascii"
                    )
                    os.kill(os.getpid(), signal.SIGKILL)

    runner = BatchRunner(
        model=MODEL,
        engine=OllamaEngine(url),
        num_ctx=8192,
        concurrency=concurrency,
        progress="none",
        hooks=(Killer(),),
    )
    runner.run(source, output=output)


def resume(folder: Path, source: Path, rows: int, left: int, concurrency: int) -> dict[str, Any]:
    """Kill a run `left` rows before its end, run it again, and read the ledger."""
    from ollama_batch.testing.ledger import FileLedger

    output, told, ledger = folder / "resumed.jsonl", folder / "killed.json", folder / "ledger.jsonl"
    with harness.fake_ollama(slots=concurrency, ledger=ledger) as fake:
        line = [sys.executable, str(HERE / "scale.py"), "--killed-run", str(source), str(output), fake.url]
        line += [str(concurrency), str(rows - left), str(told)]
        subprocess.run(line, cwd=HERE, check=False, stdin=subprocess.DEVNULL)
        if not told.exists():
            raise RuntimeError(f"the first run ended before {rows - left} rows were done")
        started = time.monotonic()
        line = clients.command(
            "ollama_batch", input=source, output=output, url=fake.url, concurrency=concurrency
        )
        cost = harness.measure(line)
    sends: Counter[str] = Counter()
    first, after = math.inf, 0
    for record in FileLedger(ledger, readonly=True).records():
        if record.kind == "completion":
            sends[record.key] += 1
            if record.at >= started:
                first = min(first, record.at)
                after += 1
    answered = cost.stdout.get("rows")
    if answered != rows:
        raise RuntimeError(f"the resumed run wrote {answered} rows instead of {rows}")
    return {
        "first_request_s": first - started,
        "sent_after_resume": after,
        "never_sent": rows - len(sends),
        "sent_twice": sends.total() - len(sends),
        "killed_peak_rss_bytes": json.loads(told.read_text(encoding="ascii"))["peak_rss_bytes"],
        "resumed_peak_rss_bytes": cost.peak_rss_bytes,
        "resumed_wall_s": cost.wall_s,
    }


def main() -> None:
    if sys.argv[1:2] == ["--killed-run"]:
        given = sys.argv[2:]
        run_until_killed(
            Path(given[0]), Path(given[1]), given[2], int(given[3]), int(given[4]), Path(given[5])
        )
        return
    args: argparse.ArgumentParser = harness.parser(__doc__)
    args.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 170_000])
    args.add_argument("--left", type=int, default=1000, help="rows left when the run is killed")
    args.add_argument("--concurrency", type=int, default=16)
    found = args.parse_args()
    sizes = [500, 1000, 3000] if found.quick else sorted(found.rows)
    left = 200 if found.quick else found.left
    table: list[list[Any]] = []
    taken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        for count in sizes:
            harness.write_rows(source, count)
            output = folder / f"out-{count}.jsonl"
            with harness.fake_ollama(
                slots=found.concurrency, ledger=folder / f"ledger-{count}.jsonl"
            ) as fake:
                line = clients.command(
                    "ollama_batch", input=source, output=output, url=fake.url, concurrency=found.concurrency
                )
                cost = harness.measure(line, timeout_s=7200)
            if cost.stdout.get("rows") != count:
                raise RuntimeError(f"{cost.stdout.get('rows')} output rows for {count} rows")
            for path in folder.glob(f"*-{count}.jsonl*"):
                path.unlink()
            taken.append(
                {
                    "rows": count,
                    "peak_rss_bytes": cost.peak_rss_bytes,
                    "wall_s": cost.wall_s,
                    "cpu_s": cost.cpu_s,
                }
            )
            table.append(
                [f"{count:,} rows", cost.peak_rss_bytes / MIB, cost.wall_s, cost.cpu_s / count * 1000]
            )
            print(
                f"{count:,} rows: peak {cost.peak_rss_bytes / MIB:.1f} MiB, {cost.wall_s:.0f} s", flush=True
            )
        most = sizes[-1]
        again = resume(folder, source, most, left, found.concurrency)
    taken.append({"resume": again})
    table.append([f"{most - left:,} rows, then killed", again["killed_peak_rss_bytes"] / MIB, None, None])
    table.append(
        [f"resumed with {left:,} left", again["resumed_peak_rss_bytes"] / MIB, again["resumed_wall_s"], None]
    )
    few, many = taken[0], taken[len(sizes) - 1]
    slope = (many["peak_rss_bytes"] - few["peak_rss_bytes"]) / (many["rows"] - few["rows"])
    goals = [
        Goal(f"peak memory per row, {few['rows']:,} to {many['rows']:,} rows", slope, 64.0, " bytes"),
        Goal(
            f"resume with {most - left:,} rows done: process start to first request",
            again["first_request_s"],
            10.0,
            " s",
        ),
        Goal("rows sent twice over the kill", again["sent_twice"], float(found.concurrency)),
    ]
    notes = [f"bodies of 4.5 KB, concurrency {found.concurrency}; peak: VmHWM of the client process"]
    columns = ["run", "peak MiB", "wall s", "CPU ms/row"]
    Outcome("scale", harness.command_line(), columns, table, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
