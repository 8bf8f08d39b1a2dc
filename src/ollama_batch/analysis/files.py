"""Files that are there whole or not at all, and never in the place of somebody else's unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from ollama_batch._new_file import new_file
from ollama_batch.errors import OutputError


def write_file(
    path: Path, write: Callable[[IO[bytes]], Any], *, sources: Iterable[Path] = (), overwrite: bool = False
) -> Path:
    """Have `write` fill a new file that only its owner can read, and give it the name `path`.

    Raises OutputError if `path` is a folder, one of `sources` or, without `overwrite`, there, and if it
    cannot be written.
    """
    if path.resolve() in {source.resolve() for source in sources}:
        raise OutputError(f"{path} is what is analysed: give another name")
    with new_file(path, overwrite=overwrite) as file:
        write(file)
    return path
