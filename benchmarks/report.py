"""Write the figures of benchmarks/out/*.json into the documents, between their markers.

    <!-- figures:NAME -->  ...  <!-- /figures:NAME -->      the table of benchmark NAME
    <!-- goals -->         ...  <!-- /goals -->             every goal of every benchmark, one line each

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
    rows: dict[str, list[list[str]]] = {}
    for line in kept.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells != GOAL_COLUMNS and not set(line) <= set("|-"):
            rows.setdefault(cells[0], []).append(cells)
    for name, outcome in outcomes.items():
        rows[name] = [[name, *goal_cells(goal)] for goal in outcome["goals"]]
    lines = [cells for name in sorted(rows) for cells in rows[name]]
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
    return GOALS.sub(lambda match: match[1] + goals(kept or match[0], outcomes) + match[2], text)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true")
    found = args.parse_args()
    stale = 0
    known = GOALS.search(DOCUMENTS[0].read_text(encoding="utf-8"))
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = render(before, load(), kept=known[0] if known else "")
        if after == before:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)}: {'differs' if found.check else 'written'}")
        if not found.check:
            path.write_text(after, encoding="utf-8")
    return 1 if found.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
