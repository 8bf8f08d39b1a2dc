"""Dates of an export, of which some stand for "unknown"."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

_DATE = re.compile(r"\s*(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?(?:[T ].*)?\s*", re.ASCII | re.DOTALL)
_YEARS = range(1900, 2200)

EPOCH = frozenset({"1970-01-01", "1969-12-31"})
"""Moment 0, which stands for "unknown", and what becomes of it west of Greenwich."""


def stands_for_unknown(text: str) -> bool:
    """Whether `text` is the date that exports put where there is none, with or without a time of day."""
    return text.lstrip()[:10] in EPOCH


@lru_cache(maxsize=4096)  # the same few hundred months come again and again
def known_month(text: str | None) -> str | None:
    """`text` ("2021-03-15", "2021-03", "2021") as "2021-03" or "2021"; None if unknown or no date.

    Years before 1900 or after 2199 are none: "0001-01-01" and "9999-12-31" stand for unknown dates too.
    """
    if not text or stands_for_unknown(text):
        return None
    found = _DATE.fullmatch(text[:64])
    if found is None or int(found[1]) not in _YEARS:
        return None
    if found[2] is None:
        return found[1]
    try:
        day = date(int(found[1]), int(found[2]), int(found[3] or 1))
    except ValueError:
        return None
    return None if day.isoformat() in EPOCH and found[3] else f"{day:%Y-%m}"
