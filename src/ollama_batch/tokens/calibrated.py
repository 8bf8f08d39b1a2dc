"""Counting that learns from the counts an engine reports."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ollama_batch.tokens._calibration import PRIOR, Calibration
from ollama_batch.tokens._regression import Features, Line
from ollama_batch.tokens._texts import compact_json, digits_and_wide, images_of, texts_of
from ollama_batch.tokens.base import Count, TokenCounter
from ollama_batch.tokens.state import read_state, state_file, write_state
from ollama_batch.types import Message

_log = logging.getLogger("ollama_batch.tokens")

Kind = Literal["text", "digits", "wide", "tools", "images"]
"""Kinds of prompts that models count in ways of their own; what is learned of one says little of another."""

Skipped = Literal["not_reported", "at_limit", "truncated"]

STATE_VERSION: Final = 1

_SHARE: Final = 0.2  # of a prompt's characters: from there on it is of the kind "digits" or "wide"
_UNSEEN_FACTOR: Final[Mapping[Kind, float]] = {
    "text": 1.25,
    "digits": 2.0,  # some models give each digit a token, o200k_base gives three digits one
    "wide": 2.0,
    "tools": 1.25,
    "images": 1.25,
}
_UNSEEN_TEMPLATE: Final = 64
"""Tokens kept free, before anything was seen, for the date or system text that a template may insert."""

_UNSEEN_LOWER: Final = 0.5
_TRUNCATED_SHARE: Final = 0.6
_AT_LIMIT_SHARE: Final = 0.98


@dataclass(frozen=True, slots=True)
class BoundCounter:
    """A TokenCounter whose figures are upper bounds for one prompt and whatever is left of it when trimmed.

    It does not change while the CalibratedCounter that made it goes on learning.
    """

    base: TokenCounter
    line: Line
    factor: float
    extra: float
    source: str

    def count_text(self, text: str) -> int:
        """The most tokens that plain text is expected to have."""
        return math.ceil(self.factor * self.line.ratio * self.base.count_text(text))

    def count_message(self, message: Message) -> int:
        """The most tokens that a message is expected to have."""
        x = sum(map(self.base.count_text, texts_of(message)))
        beside = self.line.per_message + self.line.per_image * images_of(message)
        return max(0, math.ceil(self.factor * (self.line.ratio * x + beside)))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """The most tokens that a prompt is expected to have, tools of the original included."""
        fixed = math.ceil(self.factor * self.line.per_prompt + self.extra)
        least = math.ceil(self.factor + self.extra)  # as `upper_bound` of a prompt of one token
        return max(least, sum(map(self.count_message, messages)) + fixed)


class CalibratedCounter:
    """Counts with `base`, corrected by what the engine reported for earlier prompts.

    The engine's tokens are modelled as ratio x base's tokens + o per message + f per prompt, learned by
    `observe` for prompts mostly of letters, of digits or of wide characters, with tools and with images
    apart. `upper_bound` is never below `estimate`, `lower_bound` never above it. What is learned belongs
    to (`model_digest`, base's source, `template`), is kept in `state_dir` by `save` and found there by the
    next counter; None keeps nothing. For one event loop or thread at a time.
    """

    def __init__(
        self,
        base: TokenCounter,
        *,
        model_digest: str,
        template: str = "chat",
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.base = base
        self._base_source = str(getattr(base, "source", type(base).__name__))
        self._key = {"model_digest": model_digest, "encoding": self._base_source, "template": template}
        self._path = None if state_dir is None else state_file(state_dir, "tokens", self._key)
        self._kinds: dict[Kind, Calibration] = {kind: Calibration() for kind in _UNSEEN_FACTOR}
        if self._path is not None:
            self._load(self._path)

    def __repr__(self) -> str:
        seen = {kind: calibration.seen for kind, calibration in self._kinds.items() if calibration.seen}
        return f"CalibratedCounter({self.base!r}, observed={seen})"

    @property
    def source(self) -> str:
        """Where the figures of plain prompts come from: base's source until enough were observed."""
        return self._source("text")

    @property
    def state_path(self) -> Path | None:
        """The file in which `save` keeps what was learned; None without a `state_dir`."""
        return self._path

    def observed(self, kind: Kind = "text") -> int:
        """How many prompts of a kind it has learned from, earlier runs included."""
        return self._kinds[kind].seen

    def kind(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None) -> Kind:
        """Which kind of prompt this is: what is learned of one kind says little of another."""
        return self._measured(messages, tools)[0]

    def trusted(self, kind: Kind) -> bool:
        """Whether enough was seen of a kind for its bounds to be measured ones."""
        return self._kinds[kind].trusted

    def knows(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        """Whether enough was seen of prompts like this, in kind and in length, for its bounds to hold."""
        kind, features = self._measured(messages, tools)
        return self._kinds[kind].knows(self.line(kind), features)

    def line(self, kind: Kind = "text") -> Line:
        """Ratio and overheads as learned so far."""
        calibration = self._kinds[kind]
        # A kind of which little was seen starts from what is known of the model's plain text.
        return calibration.line(PRIOR if kind == "text" else self._kinds["text"].line())

    def count_text(self, text: str) -> int:
        """The expected tokens of plain text."""
        return round(self.line().ratio * self.base.count_text(text))

    def count_message(self, message: Message) -> int:
        """The expected tokens of a message."""
        x = sum(map(self.base.count_text, texts_of(message)))
        line = self.line()
        return max(0, round(line.ratio * x + line.per_message + line.per_image * images_of(message)))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """The expected tokens of a prompt, as the sum of its messages; `estimate` knows kinds and tools."""
        return max(1, sum(map(self.count_message, messages)) + round(self.line().per_prompt))

    def estimate(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Count:
        """The expected tokens of a prompt."""
        kind, features = self._measured(messages, tools)
        return Count(round(self.line(kind).at(features)), self._source(kind))

    def upper_bound(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Count:
        """The most tokens a prompt is expected to have: 99.5 % and more of those seen had fewer.

        Before 30 observations of its kind 1.25 times the estimate (twice for digits and wide characters)
        and 64 for what a template may insert.
        """
        kind, features = self._measured(messages, tools)
        line, factor, extra = self._reach(kind, features)
        return Count(math.ceil(factor * line.at(features) + extra), self._source(kind))

    def lower_bound(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Count:
        """The fewest tokens a prompt is expected to have; half of its text's before 30 observations."""
        kind, features = self._measured(messages, tools)
        return Count(self._least(kind, features), self._source(kind))

    def bound_for(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> BoundCounter:
        """A TokenCounter of upper bounds, to trim `messages` with: what fits by it fits by `upper_bound`.

        The kind is that of `messages` as they are; so are the tools.
        """
        kind, features = self._measured(messages, tools)
        line, factor, extra = self._reach(kind, features, any_size=True)
        if tools:
            extra += factor * line.ratio * self.base.count_text(compact_json(tools))
        return BoundCounter(self.base, line, factor, extra, self._source(kind))

    def truncated(
        self,
        messages: Sequence[Message],
        reported: int,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> bool:
        """Whether an engine that reports `reported` prompt tokens cannot have seen the whole prompt.

        True under 60 % of the lower bound.
        """
        return reported < _TRUNCATED_SHARE * self._least(*self._measured(messages, tools))

    def observe(
        self,
        messages: Sequence[Message],
        reported: int | None,
        *,
        num_ctx: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kind: Kind | None = None,
    ) -> Skipped | None:
        """Learn that the engine counted `reported` prompt tokens, cached ones included.

        `kind` is given for a piece of a larger prompt of that kind. Returns None, or why nothing was learned:
        the engine reported nothing (or 0, as older servers do for a cached prompt), the prompt fills
        `num_ctx` to 98 % and may have been cut, or the count is so low that it must have been.
        """
        if not reported or reported < 0:
            return "not_reported"
        if num_ctx is not None and reported >= _AT_LIMIT_SHARE * num_ctx:
            return "at_limit"
        its_kind, features = self._measured(messages, tools)
        kind = its_kind if kind is None else kind
        if self._kinds[kind].trusted and reported < _TRUNCATED_SHARE * self._least(kind, features):
            return "truncated"
        prior = PRIOR if kind == "text" else self._kinds["text"].line()
        self._kinds[kind].observe(features, reported, prior)
        return None

    def overflowed(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Learn that the engine refused a prompt that the bound let pass: bounds of its kind grow by 10 %.

        A step goes back after 500 further observations; five steps at the most.
        """
        kind, _ = self._measured(messages, tools)
        self._kinds[kind].overflowed()

    def save(self) -> bool:
        """Keep what was learned for later runs.

        False if nothing was, if there is no `state_dir`, or if it cannot be written.
        """
        kinds = {kind: known.to_dict() for kind, known in self._kinds.items() if known.seen}
        if self._path is None or not kinds:
            return False
        return write_state(self._path, {"key": self._key, "kinds": kinds}, version=STATE_VERSION)

    def _load(self, path: Path) -> None:
        state = read_state(path, version=STATE_VERSION, key=self._key)
        if state is None:
            return
        try:
            kept = dict(state["kinds"].items())
            loaded = {kind: Calibration.from_dict(kept[kind]) for kind in _UNSEEN_FACTOR if kind in kept}
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            _log.warning("ignored the token calibration in %s: %s", path, error)
            return
        self._kinds.update(loaded)

    def _source(self, kind: Kind) -> str:
        return "calibrated" if self._kinds[kind].trusted else self._base_source

    def _reach(self, kind: Kind, features: Features, *, any_size: bool = False) -> tuple[Line, float, float]:
        """The line to estimate a prompt with, what that is multiplied by, and what is then added, to bound
        it from above: it has `features`, or is what may become of such a prompt when it is cut.
        """
        calibration, line = self._kinds[kind], self.line(kind)
        unseen = _UNSEEN_FACTOR[kind] * calibration.overflow_factor
        if not calibration.trusted:
            return line, unseen, _UNSEEN_TEMPLATE
        upper = calibration.margins_at(line, features).upper
        if any_size:
            upper = max(upper, calibration.margins(line).upper)
        upper *= calibration.overflow_factor
        if calibration.knows(line, features):
            return line, upper, 0.0
        return _highest(line, upper, PRIOR, unseen), 1.0, _UNSEEN_TEMPLATE

    def _least(self, kind: Kind, features: Features) -> int:
        """The lower bound of a prompt."""
        line, calibration = self.line(kind), self._kinds[kind]
        unseen = min(_UNSEEN_LOWER * line.ratio * features[0], line.at(features))
        if not calibration.trusted:
            return math.floor(unseen)
        least = calibration.margins_at(line, features).lower * line.at(features)
        if not calibration.knows(line, features):
            least = min(least, unseen, _UNSEEN_LOWER * PRIOR.ratio * features[0])
        return math.floor(least)

    def _measured(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Kind, Features]:
        """The kind of a prompt, and its features for the line."""
        x = images = 0
        characters = digits = wide = 0.0
        for message in messages:
            images += images_of(message)
            for text in texts_of(message):
                x += self.base.count_text(text)
                made_of = digits_and_wide(text)
                characters += made_of[0]
                digits += made_of[1]
                wide += made_of[2]
        if tools:
            x += self.base.count_text(compact_json(tools))
        kind: Kind = "text"
        if images:
            kind = "images"
        elif tools:
            kind = "tools"
        elif digits > _SHARE * characters:
            kind = "digits"
        elif wide > _SHARE * characters:
            kind = "wide"
        return kind, (float(x), float(len(messages)), 1.0, float(images))


def _highest(line: Line, factor: float, other: Line, its_factor: float) -> Line:
    """A line nowhere below `factor` times one and `its_factor` times the other."""
    return Line(
        max(factor * line.ratio, its_factor * other.ratio),
        max(factor * line.per_message, its_factor * other.per_message),
        max(factor * line.per_prompt, its_factor * other.per_prompt),
        max(factor * line.per_image, its_factor * other.per_image),
    )
