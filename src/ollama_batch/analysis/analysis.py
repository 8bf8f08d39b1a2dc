"""What an analysis found, and the ways to take it along."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_batch._error_groups import ErrorGroup
from ollama_batch._text import jsonable
from ollama_batch.analysis.asked import Asked
from ollama_batch.analysis.figures import Example, FieldFigures, ScoreFigures, TokenFigures
from ollama_batch.analysis.load import LoadFigures
from ollama_batch.analysis.numbers import Distribution
from ollama_batch.analysis.reading import PathLike, RunSource
from ollama_batch.analysis.tables import Table, run_table
from ollama_batch.analysis.timeline import STOP_S, Timeline

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis:
    """The results of a run in figures. `print(analysis)` shows them, notebooks show the report.

    `rows` = `ok` + `failed` are finished. `parsed` + `unparsed` = `ok`, both None where nothing was asked of
    the answers. `repaired` answers were mended by the run, `asked_again` is how often one did not fit and was
    asked for again (None: not recorded). `empty` answers have no text.
    `retried` rows took more than one of the `attempts`; None: not recorded. `trimmed` prompts were shortened,
    by `trimmed_tokens` in all. `unreadable` lines of result files were none. `models` and `finish_reasons`
    count answers. `latency` is of the last attempt of answered rows, in seconds, `answer_length` of answers
    in characters; None: not recorded. `load` is what sessions noted of memory, GPU, waits and trouble as they
    ended (None: not recorded). `examples` has the first or foremost rows by what they are examples of.

    Everything is exact and counted from the rows; what nobody recorded is None, never 0.
    """

    source: RunSource
    asked: Asked
    rows: int
    ok: int
    failed: int
    parsed: int | None
    unparsed: int | None
    repaired: int | None
    asked_again: int | None
    empty: int
    retried: int | None
    attempts: int | None
    trimmed: int
    trimmed_tokens: int
    unreadable: int
    models: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    errors: tuple[ErrorGroup, ...]
    fields: tuple[FieldFigures, ...]
    score: ScoreFigures | None
    tokens: TokenFigures
    latency: Distribution | None
    answer_length: Distribution | None
    timeline: Timeline | None
    load: LoadFigures | None = None
    examples: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What is worth knowing about the figures: what is missing and why, one sentence each."""
        return list(_notes(self))

    def field(self, path: str) -> FieldFigures:
        """The figures of one of the fields that were asked for. Raises KeyError for any other."""
        for each in self.fields:
            if each.path == path:
                return each
        raise KeyError(f"{path!r} was not asked for: analyze(..., fields=[{path!r}])")

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for `json.dumps`."""
        left_out = ("source", "asked")
        figures = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        source = self.source
        head = {
            "source": source.name,
            "kind": source.kind,
            "run_id": source.run_id,
            "state": source.state,
            "total": source.total,
        }
        plain: dict[str, Any] = jsonable({**head, **figures, "notes": self.notes})
        return plain

    def table(self) -> Table:
        """The rows as a table, read again from where they are."""
        return run_table(self.source, self.asked)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a DataFrame, in their order; holds all of them in memory.

        Columns as docs/analysis.md lists them; fields that were asked for are called `answer.PATH`. Raises
        MissingExtraError without pandas.
        """
        return self.table().to_pandas()

    def to_parquet(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the rows to a Parquet file, a few thousand at a time, whole or not at all.

        Raises MissingExtraError without pyarrow, and OutputError if `path` exists, unless `overwrite`, is a
        file that is analysed, or cannot be written.
        """
        return self.table().to_parquet(path, overwrite=overwrite)

    def to_csv(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the rows to a CSV file that a spreadsheet can open safely, whole or not at all.

        Text that a spreadsheet would take for a formula gets an apostrophe before it; `read_csv` takes it
        away again. UTF-8 with a byte order mark, so that Excel knows. Raises OutputError as `to_parquet`
        does.
        """
        return self.table().to_csv(path, overwrite=overwrite)

    def html(self) -> str:
        """The report as one HTML page that needs nothing else. Raises MissingExtraError without jinja2."""
        from ollama_batch.analysis.html import analysis_page

        return analysis_page(self)

    def to_html(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the report to a file, whole or not at all. Raises as `html` and `to_csv` do."""
        from ollama_batch.analysis.files import write_file

        text = self.html()
        return write_file(
            Path(os.fspath(path)),
            lambda file: file.write(text.encode("utf-8", "replace")),
            sources=self.source.files,
            overwrite=overwrite,
        )

    def __str__(self) -> str:
        from ollama_batch.analysis.page import as_text, show_analysis

        return as_text(lambda console: show_analysis(self, console))

    def __repr__(self) -> str:
        return f"<Analysis {self.source.name}: {self.ok} of {self.rows} rows ok, {self.failed} failed>"

    def _repr_html_(self) -> str:
        from ollama_batch.analysis.html import in_frame

        return in_frame(self)


def _notes(found: Analysis) -> Any:
    source = found.source
    if source.kind == "journal" and source.state == "running":
        yield "The run was going on while it was read: figures are of the rows that were finished then."
    if source.total is not None and source.total > found.rows:
        yield f"{source.total - found.rows:,} of {source.total:,} rows have no result yet."
    if source.absent is not None:
        yield f"{source.absent.name} is not there: no failed rows are counted from it."
    if found.unreadable:
        where = ", ".join(source.unreadable_at)
        more = ", ..." if found.unreadable > len(source.unreadable_at) else ""
        lines = "line is none" if found.unreadable == 1 else "lines are none"
        yield f"{found.unreadable:,} {lines} of a result file and left out ({where}{more})."
    for each in found.fields:
        if found.parsed and not each.present and not each.null:
            yield f"No answer has {each.path!r}: is that the path of the field?"
    score = found.score
    if found.parsed and score is not None and score.numbers is None:
        where = "" if callable(found.asked.score) else f" at {score.name!r}: is that the path of the score?"
        yield f"No answer has a {'number' if where else 'score'}{where or '.'}"
    if found.latency is None and found.ok:
        yield (
            "Latency is not recorded: result files have no place for it, the journal of a run (OUT.run.db) "
            "has it."
        )
    timeline = found.timeline
    if timeline is None and found.rows:
        yield "When rows finished is not recorded."
    elif timeline is not None and timeline.clock == "answers":
        yield (
            "When rows finished is what the answers themselves say (`created`), in whole seconds: a stop of "
            f"up to {STOP_S / 60:.0f} minutes counts as work. The journal of a run (OUT.run.db) knows better."
        )
    if timeline is not None and len(timeline.stretches) > 1:
        stops = len(timeline.stretches) - 1
        yield (
            f"The run was stopped {_times(stops)}{_told_by(timeline.clock)}; times are working time, with "
            "the stops left out."
        )
    if found.tokens.estimated:
        yield f"The tokens of {found.tokens.estimated:,} answers are estimates: their engine does not count."
    if found.tokens.earlier:
        answers = "1 answer" if found.tokens.earlier == 1 else f"{found.tokens.earlier:,} answers"
        yield (
            f"Tokens include {answers} before the last of their rows: asked for again, or of rows that "
            "were sent again."
        )
    if found.ok and found.tokens.reported and found.tokens.cached is None:
        yield "How many prompt tokens came from the engine's cache is not recorded: no answer told."
    if source.kind == "journal":
        restarts = sum(note.kind == "restart" for note in source.notes)
        if restarts:
            yield f"The engine was restarted {_times(restarts)}."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _told_by(clock: str) -> str:
    return f" (nothing was answered for more than {STOP_S / 60:.0f} minutes)" if clock == "answers" else ""
