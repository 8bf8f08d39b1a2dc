"""What became of a run: counts, figures, files and what to do next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from ollama_batch._error_groups import ErrorKind
from ollama_batch._summary import summary_html, summary_text
from ollama_batch._text import jsonable
from ollama_batch._usage import saved_tokens
from ollama_batch.errors import JournalError, MissingExtraError
from ollama_batch.metrics import BatchMetrics
from ollama_batch.types import BatchResult, EngineInfo, ParsedT

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Rows of a run over all its sessions: `ok` + `failed` are done, `resumed` of them in earlier sessions.

    `total` is None if the end of the input was not reached. `sent` counts the rows sent to the engine in
    this session, each once however often it was tried.
    """

    total: int | None
    ok: int
    failed: int
    resumed: int = 0
    sent: int = 0

    @property
    def done(self) -> int:
        """Rows that have a result."""
        return self.ok + self.failed

    @property
    def left(self) -> int | None:
        """Rows without a result; None if the total is unknown."""
        return None if self.total is None else self.total - self.done


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFiles:
    """Where the results of one source went; None for what was not written."""

    source: str
    output: str | None = None
    errors: str | None = None
    partial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorExample:
    """The failed rows of one error code: how many, and their most frequent message with the first three ids.

    `kinds` has each message, numbers and ids in it aside, with its count and ids, the most frequent first: of
    the first 20,000 failed rows, and 20 messages at most. `params` counts the fields of rows that the errors
    name. A row without an id is named by its line. `valid` is False for lines that were no valid requests:
    there is nothing in them that could be sent again.
    """

    code: str
    count: int
    custom_ids: Sequence[str] = ()
    message: str = ""
    valid: bool = True
    kinds: Sequence[ErrorKind] = ()
    params: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchReport(Generic[ParsedT]):
    """What became of a run. `print(report)` shows it; notebooks render it.

    `outcome` is "completed" (every row has a result), "stopped" or "interrupted", both resumable if
    `durable`; `reason` says why it did not complete, `hopeless` that it was because its first rows all failed
    alike, so that going on would help nobody. `num_ctx` is what every request carried, None where the server
    sets its own; `num_ctx_why` says what chose it where that was "auto". `max_tokens` is that of the run,
    `own_max_tokens` counts the rows that have one of their own instead. `context`: the tokens that prompt and
    answer may have together; `context_by`: whose limit that is, "num_ctx", "told" (num_ctx= was said of a
    server that sets its own: not sent, prompts are fitted to it), "trained" (the model takes no more) or
    "server". `trim` names the strategy. `lanes` is the number of conversations, `conversation_limit` that of
    their policy, None for independent rows. `counts` are of the whole run, `metrics` and `duration_s`
    (seconds) of this session. `started_at` has a time zone. `notes` are decisions and warnings, one sentence
    each. `next_steps` are the ways to go on after a stop, the first first, where the same call alone is none.
    `read_results` opens the results in input order; `results()` is the way to call it.
    """

    outcome: str
    run_id: str
    model: str
    counts: RowCounts
    metrics: BatchMetrics
    started_at: datetime
    duration_s: float
    reason: str | None = None
    hopeless: bool = False
    engine: EngineInfo | None = None
    durable: bool = False
    journal: str | None = None
    files: Sequence[SourceFiles] = ()
    concurrency: int | None = None
    num_ctx: int | None = None
    num_ctx_why: str | None = None
    max_tokens: int | None = None
    own_max_tokens: int = 0
    context: int | None = None
    context_by: str | None = None
    trim: str | None = None
    lanes: int | None = None
    conversation_limit: int | None = None
    notes: Sequence[str] = ()
    next_steps: Sequence[str] = ()
    error_examples: Sequence[ErrorExample] = ()
    read_results: Callable[[], Iterator[BatchResult[ParsedT]]] | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the run completed and every row is ok."""
        return self.outcome == "completed" and self.counts.failed == 0

    def results(self) -> Iterator[BatchResult[ParsedT]]:
        """Every result there is, in input order, read one by one.

        Raises JournalError if there is nothing to read them from: the journal was deleted or moved, or
        the report comes from another process.
        """
        if self.journal is not None and not Path(self.journal).exists():
            raise JournalError(
                f"the journal {self.journal} is gone, so this report cannot read results from it; "
                "the output file, if it was written, still has them",
                self.journal,
            )
        if self.read_results is None:
            raise JournalError(
                "this report has no results to read: they stayed in the process that ran the batch"
            )
        return self._read(self.read_results)

    def _read(self, read: Callable[[], Iterator[BatchResult[ParsedT]]]) -> Iterator[BatchResult[ParsedT]]:
        # Holds the report while it is read: a journal in memory closes with its report.
        yield from read()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the results, ready for `json.dumps`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "read_results"}
        plain: dict[str, Any] = jsonable({**fields, "started_at": self.started_at.isoformat()})
        return {**plain, "ok": self.ok}

    def to_pandas(self) -> pd.DataFrame:
        """The results as a DataFrame, one row each in input order; holds all of them in memory.

        Columns: custom_id, ok, output, parsed, reasoning, finish_reason, error_code, error_message,
        attempts, latency_s, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, lane,
        trim_why, trimmed_tokens, metadata. `trimmed_tokens` were left out of the prompt before it was sent.
        Lanes and token counts are nullable integers: not reported is `<NA>`, not 0. Raises
        MissingExtraError without pandas, and JournalError as `results()` does.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise MissingExtraError(
                "to_pandas() needs pandas: install the extra, "
                'pip install ".[report]" in the project\'s folder (or: pip install pandas)'
            ) from exc
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for result in self.results():
            for name, value in zip(_COLUMNS, _cells(result), strict=True):
                columns[name].append(value)
        frame = pd.DataFrame(columns)
        types = {name: "Int64" for name in _COLUMNS if name.endswith("_tokens") or name == "lane"}
        return frame.astype({**types, "ok": "bool", "attempts": "int64", "latency_s": "float64"})

    def __str__(self) -> str:
        return summary_text(self)

    def __repr__(self) -> str:
        counts = self.counts
        total = "?" if counts.total is None else counts.total
        rows = f"{counts.ok} of {total} rows ok, {counts.failed} failed"
        return f"<BatchReport {self.run_id} {self.outcome}: {rows}>"

    def _repr_html_(self) -> str:
        return summary_html(self)

    def __getstate__(self) -> dict[str, Any]:
        # The results stay where the run was; what reads them cannot be carried to another process.
        return {**self.__dict__, "read_results": None}


_COLUMNS = (
    "custom_id",
    "ok",
    "output",
    "parsed",
    "reasoning",
    "finish_reason",
    "error_code",
    "error_message",
    "attempts",
    "latency_s",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "lane",
    "trim_why",
    "trimmed_tokens",
    "metadata",
)


def _cells(result: BatchResult[Any]) -> tuple[Any, ...]:
    error, usage = result.error, result.usage
    return (
        result.custom_id,
        result.ok,
        result.output,
        result.parsed,
        result.reasoning,
        result.finish_reason,
        None if error is None else error.code,
        None if error is None else error.message,
        result.attempts,
        result.latency_s,
        None if usage is None else usage.prompt_tokens,
        None if usage is None else usage.completion_tokens,
        None if usage is None else usage.cached_tokens,
        None if usage is None else usage.reasoning_tokens,
        result.lane,
        None if result.trim is None else result.trim.get("why", "too_long"),
        None if result.trim is None else saved_tokens(result.trim),
        dict(result.metadata),
    )
