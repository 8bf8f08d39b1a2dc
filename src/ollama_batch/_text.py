"""Numbers and foreign text as a person, a terminal or a log line can take them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any


def plain(text: str, limit: int = 160) -> str:
    r"""`text` on one line, safe to print: at most `limit` characters, nothing in it a terminal obeys.

    Runs of white space become one space. Control characters, escape sequences, bidirectional
    overrides, invisible characters and lone surrogates are shown as `\x1b`, `\u202e` and the like.
    """
    # Cut first: a message may be megabytes long, and escaping only makes it longer.
    words = " ".join(text[: 4 * limit].split())
    shown = words if words.isprintable() else "".join(map(_visible, words))
    if len(shown) <= limit and len(text) <= 4 * limit:
        return shown
    return shown[: max(limit - 3, 0)] + "..."


def both_ends(text: str, limit: int) -> str:
    """`text` as `plain` makes it; of a longer one the beginning and the last words, which often say what to
    do, with "..." between.
    """
    if len(text) <= 4 * limit and len(shown := plain(text, 4 * limit)) <= limit:
        return shown
    last = plain(text[-limit:], 4 * limit)[-(limit // 3) :].partition(" ")[2]
    room = limit - len(last) - len(" ... ")
    first = plain(text, limit + 3).removesuffix("...")[:room]
    return f"{first.rpartition(' ')[0] or first} ... {last}"


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def count(number: int) -> str:
    """A whole number with thousands separated: 170,000."""
    return f"{number:,}"


def rate(number: float | None) -> str:
    """A rate or mean with about three figures: 0.042, 1.23, 45.6, 1,234; `-` if unknown."""
    if number is None:
        return "-"
    if number >= 100:
        return f"{number:,.0f}"
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 1 or number == 0 else f"{number:.2g}"


def share(part: float | None) -> str:
    """A share from 0 to 1 in percent, one decimal; never 100.0 or 0.0 unless it is exactly that."""
    if part is None:
        return "-"
    percent = round(100 * part, 1)
    if 0 < part < 1:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f}%"


def duration(seconds: float | None) -> str:
    """A duration without spaces: 0.25s, 4.1s, 42s, 4m05s, 3h52m, 2d03h; `-` if unknown."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        # Below half a millisecond two figures would be an exponent, and mean nothing here.
        return f"{seconds:.2g}s" if 0.0005 <= seconds < 0.995 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{second:02d}s"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minute:02d}m"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02d}h"


def jsonable(value: Any) -> Any:
    """`value` as what `json.dumps` takes: no NaN or infinity (None instead), foreign objects as text.

    Dataclasses become objects of their fields.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        return [jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)
