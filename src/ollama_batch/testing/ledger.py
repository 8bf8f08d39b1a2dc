"""The record of everything a fake server was asked: the oracle of tests that count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import orjson

Kind: TypeAlias = Literal["completion", "preload", "unload", "other"]


@dataclass(slots=True)
class LedgerRecord:
    """One request as it arrived, and what became of it.

    `at` is `time.monotonic()` of the machine at arrival, in seconds. `key` is the first line, up to 200
    characters, of the last user message: put a marker there to find a row again. `digest` tells apart
    messages. `sent` is the body as the client sent it, without the model and the messages. `in_flight`
    counts completions being worked on at arrival, this one included. `outcome` is "answered", "error" (a
    refusal of the fake itself), "aborted" (the client left), "fault:<kind>" (also where a full card or a
    runner that died is the reason), or "open" while none of these.
    """

    seq: int
    at: float
    route: str
    kind: Kind
    model: str
    key: str
    digest: str
    sent: Mapping[str, Any]
    in_flight: int
    outcome: str = "open"
    status: int | None = None


class Ledger:
    """Every request a fake server was asked, in order of arrival.

    In memory, some 0.4 KB per request; `FileLedger` is the one for large runs.
    """

    def __init__(self) -> None:
        self._records: list[LedgerRecord] = []
        self._loads: list[dict[str, Any]] = []
        self._aborted: list[dict[str, Any]] = []
        self._seq = 0
        self._sent: dict[bytes, Mapping[str, Any]] = {}

    def records(self) -> Iterator[LedgerRecord]:
        """All requests, whatever they asked for."""
        return iter(self._records[:])

    def completions(self) -> list[LedgerRecord]:
        """Requests for a completion: not preloads, unloads, or questions about models."""
        return [record for record in self.records() if record.kind == "completion"]

    def count(self, key: str | None = None) -> int:
        """How many completions were asked, of the rows with this `key`, or of all."""
        return sum(r.kind == "completion" and (key is None or r.key == key) for r in self.records())

    def counts(self) -> Counter[str]:
        """How many completions were asked of each key."""
        return Counter(record.key for record in self.records() if record.kind == "completion")

    def keys(self) -> set[str]:
        """The keys of all completions asked."""
        return {record.key for record in self.records() if record.kind == "completion"}

    def answered(self, key: str | None = None) -> int:
        """How many completions were answered in full and unharmed, of this `key`, or of all."""
        return sum(
            r.kind == "completion" and r.outcome == "answered" and (key is None or r.key == key)
            for r in self.records()
        )

    @property
    def max_in_flight(self) -> int:
        """The most completions that were being worked on at once."""
        return max((r.in_flight for r in self.records() if r.kind == "completion"), default=0)

    @property
    def loads(self) -> int:
        """How often a model was loaded, reloads included."""
        return len(self.load_settings())

    def load_settings(self) -> list[dict[str, Any]]:
        """What was loaded at each load: `model`, `num_ctx` in tokens, and the other load options."""
        return [dict(load) for load in self._loads]

    def aborted_loads(self) -> list[dict[str, Any]]:
        """The same of loads that never ended, because the client that asked for one left."""
        return [dict(load) for load in self._aborted]

    def arrived(
        self,
        *,
        at: float,
        route: str,
        kind: Kind,
        model: str = "",
        key: str = "",
        digest: str = "",
        sent: Mapping[str, Any] | None = None,
        in_flight: int = 0,
    ) -> LedgerRecord:
        """Record a request; the server calls this."""
        self._seq += 1
        record = LedgerRecord(
            self._seq, at, route, kind, model, key, digest, self._shared(sent or {}), in_flight
        )
        self._keep(record)
        return record

    def finished(self, record: LedgerRecord, outcome: str, status: int | None) -> None:
        """Record what became of a request; the server calls this."""
        record.outcome = outcome
        record.status = status

    def loaded(self, settings: Mapping[str, Any]) -> None:
        """Record a load; the server calls this."""
        self._loads.append(dict(settings))

    def load_aborted(self, settings: Mapping[str, Any]) -> None:
        """Record a load that was given up; the server calls this."""
        self._aborted.append(dict(settings))

    def close(self) -> None:
        """Release what the ledger holds open; it can still be read."""

    def _keep(self, record: LedgerRecord) -> None:
        self._records.append(record)

    def _shared(self, sent: Mapping[str, Any]) -> Mapping[str, Any]:
        # The rows of a run send the same settings: one object for all of them saves most of the memory.
        name = orjson.dumps(sent)
        if len(self._sent) > 1024:
            self._sent.clear()
        return self._sent.setdefault(name, sent)


class FileLedger(Ledger):
    """A ledger in a JSONL file: one line when a request arrives and one when it is over, flushed at once.

    Needs the same memory for any number of requests. Reading goes through the file, so another process
    may read while the server writes, or after it was killed; `records()` then come in the order they
    ended, those still open last. An existing file is continued.
    """

    def __init__(self, path: str | PathLike[str], *, readonly: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        if not readonly:
            self._seq = max((record.seq for record in self.records()), default=0)
            self._file = self.path.open("ab")

    def records(self) -> Iterator[LedgerRecord]:
        """All requests, whatever they asked for, in the order they ended."""
        pending: dict[int, LedgerRecord] = {}
        for line in self._lines():
            if "done" in line:
                record = pending.pop(line["done"])
                record.outcome, record.status = line["outcome"], line["status"]
                yield record
            elif "seq" in line:
                pending[line["seq"]] = LedgerRecord(**line)
        yield from pending.values()

    def load_settings(self) -> list[dict[str, Any]]:
        """What was loaded at each load: `model`, `num_ctx` in tokens, and the other load options."""
        return [line["load"] for line in self._lines() if "load" in line]

    def aborted_loads(self) -> list[dict[str, Any]]:
        """The same of loads that never ended, because the client that asked for one left."""
        return [line["aborted"] for line in self._lines() if "aborted" in line]

    def finished(self, record: LedgerRecord, outcome: str, status: int | None) -> None:
        """Record what became of a request; the server calls this."""
        super().finished(record, outcome, status)
        self._write({"done": record.seq, "outcome": outcome, "status": status})

    def loaded(self, settings: Mapping[str, Any]) -> None:
        """Record a load; the server calls this."""
        self._write({"load": dict(settings)})

    def load_aborted(self, settings: Mapping[str, Any]) -> None:
        """Record a load that was given up; the server calls this."""
        self._write({"aborted": dict(settings)})

    def close(self) -> None:
        """Close the file; it can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, record: LedgerRecord) -> None:
        self._write(asdict(record) if self._file is None else _plain(record))

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(orjson.dumps(line) + b"\n")
            self._file.flush()

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # the last line may still be on its way
                    yield orjson.loads(line)


def _plain(record: LedgerRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in LedgerRecord.__slots__}
