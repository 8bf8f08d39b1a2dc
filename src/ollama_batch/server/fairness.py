"""Which batches run next: every key in turn, its oldest batch first, and no model driven out too often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollama_batch.server.objects import StoredBatch


@dataclass(frozen=True, slots=True)
class Load:
    """What must be loaded for a batch. Two of one model and different lengths displace each other."""

    models: tuple[str, ...]
    num_ctx: int | None

    def goes_with(self, others: Sequence[Load], models_at_once: int) -> bool:
        """Whether the engine can serve this beside `others`."""
        names = set(self.models)
        for other in others:
            if other.num_ctx != self.num_ctx and names & set(other.models):
                return False
        together = names.union(*(other.models for other in others))
        return not others or len(together) <= max(
            models_at_once, *(len(set(o.models)) for o in (self, *others))
        )


@dataclass(frozen=True, slots=True)
class Going:
    """A batch that is being run: whose, with what loaded, since when (`time.monotonic()`)."""

    owner: str
    load: Load
    since: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do now: batches to start, and batches that are to make room for another model."""

    start: tuple[StoredBatch, ...] = ()
    halt: tuple[str, ...] = ()


def choose(
    ready: Sequence[StoredBatch],
    going: Mapping[str, Going],
    *,
    loads: Mapping[str, Load],
    served: Mapping[str, int],
    waiting_since: Mapping[str, float],
    now: float,
    runs_at_once: int,
    models_at_once: int,
    turn_s: float,
) -> Choice:
    """The next batches of those that are `ready`, oldest first.

    One batch of a key runs at a time; keys come in the order in which they were `served` last. The engine
    gives requests of all runs the same turn, so that keys share it evenly. A batch that needs another
    model waits until the running ones end, or for `turn_s` seconds: then nothing else is started, and those
    that have run for as long make room.
    """
    busy = {each.owner for each in going.values()}
    first: dict[str, StoredBatch] = {}
    for batch in ready:
        if batch.owner not in busy:
            first.setdefault(batch.owner, batch)
    order = sorted(first.values(), key=lambda batch: (served.get(batch.owner, -1), batch.seq))
    beside = [each.load for each in going.values()]
    start: list[StoredBatch] = []
    for batch in order:
        load = loads[batch.id]
        if load.goes_with(beside, models_at_once):
            if len(beside) >= runs_at_once:
                break
            start.append(batch)
            beside.append(load)
            continue
        if now - waiting_since.get(batch.id, now) >= turn_s:
            halt = [
                batch_id
                for batch_id, each in going.items()
                if now - each.since >= turn_s and not load.goes_with([each.load], models_at_once)
            ]
            return Choice(tuple(start), tuple(halt))
    return Choice(tuple(start))
