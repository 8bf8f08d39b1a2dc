"""Write the figures of benchmarks/out/*.json into the documents, between their markers.

    <!-- figures:NAME -->  ...  <!-- /figures:NAME -->      the table of benchmark NAME
    <!-- goals -->         ...  <!-- /goals -->             every goal of every benchmark, one line each
    <!-- headlines -->     ...  <!-- /headlines -->         those of `HEADLINES`, and every miss

`--check` changes nothing and exits 1 if a document differs from the JSON files that are there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import harness
from harness import OUT

ROOT = harness.HERE.parent
DOCUMENTS = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
FIGURES = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures:\2 -->)", re.DOTALL)
GOAL_COLUMNS = ["benchmark", "goal", "measured", "wanted", "met"]
GOALS = re.compile(r"(<!-- goals -->\n).*?(<!-- /goals -->)", re.DOTALL)
HEADLINES = (
    ("crash", "random moments: rows lost or doubled"),
    ("crash", "random moments: kills"),
    ("fault_mix", "calls per row"),
    ("kills_embedded", "embedded: rows failed"),
    ("engine_bound", "throughput against bare sockets"),
    ("client_cpu", "CPU per request against"),
    ("auto_simulated", "share of the best fixed number, worst seed"),
    ("auto_engine", "rate against the best fixed number"),
    ("prefix_heads", "tokens evaluated against input order"),
    ("prefix_head", "reported cached tokens against"),
    ("conversation", "evaluated against the original, head 350, exchanges of 1,200, by the replies"),
    ("near_limit_fail", "rows answered from another prompt"),
    ("calibration", "median error"),
    ("scale", ""),
)
HEADLINE = re.compile(r"(<!-- headlines -->\n).*?(<!-- /headlines -->)", re.DOTALL)


def load() -> dict[str, dict[str, Any]]:
    """The published outcomes by name; quick runs are left out."""
    found = {}
    for path in sorted(OUT.glob("*.json")):
        if not path.name.endswith(".quick.json"):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def goal_cells(goal: Mapping[str, Any]) -> list[str]:
    sign = "at least" if goal["at_least"] else "at most"
    value = "-" if goal["value"] is None else f"{harness.show(goal['value'])}{goal['unit']}"
    word = {True: "yes", False: "no", None: "not measured"}[goal["met"]]
    return [goal["text"], value, f"{sign} {harness.show(goal['limit'])}{goal['unit']}", word]


def pair_lines(outcome: Mapping[str, Any]) -> list[str]:
    """Every single measurement, one line each, folded away."""
    lines = ["<details><summary>Every measurement</summary>", "", "```"]
    for pair in outcome["pairs"]:
        flat = {**pair, **pair.pop("resume")} if "resume" in pair else pair
        lines.append("  ".join(f"{key}={harness.show(value)}" for key, value in flat.items()))
    return [*lines, "```", "", "</details>"]


def section(outcome: Mapping[str, Any]) -> str:
    """Table, goals, notes, machine and pairs of one benchmark, as Markdown."""
    machine = outcome["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = ["", harness.markdown_table(outcome["columns"], outcome["rows"]), ""]
    goals = [goal_cells(goal) for goal in outcome["goals"]]
    if goals:
        lines += [harness.markdown_table(["goal", "measured", "wanted", "met"], goals), ""]
    lines += [f"- {note}" for note in outcome["notes"]]
    where = f"{machine['cpus']} x {machine['cpu']}, {machine['system']}, Python {machine['python']}"
    lines += [
        f"- measured {outcome['measured_at'][:10]} on {where}; {versions}",
        "",
        *pair_lines(outcome),
        "",
    ]
    return "\n".join(lines) + "\n"


def goals(kept: str, outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of goals; what was not measured now keeps the rows that it has in the table `kept`."""
    rows = goal_rows(kept)
    for name, outcome in outcomes.items():
        rows[name] = [[name, *goal_cells(goal)] for goal in outcome["goals"]]
    return goal_table([cells for name in sorted(rows) for cells in rows[name]])


def goal_rows(table: str) -> dict[str, list[list[str]]]:
    """The rows of a table of goals, by benchmark."""
    rows: dict[str, list[list[str]]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells != GOAL_COLUMNS and not set(line) <= set("|-"):
            rows.setdefault(cells[0], []).append(cells)
    return rows


def headlines(table: str) -> str:
    """Of a table of goals, what most people want to know, and what nobody should have to look for."""
    rows = goal_rows(table)
    lines: list[list[str]] = []
    for name, text in HEADLINES:
        lines += [cells for cells in rows.get(name, ()) if cells[1].startswith(text)]
    lines += [cells for each in rows.values() for cells in each if cells[4] != "yes" and cells not in lines]
    return goal_table(lines)


def goal_table(lines: list[list[str]]) -> str:
    if not lines:
        return "\nNothing measured yet.\n\n"
    return "\n" + harness.markdown_table(GOAL_COLUMNS, lines) + "\n\n"


def render(text: str, outcomes: Mapping[str, Mapping[str, Any]], *, kept: str = "") -> str:
    """`text` with every known marker filled; what was not measured keeps what it says.

    Goals keep what the table in `kept` says, or without one that of `text`.
    """

    def fill(match: re.Match[str]) -> str:
        outcome = outcomes.get(match[2])
        return match[0] if outcome is None else match[1] + section(outcome) + match[3]

    text = FIGURES.sub(fill, text)
    if not outcomes:
        return text
    table = goals(kept or text_of(GOALS, text), outcomes)
    text = GOALS.sub(lambda match: match[1] + table + match[2], text)
    return HEADLINE.sub(lambda match: match[1] + headlines(table) + match[2], text)


def text_of(pattern: re.Pattern[str], text: str) -> str:
    """What `pattern` finds in `text`, or nothing."""
    found = pattern.search(text)
    return found[0] if found else ""


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true")
    found = args.parse_args()
    stale = 0
    known = text_of(GOALS, DOCUMENTS[0].read_text(encoding="utf-8"))
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = render(before, load(), kept=known)
        if after == before:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)}: {'differs' if found.check else 'written'}")
        if not found.check:
            path.write_text(after, encoding="utf-8")
    return 1 if found.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
