from __future__ import annotations

import pytest

from ollama_batch.engines._runaway import runs_away


@pytest.mark.parametrize(
    "text",
    [
        "again " * 50,
        "A good start. " + "again " * 8,
        "x" * 40,
        '{"score": 4' + "\n" * 40,
        '{"score": 4' + " \t\n" * 20,
        "Intro. " + "".join(f"The team, {n} strong, " for n in [7] * 9),
        ("z" * 199 + "y") * 8,
        "again " * 50 + "ag",  # cut in the middle of a piece
    ],
)
def test_texts_that_say_the_same_over_and_over(text: str) -> None:
    assert runs_away(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "no, no, no, no",
        "Wait for it" + "." * 30,
        "1, 1, 1, 1, 1, 1, 1, 1",
        "again " * 50 + "and then something else",
        " ".join(str(number) for number in range(500)),
        '[\n    {"a": 1},\n    {"a": 2}\n]' + "\n" * 10,
        ("z" * 300 + "y") * 8,  # longer than the longest piece that is looked for
    ],
)
def test_texts_that_do_not(text: str) -> None:
    assert not runs_away(text)
