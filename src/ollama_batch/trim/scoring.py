"""How alike texts are, and how much one asks for another: words, tf-idf and BM25, without dependencies.

The words of an exchange are counted once and remembered for the next trim. Nothing here depends on the
clock or on Python's hash seed: sums run in the order of the texts, or over integers.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import re
import string
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_batch.types import Message

# A text is known by so many of its words, the same ones in every text that has them; it is compared by
# the rarest of these, so many, of which all texts together hold so many: that bounds the cost.
_SAMPLE_WORDS = 48
_SKETCH_WORDS = 16
_SKETCH_HOLDERS = 160
_SKETCH_LEAST = 4

_K1, _B = 1.2, 0.75  # BM25's usual constants (Robertson and Zaragoza, 2009)
_QUERY_WORDS = 32

_SEPARATORS = str.maketrans(
    {char: " " for char in map(chr, range(128)) if char not in string.ascii_letters + string.digits}
)
# Chinese, Japanese and Korean are not spaced: one character is one word there.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text: how often each occurs, their number, and the hashes of a sample of them."""

    counts: Mapping[str, int]
    total: int
    sample: Sequence[int]


class Corpus:
    """The texts of one conversation's units, for comparing them with each other and with a request."""

    def __init__(self, texts: Sequence[tuple[str, ...]]) -> None:
        self._texts = [read_words(text) for text in texts]
        frequency: Counter[int] = Counter()
        for words in self._texts:
            frequency.update(words.sample)
        idf = [_idf(count, len(texts)) for count in range(len(texts) + 1)]
        self._sketches = [_sketch(words.sample, frequency, idf) for words in self._texts]
        self._holders: dict[int, list[tuple[int, float]]] = {}
        for unit, sketch in enumerate(self._sketches):
            for word, weight in sketch:
                self._holders.setdefault(word, []).append((unit, weight))
        self._likeness: dict[int, dict[int, float]] = {}

    def likeness(self, unit: int) -> dict[int, float]:
        """About the cosine of the unit's tf-idf vector with that of each unit it has words in common with.

        From 0 to 1; equal texts have 1, units not named have 0. A vector holds which words occur, not
        how often, and is a sample: it errs towards telling texts apart.
        """
        found = self._likeness.get(unit)
        if found is None:
            found = {}
            for word, weight in self._sketches[unit]:
                for other, its in self._holders[word]:
                    found[other] = found.get(other, 0.0) + weight * its
            self._likeness[unit] = found
        return found

    def relevance(self, request: tuple[str, ...], own: int | None = None) -> list[float]:
        """BM25 of `request` against each unit, divided by the largest; all 0 if no word is in common.

        `own` is the unit that the request was taken from, which would beat all others: it gets 0.
        """
        texts = self._texts
        asked = read_words(request).counts.keys()
        holders: Counter[str] = Counter()
        for words in texts:
            holders.update(asked & words.counts.keys())
        if own is not None:
            holders.subtract(texts[own].counts.keys() & asked)
        # By number and word, as the order of a set is another in every process.
        held = sorted((count, word) for word, count in holders.items() if count > 0)
        weights = {word: _idf(count, len(texts)) for count, word in held[:_QUERY_WORDS]}
        mean = max(1.0, sum([words.total for words in texts]) / max(1, len(texts)))
        found = []
        for unit, words in enumerate(texts):
            damping = _K1 * (1 - _B + _B * words.total / mean)
            terms = []
            for word in weights.keys() & words.counts.keys():
                times = words.counts[word]
                terms.append(weights[word] * times * (_K1 + 1) / (times + damping))
            found.append(0.0 if unit == own else math.fsum(terms))  # exact, so in any order the same
        largest = max(found, default=0.0)
        return [score / largest for score in found] if largest > 0 else found


def _sketch(
    sample: Sequence[int], frequency: Mapping[int, int], idf: Sequence[float]
) -> list[tuple[int, float]]:
    """The rarest words that others have too, with their weights, in a vector of length 1.

    Words that no other text has enter its length, at the rate at which the others are taken.
    """
    keys = sorted([frequency[word] << 32 | word for word in sample])
    own = bisect.bisect_left(keys, 2 << 32)
    taken: list[tuple[int, float]] = []
    holders = 0
    for key in keys[own : own + _SKETCH_WORDS]:
        count = key >> 32
        holders += count
        if holders > _SKETCH_HOLDERS and len(taken) >= _SKETCH_LEAST:
            break
        taken.append((key, idf[count]))
    if not taken:
        return []
    square = sum([weight * weight for _, weight in taken])
    square += own * len(taken) / (len(keys) - own) * idf[1] ** 2
    length = math.sqrt(square)
    return [(key, weight / length) for key, weight in taken]


def _idf(frequency: int, texts: int) -> float:
    return math.log(1 + (texts - frequency + 0.5) / (frequency + 0.5))


@functools.lru_cache(maxsize=512)
def read_words(texts: tuple[str, ...]) -> Words:
    """The words of these texts, lower-cased; a text without any is one word as a whole."""
    found: list[str] = []
    for text in texts:
        lowered = text.lower()
        found += lowered.translate(_SEPARATORS).split() if lowered.isascii() else _WORDS.findall(lowered)
    counts = Counter(found or [" ".join(texts)])
    try:
        hashes = set(map(zlib.crc32, map(str.encode, counts)))
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        hashes = {zlib.crc32(word.encode("utf-8", "replace")) for word in counts}
    return Words(counts, counts.total(), tuple(sorted(hashes)[:_SAMPLE_WORDS]))


def texts_of(messages: Sequence[Message]) -> tuple[str, ...]:
    """Everything a reader of these messages sees: text, names and arguments of calls, which pictures."""
    found: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            found.append(content)
        elif content is not None:
            found.extend(_part(part) for part in content)
        calls = message.get("tool_calls") or message.get("function_call")
        if calls:
            found.append(json.dumps(calls, default=str, ensure_ascii=False))
    return tuple(found)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    # A picture or a sound is one word of its own, so that two of them are never taken for the same.
    return text if isinstance(text, str) else f"part{zlib.crc32(json.dumps(part, default=str).encode())}"
