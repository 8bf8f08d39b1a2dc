"""What stands on the page of an analysis: numbers as a person reads them, foreign text made plain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from ollama_batch._error_groups import more_kinds
from ollama_batch._text import count, duration, plain, rate, share
from ollama_batch.analysis.analysis import Analysis
from ollama_batch.analysis.figures import FieldFigures
from ollama_batch.analysis.load import load_cards
from ollama_batch.analysis.numbers import figure
from ollama_batch.analysis.page import mended_of, respelt, time_of
from ollama_batch.analysis.parts import Card, Part, plotted, seconds, spread_of
from ollama_batch.analysis.plots import Plot, Series, memory_plot, number, over_time
from ollama_batch.analysis.timeline import Timeline
from ollama_batch.memory.amounts import show

LABELS: Final = 15
CODES: Final = 12
MESSAGES: Final = 5
NOT_RECORDED: Final = "not recorded"


def analysis_view(found: Analysis) -> dict[str, Any]:
    """What the page of an analysis shows."""
    source, timeline = found.source, found.timeline
    return {
        "title": plain(source.name, 120),
        "about": _about(found),
        "headline": f"{count(found.ok)} of {count(found.rows)} rows ok",
        "outcome": _outcome(found),
        "cards": _cards(found),
        "score": None if found.score is None else _score(found),
        "fields": [_field(field) for field in found.fields],
        "time": [] if timeline is None else _time(found, timeline),
        "latency": plotted(
            found.latency, "Latency", "seconds an answer took", say=seconds, suffix="s", what="answers"
        ),
        "tokens": _tokens(found),
        "missing": _missing(found),
        "errors": [
            {
                "code": group.code,
                "part": Part(group.code, count(group.count), 100 * group.count / found.failed, "bad"),
                "kinds": [
                    {
                        "count": count(kind.count),
                        "message": kind.message or "(no message)",
                        "ids": [plain(each, 60) for each in kind.custom_ids],
                    }
                    for kind in group.kinds[:MESSAGES]
                ],
                "others": more_kinds(group, MESSAGES),
            }
            for group in found.errors[:CODES]
        ],
        "other_codes": _other_codes(found),
        "finish": _parts(found.finish_reasons, found.ok),
        "examples": {
            title: [{"id": plain(each.custom_id, 60), "text": each.text} for each in examples]
            for title, examples in found.examples.items()
        },
        "notes": found.notes,
        "length": plotted(found.answer_length, "Length of answers", "characters", what="answers"),
    }


def _other_codes(found: Analysis) -> str:
    left = found.errors[CODES:]
    if not left:
        return ""
    codes = "1 other code" if len(left) == 1 else f"{count(len(left))} other codes"
    return f"and {codes}, in {count(sum(group.count for group in left))} rows"


def _about(found: Analysis) -> list[tuple[str, str]]:
    source, timeline = found.source, found.timeline
    models = ", ".join(plain(model, 60) for model in found.models) or plain(
        str(source.settings.get("model") or ""), 60
    )
    about = [("model", models)]
    for name, key in (("engine", "server"), ("context", "num_ctx"), ("mode", "mode")):
        value = source.settings.get(key)
        if value:
            about.append((name, count(value) if isinstance(value, int) else plain(str(value), 60)))
    if timeline is not None:
        began = datetime.fromtimestamp(timeline.started_at, UTC)
        about.append(("began", began.strftime("%Y-%m-%d %H:%M UTC")))
    if source.run_id is not None:
        about.append(("run", plain(source.run_id[:8], 20)))
    if source.state not in (None, "finished", "completed"):
        about.append(("state", plain(str(source.state), 20)))
    return [(name, value) for name, value in about if value]


def _outcome(found: Analysis) -> list[Part]:
    of = found.rows or 1
    unparsed = found.unparsed or 0
    # A repaired answer that nobody could parse in spite of that is in one part only.
    repaired = min(found.repaired or 0, found.ok - unparsed)
    parts = (
        ("ok", found.ok - unparsed - repaired, "good"),
        ("repaired", repaired, "soft"),
        ("unparsed", unparsed, "warn"),
        ("failed", found.failed, "bad"),
    )
    return [Part(name, count(n), 100 * n / of, kind) for name, n, kind in parts if n]


def _cards(found: Analysis) -> list[Card]:
    tokens, latency, timeline = found.tokens, found.latency, found.timeline
    cards = [Card("Ok", share(found.ok / found.rows) if found.rows else "-", f"{count(found.failed)} failed")]
    if found.unparsed is not None:
        parsed = f"{count(found.parsed or 0)} parsed"
        cards.append(Card("Unparsed", count(found.unparsed), parsed, "warn" * bool(found.unparsed)))
    if mended := dict(mended_of(found)):
        again = f"{count(mended['asked again'])} asked again" if "asked again" in mended else ""
        cards.append(Card("Repaired", count(mended.get("repaired", 0)), again))
    if found.score is not None and found.score.numbers is not None:
        numbers = found.score.numbers
        cards.append(
            Card(
                f"Mean {plain(found.score.name, 24)}",
                figure(numbers.mean),
                f"median {figure(numbers.median)}",
            )
        )
    if latency is not None:
        cards.append(Card("Median latency", duration(latency.median), f"95 % below {duration(latency.p95)}"))
    if timeline is not None:
        pace = found.rows / timeline.length_s
        cards.append(Card("Throughput", f"{rate(60 * pace)}/min", time_of(timeline)))
    if tokens.reported:
        cards.append(Card("Tokens", number(tokens.total), f"{number(tokens.completion)} of them in answers"))
        cached = NOT_RECORDED if tokens.cached is None else share(tokens.cached_share)
        beside = "" if tokens.cached is None else f"{number(tokens.cached)} prompt tokens"
        cards.append(Card("From the cache", cached, beside, "quiet" * (tokens.cached is None)))
    return [*cards, *load_cards(found.load)]


def _score(found: Analysis) -> dict[str, Any]:
    score = found.score
    assert score is not None  # noqa: S101 - asked for by the caller
    return {
        "name": plain(score.name, 60),
        "plot": plotted(score.numbers, "Scores", plain(score.name, 60), what="answers"),
        "figures": spread_of(score.numbers),
        "missing": count(score.missing) if score.missing else "",
    }


def _field(field: FieldFigures) -> dict[str, Any]:
    quantity = field.numeric and len(field.labels) > LABELS
    missing = [f"{count(n)} {word}" for n, word in ((field.null, "null"), (field.absent, "absent")) if n]
    return {
        "name": plain(field.path, 60),
        "beside": ", ".join([f"{count(field.present)} answers have it", *missing, *respelt(field.respelt)]),
        "plot": plotted(field.numbers, plain(field.path, 60), "value", what="answers") if quantity else None,
        "parts": [] if quantity else _parts(field.labels, field.present, field.other_labels),
        "figures": spread_of(field.numbers) if field.numeric else [],
    }


def _parts(labels: Any, of: int, others: int = 0) -> list[Part]:
    shown = list(labels.items())[:LABELS]
    left = list(labels.values())[LABELS:]
    parts = [Part(plain(name, 80) or "(empty)", count(n), 100 * n / (of or 1)) for name, n in shown]
    rest = sum(left) + others
    if rest:
        many = f"{count(len(left))}{' or more' * bool(others)} others"
        parts.append(Part(many, count(rest), 100 * rest / (of or 1), "quiet"))
    return parts


def _time(found: Analysis, timeline: Timeline) -> list[Plot]:
    spans = timeline.spans

    def series(name: str, kind: str, values: Iterable[float | None]) -> Series:
        return Series(name, kind, list(values))

    pace = [
        over_time(
            timeline,
            title="Throughput",
            unit="rows a minute",
            columns=series("finished", "a", (60 * span.rows_per_s for span in spans)),
            stacked=series(
                "failed",
                "bad",
                (60 * span.rows_per_s * span.failed / span.rows if span.rows else None for span in spans),
            )
            if found.failed
            else None,
            clock=duration,
        )
    ]
    if any(span.completion_tokens_per_s for span in spans):
        pace.append(
            over_time(
                timeline,
                title="Speed",
                unit="answer tokens a second",
                lines=[series("tokens/s", "line b", (span.completion_tokens_per_s for span in spans))],
                clock=duration,
            )
        )
    if any(span.latency_median_s is not None for span in spans):
        pace.append(
            over_time(
                timeline,
                title="Latency",
                unit="seconds an answer took",
                lines=[series("median", "line a", (span.latency_median_s for span in spans))],
                band=(
                    series("10 %", "band", (span.latency_p10_s for span in spans)),
                    series("90 %", "band", (span.latency_p90_s for span in spans)),
                ),
                say=seconds,
                clock=duration,
                clipped=True,
            )
        )
    if any(span.context_median is not None for span in spans):
        limit = found.source.settings.get("num_ctx")
        pace.append(
            over_time(
                timeline,
                title="Context",
                unit="tokens of prompt and answer",
                lines=[
                    series("median", "line b", (span.context_median for span in spans)),
                    series("largest", "line c", (span.context_high for span in spans)),
                ],
                limit=(limit, f"num_ctx {count(limit)}") if isinstance(limit, int) else None,
                clock=duration,
            )
        )
    memory = memory_plot(timeline, say=show, clock=duration)
    return [*pace, *([memory] if memory is not None else [])]


def _tokens(found: Analysis) -> dict[str, Any] | None:
    tokens = found.tokens
    if not tokens.reported:
        return None
    of = tokens.total or 1
    cached, reasoning = tokens.cached or 0, tokens.reasoning or 0
    prompt = "prompt" if tokens.cached is None else "prompt, evaluated"
    parts = (
        ("prompt, from the cache", cached, "soft"),
        (prompt, tokens.prompt - cached, "a"),
        ("reasoning", reasoning, "c"),
        ("answers", tokens.completion - reasoning, "b"),
    )
    return {
        "parts": [Part(name, count(n), 100 * n / of, kind) for name, n, kind in parts if n],
        "reported": count(tokens.reported),
        "plots": [
            plot
            for plot in (
                plotted(tokens.prompt_row, "Prompts", "tokens a row"),
                plotted(tokens.completion_row, "Answers", "tokens a row"),
            )
            if plot is not None
        ],
    }


def _missing(found: Analysis) -> list[str]:
    """What would be plotted if it had been recorded."""
    timeline = found.timeline
    absent = []
    if timeline is None:
        absent.append("throughput, latency and context over time")
    elif not any(span.context_median is not None for span in timeline.spans):
        absent.append("context over time")
    if timeline is not None and not any(span.latency_median_s is not None for span in timeline.spans):
        absent.append("latency over time")
    if timeline is None or not timeline.memory:
        absent.append("GPU memory over time")
    if found.load is None:
        absent.append("GPU use, waits and trouble")
    return absent
