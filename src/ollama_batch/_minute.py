"""Sums of the last minute, in fixed memory."""

from __future__ import annotations

WINDOW_S = 60
"""Length of the window, in seconds."""


class Minute:
    """Sums of the last 60 seconds, in buckets of a second: rows, requests, prompt and completion tokens."""

    __slots__ = ("_sums", "seconds")

    def __init__(self) -> None:
        self.seconds = [-1] * WINDOW_S
        self._sums = [[0, 0, 0, 0] for _ in range(WINDOW_S)]

    def add(self, at_s: float, requests: int, prompt: int, completion: int) -> None:
        """Count a row that finished `at_s` seconds after the start, and took so many requests and tokens."""
        second = int(at_s)
        place = second % WINDOW_S
        sums = self._sums[place]
        if self.seconds[place] != second:
            self.seconds[place] = second
            sums[:] = 0, 0, 0, 0
        for n, amount in enumerate((1, requests, prompt, completion)):
            sums[n] += amount

    def sums(self, at_s: float) -> tuple[tuple[int, int, int, int], float]:
        """Rows, requests, prompt and completion tokens of the window that ends at `at_s`, and its length in
        seconds.
        """
        second = int(at_s)
        first = second - WINDOW_S + 1
        rows = requests = prompt = completion = 0
        for stamp, sums in zip(self.seconds, self._sums, strict=True):
            if first <= stamp <= second:
                rows += sums[0]
                requests += sums[1]
                prompt += sums[2]
                completion += sums[3]
        return (rows, requests, prompt, completion), min(at_s, at_s - first)
