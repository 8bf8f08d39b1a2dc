"""From items of any kind to the requests of a batch: the protocol, and the stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, Self, TypeVar, overload

from ollama_batch.aris.candidate import Candidate
from ollama_batch.aris.reader import CandidateReader, read_candidates
from ollama_batch.aris.template import PraxisTemplate
from ollama_batch.errors import ConfigError
from ollama_batch.types import BatchRequest

_LOG: Final = logging.getLogger(__name__)
_NAMED: Final = 100

ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


class Adapter(Protocol[ItemT_contra]):
    """Makes the request that asks about one item. `PraxisTemplate` is one; any object with this method is."""

    def request(self, item: ItemT_contra, /) -> BatchRequest | None:
        """The request about `item`, its `custom_id` the item's own id; None if there is nothing to ask.

        Must be pure, and begin every request with the same messages, so that the engine evaluates what
        they share once.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What became of the items so far: `made` requests, `evaluated` and `empty` ones without.

    `empty_items` names the first hundred of the empty ones: candidates by their id, others as "item 17".
    """

    made: int = 0
    evaluated: int = 0
    empty: int = 0
    empty_items: tuple[str, ...] = ()


class RequestStream(Iterator[BatchRequest], Generic[ItemT]):
    """The requests for `items`, made as they are taken; `counts` says what became of the items so far.

    At the end of an export whose candidates all lack the profile, a field of it or a section that is to be
    in the prompts of a PraxisTemplate, `warn` is called with a sentence: it writes to the log.
    """

    def __init__(
        self, items: Iterable[ItemT], adapter: Adapter[ItemT], *, skip_evaluated: bool, limit: int | None
    ) -> None:
        self.items = items
        self._adapter = adapter
        self._skip_evaluated = skip_evaluated
        self._limit = limit
        self._made = self._evaluated = self._empty = 0
        self._empty_items: list[str] = []
        self._ended = False
        self.warn: Callable[[str], object] = _LOG.warning
        self._iterator = iter(items)

    @property
    def counts(self) -> RequestCounts:
        """What became of the items so far."""
        return RequestCounts(
            made=self._made,
            evaluated=self._evaluated,
            empty=self._empty,
            empty_items=tuple(self._empty_items),
        )

    @property
    def inputs(self) -> tuple[Path | os.stat_result, ...]:
        """The files that are known to be read for the requests, which no output may replace."""
        export = self.items.inputs if isinstance(self.items, CandidateReader) else ()
        template: object = self._adapter
        return (*export, *(template.inputs if isinstance(template, PraxisTemplate) else ()))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchRequest:
        if self._limit is not None and self._made >= self._limit:
            if isinstance(self.items, CandidateReader):
                self.items.close()
            self._end()
            raise StopIteration
        for item in self._iterator:
            if self._skip_evaluated and getattr(item, "evaluated", False):
                self._evaluated += 1
                continue
            request = self._adapter.request(item)
            if request is None:
                self._empty += 1
                if len(self._empty_items) < _NAMED:
                    name = f"item {self._made + self._evaluated + self._empty:,}"
                    self._empty_items.append(item.aristotle_id if isinstance(item, Candidate) else name)
                continue
            self._made += 1
            return request
        self._end()
        raise StopIteration

    def _end(self) -> None:
        """Warn, once, of what all candidates lack."""
        template: object = self._adapter
        if self._ended or not isinstance(self.items, CandidateReader):
            return
        if not isinstance(template, PraxisTemplate):
            return  # what another adapter needs is not known
        self._ended = True
        nobody = self._empty > 0 and not self._made and not self._evaluated
        for warning in self.items.quality.warnings(
            made=self._made, nobody=nobody, sections=template.sections_on
        ):
            self.warn(warning)


@overload
def to_requests(
    items: str | os.PathLike[str] | Iterable[Candidate],
    adapter: PraxisTemplate | None = None,
    *,
    skip_evaluated: bool = False,
    limit: int | None = None,
) -> RequestStream[Candidate]: ...


@overload
def to_requests(
    items: Iterable[ItemT],
    adapter: Adapter[ItemT],
    *,
    skip_evaluated: bool = False,
    limit: int | None = None,
) -> RequestStream[ItemT]: ...


def to_requests(
    items: Any, adapter: Any = None, *, skip_evaluated: bool = False, limit: int | None = None
) -> RequestStream[Any]:
    """The requests for `items`, one at a time: an input of `BatchRunner.run`, or of `write_requests`.

    `items` are candidates, the path of an Aris export (which is then read with `read_candidates`), or
    whatever `adapter` takes (None: `PraxisTemplate()`). `skip_evaluated` leaves out items whose `evaluated`
    is true: candidates with an earlier analysis. `limit`: at most so many requests; a reading ends there.
    Raises ConfigError, and what `read_candidates` raises.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: must be 1 or more")
    template = PraxisTemplate() if adapter is None else adapter
    if not callable(getattr(template, "request", None)):
        raise ConfigError(f"adapter: must have a method request(item), which {type(template).__name__} lacks")
    if isinstance(items, str | os.PathLike):
        items = read_candidates(items)
    return RequestStream(items, template, skip_evaluated=skip_evaluated, limit=limit)
