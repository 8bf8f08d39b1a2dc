"""What a limit was before the engine began to refuse requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Refused:
    """The `limit` and its `ceiling` of rounds at the first refusal, until a later request is not refused.

    `all_since`: the engine went on to refuse when it had nothing else of ours. That is no news of what fits,
    so the limit holds again once it is over.
    """

    limit: int
    ceiling: tuple[int, int] | None
    all_since: bool = False
