"""Values of options, each checked while the command line is read."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final, Literal

from ollama_batch.concurrency import MOST_AT_ONCE, Concurrency

if TYPE_CHECKING:
    from ollama_batch.memory.amounts import Amount

_RANGE: Final = re.compile(r"(\d{1,9})-(\d{1,9})")
_SHARE: Final = re.compile(r"\d*\.\d+")
"""Fewer without a unit are not meant as bytes."""


def number_or_auto(text: str) -> int | Literal["auto"]:
    """A whole number, or auto."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None


def concurrency(text: str) -> int | Literal["auto"] | Concurrency:
    """A whole number, auto, or the bounds of what the run finds."""
    found = _RANGE.fullmatch(text)
    if found is None:
        try:
            return number_or_auto(text)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a whole number, nor auto, nor MIN-MAX, as in 2-16"
            ) from None
    least, most = int(found[1]), int(found[2])
    if not 1 <= least <= MOST_AT_ONCE or not 1 <= most <= MOST_AT_ONCE:
        raise argparse.ArgumentTypeError(f"{text!r}: MIN and MAX must be from 1 to {MOST_AT_ONCE:,}")
    if least > most:
        raise argparse.ArgumentTypeError(f"{text!r}: MIN is above MAX; {most}-{least} is a range")
    return Concurrency(min=least, max=most)


def amount(text: str) -> Amount:
    """So much memory, or a share of all there is."""
    from ollama_batch.errors import ConfigError
    from ollama_batch.memory.amounts import LEAST_BYTES, Amount

    small = argparse.ArgumentTypeError(
        f"{text!r} is less than 1 MiB: give a size with its unit, as in 15GiB, or a share, as in 90%"
    )
    if text.isdecimal() and int(text) < LEAST_BYTES:
        raise small
    try:
        made = Amount.of(float(text) if _SHARE.fullmatch(text) else text, "memory")
    except ConfigError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a size, as in 15GiB or 15GB, nor a share of all, as in 90%"
        ) from None
    if made.share is None and made.bytes < LEAST_BYTES:
        raise small
    return made


def amount_or_off(text: str) -> Amount | Literal["off"]:
    """The same, or off."""
    return "off" if text == "off" else amount(text)


def port(text: str) -> int:
    """A port of TCP."""
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 1 to 65,535")
    return int(text)


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
