"""How much of the prompts an engine reused that does not say: an estimate from its times."""

from __future__ import annotations

from ollama_batch._histogram import LogHistogram

LONG_TOKENS = 256
"""Shorter prompts take about as long whatever is reused of them, so their times tell nothing."""

ENOUGH_ROWS = 20
_SLOW_END = (0.05, 0.20)
_TELLING = 0.1
_SHORTEST_S = 1e-6


class ReuseEstimate:
    """Estimates the cached prompt tokens of a run from the times of prompt evaluation. Not locked.

    An engine evaluates new prompt tokens at some speed v; cached ones take no time. The apparent speed of a
    row, its prompt tokens over its prompt-evaluation time, is v without reuse and higher with it. So v is
    looked for at the slow end: with q5 and q20 for the 5 % and 20 % quantiles of the apparent speeds, it is
    put at q20 * q20 / q5, above the slow end by as much as that end is wide, since such a width is noise.
    Where 20 rows are known to be the first of their head, v is at least their tokens over their time. Then

        saved = tokens - v * seconds

    summed over all rows whose prompt has 256 tokens or more; shorter prompts count as evaluated whole. There
    is an estimate from 20 such rows on, and none below 10 % of their tokens, which is too little to be told
    from noise.

    Its errors. Too low: if fewer than a fifth of the rows are cold (with one head and many rows all look
    alike, and most often there is no estimate at all), and if few new tokens are evaluated more slowly, each,
    than many. Too high: if the speed itself changes by more than the slow end shows, as when many slots
    evaluate prompts side by side at one time and one alone at another.
    """

    __slots__ = ("_first", "_first_s", "_first_tokens", "_seconds", "_speeds", "_tokens")

    def __init__(self) -> None:
        self._speeds = LogHistogram()
        self._tokens = self._first = self._first_tokens = 0
        self._seconds = self._first_s = 0.0

    def add(self, prompt_tokens: int, prompt_s: float | None, *, first: bool = False) -> None:
        """Count a row and the seconds its prompt took; `first` says that no row had its head before."""
        if prompt_tokens < LONG_TOKENS or prompt_s is None or not prompt_s >= _SHORTEST_S:
            return
        self._speeds.add(prompt_tokens / prompt_s)
        self._tokens += prompt_tokens
        self._seconds += prompt_s
        if first:
            self._first += 1
            self._first_tokens += prompt_tokens
            self._first_s += prompt_s

    def saved(self) -> int | None:
        """Cached prompt tokens, estimated; None if there is nothing to go by."""
        if self._speeds.count < ENOUGH_ROWS:
            return None
        low, high = self._speeds.quantiles(_SLOW_END)
        if low is None or high is None:
            return None
        speed = high * high / low
        if self._first >= ENOUGH_ROWS:
            speed = max(speed, self._first_tokens / self._first_s)
        saved = self._tokens - speed * self._seconds
        return round(saved) if saved >= _TELLING * self._tokens else None
