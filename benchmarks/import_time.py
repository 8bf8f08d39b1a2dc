"""Time of `import ollama_batch` against `import httpx, pydantic`, in fresh interpreters that alternate.

Names load on first use, so the import that also takes BatchRunner is measured beside it.
"""

from __future__ import annotations

import sys
from typing import Any

import harness
from harness import Goal, Outcome

REFERENCE = "httpx, pydantic"
STATEMENTS = {
    "nothing": "pass",
    REFERENCE: "import httpx, pydantic",
    "ollama_batch": "import ollama_batch",
    "BatchRunner": "from ollama_batch import BatchRunner",
}
TIMED = (
    "import json, time; started = time.perf_counter()\n{}\n"
    "print(json.dumps(dict(work_s=time.perf_counter() - started)))"
)


def main() -> None:
    args = harness.parser(__doc__)
    args.add_argument("--pairs", type=int, default=21)
    found = args.parse_args()
    pairs = 3 if found.quick else found.pairs
    taken: list[dict[str, Any]] = []
    for statement in STATEMENTS.values():  # once unmeasured: the byte code is compiled, the files are cached
        harness.measure([sys.executable, "-c", statement])
    for pair, name in harness.alternate(list(STATEMENTS), pairs):
        cost = harness.measure([sys.executable, "-c", TIMED.format(STATEMENTS[name])])
        taken.append({"import": name, "pair": pair, "import_s": cost.work_s or 0.0, "process_s": cost.wall_s})
    by = {(t["import"], t["pair"]): t["import_s"] for t in taken}

    def ratio(name: str) -> float:
        return harness.median([by[name, pair] / by[REFERENCE, pair] for pair in range(pairs)])

    rows = [
        [
            name,
            harness.median([t["import_s"] for t in taken if t["import"] == name]) * 1000,
            harness.median([t["process_s"] for t in taken if t["import"] == name]) * 1000,
        ]
        for name in STATEMENTS
    ]
    goals = [
        Goal("import ollama_batch against httpx and pydantic", ratio("ollama_batch"), 2.0, "x"),
        Goal("with BatchRunner, against httpx and pydantic", ratio("BatchRunner"), 2.0, "x"),
    ]
    notes = [f"medians of {pairs} alternating pairs"]
    columns = ["import", "import ms", "whole process ms"]
    Outcome("import_time", harness.command_line(), columns, rows, goals, taken, notes, found.quick).publish()


if __name__ == "__main__":
    main()
