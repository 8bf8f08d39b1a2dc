"""What a session leaves in its journal about memory, GPU, waits and trouble, as it ends."""

from __future__ import annotations

from typing import Any, Final

from ollama_batch._text import jsonable
from ollama_batch.metrics import BatchMetrics

LOAD: Final = "load"
"""The kind of the note."""

KEPT: Final = (
    "elapsed_s",
    "paused_s",
    "lost_s",
    "recoveries",
    "restarts",
    "quarantined",
    "memory_pauses",
    "memory_paused_s",
    "refused",
    "refused_s",
    "queue_mean_s",
    "queue_share",
    "served_mean",
    "engine_idle_share",
    "vram_peak_bytes",
    "vram_total_bytes",
    "ram_peak_bytes",
    "gpu_share_mean",
    "gpu_share_p5",
    "unmeasured",
)


def load_note(m: BatchMetrics) -> dict[str, Any]:
    """The figures by the names that they have in `m`; unknown is None, with the reason in `unmeasured`."""
    return {name: jsonable(getattr(m, name)) for name in KEPT}
