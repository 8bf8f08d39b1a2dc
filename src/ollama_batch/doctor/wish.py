"""What the doctor is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ollama_batch.doctor.run_line import RunLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for; the arguments of `diagnose`."""

    model: str | None
    rows: int | None
    num_ctx: int | None
    hours: float
    output: Path
    run: RunLine
    load: bool
    measure_s: float
    folder: Path | None
    told: Callable[[str], None]
