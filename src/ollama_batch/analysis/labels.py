"""The labels of a field: what differs in letter case and white space alone is one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_batch.analysis.answers import as_label


class Labels:
    """Tells the labels of one field apart, as response models that forgive letter case and white space do.

    A label is called as `order` has it, else as `words` do, else by its commonest spelling. Where `order`
    itself has two labels that differ in nothing else, every spelling is a label. At most `most` spellings
    are kept, besides one for each label.
    """

    def __init__(self, order: Sequence[str] | None, most: int, words: Sequence[str] = ()) -> None:
        named = (*(() if exact(words) else words), *(order or ()))
        self._named = {_folded(label): label for label in named}
        self._exact = exact(order)
        self._most = most
        self._kept = self._beyond = 0
        self._spellings: dict[str, Counter[str]] = {}

    def key(self, value: Any) -> str:
        """The same for every spelling of a label."""
        return key_of(value, exact=self._exact)

    def add(self, value: Any) -> None:
        """Count how it is spelt."""
        label = as_label(value)
        spellings = self._spellings.setdefault(self.key(value), Counter())
        if label in spellings or not spellings or self._kept < self._most:
            self._kept += label not in spellings
            spellings[label] += 1
        else:
            self._beyond += 1

    def names(self) -> Mapping[str, str]:
        """What the label of each key that was counted is called."""
        given = {} if self._exact else self._named
        return {
            key: given.get(key) or min(spellings, key=lambda each: (-spellings[each], each))
            for key, spellings in self._spellings.items()
        }

    def respelt(self) -> int:
        """How many values are not spelt as their label is called."""
        names = self.names()
        other = (each.total() - each[names[key]] for key, each in self._spellings.items())
        return sum(other) + self._beyond


def exact(order: Sequence[str] | None) -> bool:
    """Whether an order has labels that differ in letter case and white space alone."""
    labels = set(order or ())
    return len({_folded(label) for label in labels}) < len(labels)


def key_of(value: Any, *, exact: bool = False) -> str:
    """What values of one label have in common; `exact`: that they are spelt alike."""
    label = as_label(value)
    return _folded(label) if isinstance(value, str) and not exact else label


def _folded(label: str) -> str:
    return " ".join(label.split()).casefold()
