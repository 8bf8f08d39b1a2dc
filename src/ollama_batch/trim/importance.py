"""The exchanges that matter most, by a sum of scores."""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields

from ollama_batch.errors import ConfigError
from ollama_batch.tokens.base import TokenCounter
from ollama_batch.trim._checks import check_number, check_whole
from ollama_batch.trim.base import TrimResult
from ollama_batch.trim.cutting import Conversation, Selection, cut
from ollama_batch.trim.scoring import Corpus, texts_of
from ollama_batch.trim.units import Pinned, check_pinned
from ollama_batch.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceWeights:
    """How much each score counts; every score is between 0 and 1, and the weights need not add up to 1.

    `recency`: 1 for the newest exchange, half as much every `half_life`. `relevance`: BM25 of the next
    request. `novelty`: 1 minus the likeness to what is kept already; with 0, near duplicates count as
    any other. `balance`: less, the more exchanges of the same label are kept. `size`: less for exchanges
    longer than the median. ConfigError unless all are finite, 0 or more, and not all 0.
    """

    recency: float = 0.25
    relevance: float = 0.35
    novelty: float = 0.20
    balance: float = 0.10
    size: float = 0.10

    def __post_init__(self) -> None:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, value in values.items():
            check_number(f"weights.{name}", value, low=0)
        if not any(values.values()):
            raise ConfigError("weights: at least one must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceTrim:
    """Keeps the head, the last exchanges, and then whatever is worth most for its tokens.

    The `keep_last` newest exchanges come first. Then, one at a time, the exchange with the highest
    score / sqrt(tokens) of those that still fit is added, and the scores of the rest are taken anew;
    one that is more than `duplicate_above` like a kept one is left out, even if there is room. The
    result has the order of the input. `half_life` is in exchanges. `label` is given the text of the last
    assistant message of an exchange and returns its class ("hired", 8, ...); without it `balance` counts for
    nothing. For guarantees and errors see `TrimStrategy` and docs/trim.md.
    """

    weights: ImportanceWeights = field(default_factory=ImportanceWeights)
    half_life: float = 10.0
    keep_last: int = 1
    duplicate_above: float = 0.95
    label: Callable[[str], Hashable] | None = None
    pinned: Pinned = None

    def __post_init__(self) -> None:
        if not isinstance(self.weights, ImportanceWeights):
            raise ConfigError(f"weights={self.weights!r}: wanted an ImportanceWeights")
        check_number("half_life", self.half_life, above=0)
        check_number("duplicate_above", self.duplicate_above, low=0, high=1)
        check_whole("keep_last", self.keep_last, 1)
        if self.label is not None and not callable(self.label):
            raise ConfigError(f"label={self.label!r}: wanted a function of the answer's text")
        check_pinned(self.pinned)

    def trim(
        self,
        messages: Sequence[Message],
        *,
        budget: int,
        counter: TokenCounter,
        upcoming: Message | None = None,
    ) -> TrimResult:
        """See `TrimStrategy.trim`."""
        return cut(
            "importance",
            messages,
            budget=budget,
            counter=counter,
            upcoming=upcoming,
            pinned=self.pinned,
            choose=self._choose,
        )

    def _choose(self, conversation: Conversation, room: int) -> Selection:
        chosen = conversation.protected(room)
        if not chosen.full:
            self.fill(conversation, chosen)
        return chosen

    def fill(
        self,
        conversation: Conversation,
        chosen: Selection,
        *,
        among: Sequence[int] | None = None,
        sizes: Sequence[int] | None = None,
        corpus: Corpus | None = None,
    ) -> None:
        """Add to `chosen` what is worth most, out of `among` (default: every unit)."""
        units = conversation.units
        sizes = conversation.sizes if sizes is None else sizes
        last = len(units) - 1
        among = range(len(units)) if among is None else among
        for index in range(last, max(-1, last - self.keep_last), -1):
            if units[index].lead_in or not chosen.add(index, sizes[index]):
                break
        taken = set(chosen.kept)
        candidates = [
            index
            for index in among
            if index not in taken and not units[index].lead_in and sizes[index] <= chosen.room
        ]
        if not candidates:
            return
        corpus = corpus_of(conversation) if corpus is None else corpus
        scores = _Scores(self, conversation, corpus, sizes, chosen.kept, candidates)
        # A score never rises as more is kept, so one taken earlier is an upper bound of the present one.
        # Newest first among equals.
        heap = [(-scores.score(index), -index) for index in candidates]
        heapq.heapify(heap)
        while heap:
            _, negative = heapq.heappop(heap)
            index = -negative
            if sizes[index] > chosen.room:
                continue
            score = scores.take(index)
            if score is None:
                continue
            entry = (-score, negative)
            if heap and entry > heap[0]:
                heapq.heappush(heap, entry)
                continue
            chosen.add(index, sizes[index])
            scores.keep(index)


class _Scores:
    """The score per root of tokens of each candidate, given what is kept so far."""

    def __init__(
        self,
        settings: ImportanceTrim,
        conversation: Conversation,
        corpus: Corpus,
        sizes: Sequence[int],
        kept: Sequence[int],
        candidates: Sequence[int],
    ) -> None:
        weights = settings.weights
        self._weights = weights
        self._corpus = corpus
        self._duplicate_above = settings.duplicate_above
        last = len(conversation.units) - 1
        median = statistics.median(sizes)
        own = last if conversation.upcoming is None else None
        request = request_of(conversation) if weights.relevance else ()
        relevance = corpus.relevance(request, own)
        self._root = {index: math.sqrt(max(1, sizes[index])) for index in candidates}
        self._fixed = {
            index: weights.recency * 2.0 ** (-(last - index) / settings.half_life)
            + weights.relevance * relevance[index]
            + weights.size * min(1.0, median / max(1, sizes[index]))
            for index in candidates
        }
        self._labels: list[Hashable] | None = None
        if settings.label is not None and weights.balance:
            answers = (answer_of(conversation, index) for index in range(last + 1))
            self._labels = [settings.label(answer) for answer in answers]
        self._of_label: Counter[Hashable] = Counter()
        self._likeness = dict.fromkeys(candidates, 0.0)  # to that of the kept which is most like it
        for index in kept:
            self.keep(index)

    def keep(self, index: int) -> None:
        """Take note that `index` is kept."""
        if self._labels is not None:
            self._of_label[self._labels[index]] += 1
        if self._weights.novelty:
            largest = self._likeness
            for other, likeness in self._corpus.likeness(index).items():
                if likeness > largest.get(other, math.inf):
                    largest[other] = likeness

    def take(self, index: int) -> float | None:
        """The score now; None if it is a near duplicate of what is kept."""
        return None if self._likeness[index] > self._duplicate_above else self.score(index)

    def score(self, index: int) -> float:
        """The score now, near duplicate or not."""
        value: float = self._fixed[index] + self._weights.novelty * max(0.0, 1.0 - self._likeness[index])
        if self._labels is not None:
            value += self._weights.balance / math.sqrt(1 + self._of_label[self._labels[index]])
        return value / self._root[index]


def corpus_of(conversation: Conversation) -> Corpus:
    """The texts of all units of the conversation."""
    return Corpus([texts_of(conversation.messages[unit.start : unit.stop]) for unit in conversation.units])


def request_of(conversation: Conversation) -> tuple[str, ...]:
    """The text of the next request: of `upcoming`, or of the last user message without its answer."""
    if conversation.upcoming is not None:
        return texts_of([conversation.upcoming])
    for message in reversed(conversation.messages):
        if message.get("role") == "user":
            return texts_of([message])
    return ()


def answer_of(conversation: Conversation, index: int) -> str:
    """The text of the last assistant message of a unit; empty if it has none."""
    unit = conversation.units[index]
    for message in reversed(conversation.messages[unit.start : unit.stop]):
        if message.get("role") == "assistant":
            return " ".join(texts_of([{"content": message.get("content")}]))
    return ""
