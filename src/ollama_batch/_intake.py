"""Taking the input in: every row of a file known, valid and journaled before the first is sent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from ollama_batch._items import Check, Fault, ScannedRow
from ollama_batch._options import RunnerOptions
from ollama_batch._sizes import PromptSizes, needed_tokens, own_limit
from ollama_batch.errors import InputError, JournalMismatchError
from ollama_batch.journal import RunJournal
from ollama_batch.jsonl import fingerprint
from ollama_batch.ordering import HeadDifference, HeadWatch
from ollama_batch.records import encode_result
from ollama_batch.sources import FileSource, Source
from ollama_batch.types import BatchResult, InvalidRow, RowError, RowRecord

CHUNK_ROWS = 1000
LISTED = 100
"""So many invalid rows are named one by one; the rest is counted."""

OTHER_MODEL = "model_mismatch"
"""The code of a row that names a model which is not the run's."""

MOST = 0.9
"""From this share of all rows on, rows that name one other model are one mistake, and named as one."""


@dataclasses.dataclass(slots=True)
class Intake:
    """What is known of the input: `total` rows (None for streams), the models they name, how long they are.

    `limited` rows have a max_tokens of their own. `sizes` is filled only where num_ctx="auto" asks for it.
    """

    total: int | None = None
    invalid: int = 0
    limited: int = 0
    sizes: PromptSizes = dataclasses.field(default_factory=PromptSizes)
    models: Counter[str] = dataclasses.field(default_factory=Counter)

    def phases(self, own: str) -> list[str]:
        """The models to send rows to, the runner's `own` first; every row of a stream is for that."""
        if self.total is None:
            return [own]
        return sorted(self.models, key=lambda model: (model != own, model))


def row_check(options: RunnerOptions, engine_check: Check) -> Check:
    """What a body must satisfy beyond OpenAI's form: the run's model, and fields the engine can honour."""
    allowed = {options.model, *options.allow_models}
    any_model = options.row_models == "ignore"
    defaults = options.body_defaults

    def check(body: Mapping[str, Any]) -> Fault | None:
        model = body.get("model")
        if not any_model and model is not None and model not in allowed:
            reason = (
                f"names {model!r}, the run is for {options.model!r} "
                '(row_models="ignore" sends it there, allow_models= takes more)'
            )
            return "body.model", reason, OTHER_MODEL
        # Some fields need each other, and the other one may come from the defaults.
        refused = engine_check({**defaults, **body} if defaults else body)
        return None if refused is None else (f"body.{refused[0]}", refused[1])

    return check


class _Chunk(NamedTuple):
    """Some rows as they were found: those for the journal, and the invalid ones by their position."""

    rows: list[RowRecord]
    invalid: dict[int, InvalidRow]


class _FileIntake:
    """Reads the files once, in chunks: rows into the journal, invalid ones into a list or the error file."""

    def __init__(
        self, journal: RunJournal, options: RunnerOptions, on_invalid: Literal["fail", "skip"]
    ) -> None:
        self._journal = journal
        self._options = options
        self._skip = on_invalid == "skip"
        self._tools = options.defaults.get("tools")
        self._next_index = 0
        self.listed: list[InvalidRow] = []
        self.other_models: Counter[str] = Counter()
        self.found = Intake()
        self._heads = HeadWatch(head_only=options.policy is not None)
        self.head_difference: HeadDifference | None = None

    @property
    def rows(self) -> int:
        """How many rows were found, valid or not."""
        return self._next_index

    def scan(self, number: int, items: Iterator[ScannedRow | InvalidRow]) -> _Chunk:
        """The next items of source `number`, in a worker thread; requests are measured and let go."""
        chunk = _Chunk([], {})
        found = self.found
        for item in islice(items, CHUNK_ROWS):
            index = self._next_index
            self._next_index += 1
            if isinstance(item, InvalidRow):
                chunk.invalid[index] = item
                continue
            found.limited += own_limit(item.request.params) is not None
            model = item.request.params.get("model") or self._options.model
            found.models[model if self._options.row_models == "check" else self._options.model] += 1
            if self._options.num_ctx == "auto":
                tokens = needed_tokens(item.request, self._options.max_tokens, self._tools)
                found.sizes.add(item.custom_id, tokens)
            chunk.rows.append(item.to_record(index, number))
            difference = self._heads.see(item.custom_id, item.request.messages)
            self.head_difference = self.head_difference or difference
        return chunk

    async def take(self, number: int, source: FileSource, chunk: _Chunk) -> None:
        """Journal a chunk of `source`, the `number`-th one."""
        invalid = dict(chunk.invalid)
        for row, holder in await keep_rows(self._journal, source.name, chunk.rows):
            invalid[row.index] = source.duplicate(row, holder.line)
        if not invalid:
            return
        self.found.invalid += len(invalid)
        self.other_models.update(item.message for item in invalid.values() if item.code == OTHER_MODEL)
        first = sorted(invalid)[: LISTED - len(self.listed)]
        self.listed.extend(invalid[index] for index in first)
        if self._skip:
            await record_invalid(self._journal, number, invalid)

    def refusal(self) -> InputError:
        """The error for invalid rows of which none may be skipped."""
        rows, invalid = self.rows, self.found.invalid
        message, count = next(iter(self.other_models.most_common(1)), ("", 0))
        if count < 2 or count < MOST * rows:
            what = f"{invalid} of {rows} rows are invalid; nothing was sent "
            return InputError(f'{what}(on_invalid="skip" runs the others)', self.listed, invalid)
        who = f"all {rows}" if count == rows else f"{count} of {rows}"
        listed = [row for row in self.listed if row.message != message]
        return InputError(
            f"{who} rows name {message.removeprefix('names ').partition(' (')[0]}; nothing was sent. Send "
            f'every row to {self._options.model!r} with row_models="ignore", or each '
            "to the model it names with allow_models=",
            listed,
            invalid - count,
        )


async def keep_rows(
    journal: RunJournal, name: str, rows: Sequence[RowRecord]
) -> list[tuple[RowRecord, RowRecord]]:
    """`journal.add_rows` for rows of the source `name`: which rows have an id that another has already.

    Raises JournalMismatchError, saying where, if a row is not the one that the run began with.
    """
    try:
        return await journal.add_rows(rows)
    except JournalMismatchError as error:
        if "line" not in error.differences:
            raise
        line = error.differences["line"][1]
        before, now = error.differences["custom_id"]
        what = f"(it was {before!r}, is {now!r})" if before != now else f"({now!r} has other content)"
        if name.startswith("<"):
            where, ways = f"item {line} of {name}", "give the same items, or another output"
        else:
            where, ways = f"{name} line {line}", "restore it, give another output"
        if journal.path is not None and not name.startswith("<"):
            ways += f", or overwrite=True, which keeps the old journal as {journal.path.name}.old1"
        raise JournalMismatchError(
            f"{where} has changed since this run began {what}: {ways}", error.path, error.differences
        ) from None


async def record_invalid(
    journal: RunJournal, source: int, invalid: Mapping[int, InvalidRow]
) -> list[BatchResult[Any]]:
    """Give invalid rows their place in the journal and their line in the error file; returns what is new."""
    # Not the name of the file: the same lines may come from another folder when the run is resumed.
    rows = [
        RowRecord(
            index,
            source,
            item.line,
            None,
            fingerprint(
                repr((item.code, item.field, item.custom_id, item.message)).encode("utf-8", "replace")
            ),
        )
        for index, item in invalid.items()
    ]
    await keep_rows(journal, next(iter(invalid.values())).file, rows)
    ahead = await journal.pending(after=min(invalid) - 1, limit=max(invalid) - min(invalid) + 1)
    pending = {row.index for row in ahead}
    results = [invalid_result(index, invalid[index]) for index in sorted(invalid) if index in pending]
    await asyncio.gather(*(journal.commit(encode_result(result)) for result in results))
    return results


def invalid_result(index: int, invalid: InvalidRow) -> BatchResult[Any]:
    """The failed result of a line that is no valid request."""
    return BatchResult(
        custom_id=invalid.custom_id or "",
        ok=False,
        index=index,
        error=RowError(invalid.code, str(invalid), 400, invalid.field),
    )


async def take_in(
    sources: Sequence[Source],
    journal: RunJournal,
    *,
    options: RunnerOptions,
    check: Check,
    on_invalid: Literal["fail", "skip"],
    limit: int | None = None,
    noticed: Callable[..., None],
) -> Intake:
    """Validate and journal all rows of files; streams are only noted, their rows come while running.

    On resume a file of unchanged size and time is not read again; any other is, and must hold the same
    rows. `noticed` is told of a head that differs by a few characters. Raises InputError naming what is
    invalid (nothing was sent), JournalMismatchError if the input is not the one the run began with.
    """
    streams = [source for source in sources if not isinstance(source, FileSource)]
    known = journal.get("sources")
    present = [{**_identity(source), "limit": limit} for source in sources]
    if known is not None and len(known) != len(present):
        raise JournalMismatchError(
            f"the run was begun with {len(known)} inputs, now there are {len(present)}; "
            "give the same inputs, or another output for a new run",
            None if journal.path is None else str(journal.path),
            {"inputs": (len(known), len(present))},
        )
    if streams:
        journal.put("sources", present)
        return Intake()
    if known == present:
        return _recall(journal)
    files = _FileIntake(journal, options, on_invalid)
    left = limit
    for number, source in enumerate(sources):
        assert isinstance(source, FileSource)  # noqa: S101 - streams were dealt with above
        items = source.scan(check=check)
        while True:
            before = files.rows
            some = items if left is None else islice(items, left)
            chunk = await asyncio.to_thread(files.scan, number, some)
            if files.rows == before:
                break
            left = None if left is None else left - (files.rows - before)
            await files.take(number, source, chunk)
    found = files.found
    if found.invalid and on_invalid == "fail":
        raise files.refusal()
    found.total = files.rows
    refuse_fewer(journal, found.total)
    _remember(journal, found, present)
    if files.head_difference is not None:
        noticed(HeadWatch.KIND, str(files.head_difference), **files.head_difference.data)
    return found


def refuse_fewer(journal: RunJournal, rows: int) -> None:
    """Raise JournalMismatchError if the input ended after `rows` rows and the run was begun with more."""
    before = journal.counts().rows
    if rows < before:
        raise JournalMismatchError(
            f"the run was begun with {before} rows, now there are {rows}; give the same input (and no "
            "smaller limit=), or another output for a new run",
            None if journal.path is None else str(journal.path),
            {"rows": (before, rows)},
        )


def _identity(source: Source) -> dict[str, Any]:
    if not isinstance(source, FileSource):
        return {"name": source.name}
    size, mtime_ns = source.stat()
    return {"name": source.name, "path": str(source.path), "size": size, "mtime_ns": mtime_ns}


def _remember(journal: RunJournal, found: Intake, sources: Sequence[Mapping[str, Any]]) -> None:
    told = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    journal.put("intake", {**told, "sizes": found.sizes.to_dict()})
    journal.put("sources", sources)


def _recall(journal: RunJournal) -> Intake:
    recorded = dict(journal.get("intake"))
    sizes = PromptSizes.from_dict(recorded["sizes"])
    found = Intake(**{**recorded, "models": Counter(recorded["models"]), "sizes": sizes})
    # A longer file may have been looked at in between, and been refused for its last lines.
    refuse_fewer(journal, found.total or 0)
    return found
