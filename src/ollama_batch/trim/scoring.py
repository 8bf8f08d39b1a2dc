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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ollama_batch.types import Message

# A text is known by about so many of its words, the same ones in every text that has them; it is compared
# by the rarest of these, so many, of which all texts together hold so many: that bounds the cost.
_SAMPLE_WORDS = 48
_SKETCH_WORDS = 12
_SKETCH_HOLDERS = 160
_SKETCH_LEAST = 4

_K1, _B = 1.2, 0.75  # BM25's usual constants (Robertson and Zaragoza, 2009)
_QUERY_WORDS = 32

# Of the bytes of a text: ASCII letters become small, what else of ASCII is no digit becomes a blank.
_LOWERED = bytes(
    byte if byte >= 128 or chr(byte) in string.ascii_letters + string.digits else 32 for byte in range(256)
).lower()
# Chinese, Japanese and Korean are not spaced: one character is one word there.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text by hash, as often as they occur, and a sample of them, in order."""

    hashes: Sequence[int]
    sample: Sequence[int]


class Corpus:
    """The texts of one conversation's units, for comparing them with each other and with a request."""

    def __init__(self, texts: Sequence[tuple[str, ...]]) -> None:
        self._texts = [read_words(text) for text in texts]
        self._frequency = Counter(chain.from_iterable([words.sample for words in self._texts]))
        self._squares = [_idf(count, len(texts)) ** 2 for count in range(len(texts) + 1)]
        sketches = [_sketch(words.sample, self._frequency, self._squares) for words in self._texts]
        self._sketches = [words for words, _ in sketches]
        self._scales = [scale for _, scale in sketches]
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        for unit, sketch in enumerate(self._sketches):
            for word in sketch:
                self._holders[word].append(unit)
        self._likeness: dict[int, dict[int, float]] = {}

    def likeness(self, unit: int) -> dict[int, float]:
        """About the cosine of the unit's tf-idf vector with that of each unit it has words in common with.

        From 0 to 1; equal texts have 1, units not named have 0; the same seen from either unit. A vector
        holds which words occur, not how often, and is a sample: it errs towards telling texts apart.
        """
        known = self._likeness.get(unit)
        if known is None:
            common: dict[int, float] = {}
            for word in self._sketches[unit]:
                square = self._squares[self._frequency[word]]
                for other in self._holders[word]:
                    common[other] = common.get(other, 0.0) + square
            scale, scales = self._scales[unit], self._scales
            known = {other: square * (scale * scales[other]) for other, square in common.items()}
            self._likeness[unit] = known
        return known

    def relevance(self, request: tuple[str, ...], own: int | None = None) -> list[float]:
        """BM25 of `request` against each unit, divided by the largest; all 0 if no word is in common.

        `own` is the unit that the request was taken from, which would beat all others: it gets 0.
        """
        texts = self._texts
        asked = frozenset(read_words(request).hashes)
        met = [asked.intersection(text.hashes) for text in texts]
        holders = Counter(chain.from_iterable(met))
        if own is not None:
            holders.subtract(met[own])
        # By number and word, as the order of a set is another in every process.
        held = sorted((count, word) for word, count in holders.items() if count > 0)
        weights = {word: _idf(count, len(texts)) for count, word in held[:_QUERY_WORDS]}
        rarest = frozenset(weights)
        mean = max(1.0, sum([len(text.hashes) for text in texts]) / max(1, len(texts)))
        found = []
        for unit, text in enumerate(texts):
            damping = _K1 * (1 - _B + _B * len(text.hashes) / mean)
            terms = []
            for word in rarest & met[unit]:
                times = text.hashes.count(word)
                terms.append(weights[word] * times * (_K1 + 1) / (times + damping))
            found.append(0.0 if unit == own else math.fsum(terms))  # exact, so in any order the same
        largest = max(found, default=0.0)
        return [score / largest for score in found] if largest > 0 else found


def _sketch(
    sample: Sequence[int], frequency: Mapping[int, int], squares: Sequence[float]
) -> tuple[list[int], float]:
    """The rarest words that others have too, and the scale by which their vector has length 1.

    `squares` are those of the weights, by frequency. Words that no other text has enter the length, at
    the rate at which the others are taken.
    """
    ranked = sorted(sample, key=frequency.__getitem__)  # among equals by hash, as the sample is
    own = bisect.bisect_left(ranked, 2, key=frequency.__getitem__)
    words = ranked[own : own + _SKETCH_WORDS]
    counts = [frequency[word] for word in words]
    while len(words) > _SKETCH_LEAST and sum(counts) > _SKETCH_HOLDERS:
        words.pop()
        counts.pop()
    if not words:
        return [], 0.0
    square = sum([squares[count] for count in counts])
    square += own * len(words) / (len(ranked) - own) * squares[1]
    return words, (1 - 1e-15) / math.sqrt(square)  # rounding lifts no likeness above 1


def _idf(frequency: int, texts: int) -> float:
    return math.log(1 + (texts - frequency + 0.5) / (frequency + 0.5))


@functools.lru_cache(maxsize=512)
def read_words(texts: tuple[str, ...]) -> Words:
    """The words of these texts; they are remembered by the text."""
    hashes = list(map(zlib.crc32, words_of(texts)))
    return Words(hashes, _sample(hashes))


def words_of(texts: Sequence[str]) -> list[bytes]:
    """The words of these texts, lower-cased, in any order; texts without any are one word as a whole."""
    # Bytes are split and hashed at half the price of characters. Half a surrogate pair, which JSON can
    # hold, is no letter: it becomes a question mark.
    whole = " ".join(texts).encode("utf-8", "replace")
    words = whole.translate(_LOWERED).split()
    if not whole.isascii():
        others = b" ".join([word for word in words if not word.isascii()]).decode().lower()
        words = [word for word in words if word.isascii()]
        words += " ".join(_WORDS.findall(others)).encode().split()
    return words or [whole]


def _sample(hashes: Sequence[int]) -> list[int]:
    """About `_SAMPLE_WORDS` of the hashes, those below a bound that texts of the same length share.

    The last bits, which hardly tell words apart, are left out: small numbers sort faster.
    """
    bound = (_SAMPLE_WORDS << 32) // len(hashes)
    return sorted({value >> 2 for value in hashes if value < bound})


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
