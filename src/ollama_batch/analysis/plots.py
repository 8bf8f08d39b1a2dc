"""The geometry of plots: places in percent, which the page stretches to the width there is.

A plot is drawn by the page from plain boxes and one stretched SVG path for lines, so that it needs no script,
its labels stay readable on a phone, and colours follow the reader's light or dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from ollama_batch._text import count
from ollama_batch.analysis.numbers import Bar, Distribution, edges, nice_step, quantile
from ollama_batch.analysis.timeline import Timeline

SIZE: Final = 1000
"""Units of the stretched drawing, in both directions."""

_FAR: Final = 3.0

Say = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at `at` percent; `minor` ones are left out where there is little room."""

    at: float
    label: str
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or with no height a place to point at: percent of the plot, and what is told there."""

    left: float
    width: float
    height: float
    tip: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Path:
    """A line or an area, as SVG path data in `SIZE` units; `kind` is its class."""

    data: str
    kind: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: `title`, what is shown in `unit`, axes, columns, paths, limits and marks."""

    title: str
    unit: str
    y: tuple[Tick, ...]
    x: tuple[Tick, ...]
    columns: tuple[Column, ...] = ()
    hits: tuple[Column, ...] = ()
    paths: tuple[Path, ...] = ()
    limits: tuple[Tick, ...] = ()
    marks: tuple[Tick, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = field(default=(), repr=False)


def number(value: float) -> str:
    """A number as an axis or a table has it: about three figures, large ones short."""
    for least, divisor, unit in ((999.5e6, 1e9, "B"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{_three(value / divisor)}{unit}"
    return f"{value:,.0f}" if value == math.floor(value) else _three(value)


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def histogram(
    found: Distribution, *, title: str, unit: str, say: Say = number, suffix: str = "", what: str = "rows"
) -> Plot:
    """Columns for the bars of `found`, marks at its median and mean; `suffix` is that of what `say` says."""
    bars = found.bars
    ends = [bars[0].low, *(bar.high for bar in bars if bar.high is not None)]
    told = dict(zip(ends, edges(ends, say, suffix), strict=True))
    top, y = _axis(max(bar.count for bar in bars), whole=True)
    share = 100 / len(bars)
    whole = all(bar.high is None or bar.high - bar.low == 1 for bar in bars)

    def span(bar: Bar) -> str:
        if bar.high is None:
            return f"{told[bar.low]} and more"
        return told[bar.low] if whole else f"{told[bar.low]} to {told[bar.high]}"

    columns = tuple(
        Column(
            n * share,
            share,
            100 * bar.count / top,
            f"{span(bar)}\n{count(bar.count)} {what}",
            "tail" * (bar.high is None),
        )
        for n, bar in enumerate(bars)
    )
    middle = share / 2 if whole else 0.0
    every = max(1, math.ceil(len(bars) / 8))
    x = [
        Tick(n * share + middle, told[bar.low], minor=(n // every) % 2 == 1)
        for n, bar in enumerate(bars)
        if n % every == 0 and bar.high is not None
    ]
    if bars[-1].high is None:
        x = [tick for tick in x if tick.at < 100 - 12]
        x.append(Tick(100 - share / 2, "more"))

    def place(value: float) -> float | None:
        for n, bar in enumerate(bars):
            if bar.high is not None and bar.low <= value < bar.high:
                return (n + 0.5 if whole else n + (value - bar.low) / (bar.high - bar.low)) * share
        return None

    marks = [Tick(at, f"median {say(found.median)}") for at in [place(found.median)] if at is not None]
    table = tuple((span(bar), count(bar.count)) for bar in bars if bar.count)
    return Plot(title, unit, y, tuple(x), columns, marks=tuple(marks), head=(unit, what), table=table)


@dataclass(frozen=True, slots=True)
class Series:
    """Values over time, None where there is none; `kind` is the class of its line, `name` is for people."""

    name: str
    kind: str
    values: Sequence[float | None]


def over_time(
    timeline: Timeline,
    *,
    title: str,
    unit: str,
    lines: Sequence[Series] = (),
    columns: Series | None = None,
    stacked: Series | None = None,
    band: tuple[Series, Series] | None = None,
    limit: tuple[float, str] | None = None,
    say: Say = number,
    clock: Say,
    clipped: bool = False,
) -> Plot:
    """Values of each span of a run; `stacked` stands on the foot of `columns`, `band` is filled between.

    `clipped`: a few values far above the others are drawn at the upper edge, so that the others can be seen.
    """
    spans = timeline.spans
    shown = [*lines, *([columns] if columns else []), *(band or ())]
    known = sorted(value for series in shown for value in series.values if value is not None) or [1.0]
    highest = known[-1]
    if clipped and highest > _FAR * (usual := quantile(known, 0.95)) > 0:
        highest, unit = 1.25 * usual, f"{unit} (higher ones at the edge)"
    if limit is not None and limit[0] < _FAR * highest:
        highest = max(highest, limit[0])
    top, y = _axis(highest, say=say)
    width = 100 / len(spans)
    drawn: list[Column] = []
    for n in range(len(spans)):
        if columns is not None and (value := columns.values[n]) is not None:
            drawn.append(Column(n * width, width, 100 * value / top, "", columns.kind))
        if stacked is not None and (value := stacked.values[n]):
            drawn.append(Column(n * width, width, 100 * value / top, "", stacked.kind))
    paths = []
    if band is not None:
        paths.append(Path(_area(band[0].values, band[1].values, top), "band"))
    paths += [Path(_line(series.values, top), series.kind) for series in lines]
    named = [*lines, *([columns] if columns else []), *([stacked] if stacked else [])]
    told = [*named, *(band or ())]
    hits, table = [], []
    times = edges([*(span.start_s for span in spans), spans[-1].end_s], clock, "s")
    for n, (start, end) in enumerate(pairwise(times)):
        when = f"{start} to {end}"
        values = ["-" if series.values[n] is None else say(series.values[n] or 0.0) for series in told]
        tip = [f"{series.name}: {value}" for series, value in zip(told, values, strict=True) if value != "-"]
        hits.append(Column(n * width, width, 0, "\n".join([when, *(tip or ["nothing finished"])])))
        table.append((when, *values))
    limits: tuple[Tick, ...] = ()
    if limit is not None and limit[0] <= top:
        limits = (Tick(100 * limit[0] / top, limit[1]),)
    legend = [(series.kind, series.name) for series in named]
    if band is not None:
        legend.append(("band", f"{band[0].name} to {band[1].name}"))
    return Plot(
        title,
        unit,
        y,
        time_ticks(timeline.length_s, clock),
        tuple(drawn),
        tuple(hits),
        tuple(path for path in paths if path.data),
        limits,
        tuple(
            Tick(100 * stretch.offset_s / timeline.length_s, f"stopped {clock(stretch.stopped_s)}")
            for stretch in timeline.stretches[1:]
        ),
        tuple(legend) if len(legend) > 1 else (),
        ("time of work", *(series.name for series in told)),
        tuple(table),
    )


def memory_plot(timeline: Timeline, *, say: Say, clock: Say) -> Plot | None:
    """Memory in use over time; None where the journal has none."""
    points = timeline.memory
    if not points:
        return None
    total = max((each.total_bytes for each in points if each.total_bytes is not None), default=None)
    top, y = _axis(max([*(each.used_bytes for each in points), total or 0]), say=say, unit=2**30)
    places = [(SIZE * each.at_s / timeline.length_s, SIZE * (1 - each.used_bytes / top)) for each in points]
    data = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in places)
    area = f"{data}L{places[-1][0]:.0f} {SIZE}L{places[0][0]:.0f} {SIZE}Z"
    hits = tuple(
        Column(
            max(0.0, 100 * each.at_s / timeline.length_s - 0.5),
            1,
            0,
            f"{clock(each.at_s)}\n{say(each.used_bytes)} in use",
        )
        for each in points[:: max(1, len(points) // 100)]
    )
    return Plot(
        "GPU memory",
        "in use",
        y,
        time_ticks(timeline.length_s, clock),
        (),
        hits,
        (Path(area, "area"), Path(data, "line a")),
        () if total is None else (Tick(100 * total / top, f"{say(total)} in all"),),
        head=("time of work", "in use"),
        table=tuple(
            (clock(each.at_s), say(each.used_bytes)) for each in points[:: max(1, len(points) // 60)]
        ),
    )


_CLOCK_STEPS: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
)


def time_ticks(length_s: float, clock: Say) -> tuple[Tick, ...]:
    """Round times along an axis of `length_s` seconds, about six of them."""
    if length_s < 6:
        step = nice_step(length_s / 6)
    else:
        step = (
            next((each for each in _CLOCK_STEPS if each >= length_s / 7), 0)
            or nice_step(length_s / 6 / 86400) * 86400
        )
    return tuple(
        Tick(100 * n * step / length_s, "0" if n == 0 else _short(n * step, clock), minor=n % 2 == 1)
        for n in range(math.floor(length_s / step + 1e-9) + 1)
    )


def _short(seconds: float, clock: Say) -> str:
    """A round time: 45s, 10m, 1h30m, 2d."""
    text = clock(seconds)
    for tail in ("00s", "00m", "00h"):
        text = text.removesuffix(tail)
    return text


def _axis(
    highest: float, *, whole: bool = False, say: Say = number, unit: float = 1.0
) -> tuple[float, tuple[Tick, ...]]:
    """The top of an axis from 0, and its ticks."""
    step = nice_step(max(highest, 1e-9) / unit / 4, whole=whole) * unit
    steps = max(1, math.ceil(highest / step - 1e-9))
    return step * steps, tuple(Tick(100 * n / steps, say(n * step)) for n in range(steps + 1))


def _points(values: Sequence[float | None], top: float) -> list[list[tuple[float, float]]]:
    """Runs of known values as points: the middle of each span, from the top down."""
    runs: list[list[tuple[float, float]]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((SIZE * (n + 0.5) / len(values), SIZE * (1 - min(value, top) / top)))
    return [run for run in runs if run]


def _line(values: Sequence[float | None], top: float) -> str:
    parts = []
    for run in _points(values, top):
        # A span on its own would be a point without extent.
        points = run if len(run) > 1 else [(run[0][0] - 4, run[0][1]), (run[0][0] + 4, run[0][1])]
        parts.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points))
    return "".join(parts)


def _area(low: Sequence[float | None], high: Sequence[float | None], top: float) -> str:
    parts = []
    for above, below in zip(_points(high, top), _points(low, top), strict=True):
        if len(above) > 1:
            points = [*above, *reversed(below)]
            parts.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points) + "Z")
    return "".join(parts)
