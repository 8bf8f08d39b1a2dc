"""What the answers of a run cost and were like, added up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_batch._reuse import ReuseEstimate
from ollama_batch.events import RowFinished, RowLeft
from ollama_batch.savings import HeadTally
from ollama_batch.types import Timings, Usage


class UsageTally:
    """Sums the usage of every answer of finished rows, in memory that does not grow with them. Not locked."""

    def __init__(self) -> None:
        self.prompt = self.completion = 0
        self.earlier = 0
        self._answers = self._earlier_told = 0
        self._estimated = self._repaired = self._asked_again = 0
        self._cached = self._cached_reported = self._cached_of = 0
        self._reasoning = self._reasoning_reported = 0
        self._context_current = self._context_peak = 0
        self._trims = self._trims_told = self._trim_saved = 0
        self._heads = HeadTally()
        self._reuse = ReuseEstimate()

    def add(self, event: RowFinished) -> tuple[int, int]:
        """Count a row, those of its answers that were asked for again as well; the prompt and completion
        tokens that they took. Of an answer without a usage no tokens are counted.
        """
        result = event.result
        self._repaired += result.repaired
        self._asked_again += result.asked_again
        self._trim(result.trim)
        self.earlier += len(result.earlier_usage)
        self._earlier_told += sum(usage is not None for usage in result.earlier_usage)
        answers = [(usage, timings) for usage, timings in _answers(event) if usage is not None]
        if not answers:
            return 0, 0
        usages = [usage for usage, _ in answers]
        first = event.head is not None and self._heads.add(event.head, result.custom_id, usages)
        for n, (usage, timings) in enumerate(answers):
            self._add(usage, timings, first=first and n == 0)
        self._context_current = usages[-1].total_tokens
        return sum(usage.prompt_tokens for usage in usages), sum(usage.completion_tokens for usage in usages)

    def left(self, event: RowLeft) -> None:
        """Count the answers of a row that stays pending."""
        self.earlier += len(event.earlier_usage)
        for usage, timings in zip(event.earlier_usage, event.earlier_timings, strict=True):
            if usage is not None:
                self._earlier_told += 1
                self._add(usage, timings, first=False)

    def _add(self, usage: Usage, timings: Timings, *, first: bool) -> None:
        self._answers += 1
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        self._estimated += usage.source == "estimate"
        if usage.reasoning_tokens is not None:
            self._reasoning += usage.reasoning_tokens
            self._reasoning_reported += 1
        self._context_peak = max(self._context_peak, usage.total_tokens)
        if usage.cached_tokens is not None:
            self._cached += usage.cached_tokens
            self._cached_reported += 1
            self._cached_of += usage.prompt_tokens
        elif usage.source == "engine":
            self._reuse.add(usage.prompt_tokens, timings.prompt_s, first=first)

    def _trim(self, trim: Mapping[str, Any] | None) -> None:
        if trim and trim.get("why") != "head":
            self._trims += 1
            saved = saved_tokens(trim)
            self._trims_told += saved is not None
            self._trim_saved += saved or 0

    def fields(self) -> dict[str, Any]:
        """What `BatchMetrics` says of answers, tokens, context, trims and heads, by field."""
        answers, reported = self._answers, self._cached_reported > 0
        return {
            "repaired": self._repaired,
            "asked_again": self._asked_again,
            "answers": answers,
            "earlier_answers": self._earlier_told,
            "estimated": self._estimated,
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "cached_tokens": self._cached if reported else None,
            "cached_reported": self._cached_reported,
            "cached_share": self._cached / self._cached_of if self._cached_of else None,
            "cached_estimate": None if reported else self._reuse.saved(),
            "heads": self._heads.largest(),
            "heads_total": self._heads.total,
            "reasoning_tokens": self._reasoning if self._reasoning_reported else None,
            "reasoning_reported": self._reasoning_reported,
            "prompt_tokens_mean": self.prompt / answers if answers else None,
            "completion_tokens_mean": self.completion / answers if answers else None,
            "context_current": self._context_current if answers else None,
            "context_peak": self._context_peak if answers else None,
            "trims": self._trims,
            "trim_saved_tokens": None if self._trims and not self._trims_told else self._trim_saved,
        }


def _answers(event: RowFinished) -> Iterator[tuple[Usage | None, Timings]]:
    """Usage and times of each answer of a row, in their order; unknown times are empty ones."""
    earlier = event.result.earlier_usage
    times = event.earlier_timings or (Timings(),) * len(earlier)
    yield from zip(earlier, times, strict=True)
    yield event.result.usage, event.timings


def saved_tokens(trim: Mapping[str, Any]) -> int | None:
    """Tokens a trim saved: `tokens_saved`, or `tokens_before` less `tokens_after`; None if it is silent."""
    saved = trim.get("tokens_saved")
    if isinstance(saved, int):
        return saved
    before, after = trim.get("tokens_before"), trim.get("tokens_after")
    return before - after if isinstance(before, int) and isinstance(after, int) else None
