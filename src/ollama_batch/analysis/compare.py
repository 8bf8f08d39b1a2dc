"""`compare`: which answers changed between two models, prompts or modes, and how far the runs agree."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ollama_batch._text import jsonable, plain
from ollama_batch.analysis.agreement import AgreementTally, FieldAgreement, ScoreChange, ScoreTally
from ollama_batch.analysis.answers import as_label
from ollama_batch.analysis.asked import Asked, Fields, Score
from ollama_batch.analysis.labels import exact, key_of
from ollama_batch.analysis.numbers import Distribution, Numbers, distribution_of
from ollama_batch.analysis.pairs import Side, SidePair, read_pairs
from ollama_batch.analysis.reading import PathLike, Results, RunSource, open_run
from ollama_batch.analysis.tables import ANSWER, Kind, Table, as_cell_text
from ollama_batch.analysis.words import words_of

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES: Final = 40
SHOWN: Final = 400


@dataclass(frozen=True, slots=True)
class Change:
    """One row that changed: `what` names fields, "score", "ok" or "text"; `a`, `b` are what it was and is."""

    custom_id: str
    what: tuple[str, ...]
    a: str
    b: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Two runs over the same rows. `print(comparison)` shows it, notebooks show the report.

    Rows are matched by `custom_id`: `both` have one, `only_a` and `only_b` rows do not. Of those in both,
    `both_ok` have an answer in both runs, `ok_a` only in the first, `ok_b` only in the second. `same_text`
    counts answers that are equal character by character. `changed` rows differ in what was asked for, or in
    whether they are ok; where nothing was asked for, in their text. `examples` are the first of them.
    `latency_a` and `latency_b` are of the same rows: those answered in both runs whose latency both recorded
    (seconds, of the last attempt); None without any.
    """

    a: RunSource
    b: RunSource
    asked: Asked
    rows_a: int
    rows_b: int
    both: int
    only_a: int
    only_b: int
    both_ok: int
    ok_a: int
    ok_b: int
    same_text: int
    changed: int
    fields: tuple[FieldAgreement, ...]
    score: ScoreChange | None
    latency_a: Distribution | None
    latency_b: Distribution | None
    examples: tuple[Change, ...]

    @property
    def same_text_share(self) -> float | None:
        """Equal answers over those that are ok in both; None without any."""
        return self.same_text / self.both_ok if self.both_ok else None

    @property
    def notes(self) -> list[str]:
        """What is worth knowing about the figures, one sentence each."""
        return list(_notes(self))

    def field(self, path: str) -> FieldAgreement:
        """The agreement on one of the fields that were asked for. Raises KeyError for any other."""
        for each in self.fields:
            if each.path == path:
                return each
        raise KeyError(f"{path!r} was not asked for: compare(..., fields=[{path!r}])")

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for `json.dumps`."""
        left_out = ("a", "b", "asked")
        figures = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        plain: dict[str, Any] = jsonable({"a": self.a.name, "b": self.b.name, **figures, "notes": self.notes})
        for told, field in zip(plain["fields"], self.fields, strict=True):
            told["agreement"] = field.agreement
        return plain

    def changes(self) -> Table:
        """The rows that changed, side by side; both runs are read again."""
        columns: dict[str, Kind] = {"custom_id": "text", "changed": "text", "ok_a": "bool", "ok_b": "bool"}
        for path in self.asked.fields:
            columns.update({f"{ANSWER}{path}_a": "text", f"{ANSWER}{path}_b": "text"})
        if self.asked.score is not None:
            columns.update({"score_a": "float", "score_b": "float", "score_change": "float"})
        for name in ("error_code", "output"):
            columns.update({f"{name}_a": "text", f"{name}_b": "text"})
        return Table(columns, self._changed_rows, (*self.a.files, *self.b.files))

    def _changed_rows(self) -> Iterator[list[Any]]:
        for a, b in read_pairs(self.a, self.b, self.asked):
            if a is None or b is None:
                continue
            what = what_changed(a, b, self.asked)
            if not what:
                continue
            cells: list[Any] = [b.custom_id, ", ".join(what), a.ok, b.ok]
            for before, after in zip(a.values, b.values, strict=True):
                cells += [as_cell_text(before), as_cell_text(after)]
            if self.asked.score is not None:
                change = None if a.score is None or b.score is None else b.score - a.score
                cells += [a.score, b.score, change]
            yield [*cells, a.error_code, b.error_code, a.output, b.output]

    def to_pandas(self) -> pd.DataFrame:
        """The rows that changed as a DataFrame. Raises MissingExtraError without pandas."""
        return self.changes().to_pandas()

    def to_csv(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the rows that changed to a spreadsheet; as `Analysis.to_csv`."""
        return self.changes().to_csv(path, overwrite=overwrite)

    def to_parquet(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the rows that changed to a Parquet file; as `Analysis.to_parquet`."""
        return self.changes().to_parquet(path, overwrite=overwrite)

    def html(self) -> str:
        """The comparison as an HTML page that needs nothing else. Raises MissingExtraError without jinja2."""
        from ollama_batch.analysis.html import comparison_page

        return comparison_page(self)

    def to_html(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the page to a file; as `Analysis.to_html`."""
        from ollama_batch.analysis.files import write_file

        text = self.html().encode("utf-8", "replace")
        sources = (*self.a.files, *self.b.files)
        return write_file(
            Path(os.fspath(path)), lambda file: file.write(text), sources=sources, overwrite=overwrite
        )

    def __str__(self) -> str:
        from ollama_batch.analysis.page import as_text, show_comparison

        return as_text(lambda console: show_comparison(self, console))

    def __repr__(self) -> str:
        return f"<Comparison {self.a.name} -> {self.b.name}: {self.changed} of {self.both} rows changed>"

    def _repr_html_(self) -> str:
        from ollama_batch.analysis.html import in_frame

        return in_frame(self)


def compare(
    run_a: Results,
    run_b: Results,
    *,
    fields: Fields | None = None,
    score: Score | None = None,
    errors: Literal["auto"] | None = "auto",
) -> Comparison:
    """How the answers of `run_b` differ from those of `run_a`, row by row of equal `custom_id`.

    Arguments are those of `analyze`. Use it to see what another model, prompt or mode does to answers: what
    conversation mode changes, say, or leaving names out of the prompts. A model that samples (a temperature
    above 0) does not even agree with itself: compare two runs of the same settings first, to know how far.

    Raises what `analyze` raises.
    """
    asked = Asked.of(fields, score)
    a, b = open_run(run_a, errors=errors), open_run(run_b, errors=errors)
    n: Counter[str] = Counter()
    agreements = [
        AgreementTally(path, asked.order(path), words_of(a.settings, path) or words_of(b.settings, path))
        for path in asked.fields
    ]
    scores = None if asked.score_name is None else ScoreTally(asked.score_name)
    examples: list[Change] = []
    latency_a, latency_b = Numbers(), Numbers()
    for pair in read_pairs(a, b, asked):
        first, second = pair
        _count(n, pair)
        if first is None or second is None:
            continue
        if first.ok and second.ok:
            for tally, before, after in zip(agreements, first.values, second.values, strict=True):
                tally.add(before, after)
            if scores is not None:
                scores.add(first.score, second.score)
            if first.latency_s is not None and second.latency_s is not None:
                latency_a.add(first.latency_s)
                latency_b.add(second.latency_s)
        what = what_changed(first, second, asked)
        n["changed"] += bool(what)
        if what and len(examples) < EXAMPLES:
            examples.append(
                Change(second.custom_id, what, _shown(first, what, asked), _shown(second, what, asked))
            )
    return Comparison(
        a=a,
        b=b,
        asked=asked,
        rows_a=n["rows_a"],
        rows_b=n["rows_b"],
        both=n["both"],
        only_a=n["only_a"],
        only_b=n["only_b"],
        both_ok=n["both_ok"],
        ok_a=n["ok_a"],
        ok_b=n["ok_b"],
        same_text=n["same_text"],
        changed=n["changed"],
        fields=tuple(tally.figures() for tally in agreements),
        score=None if scores is None else scores.figures(),
        latency_a=distribution_of(latency_a.values),
        latency_b=distribution_of(latency_b.values),
        examples=tuple(examples),
    )


def what_changed(a: Side, b: Side, asked: Asked) -> tuple[str, ...]:
    """The names of what differs between two rows: "ok", the fields asked for, "score"; else "text"."""
    if a.ok != b.ok:
        return ("ok",)
    if not asked.anything:
        return ("text",) if a.output != b.output else ()
    names = [
        path
        for path, before, after in zip(asked.fields, a.values, b.values, strict=True)
        if _differ(before, after, asked.order(path))
    ]
    return (*names, "score") if a.score != b.score else tuple(names)


def _differ(before: Any, after: Any, order: Sequence[str] | None) -> bool:
    if before is None or after is None:
        return before is not after
    apart = exact(order)
    return key_of(before, exact=apart) != key_of(after, exact=apart)


def _count(n: Counter[str], pair: SidePair) -> None:
    a, b = pair
    n["rows_a"] += a is not None
    n["rows_b"] += b is not None
    if a is None or b is None:
        n["only_a"] += a is not None
        n["only_b"] += b is not None
        return
    n["both"] += 1
    n["both_ok"] += a.ok and b.ok
    n["ok_a"] += a.ok and not b.ok
    n["ok_b"] += b.ok and not a.ok
    n["same_text"] += a.ok and b.ok and a.output == b.output


def _shown(side: Side, what: tuple[str, ...], asked: Asked) -> str:
    if not side.ok:
        return plain(f"failed: {side.error_code}", SHOWN)
    if what in (("ok",), ("text",)):
        return plain(side.output or "", SHOWN)
    told = [
        "-" if value is None else as_label(value)
        for path, value in zip(asked.fields, side.values, strict=True)
        if path in what
    ]
    if "score" in what:
        told.append("-" if side.score is None else f"{side.score:,.10g}")
    return plain("; ".join(told), SHOWN)


def _notes(found: Comparison) -> Iterator[str]:
    if found.both == 0 and found.rows_a and found.rows_b:
        yield "The runs have no custom_id in common: they are not runs over the same rows."
    for source in (found.a, found.b):
        if source.unreadable:
            lines = "1 line is" if source.unreadable == 1 else f"{source.unreadable:,} lines are"
            yield f"{source.name}: {lines} none of a result file and left out."
    if found.both_ok and found.score is not None and not found.score.count:
        where = "" if callable(found.asked.score) else f" at {found.score.name!r}: is that its path?"
        yield f"No row has a {'number' if where else 'score'} in both runs{where or '.'}"
    for field in found.fields:
        alone = field.only_a + field.only_b
        if found.both_ok and not field.count and not alone:
            yield f"No answer has {field.path!r}: is that the path of the field?"
        if alone:
            rows = "1 row has" if alone == 1 else f"{alone:,} rows have"
            yield f"{field.path}: {rows} it in one of the runs alone, which is in none of its figures."
