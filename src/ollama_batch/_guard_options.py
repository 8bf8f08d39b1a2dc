"""The options that say how much memory may be in use, and the guards they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ollama_batch._option_values import amount, amount_or_off
from ollama_batch.errors import ConfigError

if TYPE_CHECKING:
    from ollama_batch._guard_plan import GuardPlan
    from ollama_batch.memory.amounts import Amount


def add_guard_options(parser: argparse.ArgumentParser) -> None:
    """Two options for each memory."""
    memory = parser.add_argument_group(
        "memory",
        "How much may be in use, as a size (15GiB) or a share of all (90%). From warn\n"
        "on, no more requests are out than now; half way to the limit, half as many;\n"
        "from the limit on, none. Default: 88% and 96%, and what was in use before the\n"
        "first request does not count.",
    )
    for name, what in (("vram", "the GPU's"), ("ram", "this machine's, or its container's")):
        memory.add_argument(
            f"--{name}-limit",
            type=amount_or_off,
            metavar="SIZE|off",
            help=f"of {what}; off: do not look at it",
        )
        memory.add_argument(
            f"--{name}-warn", type=amount, metavar="SIZE", help=f"default: 11/12 of --{name}-limit"
        )


def guards_asked(arguments: argparse.Namespace) -> tuple[GuardPlan, ...] | None:
    """The guards of VRAM and RAM; None for the usual two. Raises ConfigError for a warn above its limit."""
    asked = {
        name: (getattr(arguments, f"{name}_warn"), getattr(arguments, f"{name}_limit"))
        for name in ("vram", "ram")
    }
    if all(pair == (None, None) for pair in asked.values()):
        return None
    from ollama_batch._guard_plan import GuardPlan
    from ollama_batch.memory import RamGuard, VramGuard

    kinds: dict[str, type[VramGuard | RamGuard]] = {"vram": VramGuard, "ram": RamGuard}
    plans = []
    for name, (warn, limit) in asked.items():
        if limit != "off":
            plans.append(GuardPlan(kinds[name], _levels(name, warn, limit)))
        elif warn is not None:
            raise ConfigError(f"--{name}-limit off has no --{name}-warn: leave one of them out")
    return tuple(plans)


def _levels(name: str, warn: Amount | None, limit: Amount | None) -> dict[str, Any]:
    """The options of a guard; none for the usual one."""
    from ollama_batch.memory.amounts import Amount
    from ollama_batch.memory.guards import LIMIT

    if warn is None:
        return {} if limit is None else {"limit": _value(limit)}
    high = Amount(share=LIMIT) if limit is None else limit
    alike = (warn.share is None) == (high.share is None)
    if alike and (warn.share or warn.bytes) > (high.share or high.bytes):
        usual = " (the usual one)" if limit is None else ""
        raise ConfigError(f"--{name}-warn {warn} is above --{name}-limit {high}{usual}: give a smaller one")
    return {"warn": _value(warn), "limit": _value(high)}


def _value(amount: Amount) -> int | float:
    return amount.bytes if amount.share is None else amount.share
