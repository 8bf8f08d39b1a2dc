"""The views of a run's metrics: a plain line, a terminal bar, a notebook cell.

Model output is never shown; text from elsewhere (model names, error messages) is shown escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ollama_batch._memory_words import amount, by_reason, measured
from ollama_batch._text import both_ends, count, duration, plain, rate, share
from ollama_batch.metrics import BatchMetrics

Figures = list[tuple[str, str]]
"""What stands side by side, as (label, value)."""

# The bar gives way to a long model name and a narrow terminal, down to the least; so does the name.
_BAR, _BAR_LEAST = 28, 8
_MODEL, _MODEL_LEAST = 32, 10
_TIMES: Final = len("eta 12h34m  elapsed 12h34m")
"""Room kept for the times, so that the bar stays as long as it is while they grow."""

_REASON: Final = 36
"""Of a reason why memory is unknown, the report has the whole."""

_WHY: Final = 160
"""Of why a run waits or ends: its last words often say what to do, and are kept."""


def plain_line(m: BatchMetrics) -> str:
    """`m` as one line of `key=value` pairs, without a newline."""
    pairs = {
        "state": plain(m.state),
        "done": m.completed,
        "total": "unknown" if m.total is None else m.total,
        "ok": m.ok,
        "failed": m.failed,
        "retried": m.retried,
        "in_flight": m.in_flight,
        "requests_per_s": _pace(m.requests_per_s_1m),
        "out_tokens_per_s": _pace(m.completion_tokens_per_s_1m),
        "cached": "unknown" if not m.answers else _cached(m).replace(" ", "-"),
        "eta": "unknown" if m.eta_s is None else duration(m.eta_s),
        "elapsed": duration(m.elapsed_s),
    }
    if m.concurrency_changes:
        pairs["concurrency"] = m.concurrency
    pairs |= {label: value.replace(",", "") for label, value in _trouble(m)}
    line = "ollama-batch " + " ".join(f"{key}={value}" for key, value in pairs.items())
    why = _why(m)
    return line if why is None else f"{line} reason={json.dumps(why, ensure_ascii=False)}"


def _pace(number: float | None) -> str:
    return "unknown" if number is None else rate(number).replace(",", "")


def _cached(m: BatchMetrics) -> str:
    """The share of prompt tokens that were cached, as the engine tells, or that it does not tell.

    A guess from times is marked twice, so that it is taken for nothing else.
    """
    if m.answers and m.cached_tokens is None:
        guess = m.cached_estimate_share
        return "not reported" if guess is None else f"~{100 * guess:.0f}% estimated"
    return share(m.cached_share)


def _why(m: BatchMetrics) -> str | None:
    """What holds a run up, or ended it, in one line of safe text; None if nothing does."""
    parts = [both_ends(part, _WHY) for part in (m.state_reason, m.state_message) if part]
    if not parts:
        return None
    since = "" if m.state_s is None else f" ({duration(m.state_s)})"
    return ": ".join(parts) + since


def _place(m: BatchMetrics) -> str:
    """How far the run is."""
    if m.total is None:
        return f"{count(m.completed)} done, length unknown"
    done = share(m.completed / m.total) if m.total else "100.0%"
    return f"{count(m.completed)}/{count(m.total)} {done}"


def _groups(m: BatchMetrics) -> list[Figures]:
    """The figures under the bar: of rows, of the engine, of memory, of trouble; never an empty group."""
    return [group for group in (_rows(m), _engine(m), _memory(m), _trouble(m)) if group]


def _rows(m: BatchMetrics) -> Figures:
    of = f" of {count(m.concurrency)}" if m.concurrency else ""
    return [
        ("ok", count(m.ok)),
        ("failed", count(m.failed)),
        *([("retried", count(m.retried))] if m.retried else []),
        ("in flight", f"{count(m.in_flight)}{of}"),
        ("requests/s", rate(m.requests_per_s_1m)),
    ]


def _engine(m: BatchMetrics) -> Figures:
    figures = [("tokens/s out", rate(m.completion_tokens_per_s_1m)), ("cached", _cached(m))]
    if m.queue_mean_s is not None:
        figures.append(("queue wait", duration(round(m.queue_mean_s, 2))))
    if m.engine_idle_share is not None:
        figures.append(("engine idle", share(m.engine_idle_share)))
    return figures


def _memory(m: BatchMetrics) -> Figures:
    """What is known of memory; a figure that was known once stays, as "-" while it is not.

    What was never known comes last, under its reason. Before the first sample there is nothing to say.
    """
    spilled = [] if m.spilled_share is None else [("model on the CPU", share(m.spilled_share))]
    if not measured(m):
        return spilled
    known, never = [*spilled], {}
    for label, field, now, ever in (
        ("VRAM", "vram_used_bytes", amount(m.vram_used_bytes, m.vram_total_bytes), m.vram_peak_bytes),
        ("RAM", "ram_used_bytes", amount(m.ram_used_bytes), m.ram_peak_bytes),
        ("GPU", "gpu_share", _busy(m), m.gpu_share_mean),
    ):
        if ever is None:
            never[field] = label
        else:
            known.append((label, now))
    unknown = by_reason(m, never, limit=_REASON)
    return [*known, *((", ".join(labels), f"unknown: {reason}") for reason, labels in unknown)]


def _busy(m: BatchMetrics) -> str:
    return f"{share(m.gpu_share)} (mean {share(m.gpu_share_mean)}, p5 {share(m.gpu_share_p5)})"


def _trouble(m: BatchMetrics) -> Figures:
    """What the engine's trouble came to; empty as long as there was none."""
    if not (m.recoveries or m.restarts or m.quarantined or m.lost_s):
        return []
    figures = [("recoveries", count(m.recoveries)), ("restarts", count(m.restarts))]
    if m.quarantined:
        figures.append(("quarantined", count(m.quarantined)))
    return [*figures, ("lost", duration(m.lost_s))]


def _times(m: BatchMetrics) -> str:
    times = f"elapsed {duration(m.elapsed_s)}"
    return times if m.eta_s is None or m.state != "running" else f"eta {duration(m.eta_s)}  {times}"


class _TerminalView:
    """What the live bar shows of `m`, laid out for the width it gets: no figure is broken in two, and from
    60 columns on the bar is on one line.
    """

    def __init__(self, m: BatchMetrics) -> None:
        self._m = m

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        m, width = self._m, options.max_width
        yield from self._head(width)
        for group in _groups(m):
            yield from self._fitted(group, width)
        why = _why(m)
        if why is not None or m.state not in ("running", "waiting", "completed"):
            text = f"{m.state}: {why}" if why is not None else m.state
            yield Text(both_ends(text, 2 * _WHY), style="yellow")

    def _head(self, width: int) -> Iterator[Any]:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        m = self._m
        place, times = Text(_place(m), no_wrap=True), Text(_times(m), style="cyan", no_wrap=True)
        # As if the run were complete, for the same reason as with the times.
        whole = 0 if m.total is None else len(f"{count(m.total)}/{count(m.total)} 100.0%")
        room = width - max(place.cell_len, whole) - max(times.cell_len, _TIMES) - 3
        beside = room >= _MODEL_LEAST + _BAR_LEAST
        if not beside:
            room = width - 1
        model = Text(plain(m.model or "starting", _MODEL), style="bold", no_wrap=True)
        length = max(_BAR_LEAST, min(_BAR, room - model.cell_len))
        model.truncate(max(1, room - length), overflow="ellipsis")
        bar = ProgressBar(
            total=None if m.total is None else max(m.total, 1),
            completed=m.completed if m.total else 1,
            width=length,
            pulse=m.total is None and m.state == "running",
        )
        top = Table.grid(padding=(0, 1), expand=False)
        top.add_row(model, bar, *((place, times) if beside else ()))
        yield top
        if not beside:
            yield from _lines((place, times), width)

    def _fitted(self, figures: Figures, width: int) -> Iterator[Any]:
        from rich.text import Text

        styles = {"ok": "green", "failed": "red" if self._m.failed else ""}
        styles |= dict.fromkeys(dict(_trouble(self._m)), "yellow")
        pieces = (
            Text.assemble((f"{label} ", "dim"), (value, styles.get(label, ""))) for label, value in figures
        )
        yield from _lines(pieces, width)


def _lines(pieces: Iterable[Any], width: int) -> Iterator[Any]:
    """Texts side by side, as many on a line as `width` holds."""
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    for piece in pieces:
        if line and line.cell_len + 2 + piece.cell_len > width:
            yield line
            line = Text(no_wrap=True, overflow="ellipsis")
        line.append("  " if line else "").append_text(piece)
    yield line


def terminal_view(m: BatchMetrics) -> Any:
    """What the live bar shows of `m`: a rich renderable without markup from outside."""
    return _TerminalView(m)


def notebook_view(m: BatchMetrics) -> str:
    """`m` as a small piece of HTML, readable on light and dark, everything from outside escaped."""
    if m.total is None:
        bar = "<progress></progress>" if m.state == "running" else ""
    else:
        bar = f'<progress value="{m.completed}" max="{max(m.total, 1)}"></progress>'
    groups = "".join(
        "<div>"
        + " &middot; ".join(f"{html.escape(label)} <b>{html.escape(value)}</b>" for label, value in group)
        + "</div>"
        for group in _groups(m)
    )
    why = _why(m)
    state = plain(m.state) if why is None else f"{plain(m.state)}: {why}"
    return (
        '<div style="font-family:monospace">'
        f"<div><b>{html.escape(plain(m.model or 'starting', 60))}</b> {bar} "
        f"{html.escape(_place(m))}, {_times(m).replace('  ', ', ')}</div>"
        f"{groups}<div>{html.escape(state)}</div></div>"
    )
