"""Tables of candidates as CSV files, whole or not there, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from ollama_batch._new_file import new_file
from ollama_batch._sheet import cell


@contextmanager
def csv_table(path: Path, kind: type[Any], *, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """A function that writes one dataclass of that `kind` as a line; the file is there after the block.

    Raises OutputError, as `new_file` does.
    """
    columns = [each.name for each in fields(kind)]
    with new_file(path, overwrite=overwrite) as file:
        # The mark at the beginning tells spreadsheets that this is UTF-8.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(columns)

        def write(row: Any) -> None:
            table.writerow([_shown(value) for value in astuple(row)])

        try:
            yield write
        finally:
            text.detach()


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return round(value, 6)
    return cell(value) if isinstance(value, str) else value
