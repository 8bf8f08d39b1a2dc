"""A mix of faults, and how rows must end that have met it: the fake server's ledger says what each met."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ollama_batch import BatchRequest, BatchResult, BatchRunner
from ollama_batch.retry import RetryPolicy
from ollama_batch.testing import CostModel, Fault
from ollama_batch.testing.base import FakeServer
from ollama_batch.testing.ledger import Ledger

SHARES = {"reset": 0.05, "status": 0.05, "too_many": 0.03, "cut": 0.02, "hang": 0.01, "garbage": 0.01}
"""This part of all calls meets each kind of fault: connections reset, 500, 429 with Retry-After, bodies that
stop short, calls that are never answered, and what is no JSON."""

CODES = {
    "reset": "connection_lost",
    "cut": "connection_lost",
    "status": "engine_error",
    "too_many": "engine_busy",
    "hang": "request_timeout",
    "garbage": "invalid_reply",
}

MOST_CALLS_PER_ROW = 1.35


def faults(retry_after_s: int = 1) -> list[Fault]:
    """The mix. A server takes the first fault that hits, so later shares are parts of what is left."""
    made, left = [], 1.0
    for kind, share in SHARES.items():
        headers = {"Retry-After": str(retry_after_s)} if kind == "too_many" else {}
        made.append(Fault(kind, share=share / left, headers=headers))
        left -= share
    return made


def speed(jitter_s: float) -> CostModel:
    """Answers that take up to `jitter_s` seconds."""
    return CostModel(jitter_s=jitter_s)


def name(n: int) -> str:
    return f"row-{n:05d}"


def rows(count: int) -> Iterable[BatchRequest]:
    return (BatchRequest.chat(name(n), custom_id=name(n)) for n in range(count))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run in the mix went. `problems` are rows that did not end as what they met says, in words."""

    rows: int
    ok: int
    failed: int
    calls: int
    met: Counter[str]
    problems: list[str]

    @property
    def calls_per_row(self) -> float:
        return self.calls / self.rows


def run(fake: FakeServer, count: int, *, concurrency: int, timeout_s: float, retry: RetryPolicy) -> Verdict:
    """Run `count` rows through the mix, and judge every one of them."""
    runner: BatchRunner = BatchRunner(
        model="toy:1b",
        base_url=fake.url,
        num_ctx=2048,
        concurrency=concurrency,
        timeout=timeout_s,
        retry=retry,
        progress="none",
    )
    results = list(runner.run(rows(count)).results())
    # A call that its client has left is over for the server a moment later.
    fake.wait_until(lambda ledger: all(record.outcome != "open" for record in ledger.completions()), 30.0)
    return judge(fake.ledger, results, count, retry)


def judge(ledger: Ledger, results: Iterable[BatchResult[Any]], count: int, retry: RetryPolicy) -> Verdict:
    """Compare what rows met with how they ended.

    A row is ok exactly if its last call was answered, and no other was. It has failed exactly with the name
    of what its last call met, and only once it had met that more often than its repeats for it allow.
    """
    calls: dict[str, list[str]] = defaultdict(list)
    known = {name(n) for n in range(count)}
    for record in sorted(ledger.completions(), key=lambda record: record.seq):
        if record.key in known:  # not the run's own question whether the engine works
            calls[record.key].append(record.outcome.removeprefix("fault:"))
    ended = Counter(result.custom_id for result in results)
    problems = [f"{each} ended {ended[each]} times" for each in sorted(known) if ended[each] != 1]
    problems += [f"{each} was never asked for" for each in ended if each not in known]
    for result in results:
        wrong = _wrong(result, calls[result.custom_id], retry)
        if wrong:
            problems.append(f"{result.custom_id}: {wrong}; it met {calls[result.custom_id]}")
    ok = sum(result.ok for result in results)
    met = Counter(outcome for each in calls.values() for outcome in each)
    return Verdict(count, ok, len(ended) - ok, sum(map(len, calls.values())), met, problems)


def _wrong(result: BatchResult[Any], met: list[str], retry: RetryPolicy) -> str | None:
    if not met:
        return "was never sent"
    if result.attempts != len(met):
        return f"says it was sent {result.attempts} times"
    if "answered" in met[:-1]:
        return "was sent again after it had been answered"
    answered = met[-1] == "answered"
    if result.ok != answered:
        return "ok" if result.ok else f"failed ({result.error})"
    if answered:
        return None if result.output else "ok without text"
    assert result.error is not None
    # A call that took longer than the deadline by itself ends like one that hangs.
    kinds = ["hang" if kind == "aborted" else kind for kind in met]
    code = CODES[kinds[-1]]
    if result.error.code != code:
        return f"failed with {result.error.code} instead of {code}"
    allowed = {
        "connection_lost": retry.transport,
        "engine_error": retry.server,
        "request_timeout": retry.timeout,
        "invalid_reply": retry.reply,
    }.get(code)
    if allowed is None:
        return f"failed with {code}, which costs a row nothing"
    repeats = sum(CODES[kind] == code for kind in kinds) - 1
    return None if repeats == allowed else f"failed after {repeats} repeats for {code}, allowed are {allowed}"
