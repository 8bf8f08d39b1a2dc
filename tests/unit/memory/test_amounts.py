"""Amounts of memory as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from memory_support import GIB, MIB
from ollama_batch.errors import ConfigError
from ollama_batch.memory import RamGuard, VramGuard
from ollama_batch.memory.amounts import Amount, parse_bytes, show
from ollama_batch.memory.thresholds import Thresholds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14GiB", 15_032_385_536),
        ("14 GiB", 15_032_385_536),
        ("14 GB", 14_000_000_000),
        ("14gb", 14_000_000_000),
        ("1.5GiB", 1_610_612_736),
        ("512 MiB", 536_870_912),
        ("1 TB", 1_000_000_000_000),
        ("700 B", 700),
        ("9007199254740993", 9_007_199_254_740_993),  # one that no float holds
        (15_032_385_536, 15_032_385_536),
        (0, 0),
    ],
)
def test_bytes_are_read_as_written(text: int | str, value: int) -> None:
    assert parse_bytes(text, "warn") == value


@pytest.mark.parametrize(("value", "share"), [(0.88, 0.88), (1.0, 1.0), ("88%", 0.88), ("87.5 %", 0.875)])
def test_a_float_or_percent_is_a_share(value: Any, share: float) -> None:
    assert Amount.of(value, "warn").share == pytest.approx(share)
    assert Amount.of(value, "warn").of_total(1000) == round(1000 * share)
    assert Amount.of(value, "warn").of_total(None) is None


@pytest.mark.parametrize(
    "value",
    [
        True,
        -1,
        -0.5,
        0.0,
        1.5,
        14.0,
        float("nan"),
        float("inf"),
        "",
        "GiB",
        "1.5",
        "-3GiB",
        "120%",
        None,
        [1],
    ],
)
def test_what_is_no_amount_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^warn=.*14GiB"):
        Amount.of(value, "warn")


@pytest.mark.parametrize("value", [1, 14, 88, "1", "14", " 16 ", MIB - 1])
@pytest.mark.parametrize("name", ["warn", "high", "limit", "reserve", "total"])
def test_a_number_that_can_hardly_be_bytes_is_refused_by_every_option_of_a_guard(
    name: str, value: int | str
) -> None:
    """88 may be percent, 14 GiB, and 1 all of it."""
    with pytest.raises(ConfigError, match=rf"^{name}={value!r} would be .* less than 1 MiB: .*14GiB") as told:
        VramGuard(**{name: value})
    assert ("0.88" in str(told.value)) == (name not in ("reserve", "total"))
    if name != "total":
        with pytest.raises(ConfigError, match=rf"^{name}="):
            RamGuard(**{name: value})


def test_1_is_neither_a_byte_nor_all_of_it_but_1_0_is() -> None:
    with pytest.raises(ConfigError, match="limit=1 would be 1 byte, less than 1 MiB"):
        Amount.of(1, "limit")
    assert Amount.of(1.0, "limit").of_total(16 * GIB) == 16 * GIB
    assert Amount.of(MIB, "limit").bytes == MIB
    assert Amount.of("700 B", "limit").bytes == 700  # the unit says that bytes are meant


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ConfigError, match="'GiBit' is no unit"):
        Amount.of("14 GiBit", "limit")
    with pytest.raises(ConfigError, match="reserve='50%'"):
        parse_bytes("50%", "reserve")


@pytest.mark.parametrize(
    ("warn", "high", "limit", "fault"),
    [
        ("15GiB", None, "14GiB", "warn='15GiB' is above limit='14GiB': give"),
        ("14.01GiB", None, "14GiB", "warn='14.01GiB' is above limit='14GiB': give"),  # both are 14.0 GiB
        (0.9, 0.8, 0.96, "warn=0.9 is above high=0.8: give"),
        (0.5, 0.99, 0.96, "high=0.99 is above limit=0.96: give"),
    ],
)
def test_thresholds_in_the_wrong_order_are_refused(warn: Any, high: Any, limit: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Thresholds.of(warn, high, limit, 0)


def test_the_defaults_are_12_8_and_4_percent_free_or_512_mib() -> None:
    thresholds = Thresholds.of(0.88, None, 0.96, "512MiB")
    large = thresholds.bounds(100 * GIB)
    assert large is not None
    assert [100 * GIB - each for each in (large.warn, large.high, large.critical)] == pytest.approx(
        [12 * GIB, 8 * GIB, 4 * GIB]
    )
    assert large.margin == 2 * GIB
    small = thresholds.bounds(8 * GIB)
    assert small is not None
    assert 8 * GIB - small.critical == 512 * MIB  # 4 % would be 328 MiB
    assert thresholds.bounds(None) is None


def test_a_reserve_is_at_most_a_quarter_of_all() -> None:
    bounds = Thresholds.of(0.88, None, 0.96, "512MiB").bounds(GIB)
    assert bounds is not None
    assert bounds.critical == 768 * MIB


def test_bounds_ascend_on_every_card() -> None:
    thresholds = Thresholds.of("14GiB", 0.5, "15GiB", "512MiB")
    for total in (1, 3, 8, 15, 16, 80):
        bounds = thresholds.bounds(total * GIB)
        assert bounds is not None
        assert 0 < bounds.warn <= bounds.high <= bounds.critical <= total * GIB


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (512 * MIB, "512 MiB"), (14.7 * GIB, "14.7 GiB"), (-2 * GIB, "-2.0 GiB")],
)
def test_bytes_are_shown_in_the_unit_that_suits(value: float, text: str) -> None:
    assert show(value) == text
