"""One round of answers under one limit, added up."""

from __future__ import annotations


class Round:
    """Sums over answers that were sent under the same limit, and what they say together.

    Waits and latencies are summed over the same answers, so that how much their lengths differ cancels out.
    """

    __slots__ = (
        "_in_flight",
        "_latency_s",
        "_queue_s",
        "_served_s",
        "_told",
        "_waiting",
        "_waiting_told",
        "_work",
        "answers",
        "peak",
        "timeouts",
    )

    def __init__(self) -> None:
        self.answers = 0
        self.peak = 0
        self.timeouts = 0
        self._in_flight = 0
        self._latency_s = 0.0
        self._queue_s = 0.0
        self._served_s = 0.0
        self._told = 0
        self._waiting = 0
        self._waiting_told = 0
        self._work = 0.0

    def add(
        self,
        *,
        latency_s: float,
        in_flight: int,
        queue_s: float | None,
        work: float,
        served_s: float | None = None,
    ) -> None:
        """One more answer; `in_flight` counts it as well."""
        self.answers += 1
        self.peak = max(self.peak, in_flight)
        self._in_flight += in_flight
        self._latency_s += latency_s
        self._work += work
        if queue_s is not None:
            self._told += 1
            self._queue_s += min(max(queue_s, 0.0), latency_s)
        # What is not told is taken for work: then the engine is not doubted.
        self._served_s += latency_s if served_s is None else min(max(served_s, 0.0), latency_s)

    def add_waiting(self, waiting: int) -> None:
        """The server's own count of requests that wait."""
        self._waiting_told += 1
        self._waiting += waiting

    @property
    def in_flight(self) -> float:
        """How many requests were out, on average."""
        return self._in_flight / self.answers if self.answers else 0.0

    @property
    def queue(self) -> float | None:
        """How many requests waited for a slot, on average; None if the engine does not tell.

        By Little's law: of the requests that are out, as large a share waits as waiting has of their time.
        """
        if self._told and self._told == self.answers:
            return self.in_flight * self._queue_s / self._latency_s if self._latency_s > 0 else 0.0
        return self._waiting / self._waiting_told if self._waiting_told else None

    @property
    def wait_share(self) -> float | None:
        """The share (0 to 1) of their time for which requests waited; None if the engine does not tell."""
        queue = self.queue
        return None if queue is None or not self.in_flight else min(1.0, queue / self.in_flight)

    @property
    def served_share(self) -> float:
        """The share (0 to 1) of their time for which the engine worked on requests."""
        return self._served_s / self._latency_s if self._latency_s > 0 else 1.0

    @property
    def pace(self) -> float:
        """Answers in a second of all that is out together."""
        return self.in_flight * self.answers / self._latency_s if self._latency_s > 0 else 0.0

    @property
    def rate(self) -> float:
        """Work done in a second by all that is out together (Little's law again)."""
        return self.in_flight * self._work / self._latency_s if self._latency_s > 0 else 0.0
