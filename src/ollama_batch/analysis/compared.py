"""What stands on the page of a comparison."""

from __future__ import annotations

from typing import Any, Final

from ollama_batch._text import count, duration, plain, share
from ollama_batch.analysis.agreement import FieldAgreement, Move
from ollama_batch.analysis.compare import Comparison
from ollama_batch.analysis.numbers import figure, signed
from ollama_batch.analysis.parts import Card, Part, plotted

TABLE: Final = 10
"""A field with more labels has no table of what became of what."""


def comparison_view(found: Comparison) -> dict[str, Any]:
    """What the page of a comparison shows."""
    a, b = plain(found.a.name, 80), plain(found.b.name, 80)
    of = found.both or 1
    unchanged = found.both - found.changed
    outcome = [
        Part("unchanged", count(unchanged), 100 * unchanged / of, "good"),
        Part("changed", count(found.changed), 100 * found.changed / of, "warn"),
    ]
    cards = [
        Card("In both runs", count(found.both), f"{count(found.rows_a)} and {count(found.rows_b)} rows"),
        Card(
            "Ok in both",
            count(found.both_ok),
            f"{count(found.ok_a)} only in A, {count(found.ok_b)} only in B",
        ),
        Card("Same text", share(found.same_text_share), f"{count(found.same_text)} answers, to the letter"),
    ]
    if found.latency_a is not None and found.latency_b is not None:
        medians = f"{duration(found.latency_a.median)} \u2192 {duration(found.latency_b.median)}"
        cards.append(
            Card("Median latency", medians, f"of the {count(found.latency_a.count)} rows answered in both")
        )
    score = found.score
    if score is not None and score.mean_change is not None:
        beside = (
            ""
            if score.interval is None
            else f"95 %: {signed(score.interval[0])} to {signed(score.interval[1])}"
        )
        cards.append(Card(f"Mean change of {plain(score.name, 30)}", signed(score.mean_change), beside))
    return {
        "title": f"{a} and {b}",
        "a": a,
        "b": b,
        "headline": f"{count(found.changed)} of {count(found.both)} rows changed",
        "outcome": [part for part in outcome if part.share],
        "cards": cards,
        "fields": [_agreement(field) for field in found.fields],
        "score": None
        if score is None
        else {
            "name": plain(score.name, 60),
            "plot": plotted(
                score.changes, "Changes", "score in B less score in A, of the rows where it changed"
            ),
            "figures": []
            if score.mean_change is None
            else [
                ("compared", count(score.count)),
                ("mean in A", figure(score.mean_a)),
                ("mean in B", figure(score.mean_b)),
                ("mean change", signed(score.mean_change)),
                ("std. deviation", figure(score.sd)),
                ("up", count(score.up)),
                ("down", count(score.down)),
                ("the same", count(score.same)),
            ],
        },
        "examples": [
            {
                "id": plain(each.custom_id, 60),
                "what": ", ".join(plain(w, 40) for w in each.what),
                "a": each.a,
                "b": each.b,
            }
            for each in found.examples
        ],
        "more": max(0, found.changed - len(found.examples)),
        "notes": found.notes,
    }


def _agreement(field: FieldAgreement) -> dict[str, Any]:
    labels = field.labels[:TABLE] if len(field.labels) <= TABLE else ()
    cells = {(move.a, move.b): move.count for move in field.table}
    most = max(cells.values(), default=1)
    return {
        "name": plain(field.path, 60),
        "figures": [
            ("compared", count(field.count)),
            ("agreement", share(field.agreement)),
            (
                "Cohen's kappa",
                f"undefined: {field.undefined}" if field.kappa is None else f"{field.kappa:.3f}",
            ),
            *(
                [("weighted kappa", f"{field.weighted_kappa:.3f}")]
                if field.weighted_kappa is not None
                else []
            ),
        ],
        "labels": [plain(label, 40) for label in labels],
        "rows": [
            (
                plain(a, 40),
                [(cells.get((a, b), 0), round(75 * cells.get((a, b), 0) / most), a == b) for b in labels],
            )
            for a in labels
        ],
        "moves": [_move(move) for move in field.moves[:12]],
    }


def _move(move: Move) -> dict[str, str]:
    return {"a": plain(move.a, 60), "b": plain(move.b, 60), "count": count(move.count)}
