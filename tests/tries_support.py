"""Facts of time: a machine with other work spoils one try of them, hardly three."""

from __future__ import annotations

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt


class Spoiled(AssertionError):
    """A figure that hangs on time is not what it should be: the machine may have been busy."""


def timed(holds: bool, *figures: object) -> None:
    """Assert what hangs on time; only this is worth another try, all that is exact holds in each."""
    if not holds:
        raise Spoiled(*figures)


def tries(count: int = 3) -> Retrying:
    """`for attempt in tries(): with attempt: ...` until what is `timed` holds; raises after the last."""
    return Retrying(stop=stop_after_attempt(count), retry=retry_if_exception_type(Spoiled), reraise=True)
