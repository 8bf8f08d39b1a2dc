"""The views of a run's metrics: a plain line, a terminal bar, a notebook cell.

Model output is never shown; text from elsewhere (model names, error messages) is shown escaped.
"""

from __future__ import annotations

import html
import json
from typing import Any

from ollama_batch._text import count, duration, plain, rate, share
from ollama_batch.metrics import BatchMetrics


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
    parts = [plain(part) for part in (m.state_reason, m.state_message) if part]
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


def _figures(m: BatchMetrics) -> list[tuple[str, str]]:
    """The figures beside the bar, as (label, value)."""
    figures = [
        ("ok", count(m.ok)),
        ("failed", count(m.failed)),
        ("in flight", count(m.in_flight)),
        ("requests/s", rate(m.requests_per_s_1m)),
        ("tokens/s out", rate(m.completion_tokens_per_s_1m)),
        ("cached", _cached(m)),
    ]
    if m.concurrency_changes:
        figures[2] = ("in flight", f"{count(m.in_flight)} of {count(m.concurrency or 0)}")
    if m.retried:
        figures.insert(2, ("retried", count(m.retried)))
    return figures


def terminal_view(m: BatchMetrics) -> Any:
    """What the live bar shows of `m`: a rich renderable without markup from outside."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(padding=(0, 1), expand=False)
    bar = ProgressBar(
        total=None if m.total is None else max(m.total, 1),
        completed=m.completed if m.total else 1,
        width=28,
        pulse=m.total is None and m.state == "running",
    )
    times = f"elapsed {duration(m.elapsed_s)}"
    if m.eta_s is not None and m.state == "running":
        times = f"eta {duration(m.eta_s)}  {times}"
    model = plain(m.model or "starting", 32)
    top.add_row(Text(model, style="bold"), bar, Text(_place(m)), Text(times, style="cyan"))
    figures = Text()
    for label, value in _figures(m):
        style = "red" if label == "failed" and m.failed else "green" if label == "ok" else ""
        figures.append(f"{label} ", style="dim").append(value, style=style).append("  ")
    lines: list[Any] = [top, figures]
    why = _why(m)
    if why is not None or m.state not in ("running", "waiting", "completed"):
        text = f"{m.state}: {why}" if why is not None else m.state
        lines.append(Text(plain(text, 240), style="yellow"))
    return Group(*lines)


def notebook_view(m: BatchMetrics) -> str:
    """`m` as a small piece of HTML, readable on light and dark, everything from outside escaped."""
    if m.total is None:
        bar = "<progress></progress>" if m.state == "running" else ""
    else:
        bar = f'<progress value="{m.completed}" max="{max(m.total, 1)}"></progress>'
    times = f"elapsed {duration(m.elapsed_s)}"
    if m.eta_s is not None and m.state == "running":
        times = f"eta {duration(m.eta_s)}, {times}"
    figures = " &middot; ".join(f"{label} <b>{html.escape(value)}</b>" for label, value in _figures(m))
    why = _why(m)
    state = plain(m.state) if why is None else f"{plain(m.state)}: {why}"
    return (
        '<div style="font-family:monospace">'
        f"<div><b>{html.escape(plain(m.model or 'starting', 60))}</b> {bar} "
        f"{html.escape(_place(m))}, {times}</div>"
        f"<div>{figures}</div><div>{html.escape(state)}</div></div>"
    )
