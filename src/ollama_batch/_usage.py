"""What the answers of a run cost and were like, added up."""

from __future__ import annotations

from typing import Any

from ollama_batch._reuse import ReuseEstimate
from ollama_batch.events import RowFinished
from ollama_batch.savings import HeadTally


class UsageTally:
    """Sums the usage of finished rows, in memory that does not grow with them. Not locked."""

    def __init__(self) -> None:
        self.answers = self.prompt = self.completion = 0
        self._estimated = self._repaired = self._asked_again = 0
        self._cached = self._cached_reported = self._cached_of = 0
        self._reasoning = self._reasoning_reported = 0
        self._context_current = self._context_peak = 0
        self._heads = HeadTally()
        self._reuse = ReuseEstimate()

    def add(self, event: RowFinished) -> None:
        """Count a row; of one without a usage no tokens."""
        self._repaired += event.result.repaired
        self._asked_again += event.result.asked_again
        usage = event.result.usage
        if usage is None:
            return
        self.answers += 1
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        if usage.source == "estimate":
            self._estimated += 1
        if usage.reasoning_tokens is not None:
            self._reasoning += usage.reasoning_tokens
            self._reasoning_reported += 1
        self._context_current = usage.total_tokens
        self._context_peak = max(self._context_peak, usage.total_tokens)
        first = event.head is not None and self._heads.add(event.head, event.result.custom_id, usage)
        if usage.cached_tokens is not None:
            self._cached += usage.cached_tokens
            self._cached_reported += 1
            self._cached_of += usage.prompt_tokens
        elif usage.source == "engine":
            self._reuse.add(usage.prompt_tokens, event.timings.prompt_s, first=first)

    def fields(self) -> dict[str, Any]:
        """What `BatchMetrics` says of answers, tokens, context and heads, by field."""
        reported = self._cached_reported > 0
        return {
            "repaired": self._repaired,
            "asked_again": self._asked_again,
            "answers": self.answers,
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
            "prompt_tokens_mean": self.prompt / self.answers if self.answers else None,
            "completion_tokens_mean": self.completion / self.answers if self.answers else None,
            "context_current": self._context_current if self.answers else None,
            "context_peak": self._context_peak if self.answers else None,
        }
