"""Rows as tables: DataFrame, Parquet, and CSV that is safe to open and reads back as it was."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ollama_batch._sheet import from_cell, to_cell
from ollama_batch.analysis.asked import Asked
from ollama_batch.analysis.files import write_file
from ollama_batch.analysis.reading import PathLike, RunSource
from ollama_batch.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

Kind: TypeAlias = Literal["text", "int", "float", "bool", "time"]

RUN_COLUMNS: Final[dict[str, Kind]] = {
    "custom_id": "text",
    "ok": "bool",
    "output": "text",
    "reasoning": "text",
    "finish_reason": "text",
    "error_code": "text",
    "error_message": "text",
    "attempts": "int",
    "latency_s": "float",
    "finished_at": "time",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "cached_tokens": "int",
    "reasoning_tokens": "int",
    "lane": "int",
    "trimmed_tokens": "int",
    "repaired": "bool",
    "model": "text",
}
"""The columns that every table of rows has, in their order."""

ANSWER: Final = "answer."
_PAGE: Final = 2000
_EXTRA: Final = 'install the extra, pip install ".[report]" in the project\'s folder (or: pip install {})'
_DTYPES: Final[dict[Kind, Any]] = {
    "text": "object",
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns with their kinds, and rows that can be read any number of times; `sources` are their files."""

    columns: dict[str, Kind]
    read: Callable[[], Iterable[Sequence[Any]]]
    sources: tuple[Path, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """All rows in memory; what nobody recorded is NA, NaN or NaT by the kind of the column, None in text.

        Raises MissingExtraError without pandas.
        """
        return _frame(self.columns, self.read())

    def to_csv(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write a CSV file. Raises OutputError."""

        def write(file: IO[bytes]) -> None:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
            writer = csv.writer(text)
            writer.writerow([to_cell(name) for name in self.columns])
            kinds = list(self.columns.values())
            for row in self.read():
                writer.writerow([_CELLS[kind](value) for kind, value in zip(kinds, row, strict=True)])
            text.detach()

        return write_file(Path(os.fspath(path)), write, sources=self.sources, overwrite=overwrite)

    def to_parquet(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write a Parquet file. Raises OutputError, and MissingExtraError without pyarrow."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as exc:
            raise MissingExtraError(f"to_parquet() needs pyarrow: {_EXTRA.format('pyarrow')}") from exc
        types = {
            "text": pa.string(),
            "int": pa.int64(),
            "float": pa.float64(),
            "bool": pa.bool_(),
            "time": pa.timestamp("us", "UTC"),
        }
        schema = pa.schema([(name, types[kind]) for name, kind in self.columns.items()])

        def write(file: IO[bytes]) -> None:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                rows = iter(self.read())
                while page := list(islice(rows, _PAGE)):
                    columns = [
                        pa.array(_arrow(kind, values), type=types[kind])
                        for kind, values in zip(self.columns.values(), zip(*page, strict=True), strict=True)
                    ]
                    writer.write_batch(pa.record_batch(columns, schema=schema))

        return write_file(Path(os.fspath(path)), write, sources=self.sources, overwrite=overwrite)


def run_table(source: RunSource, asked: Asked) -> Table:
    """The rows of `source`: RUN_COLUMNS, then `parsed`, `answer.PATH` and `score` as they are asked for."""
    columns = dict(RUN_COLUMNS)
    if asked.anything:
        columns["parsed"] = "bool"
    columns.update({f"{ANSWER}{path}": "text" for path in asked.fields})
    if asked.score is not None:
        columns["score"] = "float"
    return Table(columns, lambda: _run_rows(source, asked), source.files)


def _run_rows(source: RunSource, asked: Asked) -> Iterator[list[Any]]:
    for row in source.rows():
        usage = row.usage
        cells: list[Any] = [
            row.custom_id,
            row.ok,
            row.output,
            row.reasoning,
            row.finish_reason,
            row.error_code,
            row.error_message,
            row.attempts,
            row.latency_s,
            row.finished_at,
            *(
                (None, None, None, None)
                if usage is None
                else (
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    usage.cached_tokens,
                    usage.reasoning_tokens,
                )
            ),
            row.lane,
            row.trimmed_tokens,
            row.repaired,
            row.model,
        ]
        if asked.anything:
            answer = asked.parse(row)
            # A failed row has no answer that could have been parsed.
            cells.append(answer is not None if row.ok else None)
            cells += map(as_cell_text, asked.values(answer))
            if asked.score is not None:
                cells.append(asked.score_of(answer, row.custom_id))
        yield cells


def as_cell_text(value: Any) -> str | None:
    """What an answer has in a field, as text: text as it is, anything else as JSON; None for null."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def read_csv(path: PathLike) -> pd.DataFrame:
    """The table that `to_csv` wrote to `path`, equal to the `to_pandas()` of what wrote it.

    Raises ConfigError if the file cannot be read or is no such table, MissingExtraError without pandas.
    """
    try:
        with Path(os.fspath(path)).open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(2**31 - 1)  # an answer may be longer than the 128 KiB that csv expects
            rows = csv.reader(file)
            names = [from_cell(name) or "" for name in next(rows, [])]
            kinds = [kind_of(name) for name in names]
            if not names or len(set(names)) != len(names):
                raise ConfigError(f"{path} is no table that ollama-batch has written")
            found = ([_VALUES[kind](cell) for kind, cell in zip(kinds, row, strict=True)] for row in rows)
            return _frame(dict(zip(names, kinds, strict=True)), found)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, csv.Error) as error:
        raise ConfigError(f"{path} is no table that ollama-batch has written: {error}") from error


def kind_of(name: str) -> Kind:
    """The kind of a column, by its name; columns of two runs have `_a` and `_b` behind it."""
    if name.startswith((ANSWER, "changed")):
        return "text"
    base = name.removesuffix("_a").removesuffix("_b")
    return {**RUN_COLUMNS, **_OTHER_KINDS}.get(base, "text")


_OTHER_KINDS: Final[dict[str, Kind]] = {"parsed": "bool", "score": "float", "score_change": "float"}


def _frame(columns: dict[str, Kind], rows: Iterable[Sequence[Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as exc:
        raise MissingExtraError(f"a DataFrame needs pandas: {_EXTRA.format('pandas')}") from exc
    lists: list[list[Any]] = [[] for _ in columns]
    for row in rows:
        for cells, value in zip(lists, row, strict=True):
            cells.append(value)
    made = {}
    for (name, kind), cells in zip(columns.items(), lists, strict=True):
        if kind == "time":
            micros = [None if value is None else round(value * 1e6) for value in cells]
            series = pd.Series(pd.array(micros, dtype="Int64"))
            made[name] = pd.to_datetime(series, unit="us", utc=True).astype("datetime64[ns, UTC]")
        else:
            made[name] = pd.Series(cells, dtype=_DTYPES[kind])
    return pd.DataFrame(made)


def _arrow(kind: Kind, values: Sequence[Any]) -> Sequence[Any]:
    if kind == "time":
        return [None if value is None else round(value * 1e6) for value in values]
    if kind == "text":
        # What is no valid Unicode could come from a server's own error message.
        return [None if value is None else value.encode("utf-8", "replace").decode() for value in values]
    return values


def _moment(value: float | None) -> str:
    return "" if value is None else datetime.fromtimestamp(value, UTC).isoformat(timespec="microseconds")


_CELLS: Final[dict[Kind, Callable[[Any], str]]] = {
    "text": to_cell,
    "int": lambda value: "" if value is None else str(value),
    "float": lambda value: "" if value is None else repr(float(value)),
    "bool": lambda value: "" if value is None else "TRUE" if value else "FALSE",
    "time": _moment,
}
_VALUES: Final[dict[Kind, Callable[[str], Any]]] = {
    "text": from_cell,
    "int": lambda cell: int(cell) if cell else None,
    "float": lambda cell: float(cell) if cell else None,
    "bool": lambda cell: {"": None, "TRUE": True, "FALSE": False}[cell],
    "time": lambda cell: datetime.fromisoformat(cell).timestamp() if cell else None,
}
