"""Checks of options, made once when a strategy is made."""

from __future__ import annotations

import math

from ollama_batch.errors import ConfigError


def check_number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> None:
    """Raises ConfigError unless `value` is a finite number within the bounds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        in_low = (low is None or value >= low) and (above is None or value > above)
        if in_low and (high is None or value <= high):
            return
    named = (("at least", low), ("above", above), ("at most", high))
    rules = " and ".join(f"{word} {bound}" for word, bound in named if bound is not None)
    raise ConfigError(f"{name}={value!r}: wanted a number, {rules}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ConfigError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: wanted a whole number, {least} or more")
