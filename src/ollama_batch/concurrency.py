"""The bounds of a concurrency that the run finds by itself."""

from __future__ import annotations

from dataclasses import dataclass

from ollama_batch.errors import ConfigError

MOST_AT_ONCE = 4096
"""Above this, requests out at a time are a slip of the keyboard."""

MOST_BY_ITSELF = 256
"""What a run goes up to by itself unless told otherwise; four times the slots where the engine tells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """How many requests may be out at a time, found by the run between `min` and `max`.

    `concurrency="auto"` is this with 1 and 256, or four times the slots of an engine that tells them. For a
    queue or a refusal the run never goes below `min`, nor for a lack of memory unless that fails at `min` or
    fewer, which is said once; a guard and a crash take it further down. Raises ConfigError.
    """

    min: int = 1
    max: int = MOST_BY_ITSELF

    def __post_init__(self) -> None:
        for name in ("min", "max"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MOST_AT_ONCE:
                raise ConfigError(
                    f"Concurrency({name}={value!r}): must be a whole number from 1 to {MOST_AT_ONCE:,}"
                )
        if self.min > self.max:
            raise ConfigError(f"Concurrency(min={self.min}, max={self.max}): min is above max")
