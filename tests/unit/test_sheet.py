"""What a cell of a CSV file may hold."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_batch._sheet import cell, from_cell, to_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("  =1", "'  =1"),
        ("\x00=1", "'\\x00=1"),
        ("\uff1d1", "'\uff1d1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("a=1", "a=1"),
        ("'quoted'", "''quoted'"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\ud800", "\\ud800"),
        ("name, \u540d\u524d \U0001f600", "name, \u540d\u524d \U0001f600"),
        ("", ""),
    ],
)
def test_a_cell_is_shown_and_never_run(text: str, shown: str) -> None:
    assert cell(text) == shown


@given(st.text() | st.text(alphabet=" \t\r\n\x00\x1b=+-@'a"))
@example("\u2003=1")
def test_no_text_becomes_a_formula_or_obeys(text: str) -> None:
    shown = cell(text)
    assert shown.strip()[:1] not in set("=+-@")
    assert shown[:1] not in set("\t\r\n")
    assert all(char in "\t\r\n" or char >= " " for char in shown)
    shown.encode()


@given(st.none() | st.text() | st.text(alphabet=" \t\r\n\x00\u200b=+-@'a\uff1d"))
@example("\x00=1")
@example("\u200b=1")
@example("")
def test_a_cell_that_is_read_back_gives_its_text_and_is_no_formula_either(text: str | None) -> None:
    made = to_cell(text)
    assert from_cell(made) == text
    assert (made == "") == (text is None)
    assert made.lstrip(" \x00\u200b")[:1] not in set("=+-@\uff1d\uff0b\uff0d\uff20")
    assert made[:1] not in set("\t\r\n")
