"""Amounts of memory as people write them: "14GiB", "14 GB", 15032385536, 0.88 of all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ollama_batch.errors import ConfigError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)},
}
LEAST_BYTES: Final = MIB
"""A number without a unit that is below this, 0 aside, was meant as something else: percent, GiB, a share."""

_TEXT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*")
_BYTES: Final = 'bytes as a whole number, or text such as "14GiB" or "14 GB"'
_ACCEPTED: Final = (
    'bytes as a whole number, text such as "14GiB", "14 GB" or "88%", or a share such as 0.88 of all'
)


def parse_bytes(value: object, name: str) -> int:
    """Bytes of `value`: a whole number (0, or 1 MiB at least), or text with a unit (KiB, MiB, GiB, TiB are
    powers of 1024, KB, MB, GB, TB of 1000). Raises ConfigError, which says that it is `name`.
    """
    made = Amount.of(value, name, shares=False)
    if made.share is not None:
        raise ConfigError(f"{name}={value!r}: give {_BYTES}")
    return made.bytes


@dataclass(frozen=True, slots=True)
class Amount:
    """So many bytes, or a share of all there is (then `bytes` is 0)."""

    bytes: int = 0
    share: float | None = None

    @classmethod
    def of(cls, value: object, name: str, *, shares: bool = True) -> Amount:
        """What `value` says: bytes, text with a unit, or a share above 0 and up to 1.0 (`shares` False: none
        is wanted, so errors do not speak of them). A number without a unit is bytes only from 1 MiB on, or 0.

        Raises ConfigError, which says that it is `name`, and what is accepted.
        """
        accepted = _ACCEPTED if shares else _BYTES
        wrong = ConfigError(f"{name}={value!r}: give {accepted}")
        if isinstance(value, bool):
            raise wrong
        if isinstance(value, float):
            return cls._share(value, wrong)
        if isinstance(value, int):
            if value < 0:
                raise wrong
            return cls._plain(value, f"{name}={value!r}", accepted)
        found = _TEXT.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise wrong
        number, unit = float(found[1]), found[2].lower()
        if unit == "%":
            return cls._share(number / 100, wrong)
        if unit not in _UNITS:
            raise ConfigError(
                f"{name}={value!r}: {found[2]!r} is no unit; there are B, KiB, MiB, GiB, KB, MB, GB"
            )
        if not unit and "." in found[1]:
            raise wrong
        if not unit:
            return cls._plain(int(found[1]), f"{name}={value!r}", accepted)
        return cls(round(number * _UNITS[unit]))

    @classmethod
    def _plain(cls, number: int, given: str, accepted: str) -> Amount:
        """Bytes without a unit. 88 may be percent, 14 GiB, and 1 all of it: none of that is guessed."""
        if 0 < number < LEAST_BYTES:
            count = "1 byte" if number == 1 else f"{number:,} bytes"
            raise ConfigError(f"{given} would be {count}, less than 1 MiB: give {accepted}")
        return cls(number)

    @classmethod
    def _share(cls, value: float, wrong: ConfigError) -> Amount:
        if not 0 < value <= 1:
            raise wrong
        return cls(share=value)

    def of_total(self, total: int | None) -> int | None:
        """In bytes, where `total` is all there is; None for a share of what is not known."""
        if self.share is None:
            return self.bytes
        return None if total is None else round(self.share * total)

    def __str__(self) -> str:
        return show(self.bytes) if self.share is None else f"{100 * self.share:g}%"


def show(amount: float) -> str:
    """Bytes for a person: 512 MiB, 13.7 GiB."""
    value = amount
    if abs(value) >= GIB:
        return f"{value / GIB:.1f} GiB"
    if abs(value) >= MIB:
        return f"{value / MIB:.0f} MiB"
    return f"{value / KIB:.0f} KiB" if abs(value) >= KIB else f"{value:.0f} B"
