from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

PAGE = """Before.

<!-- goals -->

| benchmark | goal     | measured | wanted    | met |
|-----------|----------|----------|-----------|-----|
| crash     | lost     | 0        | at most 0 | yes |
| scale     | per row  | 16 bytes | at most 9 | no  |
| scale     | resuming | 2 s      | at most 9 | yes |

<!-- /goals -->

After.
"""


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "harness", raising=False)
    spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(text: str, value: float) -> dict[str, Any]:
    goal = {"text": text, "value": value, "limit": 5, "unit": " s", "at_least": False, "met": value <= 5}
    return {"goals": [goal]}


def goals_in(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_goals_of_benchmarks_that_were_not_measured_now_keep_their_rows(report: ModuleType) -> None:
    page = report.render(PAGE, {"scale": measured("resuming", 7), "durability": measured("added", 1)})
    assert goals_in(page) == [
        ["crash", "lost", "0", "at most 0", "yes"],
        ["durability", "added", "1 s", "at most 5 s", "yes"],
        ["scale", "resuming", "7 s", "at most 5 s", "no"],
    ]
    assert page.startswith("Before.\n\n<!-- goals -->\n\n| ")
    assert page.endswith(" |\n\n<!-- /goals -->\n\nAfter.\n")


def test_rendering_what_is_there_already_changes_nothing(report: ModuleType) -> None:
    outcomes = {"scale": measured("resuming", 7)}
    once = report.render(PAGE, outcomes)
    assert report.render(once, outcomes) == once
    assert report.render(PAGE, {}) == PAGE


def test_a_page_without_some_goals_gets_them_from_the_table_that_is_kept(report: ModuleType) -> None:
    page = "<!-- goals -->\n\nNothing measured yet.\n\n<!-- /goals -->\n"
    kept = report.GOALS.search(PAGE)[0]
    names = [row[0] for row in goals_in(report.render(page, {"zeal": measured("seen", 1)}, kept=kept))]
    assert names == ["crash", "scale", "scale", "zeal"]


def test_headlines_are_those_of_the_list_and_every_goal_that_is_not_met(report: ModuleType) -> None:
    page = PAGE + "<!-- headlines -->\n<!-- /headlines -->\n"
    filled = report.render(page, {"durability": measured("added", 9), "trimming": measured("window", 1)})
    shown = goals_in(filled[filled.index("<!-- headlines -->") :])
    assert [cells[:2] for cells in shown] == [
        ["scale", "per row"],
        ["scale", "resuming"],
        ["durability", "added"],
    ]
