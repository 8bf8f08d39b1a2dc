"""An analysis, and a comparison, as a person reads them in a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ollama_batch._error_groups import more_kinds
from ollama_batch._text import count, duration, plain, rate, share
from ollama_batch.analysis.figures import FieldFigures
from ollama_batch.analysis.load import load_lines, most_vram
from ollama_batch.analysis.numbers import Distribution, figure, signed
from ollama_batch.analysis.timeline import Timeline

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ollama_batch.analysis.analysis import Analysis
    from ollama_batch.analysis.compare import Comparison

UNBROKEN: Final = 100_000
"""A width that no line reaches."""

BAR: Final = 24
MOST_LABELS: Final = 15
MOST_ERRORS: Final = 8
MOST_KINDS: Final = 5
MOST_CHANGES: Final = 10


def as_text(show_on: Callable[[Console], None]) -> str:
    """What `show_on` prints, as plain text in lines that are not broken or padded: whoever shows it does."""
    from rich.console import Console

    file = io.StringIO()
    # In a notebook rich would display each of its prints by itself, and leave the file empty.
    console = Console(file=file, width=UNBROKEN, color_system=None, force_terminal=False, force_jupyter=False)
    show_on(console)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def show_analysis(found: Analysis, console: Console) -> None:
    """Print an analysis. Whatever a model or a server said is printed as text, nothing of it is obeyed."""
    _heading(console, plain(found.source.name, 70))
    _pairs(console, _figures(found))
    if found.score is not None:
        _heading(console, f"score: {plain(found.score.name, 60)}")
        lines = [("rows", _with_missing(found.score.numbers, found.score.missing))]
        _pairs(console, [*lines, *_spread(found.score.numbers)])
    for field in found.fields:
        _field(console, field)
    if found.errors:
        _heading(console, "errors")
        for group in found.errors[:MOST_ERRORS]:
            _line(console, f"{count(group.count):>9}  {group.code}", "bold")
            for kind in group.kinds[:MOST_KINDS]:
                ids = ", ".join(plain(each, 40) for each in kind.custom_ids)
                said = plain(kind.message, 160) or "(no message)"
                _line(console, f"{'':7}{count(kind.count):>9}  {said} (as in {ids})")
            more = more_kinds(group, MOST_KINDS)
            if more:
                _line(console, f"{'':18}{more}")
        _and_more(console, len(found.errors) - MOST_ERRORS, "codes")
    if found.examples.get("unparsed"):
        _heading(console, "unparsed")
        for example in found.examples["unparsed"]:
            _line(console, f"  {plain(example.custom_id, 40)}: {plain(example.text, 120) or '(no text)'}")
    if found.notes:
        _heading(console, "notes")
        for note in found.notes:
            _line(console, f"  {plain(note, 400)}")


def show_comparison(found: Comparison, console: Console) -> None:
    """Print a comparison, likewise."""
    _heading(console, f"{plain(found.a.name, 45)} against {plain(found.b.name, 45)}")
    _pairs(
        console,
        [
            ("rows", f"{count(found.rows_a)} and {count(found.rows_b)}, {count(found.both)} in both"),
            *(
                [("only in one", f"{count(found.only_a)} and {count(found.only_b)}")]
                * bool(found.only_a + found.only_b)
            ),
            ("ok in both", count(found.both_ok)),
            *(
                [("ok in one", f"{count(found.ok_a)} and {count(found.ok_b)}")]
                * bool(found.ok_a + found.ok_b)
            ),
            ("same text", f"{count(found.same_text)} ({share(found.same_text_share)} of those ok in both)"),
            ("changed", f"{count(found.changed)} rows"),
            *_latency(found),
        ],
    )
    for field in found.fields:
        _heading(console, f"field: {plain(field.path, 60)}")
        lines = [
            ("compared", f"{count(field.count)} answers that have it in both"),
            (
                "agreement",
                ", ".join(
                    [f"{share(field.agreement)} ({count(field.agreed)} the same)", *respelt(field.respelt)]
                ),
            ),
            ("kappa", f"undefined: {field.undefined}" if field.kappa is None else f"{field.kappa:.3f}"),
        ]
        if field.weighted_kappa is not None:
            lines.append(("weighted", f"{field.weighted_kappa:.3f} (linear weights, in the order given)"))
        _pairs(console, lines)
        for change in field.moves[:MOST_CHANGES]:
            _line(console, f"{count(change.count):>9}  {plain(change.a, 40)} -> {plain(change.b, 40)}")
    if found.score is not None:
        score = found.score
        _heading(console, f"score: {plain(score.name, 60)}")
        if score.count:
            _pairs(
                console,
                [
                    ("compared", f"{count(score.count)} answers that have one in both"),
                    ("mean", f"{figure(score.mean_a)} and {figure(score.mean_b)}"),
                    ("difference", _difference(score.mean_change, score.interval)),
                    (
                        "moved",
                        f"{count(score.up)} up, {count(score.down)} down, {count(score.same)} the same",
                    ),
                ],
            )
    for note in found.notes:
        _line(console, f"  {plain(note, 400)}")


def _latency(found: Comparison) -> list[tuple[str, str]]:
    """Of the same rows in both runs, so that it is the runs that differ."""
    a, b = found.latency_a, found.latency_b
    if a is None or b is None:
        return []
    medians = f"{duration(a.median)} and {duration(b.median)} median"
    slow = f"{duration(a.p95)} and {duration(b.p95)} at 95 %"
    return [("latency", f"{medians}, {slow}, of the {count(a.count)} rows answered in both")]


def _difference(mean: float | None, interval: tuple[float, float] | None) -> str:
    told = "-" if mean is None else signed(mean)
    return (
        told if interval is None else f"{told} (95 % interval {signed(interval[0])} to {signed(interval[1])})"
    )


def _figures(found: Analysis) -> list[tuple[str, str]]:
    lines = [("rows", f"{count(found.rows)} finished: {count(found.ok)} ok, {count(found.failed)} failed")]
    if found.parsed is not None:
        lines.append(("answers", f"{count(found.parsed)} parsed, {count(found.unparsed or 0)} unparsed"))
    mended = mended_of(found)
    special = [
        *(f"{count(number)} {word}" for word, number in mended),
        *(
            f"{count(number)} {word}"
            for number, word in ((found.empty, "empty"), (found.trimmed, "trimmed"))
            if number
        ),
    ]
    if special:
        lines.append(("of these", ", ".join(special)))
    if found.models:
        lines.append(("model", ", ".join(plain(model, 60) for model in found.models)))
    tokens = found.tokens
    if tokens.reported:
        estimated = " (some estimated)" if tokens.estimated else ""
        earlier = f", with {count(tokens.earlier)} answers before the last" if tokens.earlier else ""
        lines.append(
            (
                "tokens",
                f"{count(tokens.prompt)} prompt, {count(tokens.completion)} completion{estimated}{earlier}",
            )
        )
        cached = "not recorded"
        if tokens.cached is not None:
            cached = f"{count(tokens.cached)} prompt tokens ({share(tokens.cached_share)} of those that tell)"
        lines.append(("cached", cached))
    else:
        lines.append(("tokens", "not recorded"))
    latency = found.latency
    lines.append(
        (
            "latency",
            "not recorded"
            if latency is None
            else f"{duration(latency.median)} median, {duration(latency.p95)} at 95 %, "
            f"{duration(latency.high)} at most",
        )
    )
    timeline = found.timeline
    if timeline is not None:
        per_s = found.rows / timeline.length_s
        lines.append(("time", f"{time_of(timeline)}, {rate(per_s)} rows/s"))
        lines.append(("VRAM", most_vram(found.load, (each.used_bytes for each in timeline.memory))))
    lines += load_lines(found.load)
    return lines


def time_of(timeline: Timeline) -> str:
    """How long a run took, and what that counts: files do not tell a short stop from work."""
    length = duration(timeline.length_s)
    return f"{length} of work" if timeline.clock == "journal" else f"{length} from first to last answer"


def mended_of(found: Analysis) -> list[tuple[str, int]]:
    """How many answers were repaired, and how often one was asked for again; also where that is none, if the
    run had a response model.
    """
    structured = found.source.settings.get("response_model") is not None
    told = (("repaired", found.repaired), ("asked again", found.asked_again))
    return [(word, number) for word, number in told if number or (structured and number is not None)]


def respelt(number: int) -> list[str]:
    """What is said of values that are not spelt as their label is called."""
    return [f"{count(number)} spelt otherwise (letter case, white space)"] if number else []


def _field(console: Console, field: FieldFigures) -> None:
    _heading(console, f"field: {plain(field.path, 60)}")
    missing = [f"{count(n)} {word}" for n, word in ((field.null, "null"), (field.absent, "absent")) if n]
    told = [f"{count(field.present)} present", *missing, *respelt(field.respelt)]
    _pairs(console, [("values", ", ".join(told))])
    if field.numeric and len(field.labels) > MOST_LABELS:
        _pairs(console, _spread(field.numbers))
        return
    most = max(field.labels.values(), default=0)
    for label, number in list(field.labels.items())[:MOST_LABELS]:
        bar = "█" * max(number > 0, round(BAR * number / most)) if most else ""
        part = share(number / field.present) if field.present else "-"
        _line(console, f"{count(number):>9}  {part:>6}  {bar:<{BAR}}  {plain(label, 50)}")
    _and_more(console, len(field.labels) - MOST_LABELS, "labels")


def _spread(numbers: Distribution | None) -> list[tuple[str, str]]:
    if numbers is None:
        return []
    sd = "" if numbers.sd is None else f" (standard deviation {figure(numbers.sd)})"
    return [
        ("mean", f"{figure(numbers.mean)}{sd}"),
        (
            "median",
            f"{figure(numbers.median)}, half of them from {figure(numbers.p25)} to {figure(numbers.p75)}",
        ),
        ("range", f"{figure(numbers.low)} to {figure(numbers.high)}"),
    ]


def _with_missing(numbers: Distribution | None, missing: int) -> str:
    scored = 0 if numbers is None else numbers.count
    return f"{count(scored)} scored" + (f", {count(missing)} without a score" if missing else "")


def _heading(console: Console, text: str) -> None:
    console.print(_styled(f"\n{text}", "bold cyan"))


def _pairs(console: Console, lines: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    told = list(lines)
    table = Table.grid(padding=(0, 2))
    table.add_column(width=max((11, *(2 + len(label) for label, _ in told))))
    table.add_column(overflow="fold")
    for label, text in told:
        table.add_row(_styled(f"  {label}", "dim"), _styled(text))
    console.print(table)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(_styled(text, style), overflow="fold")


def _and_more(console: Console, number: int, what: str) -> None:
    if number > 0:
        _line(console, f"{'':11}and {count(number)} more {what}")


def _styled(text: str, style: str = "") -> Text:
    # A Text, never markup: [bold] in an answer is what the answer says.
    from rich.text import Text

    return Text(text, style=style)
