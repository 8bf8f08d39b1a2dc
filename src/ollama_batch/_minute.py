"""Sums of the last minute, in fixed memory."""

from __future__ import annotations

WINDOW_S = 60
"""Length of the window, in seconds."""


class Minute:
    """Sums of the last 60 seconds, in buckets of one second: rows, prompt tokens, completion tokens."""

    __slots__ = ("rows", "seconds")

    def __init__(self) -> None:
        self.seconds = [-1] * WINDOW_S
        self.rows = [[0, 0, 0] for _ in range(WINDOW_S)]

    def add(self, at_s: float, prompt: int, completion: int) -> None:
        """Count a row that finished `at_s` seconds after the start."""
        second = int(at_s)
        place = second % WINDOW_S
        row = self.rows[place]
        if self.seconds[place] != second:
            self.seconds[place] = second
            row[0] = row[1] = row[2] = 0
        row[0] += 1
        row[1] += prompt
        row[2] += completion

    def sums(self, at_s: float) -> tuple[int, int, int, float]:
        """Rows, prompt and completion tokens of the window that ends at `at_s`, and its length in seconds."""
        second = int(at_s)
        first = second - WINDOW_S + 1
        rows = prompt = completion = 0
        for stamp, row in zip(self.seconds, self.rows, strict=True):
            if first <= stamp <= second:
                rows += row[0]
                prompt += row[1]
                completion += row[2]
        return rows, prompt, completion, min(at_s, at_s - first)
