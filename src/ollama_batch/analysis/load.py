"""How busy a run kept its engine, how much memory that took, and what trouble it came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_batch._load_note import LOAD, load_note
from ollama_batch._memory_words import amount
from ollama_batch._text import count, duration, plain, share
from ollama_batch.analysis.parts import Card
from ollama_batch.journal import Note
from ollama_batch.metrics import BatchMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """What the `sessions` of a run noted as they ended; one that was killed notes nothing.

    Recoveries, restarts, quarantined rows and `lost_s` (seconds in which the engine kept the run from
    sending) are of all of them together, peaks in bytes the highest of any; shares (0 to 1) and the mean wait
    for a slot, in seconds, are the last one's. Unknown is None, and `unmeasured` has the reason by field.
    """

    sessions: int
    recoveries: int
    restarts: int
    quarantined: int
    lost_s: float
    queue_mean_s: float | None = None
    engine_idle_share: float | None = None
    vram_peak_bytes: int | None = None
    vram_total_bytes: int | None = None
    ram_peak_bytes: int | None = None
    gpu_share_mean: float | None = None
    gpu_share_p5: float | None = None
    unmeasured: Mapping[str, str]


def load_of_notes(notes: Iterable[Note]) -> LoadFigures | None:
    """What a journal's notes say; None where they are silent."""
    return _load([note.data for note in notes if note.kind == LOAD])


def load_of_metrics(m: BatchMetrics) -> LoadFigures | None:
    """What the only session of a run in memory comes to."""
    return _load([load_note(m)])


def _load(told: list[Mapping[str, Any]]) -> LoadFigures | None:
    if not told:
        return None
    last = told[-1]
    return LoadFigures(
        sessions=len(told),
        recoveries=sum(each["recoveries"] for each in told),
        restarts=sum(each["restarts"] for each in told),
        quarantined=sum(each["quarantined"] for each in told),
        lost_s=sum(each["lost_s"] for each in told),
        vram_peak_bytes=_most(told, "vram_peak_bytes"),
        vram_total_bytes=_most(told, "vram_total_bytes"),
        ram_peak_bytes=_most(told, "ram_peak_bytes"),
        **{
            name: last[name]
            for name in ("queue_mean_s", "engine_idle_share", "gpu_share_mean", "gpu_share_p5", "unmeasured")
        },
    )


def _most(told: list[Mapping[str, Any]], name: str) -> int | None:
    return max((each[name] for each in told if each[name] is not None), default=None)


def load_cards(load: LoadFigures | None) -> list[Card]:
    """The cards of a page: memory, GPU, engine, and trouble if there was any."""
    if load is None:
        return []
    last = "" if load.sessions == 1 else "last session: "
    if load.vram_peak_bytes is None:
        cards = [
            Card("RAM at most", amount(load.ram_peak_bytes), f"VRAM unknown: {_why(load, 'vram_used_bytes')}")
        ]
    else:
        beside = [
            *([] if load.vram_total_bytes is None else [f"of {amount(load.vram_total_bytes)}"]),
            *([] if load.ram_peak_bytes is None else [f"{amount(load.ram_peak_bytes)} RAM"]),
        ]
        cards = [Card("VRAM at most", amount(load.vram_peak_bytes), "; ".join(beside))]
    if load.gpu_share_mean is None:
        cards.append(Card("GPU busy", "unknown", f"{last}{_why(load, 'gpu_share')}", "quiet"))
    else:
        worst = f"{last}{share(load.gpu_share_p5)} in its worst 5 %"
        cards.append(Card("GPU busy", share(load.gpu_share_mean), worst))
    cards.append(Card("Engine idle", share(load.engine_idle_share), f"{last}{_waited(load)}"))
    if trouble := trouble_of(load):
        cards.append(Card("Lost to trouble", duration(load.lost_s), trouble, "warn"))
    return cards


def load_lines(load: LoadFigures | None) -> list[tuple[str, str]]:
    """The same for a terminal."""
    if load is None:
        return []
    last = "" if load.sessions == 1 else " (last session)"
    gpu = f"unknown: {_why(load, 'gpu_share')}"
    if load.gpu_share_mean is not None:
        gpu = f"busy {share(load.gpu_share_mean)} of the time, {share(load.gpu_share_p5)} in its worst 5 %"
    lines = [("GPU", f"{gpu}{last}")]
    if load.ram_peak_bytes is not None:
        lines.append(("RAM", f"at most {amount(load.ram_peak_bytes)} of the machine that ran it"))
    idle = "" if load.engine_idle_share is None else f"; engine idle {share(load.engine_idle_share)}"
    lines.append(("waits", f"{_waited(load)}{idle}{last}"))
    if trouble := trouble_of(load):
        lines.append(("trouble", f"{trouble}; {duration(load.lost_s)} lost"))
    return lines


def most_vram(load: LoadFigures | None, noted: Iterable[int]) -> str:
    """The most VRAM that was in use, by the sessions' own figures and what was noted while they went."""
    used = [*noted]
    if load is not None and load.vram_peak_bytes is not None:
        used.append(load.vram_peak_bytes)  # of every second, not of every half minute
    if used:
        return f"at most {amount(max(used))}"
    return "not recorded" if load is None else f"unknown: {_why(load, 'vram_used_bytes')}"


def trouble_of(load: LoadFigures) -> str:
    """Recoveries and restarts in words; "" if there was no trouble."""
    if not (load.recoveries or load.restarts or load.quarantined or load.lost_s):
        return ""
    told = [
        "1 recovery" if load.recoveries == 1 else f"{count(load.recoveries)} recoveries",
        "1 restart" if load.restarts == 1 else f"{count(load.restarts)} restarts",
        *([f"{count(load.quarantined)} quarantined"] if load.quarantined else []),
    ]
    return ", ".join(told)


def _waited(load: LoadFigures) -> str:
    wait = load.queue_mean_s
    return "wait for a slot not reported" if wait is None else f"{duration(wait)} for a slot on average"


def _why(load: LoadFigures, name: str) -> str:
    return plain(load.unmeasured.get(name, "not measured"), 90)
