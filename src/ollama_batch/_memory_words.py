"""How memory and GPU use are said to a person: amounts, and what is unknown with each reason once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ollama_batch._memory_tally import NOT_MEASURED
from ollama_batch._text import plain, share
from ollama_batch.memory.amounts import show
from ollama_batch.metrics import BatchMetrics

_REASON: Final = 90


def measured(m: BatchMetrics) -> bool:
    """Whether there was a sample at all: a run takes them while it sends, if it has guards."""
    return set(m.unmeasured.values()) != {NOT_MEASURED}


def amount(used: int | None, total: int | None = None) -> str:
    """Bytes of all there is: 13.1 of 16.0 GiB, 800 MiB of 16.0 GiB, 5.5 GiB where the total is unknown; `-`
    if the use is.
    """
    if used is None:
        return "-"
    part = show(used)
    if total is None:
        return part
    whole = show(total)
    number, _, unit = part.partition(" ")
    return f"{number if whole.endswith(f' {unit}') else part} of {whole}"


def by_reason(m: BatchMetrics, names: Mapping[str, str], *, limit: int) -> list[tuple[str, list[str]]]:
    """Each reason, on one line and at most `limit` characters long, with the names of the fields that are
    unknown for it; `names` has these by field.
    """
    found: dict[str, list[str]] = {}
    for field, name in names.items():
        reason = m.unmeasured.get(field, NOT_MEASURED)
        if len(reason) > limit:
            reason = reason.partition("; ")[0]  # of several libraries that found nothing, the first
        found.setdefault(plain(reason, limit), []).append(name)
    return list(found.items())


def memory_in_words(m: BatchMetrics) -> str:
    """The most that was in use, how busy the GPU was, what is unknown, and what of the model has spilled."""
    spilled = []
    if m.spilled_bytes is not None:
        spilled.append(f"{show(m.spilled_bytes)} of the model ({share(m.spilled_share)}) on the CPU: slow")
    if not measured(m):
        unknown_all = "unknown: not measured (a run measures while it sends, if it has guards)"
        return "; ".join([unknown_all, *spilled])
    most, unknown = [], {}
    if m.vram_peak_bytes is None:
        unknown["vram_used_bytes"] = "VRAM"
    else:
        most.append(f"{amount(m.vram_peak_bytes, m.vram_total_bytes)} VRAM")
        if m.vram_total_bytes is None:
            unknown["vram_total_bytes"] = "VRAM in all"
    if m.ram_peak_bytes is None:
        unknown["ram_used_bytes"] = "RAM"
    else:
        most.append(f"{show(m.ram_peak_bytes)} RAM of this machine")
    parts = [f"at most {', '.join(most)}"] if most else []
    if m.gpu_share_mean is None:
        unknown["gpu_share"] = "GPU use"
    else:
        mean, low = share(m.gpu_share_mean), share(m.gpu_share_p5)
        parts.append(f"GPU busy {mean} of the time, {low} in its worst 5 %")
    if unknown:
        reasons = by_reason(m, unknown, limit=_REASON)
        parts.append("unknown: " + ", ".join(f"{', '.join(names)} ({why})" for why, names in reasons))
    parts += spilled
    return "; ".join(parts)
