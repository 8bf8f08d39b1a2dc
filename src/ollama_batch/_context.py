"""How many tokens prompt and answer may have together, what decides that, and what would make it more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Source: TypeAlias = Literal["num_ctx", "told", "trained", "server"]


@dataclass(frozen=True, slots=True)
class Context:
    """`tokens` for prompt and answer together (None: nobody tells), and what decides them.

    `source`: "num_ctx" is what every request carries, "told" what was said of a server that sets its own,
    "trained" the most that the model takes, "server" what the server was started with, or said when it
    refused a prompt. `most`: what num_ctx= can be raised to, None where that is not known.
    """

    tokens: int | None = None
    source: Source = "num_ctx"
    most: int | None = None

    def __str__(self) -> str:
        """Its name and size, as in "num_ctx 4,096"."""
        tokens = "unknown" if self.tokens is None else f"{self.tokens:,}"
        names = {
            "num_ctx": f"num_ctx {tokens}",
            "told": f"num_ctx {tokens}, as told,",
            "trained": f"the {tokens} that the model was trained for",
            "server": f"the server's context of {tokens}",
        }
        return names[self.source]

    def more(self, needed: int, *, exact: bool) -> str:
        """What would make room for a prompt and an answer that have `needed` tokens together, or at most."""
        enough = self.most is None or needed <= self.most
        if self.source == "trained" or (self.source == "num_ctx" and exact and not enough):
            return "take a model with a longer context"
        if self.source == "num_ctx":
            return "raise num_ctx" if enough else f"raise num_ctx (the model takes {self.most:,} at most)"
        if self.source == "told" and self.most is not None and enough:
            return f"raise num_ctx (the server has {self.most:,})"
        larger = "give the server a larger context"
        return f"{larger}, and say so in num_ctx" if self.source == "told" else larger


UNKNOWN: Final = Context()


def either(ways: list[str]) -> str:
    """The `ways` out as part of a sentence."""
    *first, last = ways
    if not first:
        return last
    return f"{', '.join(first)}{',' if len(first) > 1 else ''} or {last}"
