"""What a user wants to know of the answers: fields by their paths, and a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ollama_batch.analysis.answers import ABSENT, as_number, look_up, parse_answer
from ollama_batch.analysis.rows import ResultRow
from ollama_batch.errors import ConfigError

Fields: TypeAlias = "str | Sequence[str] | Mapping[str, Sequence[str] | None]"
"""One path, several, or paths with the order of their labels (None: by how frequent they are)."""

Score: TypeAlias = "str | Callable[[Mapping[str, Any]], float | None]"
"""A path, or what makes a number of a parsed answer; None is no score."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which fields and which score; `orders` has the labels of a field in their order."""

    fields: tuple[str, ...] = ()
    orders: Mapping[str, Sequence[str] | None] | None = None
    score: Score | None = None

    @classmethod
    def of(cls, fields: Fields | None, score: Score | None) -> Asked:
        """Checked. Raises ConfigError for what is no path and no callable."""
        if fields is None:
            orders: Mapping[str, Sequence[str] | None] = {}
        elif isinstance(fields, str):
            orders = {fields: None}
        elif isinstance(fields, Mapping):
            orders = dict(fields)
        else:
            orders = dict.fromkeys(fields)
        for path, order in orders.items():
            _check_path(path)
            if isinstance(order, str):
                raise ConfigError(f"fields[{path!r}]={order!r}: must be a list of labels in their order")
        if score is not None and not callable(score):
            _check_path(score, "score")
        return cls(tuple(orders), orders, score)

    @property
    def anything(self) -> bool:
        """Whether answers have to be objects at all."""
        return bool(self.fields) or self.score is not None

    @property
    def score_name(self) -> str | None:
        """What the score is called."""
        if self.score is None or isinstance(self.score, str):
            return self.score
        name = getattr(self.score, "__name__", "score")
        return "score" if name == "<lambda>" else str(name)

    def order(self, path: str) -> Sequence[str] | None:
        """The order of a field's labels, if one was given."""
        return None if self.orders is None else self.orders.get(path)

    def parse(self, row: ResultRow) -> Mapping[str, Any] | None:
        """The answer of an ok row as an object; None if it failed or is no object."""
        return parse_answer(row) if row.ok else None

    def values(self, answer: Mapping[str, Any] | None) -> list[Any]:
        """What stands at each field, None where nothing does."""
        found = [None if answer is None else look_up(answer, path) for path in self.fields]
        return [None if value is ABSENT else value for value in found]

    def score_of(self, answer: Mapping[str, Any] | None, custom_id: str) -> float | None:
        """The score of a parsed answer; None without one. Raises ConfigError if the callable fails."""
        if answer is None or self.score is None:
            return None
        if isinstance(self.score, str):
            return as_number(look_up(answer, self.score))
        try:
            return as_number(self.score(answer))
        except Exception as error:
            raise ConfigError(
                f"score={self.score_name} failed at the answer of row {custom_id!r}: "
                f"{type(error).__name__}: {error}; let it return None for answers without a score"
            ) from error


def _check_path(path: object, name: str = "fields") -> None:
    if not isinstance(path, str) or not path:
        raise ConfigError(
            f"{name}={path!r}: must be a path of the answer, as in 'recommendation' or 'trajectory.rating'"
        )
