"""What durability costs: the same runner with its file journal against a journal in memory.

The server answers every request after 40 ms, 8 requests at a time; the marginal wall time per row
(500 against 2,500 rows, fresh processes) is compared over alternating pairs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import clients
import harness
from harness import Goal, Outcome

JOURNALS: dict[str, dict[str, Any]] = {"file": {}, "memory": {"journal": None}}
"""What each variant passes to `BatchRunner.run` beside its output."""


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=7)
    args.add_argument("--rows", type=int, nargs=2, default=(500, 2500), metavar=("FEW", "MANY"))
    args.add_argument("--slots", type=int, default=8)
    args.add_argument("--latency-ms", type=float, default=40.0)
    found = args.parse_args()
    few, many = (50, 250) if found.quick else found.rows
    pairs = 1 if found.quick else found.pairs
    taken: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        harness.fake_ollama(slots=found.slots, latency_s=found.latency_ms / 1000) as fake,
    ):
        folder = Path(name)
        inputs = {count: folder / f"in-{count}.jsonl" for count in (few, many)}
        for count, path in inputs.items():
            harness.write_rows(path, count)
        for pair, journal in harness.alternate(list(JOURNALS), pairs):
            cost = {}
            for count in (few, many):
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    line = clients.command(
                        "ollama_batch",
                        input=inputs[count],
                        output=Path(out) / "out.jsonl",
                        url=fake.url,
                        concurrency=found.slots,
                        options={"run": JOURNALS[journal]},
                    )
                    cost[count] = harness.measure(line)
                    if cost[count].stdout.get("rows") != count:
                        raise RuntimeError(
                            f"answered {json.dumps(dict(cost[count].stdout))} for {count} rows"
                        )
            more = many - few
            taken.append(
                {
                    "journal": journal,
                    "pair": pair,
                    "wall_ms_per_row": (cost[many].wall_s - cost[few].wall_s) / more * 1000,
                    "cpu_ms_per_row": (cost[many].cpu_s - cost[few].cpu_s) / more * 1000,
                }
            )
            print(
                f"pair {pair + 1}/{pairs} {journal}: {taken[-1]['wall_ms_per_row']:.3f} ms a row", flush=True
            )
    by = {(t["journal"], t["pair"]): t["wall_ms_per_row"] for t in taken}
    extra = harness.median([(by["file", p] / by["memory", p] - 1) * 100 for p in range(pairs)])
    rows = [
        [
            journal,
            harness.median([t["wall_ms_per_row"] for t in taken if t["journal"] == journal]),
            harness.median([t["cpu_ms_per_row"] for t in taken if t["journal"] == journal]),
        ]
        for journal in JOURNALS
    ]
    goals = [Goal("wall time added by the file journal (median over pairs)", extra, 5.0, " %")]
    ideal = found.latency_ms / found.slots
    notes = [
        f"{pairs} alternating pairs, {few:,} against {many:,} rows",
        f"{found.slots} slots x {found.latency_ms:g} ms: no client can be faster than {ideal:g} ms a row",
    ]
    columns = ["journal", "wall ms/row", "CPU ms/row"]
    Outcome("durability", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
