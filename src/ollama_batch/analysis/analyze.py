"""`analyze`: one reading of a run's rows, and everything that is said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Literal

from ollama_batch._error_groups import ErrorTally
from ollama_batch._text import duration, plain
from ollama_batch.analysis.analysis import Analysis
from ollama_batch.analysis.asked import Asked, Fields, Score
from ollama_batch.analysis.figures import Example, ScoreFigures
from ollama_batch.analysis.load import load_of_metrics, load_of_notes
from ollama_batch.analysis.numbers import Numbers, distribution_of, figure
from ollama_batch.analysis.reading import PathLike, Results, RunSource, open_run
from ollama_batch.analysis.rows import ResultRow
from ollama_batch.analysis.tally import Examples, FieldTally, Largest, TokenTally
from ollama_batch.analysis.timeline import TimelineTally
from ollama_batch.analysis.words import words_of
from ollama_batch.records import LEFT, earlier_usage

MODELS: Final = 20


def analyze(
    results: Results,
    *,
    fields: Fields | None = None,
    score: Score | None = None,
    errors: PathLike | Literal["auto"] | None = "auto",
) -> Analysis:
    """Everything that can be said about the results of a run, in one reading; takes about 100 bytes a row.

    `results`: a journal (OUT.run.db, also while its run goes on), one or more files in OpenAI's batch output
    form, ours or anybody's, or a BatchReport. `errors`: the file of the failed rows that belongs to a result
    file; "auto" takes the one beside it, if there is one. `fields`: paths in the answers whose values are
    counted, as in "recommendation" or "trajectory.rating"; with a list for each path its labels stand in that
    order. `score`: a path, or a function from the parsed answer to a number or None. Answers are parsed only
    where one of the two is asked for; a text that is no JSON object then counts as unparsed.

    Raises ConfigError for files that cannot be read and for arguments that make no sense, JournalError and
    JournalCorruptError for a journal that cannot be read.
    """
    asked = Asked.of(fields, score)
    source = open_run(results, errors=errors)
    tally = _Tally(asked, source)
    for row in source.rows():
        tally.add(row)
    for note in source.notes:
        if note.kind == LEFT:
            tally.tokens.add_earlier(earlier_usage(note.data))
    return tally.analysis(source)


class _Tally:
    def __init__(self, asked: Asked, source: RunSource) -> None:
        self._asked = asked
        self._n: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._finish: Counter[str] = Counter()
        self._fields = [
            FieldTally(path, asked.order(path), words_of(source.settings, path)) for path in asked.fields
        ]
        self._scores, self._latency, self._length = Numbers(), Numbers(), Numbers()
        self._errors, self.tokens, self._timeline = ErrorTally(), TokenTally(), TimelineTally()
        self._unparsed, self._repaired, self._empty = Examples(), Examples(), Examples()
        self._slowest, self._highest, self._lowest = Largest(), Largest(), Largest()
        self._fullest = Largest()

    def add(self, row: ResultRow) -> None:
        n = self._n
        n["rows"] += 1
        n["attempts"] += row.attempts or 0
        n["attempts_known"] += row.attempts is not None
        n["retried"] += (row.attempts or 0) > 1
        n["asked_again"] += row.asked_again
        n["trimmed"] += row.trimmed_tokens is not None
        n["trimmed_tokens"] += row.trimmed_tokens or 0
        if row.model is not None and (row.model in self._models or len(self._models) < MODELS):
            self._models[row.model] += 1
        self.tokens.add(row)
        self._timeline.add(row)
        if row.ok:
            self._answer(row)
        else:
            n["failed"] += 1
            self._errors.add(row.error_code, row.error_message, row.custom_id)

    def _answer(self, row: ResultRow) -> None:
        n, name = self._n, row.custom_id
        n["ok"] += 1
        self._finish[plain(row.finish_reason or "not told", 40)] += 1
        if row.output is not None:
            self._length.add(len(row.output))
        if not row.output:
            n["empty"] += 1
            self._empty.add(name, row.reasoning)
        if row.repaired:
            n["repaired"] += 1
            self._repaired.add(name, row.output)
        if row.latency_s is not None:
            self._latency.add(row.latency_s)
            self._slowest.add(row.latency_s, name)
        self._fullest.add(row.context_tokens, name)
        if not self._asked.anything:
            return
        answer = self._asked.parse(row)
        if answer is None:
            n["unparsed"] += 1
            self._unparsed.add(name, row.output)
            return
        n["parsed"] += 1
        for field in self._fields:
            field.add(answer)
        score = self._asked.score_of(answer, name)
        if score is not None:
            self._scores.add(score)
            self._highest.add(score, name)
            self._lowest.add(-score, name)
        elif self._asked.score is not None:
            n["no_score"] += 1

    def analysis(self, source: RunSource) -> Analysis:
        n = self._n
        timeline = self._timeline.timeline(
            "journal" if source.kind == "journal" else "answers", _memory(source)
        )
        name = self._asked.score_name
        return Analysis(
            source=source,
            asked=self._asked,
            rows=n["rows"],
            ok=n["ok"],
            failed=n["failed"],
            parsed=n["parsed"] if self._asked.anything else None,
            unparsed=n["unparsed"] if self._asked.anything else None,
            # Result files of other servers have no word for these.
            repaired=None if source.kind == "files" and not n["repaired"] else n["repaired"],
            asked_again=None if source.kind == "files" and not n["asked_again"] else n["asked_again"],
            empty=n["empty"],
            retried=n["retried"] if n["attempts_known"] else None,
            attempts=n["attempts"] if n["attempts_known"] else None,
            trimmed=n["trimmed"],
            trimmed_tokens=n["trimmed_tokens"],
            unreadable=source.unreadable,
            models=dict(self._models.most_common()),
            finish_reasons=dict(sorted(self._finish.items(), key=lambda item: (-item[1], item[0]))),
            errors=self._errors.groups(),
            fields=tuple(field.figures() for field in self._fields),
            score=None
            if name is None
            else ScoreFigures(name, n["no_score"], distribution_of(self._scores.values)),
            tokens=self.tokens.figures(),
            latency=distribution_of(self._latency.values),
            answer_length=distribution_of(self._length.values),
            timeline=timeline,
            load=load_of_notes(source.notes)
            if source.report is None
            else load_of_metrics(source.report.metrics),
            examples={
                title: found
                for title, found in (
                    ("unparsed", self._unparsed.found()),
                    ("repaired", self._repaired.found()),
                    ("empty", self._empty.found()),
                    ("slowest", _said(self._slowest, duration)),
                    ("highest score", _said(self._highest, figure)),
                    ("lowest score", _said(self._lowest, lambda value: figure(-value))),
                    ("fullest context", _said(self._fullest, lambda value: f"{value:,.0f} tokens")),
                )
                if found
            },
        )


def _said(largest: Largest, say: Any) -> tuple[Example, ...]:
    return tuple(Example(custom_id, say(value)) for custom_id, value in largest.found())


def _memory(source: RunSource) -> Iterator[tuple[float, int, int | None]]:
    """What the journal has of memory: what was noted while the run went, and what its guards decided by."""
    for note in source.notes:
        if note.kind == "memory":
            used, total = note.data.get("vram_used_bytes"), note.data.get("vram_total_bytes")
        elif note.kind == "memory_guard" and note.data.get("guard") == "vram":
            used, total = note.data.get("used_bytes"), note.data.get("total_bytes")
        else:
            continue
        if isinstance(used, int):
            yield note.at, used, total if isinstance(total, int) else None
