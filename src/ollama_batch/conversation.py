"""When a conversation is trimmed, and over how many lanes it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ollama_batch.errors import ConfigError

MOST_LANES = 256


class Marks(NamedTuple):
    """Tokens of a whole prompt: trimmed beyond `high`, down to `low`."""

    high: int
    low: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationPolicy:
    """How the requests of a run share conversations: `lanes` of them, each trimmed rarely and deep.

    `high` and `low` are shares of the limit, which is num_ctx less the row's answer: a prompt that would be
    longer than `high` is trimmed to `low` before it is sent. `every`: trim also after so many answers.
    `lanes`: so many conversations, a number of the run, so that answers do not depend on the hardware;
    row by row they take turns. `keep_messages`: keep just so many of the last messages (whole exchanges)
    instead of going down to `low`; where they do not fit together with the row, it is as if this were not
    given, so that fewer stay, or none, and the run says so once (a note `kept_fewer`). `limit`: the limit in
    tokens, where it is to be smaller than num_ctx allows; a row that is longer by itself fails. Raises
    ConfigError.
    """

    high: float = 0.875
    low: float = 0.5
    every: int | None = None
    lanes: int = 4
    keep_messages: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("high", "low"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ConfigError(f"ConversationPolicy({name}={value!r}): must be a share above 0, at most 1")
        if self.low > self.high:
            raise ConfigError(f"ConversationPolicy(low={self.low}, high={self.high}): low is above high")
        for name, most in (("every", None), ("lanes", MOST_LANES), ("keep_messages", None), ("limit", None)):
            value = getattr(self, name)
            if value is None and name != "lanes":
                continue
            if type(value) is not int or value < 1 or (most is not None and value > most):
                upto = "" if most is None else f", {most} at most"
                raise ConfigError(
                    f"ConversationPolicy({name}={value!r}): must be a whole number from 1{upto}"
                )

    @classmethod
    def original(cls) -> ConversationPolicy:
        """The rule of the batch server this library grew out of, for comparison.

        One conversation, a limit of 32,768 tokens; trimmed after every 50 requests and beyond 87.5 % of
        the limit; each time the last 40 messages stay, or fewer where those do not fit (see `keep_messages`).
        """
        return cls(high=0.875, low=0.875, every=50, lanes=1, keep_messages=40, limit=32_768)

    def marks(self, room: int, *, ceiling: int | None = None) -> Marks:
        """The marks for prompts that have `room` tokens.

        `ceiling`: no prompt beyond so many tokens is known to work; both marks come down in proportion.
        """
        limit = room if self.limit is None else min(room, self.limit)
        high = math.floor(self.high * limit)
        if ceiling is not None:
            high = min(high, ceiling)
        return Marks(max(1, high), max(1, math.floor(high * self.low / self.high)))
