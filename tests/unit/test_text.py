"""Numbers and foreign text come out as a person, a terminal or a log line can take them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_batch._text import both_ends, duration, plain, rate, share
from visible_support import HOSTILE


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0, "0.0s"),
        (1.1e-05, "0.0s"),
        (0.0005, "0.0005s"),
        (0.0049, "0.0049s"),
        (0.25, "0.25s"),
        (0.994, "0.99s"),
        (0.996, "1.0s"),
        (4.14, "4.1s"),
        (9.96, "10s"),
        (42.4, "42s"),
        (59.6, "1m00s"),
        (245, "4m05s"),
        (3599.6, "1h00m"),
        (13930, "3h52m"),
        (86400 * 2 + 3600 * 3 + 59, "2d03h"),
    ],
)
def test_a_duration_has_the_units_a_person_expects(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.floats(min_value=0, max_value=1e7))
def test_no_duration_is_shown_with_an_exponent_or_a_space(seconds: float) -> None:
    assert re.fullmatch(r"\d+(\.\d+)?s|\d+m\d\ds|\d+h\d\dm|\d+d\d\dh", duration(seconds))


@pytest.mark.parametrize(
    ("part", "shown"), [(None, "-"), (0, "0.0%"), (1, "100.0%"), (0.99999, "99.9%"), (1e-9, "0.1%")]
)
def test_a_share_is_whole_only_when_it_is(part: float | None, shown: str) -> None:
    assert share(part) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(None, "-"), (0, "0.00"), (0.0421, "0.042"), (1234.5, "1,234")]
)
def test_a_rate_has_about_three_figures(number: float | None, shown: str) -> None:
    assert rate(number) == shown


@given(st.text(), st.integers(min_value=4, max_value=50))
def test_foreign_text_is_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    shown = plain(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()


@pytest.mark.parametrize("text", [*HOSTILE, *(each * 500 for each in HOSTILE), "word " * 300, "x" * 5000])
@pytest.mark.parametrize("limit", [40, 200])
def test_both_ends_of_foreign_text_are_printable_and_of_bounded_length(text: str, limit: int) -> None:
    shown = both_ends(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit


def test_a_text_that_is_cut_in_its_middle_keeps_its_first_and_last_words() -> None:
    told = both_ends(f"it broke {'because ' * 100}so run it again", 60)
    assert told.startswith("it broke because")
    assert told.endswith(" so run it again")
    assert " ... " in told
    assert both_ends("it broke,  so run it again", 60) == "it broke, so run it again"
