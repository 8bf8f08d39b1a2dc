"""The seam of trimming: what a strategy is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ollama_batch.tokens.base import TokenCounter
from ollama_batch.types import Message


@dataclass(frozen=True, slots=True)
class Clip:
    """A body that was shortened: characters `[start, stop)` of the content of message `index` gave way.

    `index` counts in the conversation that was trimmed, `marker` is the text that stands there now.
    """

    index: int
    start: int
    stop: int
    marker: str

    def apply(self, message: Message) -> Message:
        """A copy of `message`, shortened; the message itself stays as it is."""
        content = message["content"]
        return {**message, "content": content[: self.start] + self.marker + content[self.stop :]}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimResult:
    """A trimmed conversation, and what trimming it did.

    `messages` is a new list of the very messages that were given, clipped ones aside. Units are named by
    their position in the conversation, from 0 (see `split_units`). All figures are tokens by the counter
    that was given; `upcoming` is in none of them but `upcoming_tokens`. `first_changed_index` is the first
    message that is no longer what it was, None if nothing changed; `reused_prefix_tokens` are the tokens of
    the messages before it, `tokens_after` at most, which an engine's prefix cache can still give (all, if
    nothing changed). `kept_ranges` are the messages that stayed.
    """

    strategy: str
    messages: list[Message]
    messages_before: int
    kept_units: tuple[int, ...]
    dropped_units: tuple[int, ...]
    kept_ranges: tuple[tuple[int, int], ...]
    tokens_before: int
    tokens_after: int
    reused_prefix_tokens: int
    first_changed_index: int | None = None
    upcoming_tokens: int = 0
    clipped: tuple[Clip, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was dropped or clipped."""
        return self.first_changed_index is not None

    @property
    def tokens_saved(self) -> int:
        """Tokens that the prompt lost: the gain of a trim."""
        return self.tokens_before - self.tokens_after

    @property
    def cache_loss_tokens(self) -> int:
        """Tokens that stay but must be evaluated again, as what stands before them changed: its price."""
        return self.tokens_after - self.reused_prefix_tokens

    def to_dict(self) -> dict[str, Any]:
        """The figures for `BatchResult.trim`, ready for JSON; `kept` and `dropped` count exchanges."""
        return {
            "strategy": self.strategy,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "tokens_saved": self.tokens_saved,
            "kept": len(self.kept_units),
            "dropped": len(self.dropped_units),
            "clipped": len(self.clipped),
            "first_changed_index": self.first_changed_index,
            "reused_prefix_tokens": self.reused_prefix_tokens,
            "cache_loss_tokens": self.cache_loss_tokens,
        }

    def to_decision(self) -> dict[str, Any]:
        """What was decided, ready for JSON: `replay` carries it out again without strategy or counter."""
        return {
            "messages_before": self.messages_before,
            "kept": [list(kept) for kept in self.kept_ranges],
            "clipped": [[clip.index, clip.start, clip.stop, clip.marker] for clip in self.clipped],
        }


@runtime_checkable
class TrimStrategy(Protocol):
    """Shortens a conversation to fit a token budget. Must not modify its input."""

    def trim(
        self,
        messages: Sequence[Message],
        *,
        budget: int,
        counter: TokenCounter,
        upcoming: Message | None = None,
    ) -> TrimResult:
        """`messages` shortened so that they, followed by `upcoming` if given, have at most `budget` tokens.

        `budget` counts the whole prompt: head, kept exchanges, `upcoming`, and what a prompt costs beside
        its messages. A prompt that fits comes back unchanged. `upcoming` is the request to be sent next;
        it is not part of the result. Raises ContextTooLargeError(tokens, budget) if what must stay does
        not fit: the head with the last exchange or, where a user message is upcoming, the head with it.
        """
        ...


def replay(messages: Sequence[Message], decision: Mapping[str, Any]) -> list[Message]:
    """`messages` trimmed as `TrimResult.to_decision` of the same conversation says.

    Raises ValueError if it was made about a conversation of another length.
    """
    if decision["messages_before"] != len(messages):
        made = decision["messages_before"]
        raise ValueError(f"a trim decision about {made} messages does not go with {len(messages)} messages")
    clips = {clip.index: clip for clip in (Clip(*fields) for fields in decision["clipped"])}
    kept = [index for start, stop in decision["kept"] for index in range(start, stop)]
    return [clips[index].apply(messages[index]) if index in clips else messages[index] for index in kept]
